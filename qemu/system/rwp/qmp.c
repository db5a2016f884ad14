/*
 * QMP commands of the working set tracker
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Parse, call, format.  Everything runs in the main loop with the BQL,
 * except rwp-retry and rwp-quit, which can run out of band.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-control.h"
#include "qapi/qapi-commands-rwp.h"
#include "qom/object.h"
#include "checksum.h"
#include "evict.h"
#include "fault.h"
#include "job.h"
#include "map.h"
#include "registry.h"
#include "scan.h"
#include "state.h"
#include "store.h"

/* How long a query counts pages */
#define RESIDENT_NS (5 * SCALE_MS)

void qmp_rwp_track_start(const char *id, bool has_interval,
                         uint32_t interval, Error **errp)
{
    RwpState *s = rwp_state_find(id, errp);

    if (!s) {
        return;
    }
    if (!has_interval) {
        interval = s->default_interval;
    }
    if (interval < RWP_INTERVAL_MIN || interval > RWP_INTERVAL_MAX) {
        error_setg(errp, "Parameter 'interval' must be from %d to %d ms",
                   RWP_INTERVAL_MIN, RWP_INTERVAL_MAX);
        return;
    }
    if (s->mem->tracker->type == RWP_TRACKER_TYPE_NONE) {
        error_setg(errp, "memory-backend-rwp '%s' cannot be tracked: it was "
                   "created with tracker=none", id);
        return;
    }
    if (rwp_scanner_running(s->scanner)) {
        error_setg(errp, "memory-backend-rwp '%s' is being tracked already",
                   id);
        return;
    }
    if (!rwp_state_start(s, errp)) {
        return;
    }
    rwp_scanner_start(s->scanner, interval);
}

void qmp_rwp_track_stop(const char *id, Error **errp)
{
    RwpState *s = rwp_state_find(id, errp);

    if (!s) {
        return;
    }
    if (!rwp_scanner_running(s->scanner)) {
        error_setg(errp, "memory-backend-rwp '%s' is not being tracked", id);
        return;
    }
    rwp_state_begin(s);
    rwp_scanner_stop(s->scanner);
    rwp_state_end(s);
    rwp_state_settle(s);
}

static void fill_cycle(RwpState *s, RwpInfo *info)
{
    RwpCycleStats stats = {};

    if (rwp_scanner_ever(s->scanner)) {
        rwp_scanner_stats(s->scanner, &stats);
    }
    info->cycle = g_new0(RwpCycle, 1);
    info->cycle->completed = stats.completed;
    info->cycle->arm_ns = stats.arm_ns;
    info->cycle->scan_ns = stats.scan_ns;
    info->cycle->accessed = rwp_state_page_bytes(s, stats.accessed);
    info->hot = info->cycle->accessed;
}

static void fill_ages(RwpState *s, RwpInfo *info)
{
    uint64_t counts[RWP_AGE_MAX + 1];
    RwpAgeList **ages = &info->ages;
    RwpWorkingSetList **sets = &info->working_set;

    if (!rwp_scanner_ever(s->scanner)) {
        return;
    }
    rwp_ages_histogram(s->ages, counts);
    for (int age = 0; age <= RWP_AGE_MAX; age++) {
        if (counts[age]) {
            RwpAge *row = g_new0(RwpAge, 1);

            row->age = age;
            row->bytes = rwp_state_page_bytes(s, counts[age]);
            QAPI_LIST_APPEND(ages, row);
        }
    }
    for (int64_t cycles = 1; cycles <= MIN(info->cycle->completed,
                                           RWP_AGE_MAX); cycles *= 2) {
        RwpWorkingSet *set = g_new0(RwpWorkingSet, 1);

        set->cycles = cycles;
        set->milliseconds = cycles * info->interval;
        set->bytes = rwp_state_page_bytes(s, rwp_ages_younger(s->ages,
                                                              cycles));
        QAPI_LIST_APPEND(sets, set);
    }
}

static void fill_evict(RwpState *s, RwpInfo *info)
{
    RwpEvictStats *evict = g_new0(RwpEvictStats, 1);

    evict->pages = stat64_get(&s->stats.evicted);
    evict->zero_pages = stat64_get(&s->stats.evicted_zero);
    evict->clean_pages = stat64_get(&s->stats.evicted_clean);
    evict->cancelled = stat64_get(&s->stats.evict_cancelled);
    evict->busy = stat64_get(&s->stats.evict_busy);
    evict->huge = stat64_get(&s->stats.evict_huge);
    evict->failed = stat64_get(&s->stats.evict_failed);
    evict->bytes_written = stat64_get(&s->stats.evict_bytes);
    evict->commits = stat64_get(&s->stats.commits);
    evict->commit_max_ns = stat64_get(&s->stats.commit_max_ns);
    evict->commit_mean_ns = evict->commits ?
        stat64_get(&s->stats.commit_total_ns) / evict->commits : 0;
    info->evict = evict;
}

static void fill_fetch(RwpState *s, RwpInfo *info)
{
    RwpFetchStats *fetch = g_new0(RwpFetchStats, 1);
    RwpLatencyBucketList **rows = &fetch->latency;

    fetch->fault = stat64_get(&s->stats.fetched_fault);
    fetch->readahead = stat64_get(&s->stats.fetched_readahead);
    fetch->requested = stat64_get(&s->stats.fetched_requested);
    fetch->zero_filled = stat64_get(&s->stats.zero_filled);
    fetch->dropped = stat64_get(&s->stats.dropped);
    fetch->errors = stat64_get(&s->stats.fetch_errors);
    fetch->corrupt = stat64_get(&s->stats.fetch_corrupt);
    fetch->waiting = qatomic_read(&s->stats.fetch_waiting);
    for (int i = 0; i < RWP_LATENCY_ROWS; i++) {
        uint64_t count = stat64_get(&s->stats.latency[i]);

        if (count) {
            RwpLatencyBucket *row = g_new0(RwpLatencyBucket, 1);

            row->up_to_ns = 2LL << i;
            row->count = count;
            QAPI_LIST_APPEND(rows, row);
        }
    }
    info->fetch = fetch;
}

/* Where the content of the memory is, in bytes */
static void fill_sizes(RwpState *s, RwpInfo *info)
{
    uint64_t resident = rwp_resident_bytes(s->resident, RESIDENT_NS);

    info->size = s->mem->size;
    info->evicted = rwp_state_page_bytes(s, rwp_pages_count(s->pages,
                                                            RWP_PAGE_EVICTED));
    info->zero = rwp_state_page_bytes(s, rwp_pages_count(s->pages,
                                                         RWP_PAGE_ZERO));
    /* Pages on the move can be counted twice */
    info->resident = MIN(resident,
                         info->size - info->evicted - info->zero);
    info->untouched = info->size - info->evicted - info->zero -
                      info->resident;
    info->metadata = rwp_ages_bytes(s->ages) + rwp_pages_bytes(s->pages) +
                     rwp_pins_bytes(s->pins) + rwp_memory_nb_chunks(s->mem) *
                                               sizeof(s->mem->chunk_modes[0]);
}

/* What else is used of the host, and what bounds it */
static void fill_resources(RwpState *s, RwpInfo *info)
{
    RwpResources *r = g_new0(RwpResources, 1);
    uint64_t window = MAX(s->readahead / s->mem->page_size, 1);
    uint64_t batch = MAX(RWP_BATCH_BYTES, s->mem->page_size);
    uint64_t buffer = s->mem->pager->buffer_bytes(s->mem,
                                                  batch / s->mem->page_size);

    /* What the store has is compared if there are checksums */
    buffer += s->checksums ? batch : 0;
    r->fetches = qatomic_read(&s->stats.fetch_running);
    r->peak_fetches = stat64_get(&s->stats.fetch_peak);
    r->max_fetches = s->max_fetches;
    r->queued = qatomic_read(&s->stats.fetch_queued);
    r->buffers = qatomic_read(&s->stats.buffer_bytes);
    r->max_buffers = s->max_fetches * rwp_state_page_bytes(s, window) +
                     RWP_JOB_PARALLEL * MAX(buffer, batch);
    r->checksums = rwp_checksums_bytes(s->checksums);
    info->resources = r;
}

static void add_info(RwpState *s, void *opaque)
{
    RwpInfoList **list = opaque;
    RwpInfo *info = g_new0(RwpInfo, 1);

    info->id = g_strdup(s->id);
    info->page_size = s->mem->page_size;
    info->tracker = s->mem->tracker->type;
    info->pager = s->mem->pager->type;
    info->kernel_features = rwp_memory_feature_names(s->mem);
    info->tracking = rwp_scanner_running(s->scanner);
    info->interval = rwp_scanner_ever(s->scanner) ?
                     rwp_scanner_interval(s->scanner) : s->default_interval;
    info->store = s->store ? g_strdup(rwp_store_node_name(s->store)) : NULL;
    info->checksum = s->checksums != NULL;
    info->job = s->job ? g_strdup(s->job->id) : NULL;
    fill_sizes(s, info);
    fill_cycle(s, info);
    fill_ages(s, info);
    fill_evict(s, info);
    fill_fetch(s, info);
    fill_resources(s, info);
    QAPI_LIST_PREPEND(*list, info);
}

static void reverse(RwpInfoList **list)
{
    RwpInfoList *reversed = NULL;

    while (*list) {
        RwpInfoList *item = *list;

        *list = item->next;
        item->next = reversed;
        reversed = item;
    }
    *list = reversed;
}

RwpInfoList *qmp_query_rwp(const char *id, Error **errp)
{
    RwpInfoList *list = NULL;

    if (id) {
        RwpState *s = rwp_state_find(id, errp);

        if (s) {
            add_info(s, &list);
        }
        return list;
    }
    rwp_state_foreach(add_info, &list);
    reverse(&list);
    return list;
}

static bool can_start_job(RwpState *s, Error **errp)
{
    if (s->job) {
        error_setg(errp, "the job '%s' of memory-backend-rwp '%s' is still "
                   "running", s->job->id, s->id);
        return false;
    }
    return true;
}

static bool check_evict(RwpState *s, bool has_min_age, uint8_t min_age,
                        bool has_bytes, uint64_t bytes, bool has_ranges,
                        RwpRangeList *ranges, Error **errp)
{
    if (has_ranges && (has_min_age || has_bytes)) {
        error_setg(errp, "Parameter 'ranges' cannot be combined with '%s'",
                   has_min_age ? "min-age" : "bytes");
        return false;
    }
    if (!has_ranges && !has_min_age && !has_bytes) {
        error_setg(errp, "One of the parameters 'min-age', 'bytes' and "
                   "'ranges' is needed");
        return false;
    }
    if (has_min_age && (min_age < 1 || min_age > RWP_AGE_MAX)) {
        error_setg(errp, "Parameter 'min-age' must be from 1 to %d",
                   RWP_AGE_MAX);
        return false;
    }
    if (has_ranges && !ranges) {
        error_setg(errp, "Parameter 'ranges' must not be empty");
        return false;
    }
    if (!has_ranges && !rwp_scanner_ever(s->scanner)) {
        error_setg(errp, "the pages of memory-backend-rwp '%s' have no ages: "
                   "start detection with rwp-track-start first, or evict "
                   "explicit ranges", s->id);
        return false;
    }
    if (has_bytes && bytes < s->mem->page_size) {
        error_setg(errp, "Parameter 'bytes' must be at least a page of '%s', "
                   "%" PRIu64, s->id, s->mem->page_size);
        return false;
    }
    return true;
}

void qmp_rwp_evict(const char *job_id, const char *id, const char *target,
                   bool has_min_age, uint8_t min_age, bool has_bytes,
                   uint64_t bytes, bool has_ranges, RwpRangeList *ranges,
                   bool has_speed, uint64_t speed, bool has_auto_dismiss,
                   bool auto_dismiss, Error **errp)
{
    RwpState *s = rwp_state_find(id, errp);
    RwpEvictOptions options = {
        .job_id = job_id,
        .job_flags = auto_dismiss ? JOB_DEFAULT : JOB_MANUAL_DISMISS,
        .speed = has_speed ? speed : 0,
        .ranges = ranges,
        .min_age = has_min_age ? min_age : 1,
        .bytes = has_bytes ? bytes : UINT64_MAX,
    };

    if (!s || !can_start_job(s, errp) ||
        !check_evict(s, has_min_age, min_age, has_bytes, bytes, has_ranges,
                     ranges, errp) ||
        !rwp_ranges_check(s, ranges, errp)) {
        return;
    }
    rwp_evict_start(s, target, &options, errp);
}

void qmp_rwp_fetch(const char *job_id, const char *id, bool has_ranges,
                   RwpRangeList *ranges, bool has_speed, uint64_t speed,
                   bool has_auto_dismiss, bool auto_dismiss, Error **errp)
{
    RwpEvictOptions options = {
        .job_id = job_id,
        .job_flags = auto_dismiss ? JOB_DEFAULT : JOB_MANUAL_DISMISS,
        .speed = has_speed ? speed : 0,
        .ranges = ranges,
    };
    RwpState *s = rwp_state_find(id, errp);

    if (!s) {
        return;
    }
    if (has_ranges && !ranges) {
        error_setg(errp, "Parameter 'ranges' must not be empty");
        return;
    }
    if (can_start_job(s, errp) && rwp_ranges_check(s, ranges, errp)) {
        rwp_fetch_start(s, &options, errp);
    }
}

RwpMap *qmp_query_rwp_map(const char *id, bool has_offset, uint64_t offset,
                          bool has_length, uint64_t length, bool has_min_age,
                          uint8_t min_age, bool has_granularity,
                          uint64_t granularity, bool has_max_runs,
                          uint32_t max_runs, Error **errp)
{
    RwpState *s = rwp_state_find(id, errp);
    RwpMapOptions options = {
        .offset = has_offset ? offset : 0,
        .min_age = has_min_age ? min_age : RWP_AGE_NONE,
        .max_runs = has_max_runs ? max_runs : RWP_MAP_DEFAULT_RUNS,
    };

    if (!s) {
        return NULL;
    }
    if (has_min_age && min_age > RWP_AGE_MAX) {
        error_setg(errp, "Parameter 'min-age' must be from 0 to %d",
                   RWP_AGE_MAX);
        return NULL;
    }
    options.length = has_length ? length : s->mem->size -
                                           MIN(options.offset, s->mem->size);
    options.granularity = has_granularity ? granularity : s->mem->page_size;
    return rwp_map(s, &options, errp);
}

void qmp_rwp_retry(const char *id, Error **errp)
{
    rwp_registry_retry(id, errp);
}

void qmp_rwp_quit(Error **errp)
{
    /* Only sets a request; who carries it out if the main loop cannot: quit.c */
    qmp_quit(errp);
}
