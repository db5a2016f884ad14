/*
 * Statistics of the working set tracker for query-stats
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The provider "rwp" has one result, for the target vm: the sums over all
 * backends, and none if there is no backend.  That is what libvirt
 * understands, which looks a statistic up by its bare name: hence names
 * that no other provider uses, no result per object, and no histogram.
 *
 * Cumulative figures never fall: what a backend counted is kept when it is
 * removed.
 *
 * Locking: everything here runs in the main loop with the BQL.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-rwp.h"
#include "system/kvm.h"
#include "system/rwp-stats.h"
#include "system/stats.h"
#include "state.h"

/* The window of rwp-working-set, in ms; see docs of the statistic */
#define WORKING_SET_MS 60000

/* One statistic: either a counter of RwpStats, or from RwpInfo */
typedef struct Figure {
    const char *name;
    StatsType type;
    bool has_unit;
    StatsUnit unit;
    int8_t exponent;            /* of 10 */
    size_t counter;             /* offset of a Stat64 in RwpStats */
    uint64_t (*get)(const RwpInfo *info);   /* if it is no counter */
} Figure;

static uint64_t get_one(const RwpInfo *info)
{
    return 1;
}

static uint64_t get_tracking(const RwpInfo *info)
{
    return info->tracking;
}

static uint64_t get_size(const RwpInfo *info)
{
    return info->size;
}

static uint64_t get_resident(const RwpInfo *info)
{
    return info->resident;
}

static uint64_t get_evicted(const RwpInfo *info)
{
    return info->evicted;
}

static uint64_t get_zero(const RwpInfo *info)
{
    return info->zero;
}

static uint64_t get_untouched(const RwpInfo *info)
{
    return info->untouched;
}

static uint64_t get_hot(const RwpInfo *info)
{
    return info->hot;
}

/*
 * A window of time, not of cycles, so that it can be summed up over
 * backends of different intervals: rounded up to whole cycles, and as long
 * as cycles were completed and ages reach.
 */
static uint64_t get_working_set(const RwpInfo *info)
{
    int64_t cycles = DIV_ROUND_UP(WORKING_SET_MS, info->interval);
    uint64_t bytes = 0;

    cycles = MIN(cycles, MIN(info->cycle->completed, RWP_AGE_MAX));
    for (RwpAgeList *row = info->ages; row; row = row->next) {
        if (row->value->age < cycles) {
            bytes += row->value->bytes;
        }
    }
    return bytes;
}

static uint64_t get_metadata(const RwpInfo *info)
{
    return info->metadata;
}

static uint64_t get_waiting(const RwpInfo *info)
{
    return info->fetch->waiting;
}

#define BYTES .has_unit = true, .unit = STATS_UNIT_BYTES
#define NANOSECONDS .has_unit = true, .unit = STATS_UNIT_SECONDS, \
                    .exponent = -9
#define INSTANT(function) .type = STATS_TYPE_INSTANT, .get = function
#define CUMULATIVE(field) .type = STATS_TYPE_CUMULATIVE, \
                          .counter = offsetof(RwpStats, field)
#define PEAK(field) .type = STATS_TYPE_PEAK, \
                    .counter = offsetof(RwpStats, field)

static const Figure figures[] = {
    { "rwp-backends", INSTANT(get_one) },
    { "rwp-tracking", INSTANT(get_tracking) },
    { "rwp-size", INSTANT(get_size), BYTES },
    { "rwp-resident", INSTANT(get_resident), BYTES },
    { "rwp-evicted", INSTANT(get_evicted), BYTES },
    { "rwp-zero", INSTANT(get_zero), BYTES },
    { "rwp-untouched", INSTANT(get_untouched), BYTES },
    { "rwp-hot", INSTANT(get_hot), BYTES },
    { "rwp-working-set", INSTANT(get_working_set), BYTES },
    { "rwp-metadata", INSTANT(get_metadata), BYTES },
    { "rwp-evict-pages", CUMULATIVE(evicted) },
    { "rwp-evict-zero-pages", CUMULATIVE(evicted_zero) },
    { "rwp-evict-clean-pages", CUMULATIVE(evicted_clean) },
    { "rwp-evict-cancelled", CUMULATIVE(evict_cancelled) },
    { "rwp-evict-busy", CUMULATIVE(evict_busy) },
    { "rwp-evict-huge", CUMULATIVE(evict_huge) },
    { "rwp-evict-failed", CUMULATIVE(evict_failed) },
    { "rwp-evict-bytes", CUMULATIVE(evict_bytes), BYTES },
    { "rwp-evict-commits", CUMULATIVE(commits) },
    { "rwp-evict-commit-time", CUMULATIVE(commit_total_ns), NANOSECONDS },
    { "rwp-evict-commit-max", PEAK(commit_max_ns), NANOSECONDS },
    { "rwp-fetch-fault", CUMULATIVE(fetched_fault) },
    { "rwp-fetch-readahead", CUMULATIVE(fetched_readahead) },
    { "rwp-fetch-requested", CUMULATIVE(fetched_requested) },
    { "rwp-fetch-zero-filled", CUMULATIVE(zero_filled) },
    { "rwp-fetch-dropped", CUMULATIVE(dropped) },
    { "rwp-fetch-waiting", INSTANT(get_waiting) },
    { "rwp-store-read-errors", CUMULATIVE(fetch_errors) },
    { "rwp-store-write-errors", CUMULATIVE(write_errors) },
};

/* Counters of backends that were removed */
static uint64_t retired[ARRAY_SIZE(figures)];

static void count(const Figure *figure, uint64_t value, uint64_t *sum)
{
    if (figure->type == STATS_TYPE_PEAK) {
        *sum = MAX(*sum, value);
    } else {
        *sum += value;
    }
}

static void add_counters(RwpState *s, void *opaque)
{
    uint64_t *sums = opaque;

    for (size_t i = 0; i < ARRAY_SIZE(figures); i++) {
        if (!figures[i].get) {
            count(&figures[i], stat64_get((void *)&s->stats +
                                          figures[i].counter), &sums[i]);
        }
    }
}

void rwp_stats_retire(RwpState *s)
{
    GLOBAL_STATE_CODE();

    if (s) {
        add_counters(s, retired);
    }
}

static void add_instants(const RwpInfo *info, uint64_t *sums)
{
    for (size_t i = 0; i < ARRAY_SIZE(figures); i++) {
        if (figures[i].get) {
            count(&figures[i], figures[i].get(info), &sums[i]);
        }
    }
}

bool rwp_stats_unasked(StatsProvider provider)
{
    return provider != STATS_PROVIDER_RWP || !kvm_enabled();
}

static void query(StatsResultList **result, StatsTarget target,
                  strList *names, strList *targets, Error **errp)
{
    g_autoptr(RwpInfoList) infos = NULL;
    uint64_t sums[ARRAY_SIZE(figures)];
    StatsList *list = NULL;

    if (target != STATS_TARGET_VM) {
        return;
    }
    infos = qmp_query_rwp(NULL, errp);
    if (!infos) {
        return;
    }
    memcpy(sums, retired, sizeof(sums));
    rwp_state_foreach(add_counters, sums);
    for (RwpInfoList *info = infos; info; info = info->next) {
        add_instants(info->value, sums);
    }

    for (int i = ARRAY_SIZE(figures) - 1; i >= 0; i--) {
        if (apply_str_list_filter(figures[i].name, names)) {
            Stats *stats = g_new0(Stats, 1);

            stats->name = g_strdup(figures[i].name);
            stats->value = g_new0(StatsValue, 1);
            stats->value->type = QTYPE_QNUM;
            stats->value->u.scalar = sums[i];
            QAPI_LIST_PREPEND(list, stats);
        }
    }
    if (list) {
        add_stats_entry(result, STATS_PROVIDER_RWP, NULL, list);
    }
}

/* The same whether there is a backend or not: libvirt reads it once */
static void query_schemas(StatsSchemaList **result, Error **errp)
{
    StatsSchemaValueList *list = NULL;

    for (int i = ARRAY_SIZE(figures) - 1; i >= 0; i--) {
        StatsSchemaValue *value = g_new0(StatsSchemaValue, 1);

        value->name = g_strdup(figures[i].name);
        value->type = figures[i].type;
        value->has_unit = figures[i].has_unit;
        value->unit = figures[i].unit;
        value->exponent = figures[i].exponent;
        value->has_base = figures[i].exponent != 0;
        value->base = value->has_base ? 10 : 0;
        QAPI_LIST_PREPEND(list, value);
    }
    add_stats_schema(result, STATS_PROVIDER_RWP, STATS_TARGET_VM, list);
}

static void stats_init(void)
{
    add_stats_callbacks(STATS_PROVIDER_RWP, query, query_schemas);
}

type_init(stats_init);
