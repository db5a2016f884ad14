/*
 * The rwp-evict job
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Memory is gone through in windows of one batch.  Of each window, the
 * candidates are those pages that are old enough, or all that are
 * populated if ranges were given.
 *
 * If the original of a page stays in place while a copy is written (pager
 * punch), eviction has two phases:
 *
 *   stage    with nothing blocked: the pages are armed; copy, and write
 *            the copies to the store.  A copy is a guess.
 *   commit   hold; scan: pages that were touched since they were armed
 *            are given up; remove the others; release; wake.  No I/O.
 *
 * A write to the page after it was armed is either seen by the scan, or
 * comes after the beginning of the hold and then waits: so no write is
 * lost if the scan is done within the hold, the removal is done before the
 * release, and nobody else arms a page in between without looking whether
 * it was touched (rwp_scan_touched()).
 *
 * If the original is moved aside (pager move), the move is the commit.
 *
 * Memory that is mapped for DMA is neither staged nor removed: the host
 * kernel could write to it without being seen by any of this.
 *
 * All that does not wait for the store happens in one stretch without a
 * yield, and so cannot be interleaved with a cycle of the scanner or with
 * another batch, which run in the same thread.
 *
 * Locking: the job's coroutine and those of its batches run in the work
 * thread.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qapi/error.h"
#include "events.h"
#include "guard.h"
#include "inject.h"
#include "job.h"
#include "scan.h"
#include "store.h"
#include "trace.h"

/* How long to wait before looking at a page again */
#define TAKE_BACK_POLL_NS 20000

typedef struct BatchTask {
    AioTask task;
    RwpJob *job;
    RwpBatch *batch;
} BatchTask;

/* Calls @fn for runs of pages of @batch whose bit is in @map */
static void batch_foreach_run(RwpBatch *batch, const unsigned long *map,
                              RwpRunFunc *fn, void *opaque)
{
    uint64_t pos = find_first_bit(map, batch->count);

    while (pos < batch->count) {
        uint64_t end = find_next_zero_bit(map, batch->count, pos);

        fn(opaque, batch->first + pos, end - pos);
        pos = find_next_bit(map, batch->count, end);
    }
}

static void batch_free(RwpJob *job, RwpBatch *batch)
{
    if (batch->buf) {
        job->s->mem->pager->buffer_free(job->s->mem, batch->buf,
                                        job->batch_pages);
    }
    g_free(batch->wanted);
    g_free(batch->zero);
    g_free(batch);
}

static RwpBatch *batch_get(RwpJob *job, Error **errp)
{
    RwpMemory *mem = job->s->mem;
    RwpBatch *batch;

    if (job->batches->len) {
        return g_ptr_array_remove_index_fast(job->batches,
                                             job->batches->len - 1);
    }
    batch = g_new0(RwpBatch, 1);
    batch->wanted = bitmap_new(job->batch_pages);
    batch->zero = bitmap_new(job->batch_pages);
    batch->buf = mem->pager->buffer_new(mem, job->batch_pages, errp);
    if (!batch->buf) {
        batch_free(job, batch);
        return NULL;
    }
    return batch;
}

static void want_run(void *opaque, uint64_t first, uint64_t count)
{
    RwpBatch *batch = opaque;

    bitmap_set(batch->wanted, first - batch->first, count);
}

static void unwant_run(void *opaque, uint64_t first, uint64_t count)
{
    RwpBatch *batch = opaque;

    bitmap_clear(batch->wanted, first - batch->first, count);
}

/*
 * Pages of the window that are of the right age.  Evicted pages have ages
 * too.
 */
static void want_by_age(RwpJob *job, RwpBatch *batch, uint8_t min_age,
                        uint8_t max_age)
{
    RwpState *s = job->s;
    uint64_t pos = batch->first, end = batch->first + batch->count;
    uint64_t start, count;

    while (rwp_ages_next_run(s->ages, pos, end, min_age, max_age,
                             &start, &count)) {
        for (uint64_t page = start; page < start + count; page++) {
            if (rwp_pages_get(s->pages, page) == RWP_PAGE_LIVE) {
                set_bit(page - batch->first, batch->wanted);
            }
        }
        pos = start + count;
    }
}

typedef struct Rearm {
    RwpState *s;
    int ret;
} Rearm;

/* Pages that are evicted though they were touched not long ago */
static void rearm_run(void *opaque, uint64_t first, uint64_t count)
{
    Rearm *rearm = opaque;
    RwpState *s = rearm->s;
    int ret;

    if (rwp_scanner_running(s->scanner)) {
        rwp_ages_touch(s->ages, first, count);
    }
    ret = s->mem->tracker->arm(s->mem, first, count);
    if (ret < 0) {
        rearm->ret = ret;
    }
}

/*
 * Have every wanted page armed: touched ones are not wanted any more, or
 * armed again, if @force.
 */
static int arm_wanted(RwpState *s, RwpBatch *batch, bool force)
{
    Rearm rearm = { .s = s };

    return rwp_scan_touched(s, batch->first, batch->count,
                            force ? rearm_run : unwant_run,
                            force ? (void *)&rearm : batch) ?: rearm.ret;
}

/* Take ownership of the wanted pages; those that are in use are left */
static void claim(RwpState *s, RwpBatch *batch, RwpPage state)
{
    for (uint64_t i = find_first_bit(batch->wanted, batch->count);
         i < batch->count;
         i = find_next_bit(batch->wanted, batch->count, i + 1)) {
        if (!rwp_pages_move(s->pages, batch->first + i, RWP_PAGE_LIVE,
                            state)) {
            clear_bit(i, batch->wanted);
        }
    }
}

/* A claimed page cannot be taken */
static void unclaim(RwpState *s, RwpBatch *batch, uint64_t page, int err)
{
    clear_bit(page - batch->first, batch->wanted);
    trace_rwp_evict_unclaim(s->id, page, err);
    if (s->mem->pager->stays) {
        rwp_pages_move(s->pages, page, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
    } else {
        rwp_pages_finish(s->pages, page, RWP_PAGE_LIVE);
    }
    if (err != -ENOENT) {
        stat64_add(&s->stats.evict_busy, 1);
    }
}

typedef struct Take {
    RwpState *s;
    RwpBatch *batch;
} Take;

static void take_run(void *opaque, uint64_t first, uint64_t count)
{
    Take *take = opaque;
    RwpState *s = take->s;
    RwpBatch *batch = take->batch;
    bool stays = s->mem->pager->stays;

    while (count) {
        int64_t taken = s->mem->pager->take(s->mem, first, count,
            batch->buf + (first - batch->first) * s->mem->page_size);

        if (taken < 0) {
            unclaim(s, batch, first, taken);
            taken = 1;
        } else if (!stays) {
            for (int64_t i = 0; i < taken; i++) {
                rwp_pages_finish(s->pages, first + i, RWP_PAGE_STAGED);
            }
        }
        first += taken;
        count -= taken;
    }
}

static void find_zero_pages(RwpState *s, RwpBatch *batch)
{
    bitmap_zero(batch->zero, batch->count);
    for (uint64_t i = find_first_bit(batch->wanted, batch->count);
         i < batch->count;
         i = find_next_bit(batch->wanted, batch->count, i + 1)) {
        if (buffer_is_zero(batch->buf + i * s->mem->page_size,
                           s->mem->page_size)) {
            set_bit(i, batch->zero);
        }
    }
}

/* The content of the wanted pages is in the buffer after this */
static int stage(RwpJob *job, RwpBatch *batch)
{
    RwpState *s = job->s;
    RwpMemory *mem = s->mem;
    uint64_t chunk = batch->first / mem->chunk_pages;
    Take take = { .s = s, .batch = batch };
    int ret;

    ret = mem->tracker->trap(mem, chunk);
    if (ret < 0) {
        return ret;
    }
    ret = arm_wanted(s, batch, job->explicit_ranges ||
                               !rwp_scanner_running(s->scanner));
    if (ret < 0) {
        return ret;
    }
    if (rwp_guard_pinned(s, chunk)) {
        stat64_add(&s->stats.evict_busy,
                   bitmap_count_one(batch->wanted, batch->count));
        bitmap_zero(batch->wanted, batch->count);
    }
    claim(s, batch, mem->pager->stays ? RWP_PAGE_STAGED : RWP_PAGE_LEAVING);
    rwp_batch_add(&s->batches, batch);
    batch_foreach_run(batch, batch->wanted, take_run, &take);
    if (!mem->pager->stays) {
        /* Who touched a page while it was being moved waits for this */
        rwp_memory_wake(mem, batch->first, batch->count);
    }
    find_zero_pages(s, batch);
    return 0;
}

static int coroutine_fn write_batch(RwpJob *job, RwpBatch *batch)
{
    RwpState *s = job->s;
    uint64_t page_size = s->mem->page_size;
    g_autofree unsigned long *map = bitmap_new(batch->count);
    uint64_t pos;

    bitmap_andnot(map, batch->wanted, batch->zero, batch->count);
    pos = find_first_bit(map, batch->count);
    while (pos < batch->count) {
        uint64_t end = find_next_zero_bit(map, batch->count, pos);
        uint64_t offset = rwp_state_page_bytes(s, batch->first + pos);
        uint64_t bytes = rwp_state_page_bytes(s, end - pos);
        int ret = rwp_store_write(s->store, offset, bytes,
                                  batch->buf + pos * page_size);

        trace_rwp_evict_write(s->id, offset, bytes, ret);
        if (ret < 0) {
            rwp_job_failed_at(job, offset);
            rwp_event_store_error(s->id, rwp_store_node_name(s->store),
                                  RWP_OPERATION_EVICT, offset, bytes, ret);
            return ret;
        }
        stat64_add(&s->stats.evict_bytes, bytes);
        pos = find_next_bit(map, batch->count, end);
    }
    return 0;
}

static void count_evicted(RwpState *s, RwpPage state)
{
    stat64_add(&s->stats.evicted, 1);
    if (state == RWP_PAGE_ZERO) {
        stat64_add(&s->stats.evicted_zero, 1);
    }
}

static RwpPage evicted_state(RwpBatch *batch, uint64_t i)
{
    return test_bit(i, batch->zero) ? RWP_PAGE_ZERO : RWP_PAGE_EVICTED;
}

static void ignore_run(void *opaque, uint64_t first, uint64_t count)
{
}

typedef struct Remove {
    RwpState *s;
    RwpBatch *batch;
} Remove;

/* Remove pages that are LEAVING */
static void remove_run(void *opaque, uint64_t first, uint64_t count)
{
    Remove *remove = opaque;
    RwpState *s = remove->s;
    RwpBatch *batch = remove->batch;
    int ret = s->mem->pager->remove(s->mem, first, count);

    trace_rwp_evict_remove(s->id, first, count, ret);
    for (uint64_t i = 0; i < count; i++) {
        RwpPage state = ret < 0 ? RWP_PAGE_LIVE :
                        evicted_state(batch, first + i - batch->first);

        if (rwp_pages_finish(s->pages, first + i, state) == RWP_PAGE_LIVE) {
            stat64_add(&s->stats.evict_cancelled, 1);
        } else {
            count_evicted(s, state);
        }
    }
}

/* Within a hold: remove the wanted pages that were not touched */
static int remove_untouched(RwpState *s, RwpBatch *batch)
{
    Remove remove = { .s = s, .batch = batch };
    bool pinned = rwp_guard_pinned(s, batch->first / s->mem->chunk_pages);
    int ret = 0;

    if (!rwp_inject(RWP_INJECT_SKIP_RESCAN)) {
        ret = rwp_scan_touched(s, batch->first, batch->count, ignore_run,
                               NULL);
    }
    for (uint64_t i = find_first_bit(batch->wanted, batch->count);
         i < batch->count;
         i = find_next_bit(batch->wanted, batch->count, i + 1)) {
        uint64_t page = batch->first + i;

        if ((ret < 0 || pinned) &&
            rwp_pages_move(s->pages, page, RWP_PAGE_STAGED, RWP_PAGE_LIVE)) {
            stat64_add(&s->stats.evict_busy, 1);
        }
        if (!rwp_pages_move(s->pages, page, RWP_PAGE_STAGED,
                            RWP_PAGE_LEAVING)) {
            /* Touched: the scan or the fault service cancelled it */
            clear_bit(i, batch->wanted);
        }
    }
    if (rwp_inject(RWP_INJECT_EARLY_WAKE)) {
        s->mem->tracker->release(s->mem,
                                 batch->first / s->mem->chunk_pages);
        rwp_memory_wake(s->mem, batch->first, batch->count);
        g_usleep(1000);
    }
    batch_foreach_run(batch, batch->wanted, remove_run, &remove);
    return ret;
}

/* The second phase, if the original stayed in place */
static int commit(RwpState *s, RwpBatch *batch)
{
    RwpMemory *mem = s->mem;
    uint64_t chunk = batch->first / mem->chunk_pages;
    bool skip_hold = rwp_inject(RWP_INJECT_SKIP_HOLD);
    int64_t start_ns = get_clock();
    int64_t ns;
    int ret = 0, release_ret = 0;

    if (!skip_hold) {
        ret = mem->tracker->hold(mem, chunk);
        if (ret < 0) {
            return ret;
        }
    }
    ret = remove_untouched(s, batch);
    if (!skip_hold) {
        release_ret = mem->tracker->release(mem, chunk);
    }
    ns = get_clock() - start_ns;
    rwp_memory_wake(mem, batch->first, batch->count);

    stat64_add(&s->stats.commits, 1);
    stat64_add(&s->stats.commit_total_ns, ns);
    stat64_max(&s->stats.commit_max_ns, ns);
    trace_rwp_evict_commit(s->id, batch->first, batch->count, ns, ret);
    return ret < 0 ? ret : release_ret;
}

/* The store cannot be written: the staged originals stay */
static void give_up(RwpState *s, RwpBatch *batch)
{
    for (uint64_t i = find_first_bit(batch->wanted, batch->count);
         i < batch->count;
         i = find_next_bit(batch->wanted, batch->count, i + 1)) {
        if (rwp_pages_move(s->pages, batch->first + i, RWP_PAGE_STAGED,
                           RWP_PAGE_LIVE)) {
            stat64_add(&s->stats.evict_failed, 1);
        }
    }
}

/*
 * Try to end the eviction of page number @i of @batch, which was moved
 * aside.
 *
 * Returns false if that has to be tried again later: the fault service is
 * at it, or the host has no memory for giving it back.
 */
static bool end_moved_page(RwpState *s, RwpBatch *batch, uint64_t i,
                           bool written)
{
    uint64_t page = batch->first + i;
    RwpPage state = evicted_state(batch, i);
    int ret;

    switch (rwp_pages_get(s->pages, page)) {
    case RWP_PAGE_FETCHING:
        return false;
    case RWP_PAGE_STAGED:
        break;
    default:
        /* It was touched, or discarded, and is not ours any more */
        return true;
    }
    if (written) {
        if (!rwp_pages_move(s->pages, page, RWP_PAGE_STAGED, state)) {
            return false;
        }
        count_evicted(s, state);
        return true;
    }

    if (!rwp_pages_move(s->pages, page, RWP_PAGE_STAGED, RWP_PAGE_FETCHING)) {
        return false;
    }
    ret = s->mem->pager->give_back(s->mem, page,
                                   batch->buf + i * s->mem->page_size);
    trace_rwp_evict_give_back(s->id, page, ret);
    if (ret < 0 && ret != -EEXIST) {
        rwp_pages_finish(s->pages, page, RWP_PAGE_STAGED);
        return false;
    }
    rwp_pages_finish(s->pages, page, RWP_PAGE_LIVE);
    rwp_memory_wake(s->mem, page, 1);
    stat64_add(&s->stats.evict_failed, 1);
    return true;
}

/* The end of the eviction of pages that were moved aside */
static void coroutine_fn end_moved(RwpState *s, RwpBatch *batch, bool written)
{
    for (uint64_t i = find_first_bit(batch->wanted, batch->count);
         i < batch->count;
         i = find_next_bit(batch->wanted, batch->count, i + 1)) {
        while (!end_moved_page(s, batch, i, written)) {
            qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, TAKE_BACK_POLL_NS);
        }
    }
}

static int coroutine_fn batch_task(AioTask *task)
{
    BatchTask *t = container_of(task, BatchTask, task);
    RwpJob *job = t->job;
    RwpState *s = job->s;
    RwpBatch *batch = t->batch;
    int ret;

    ret = write_batch(job, batch);
    if (s->mem->pager->stays) {
        if (ret == 0) {
            ret = commit(s, batch);
        }
        if (ret < 0) {
            give_up(s, batch);
        }
    } else {
        end_moved(s, batch, ret == 0);
    }
    rwp_batch_remove(&s->batches, batch);
    s->mem->pager->buffer_reset(s->mem, batch->buf, batch->count);
    g_ptr_array_add(job->batches, batch);
    return ret;
}

/*
 * Evict the candidates of the window [@first, @first + @count).
 *
 * @pages: set to the number of candidates
 */
static int coroutine_fn evict_window(RwpJob *job, uint64_t first,
                                     uint64_t count, uint8_t min_age,
                                     uint8_t max_age, uint64_t max_pages,
                                     uint64_t *pages, Error **errp)
{
    RwpState *s = job->s;
    RwpBatch *batch;
    BatchTask *task;
    int ret = 0;

    aio_task_pool_wait_slot(job->pool);
    while (rwp_batch_overlaps(&s->batches, first, count)) {
        aio_task_pool_wait_one(job->pool);
    }
    batch = batch_get(job, errp);
    if (!batch) {
        return -ENOMEM;
    }
    batch->first = first;
    batch->count = count;
    bitmap_zero(batch->wanted, job->batch_pages);
    if (job->explicit_ranges) {
        ret = s->mem->pager->populated(s->mem, first, count, want_run, batch);
    } else {
        want_by_age(job, batch, min_age, max_age);
    }
    *pages = bitmap_count_one(batch->wanted, count);
    if (ret < 0 || !*pages) {
        g_ptr_array_add(job->batches, batch);
        return ret;
    }
    while (*pages > max_pages) {
        clear_bit(find_last_bit(batch->wanted, count), batch->wanted);
        (*pages)--;
    }

    ret = stage(job, batch);
    if (ret < 0) {
        g_ptr_array_add(job->batches, batch);
        return ret;
    }
    task = g_new0(BatchTask, 1);
    task->task.func = batch_task;
    task->job = job;
    task->batch = batch;
    aio_task_pool_start_task(job->pool, &task->task);
    return 0;
}

/*
 * Go through @range once, and evict pages with an age from @min_age to
 * @max_age, or all populated ones.
 */
static int coroutine_fn evict_range(RwpJob *job, const RwpPageRange *range,
                                    uint8_t min_age, uint8_t max_age,
                                    uint64_t *budget, Error **errp)
{
    RwpState *s = job->s;
    uint64_t pos = range->first;
    uint64_t end = range->first + range->count;

    while (pos < end && *budget) {
        uint64_t count, start, pages = 0;
        int ret;

        if (!job->explicit_ranges) {
            if (!rwp_ages_next_run(s->ages, pos, end, min_age, max_age,
                                   &start, &count)) {
                return 0;
            }
            pos = start;
        }
        /* Windows do not cross the borders of chunks */
        count = job->batch_pages - pos % job->batch_pages;
        count = MIN(count, end - pos);
        ret = evict_window(job, pos, count, min_age, max_age, *budget, &pages,
                           errp);
        if (ret < 0) {
            return ret;
        }
        pos += count;
        *budget -= pages;
        job_progress_update(&job->common, rwp_state_page_bytes(s,
                            job->explicit_ranges ? count : pages));
        if (!rwp_job_may_go_on(job, pages)) {
            return 0;
        }
    }
    return 0;
}

static int coroutine_fn evict_ranges(RwpJob *job, Error **errp)
{
    uint64_t budget = UINT64_MAX;
    uint64_t pages = 0;
    int ret = 0;

    for (size_t i = 0; i < job->nb_ranges; i++) {
        pages += job->ranges[i].count;
    }
    job_progress_set_remaining(&job->common,
                               rwp_state_page_bytes(job->s, pages));
    for (size_t i = 0; i < job->nb_ranges && ret == 0; i++) {
        ret = evict_range(job, &job->ranges[i], 0, RWP_AGE_MAX, &budget,
                          errp);
    }
    return ret;
}

/* The oldest pages first: all above the threshold, then some of that age */
static int coroutine_fn evict_by_age(RwpJob *job, Error **errp)
{
    RwpState *s = job->s;
    /* Evicted pages have ages too, and are among the oldest */
    uint64_t away = rwp_pages_away(s->pages);
    uint64_t old = rwp_ages_at_least(s->ages, job->min_age);
    uint64_t budget = MIN(old - MIN(old, away), job->max_pages);
    uint8_t threshold = rwp_ages_threshold(s->ages, budget + away,
                                           job->min_age);
    int ret = 0;

    job_progress_set_remaining(&job->common, rwp_state_page_bytes(s, budget));
    /* More pages can have come to that age when the end is reached */
    budget = job->max_pages;
    if (threshold < RWP_AGE_MAX) {
        ret = evict_range(job, &job->ranges[0], threshold + 1, RWP_AGE_MAX,
                          &budget, errp);
    }
    if (ret == 0) {
        /* Not only of that age: pages have got older meanwhile */
        ret = evict_range(job, &job->ranges[0], threshold, RWP_AGE_MAX,
                          &budget, errp);
    }
    return ret;
}

static int coroutine_fn evict_run(Job *common, Error **errp)
{
    ERRP_GUARD();
    RwpJob *job = container_of(common, RwpJob, common);
    RwpState *s = job->s;
    int ret;

    job->pool = aio_task_pool_new(RWP_JOB_PARALLEL);
    job->batches = g_ptr_array_new();

    ret = job->explicit_ranges ? evict_ranges(job, errp) :
                                 evict_by_age(job, errp);
    aio_task_pool_wait_all(job->pool);
    if (ret < 0 && !*errp) {
        error_setg_errno(errp, -ret, "memory-backend-rwp '%s': cannot evict",
                         s->id);
    }
    if (ret == 0) {
        ret = aio_task_pool_status(job->pool);
        if (ret < 0) {
            error_setg_errno(errp, -ret, "eviction to the store '%s' failed "
                             "at offset %" PRIu64, rwp_store_node_name(
                             s->store), job->error_offset);
        }
    }

    aio_task_pool_free(job->pool);
    for (guint i = 0; i < job->batches->len; i++) {
        batch_free(job, g_ptr_array_index(job->batches, i));
    }
    g_ptr_array_free(job->batches, true);
    return ret;
}

static const JobDriver evict_driver = {
    .instance_size = sizeof(RwpJob),
    .job_type = JOB_TYPE_RWP_EVICT,
    .run = evict_run,
    .clean = rwp_job_clean,
    .free = rwp_job_free,
};

bool rwp_evict_start(RwpState *s, const RwpEvictOptions *options,
                     Error **errp)
{
    RwpJob *job;

    GLOBAL_STATE_CODE();

    if (!rwp_state_start(s, errp) || !rwp_guard_enter(s, errp)) {
        rwp_state_settle(s);
        return false;
    }
    job = rwp_job_create(s, &evict_driver, options, errp);
    if (!job) {
        rwp_state_settle(s);
        return false;
    }
    trace_rwp_evict_start(s->id, job->explicit_ranges, job->min_age,
                          job->max_pages);
    job_start(&job->common);
    return true;
}
