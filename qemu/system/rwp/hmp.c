/*
 * HMP commands of the working set tracker
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each calls the QMP command and prints what it returns.
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-rwp.h"
#include "qobject/qdict.h"
#include "qemu/cutils.h"
#include "qemu/module.h"

/* Runs that info rwp-map prints at most */
#define MAP_RUNS 64

static void print_size(Monitor *mon, const char *name, uint64_t bytes)
{
    g_autofree char *human = size_to_str(bytes);

    monitor_printf(mon, "  %-12s %s\n", name, human);
}

static void print_ages(Monitor *mon, RwpInfo *info)
{
    RwpAgeList *age;
    RwpWorkingSetList *set;

    if (info->ages) {
        monitor_printf(mon, "  age (cycles)  size\n");
    }
    for (age = info->ages; age; age = age->next) {
        g_autofree char *human = size_to_str(age->value->bytes);

        monitor_printf(mon, "  %12" PRId64 "  %s\n", age->value->age, human);
    }
    for (set = info->working_set; set; set = set->next) {
        g_autofree char *human = size_to_str(set->value->bytes);

        monitor_printf(mon, "  working set over %" PRId64 " cycles "
                       "(%" PRId64 " ms): %s\n", set->value->cycles,
                       set->value->milliseconds, human);
    }
}

static void print_info(Monitor *mon, RwpInfo *info)
{
    monitor_printf(mon, "%s: tracker %s, pager %s, %s, interval %" PRIu32
                   " ms, %" PRId64 " cycles\n", info->id,
                   RwpTrackerType_str(info->tracker),
                   RwpPagerType_str(info->pager),
                   info->tracking ? "tracking" : "not tracking",
                   info->interval, info->cycle->completed);
    monitor_printf(mon, "  %-12s %s\n", "store",
                   info->store ? info->store : "none");
    if (info->job) {
        monitor_printf(mon, "  %-12s %s\n", "job", info->job);
    }
    print_size(mon, "size", info->size);
    print_size(mon, "resident", info->resident);
    print_size(mon, "evicted", info->evicted);
    print_size(mon, "zero", info->zero);
    print_size(mon, "untouched", info->untouched);
    print_size(mon, "hot", info->hot);
    monitor_printf(mon, "  pages evicted %" PRId64 ", cancelled %" PRId64
                   ", busy %" PRId64 ", huge %" PRId64 ", failed %" PRId64
                   "\n",
                   info->evict->pages, info->evict->cancelled,
                   info->evict->busy, info->evict->huge,
                   info->evict->failed);
    monitor_printf(mon, "  pages fetched by fault %" PRId64 ", readahead %"
                   PRId64 ", request %" PRId64 "; errors %" PRId64
                   ", waiting %" PRId64 "\n",
                   info->fetch->fault, info->fetch->readahead,
                   info->fetch->requested, info->fetch->errors,
                   info->fetch->waiting);
    print_ages(mon, info);
}

static void info_rwp(Monitor *mon, const QDict *qdict)
{
    Error *err = NULL;
    RwpInfoList *list = qmp_query_rwp(qdict_get_try_str(qdict, "id"), &err);

    if (!hmp_handle_error(mon, err)) {
        if (!list) {
            monitor_printf(mon, "No memory-backend-rwp\n");
        }
        for (RwpInfoList *l = list; l; l = l->next) {
            print_info(mon, l->value);
        }
    }
    qapi_free_RwpInfoList(list);
}

static void info_rwp_map(Monitor *mon, const QDict *qdict)
{
    const char *id = qdict_get_try_str(qdict, "id");
    int64_t offset = qdict_get_try_int(qdict, "offset", 0);
    Error *err = NULL;
    RwpMap *map;

    if (!id) {
        monitor_printf(mon, "Use: info rwp-map ID [OFFSET]\n");
        return;
    }
    map = qmp_query_rwp_map(id, true, offset, false, 0, false, 0, false, 0,
                            true, MAP_RUNS, &err);
    if (hmp_handle_error(mon, err)) {
        return;
    }
    for (RwpRunList *l = map->runs; l; l = l->next) {
        monitor_printf(mon, "%016" PRIx64 " %16" PRIu64 " %-9s",
                       l->value->offset, l->value->length,
                       RwpPageState_str(l->value->state));
        if (l->value->has_age) {
            monitor_printf(mon, " age %" PRId64, l->value->age);
        }
        monitor_printf(mon, "\n");
    }
    if (map->has_next) {
        monitor_printf(mon, "More: info rwp-map %s %" PRIu64 "\n", id,
                       map->next);
    }
    qapi_free_RwpMap(map);
}

static void rwp_track_start(Monitor *mon, const QDict *qdict)
{
    int64_t interval = qdict_get_try_int(qdict, "interval", -1);
    Error *err = NULL;

    qmp_rwp_track_start(qdict_get_str(qdict, "id"), interval >= 0,
                        MIN(interval, UINT32_MAX), &err);
    hmp_handle_error(mon, err);
}

static void rwp_track_stop(Monitor *mon, const QDict *qdict)
{
    Error *err = NULL;

    qmp_rwp_track_stop(qdict_get_str(qdict, "id"), &err);
    hmp_handle_error(mon, err);
}

static void rwp_evict(Monitor *mon, const QDict *qdict)
{
    int64_t min_age = qdict_get_int(qdict, "min-age");
    Error *err = NULL;

    /* The QMP command says what is wrong with an age out of bounds */
    qmp_rwp_evict(qdict_get_str(qdict, "job-id"),
                  qdict_get_str(qdict, "id"),
                  qdict_get_try_str(qdict, "target"),
                  true, min_age < 0 || min_age > UINT8_MAX ? 0 : min_age,
                  false, 0, false, NULL, false, 0, true, true, &err);
    hmp_handle_error(mon, err);
}

static void rwp_fetch(Monitor *mon, const QDict *qdict)
{
    Error *err = NULL;

    qmp_rwp_fetch(qdict_get_str(qdict, "job-id"), qdict_get_str(qdict, "id"),
                  false, NULL, false, 0, true, true, &err);
    hmp_handle_error(mon, err);
}

static void rwp_retry(Monitor *mon, const QDict *qdict)
{
    Error *err = NULL;

    qmp_rwp_retry(qdict_get_try_str(qdict, "id"), &err);
    hmp_handle_error(mon, err);
}

static void register_commands(void)
{
    monitor_register_hmp("rwp", true, info_rwp);
    monitor_register_hmp("rwp-map", true, info_rwp_map);
    monitor_register_hmp("rwp_track_start", false, rwp_track_start);
    monitor_register_hmp("rwp_track_stop", false, rwp_track_stop);
    monitor_register_hmp("rwp_evict", false, rwp_evict);
    monitor_register_hmp("rwp_fetch", false, rwp_fetch);
    monitor_register_hmp("rwp_retry", false, rwp_retry);
}

type_init(register_commands)
