/*
 * The rwp-evict job
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Memory is gone through in windows of one batch.  Of each window, the
 * candidates are those pages that are old enough, or all that are
 * populated if ranges were given.  They are staged, taken, written, and
 * committed (see stage.c).  Some windows are in progress at a time: while
 * one is committed, others are taken and written by other threads.
 *
 * Locking: the job's coroutine and those of its batches run in the work
 * thread.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "guard.h"
#include "inject.h"
#include "job.h"
#include "migrate.h"
#include "scan.h"
#include "stage.h"
#include "store.h"
#include "trace.h"
#include "uapi.h"
#include "write.h"

typedef struct BatchTask {
    AioTask task;
    RwpJob *job;
    RwpBatch *batch;
} BatchTask;

static void batch_free(RwpJob *job, RwpBatch *batch)
{
    RwpMemory *mem = job->s->mem;

    if (batch->buf) {
        qatomic_sub(&job->s->stats.buffer_bytes,
                    mem->pager->buffer_bytes(mem, job->batch_pages));
        mem->pager->buffer_free(mem, batch->buf, job->batch_pages);
    }
    rwp_write_done(job, batch);
    g_free(batch->wanted);
    g_free(batch->zero);
    g_free(batch->clean);
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
    batch->clean = bitmap_new(job->batch_pages);
    batch->buf = mem->pager->buffer_new(mem, job->batch_pages, errp);
    if (!batch->buf) {
        batch_free(job, batch);
        return NULL;
    }
    qatomic_add(&job->s->stats.buffer_bytes,
                mem->pager->buffer_bytes(mem, job->batch_pages));
    return batch;
}

static void want_run(void *opaque, uint64_t first, uint64_t count)
{
    RwpBatch *batch = opaque;

    bitmap_set(batch->wanted, first - batch->first, count);
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

static int coroutine_fn batch_task(AioTask *task)
{
    BatchTask *t = container_of(task, BatchTask, task);
    RwpJob *job = t->job;
    RwpState *s = job->s;
    RwpBatch *batch = t->batch;
    int ret;

    rwp_stage_take(s, batch);
    rwp_inject_co_delay(RWP_INJECT_DELAY_STAGE);
    ret = rwp_write_batch(job, batch);
    if (s->mem->pager->stays) {
        /* Now, because pages that are mapped twice take longer to remove */
        rwp_stage_put(s, batch);
        if (ret == 0) {
            rwp_stage_commit(s, batch);
        } else {
            rwp_stage_give_up(s, batch);
        }
    } else {
        rwp_stage_end_moved(s, batch, ret == 0);
    }
    rwp_stage_end(s, batch);
    if (!s->mem->pager->stays) {
        rwp_stage_put(s, batch);
    }
    g_ptr_array_add(job->batches, batch);
    rwp_store_end_piece(s->store);
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
    RwpMemory *mem = s->mem;
    RwpBatch *batch;
    BatchTask *task;
    int ret = 0;

    aio_task_pool_wait_slot(job->pool);
    while (rwp_batch_overlaps(&s->batches, first, count)) {
        aio_task_pool_wait_one(job->pool);
    }
    if (!rwp_job_begin_piece(job)) {
        return 0;
    }
    batch = batch_get(job, errp);
    if (!batch) {
        rwp_store_end_piece(s->store);
        return -ENOMEM;
    }
    batch->first = first;
    batch->count = count;
    if (mem->pager->buffer_set) {
        ret = mem->pager->buffer_set(mem, batch->buf, first, count);
        if (ret < 0) {
            error_setg_errno(errp, -ret, "cannot map pages for eviction");
            goto out;
        }
    }
    bitmap_zero(batch->wanted, job->batch_pages);
    if (job->explicit_ranges) {
        ret = mem->pager->populated(mem, first, count, want_run, batch);
    } else {
        want_by_age(job, batch, min_age, max_age);
    }
    *pages = bitmap_count_one(batch->wanted, count);
    if (ret < 0 || !*pages) {
        goto out;
    }
    while (*pages > max_pages) {
        clear_bit(find_last_bit(batch->wanted, count), batch->wanted);
        (*pages)--;
    }

    ret = rwp_stage(s, batch, job->explicit_ranges ||
                              !rwp_scanner_running(s->scanner));
    if (ret < 0) {
        goto out;
    }
    task = g_new0(BatchTask, 1);
    task->task.func = batch_task;
    task->job = job;
    task->batch = batch;
    aio_task_pool_start_task(job->pool, &task->task);
    return 0;

out:
    /* Nothing was begun */
    g_ptr_array_add(job->batches, batch);
    rwp_store_end_piece(s->store);
    return ret;
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

        if (!rwp_job_may_go_on(job, 0)) {
            return 0;
        }
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

static void evict_clean(Job *common)
{
    RwpJob *job = container_of(common, RwpJob, common);

    rwp_store_end_write(job->s->store);
    rwp_job_clean(common);
}

static const JobDriver evict_driver = {
    .instance_size = sizeof(RwpJob),
    .job_type = JOB_TYPE_RWP_EVICT,
    .run = evict_run,
    .clean = evict_clean,
    .free = rwp_job_free,
};

/* On such a kernel, zap_trap() cannot drop write protection (EBUSY) */
static bool can_trap(RwpState *s, Error **errp)
{
    if (s->mem->tracker->type == RWP_TRACKER_TYPE_ZAP &&
        (s->mem->features & UFFD_FEATURE_RWP)) {
        error_setg(errp, "memory-backend-rwp '%s': tracker=zap can only "
                   "track on this host kernel; start QEMU with tracker=auto "
                   "to evict", s->id);
        return false;
    }
    return true;
}

bool rwp_evict_start(RwpState *s, const char *target,
                     const RwpEvictOptions *options, Error **errp)
{
    RwpJob *job = NULL;

    GLOBAL_STATE_CODE();

    rwp_state_begin(s);
    /* The store last: another one is only taken if it is going to be used */
    if (can_trap(s, errp) && rwp_migrate_may_evict(s, errp) &&
        rwp_state_start(s, errp) && rwp_guard_enter(s, errp) &&
        rwp_state_need_store(s, target, errp) &&
        rwp_store_begin_write(s->store, errp)) {
        job = rwp_job_create(s, &evict_driver, options, errp);
        if (!job) {
            rwp_store_end_write(s->store);
        }
    }
    rwp_state_end(s);
    if (!job) {
        rwp_state_settle(s);
        return false;
    }
    trace_rwp_evict_start(s->id, job->explicit_ranges, job->min_age,
                          job->max_pages);
    job_start(&job->common);
    return true;
}
