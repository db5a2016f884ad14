/*
 * The rwp-fetch job
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Brings evicted pages back though nobody touched them.  Pages that are
 * zero need no memory: they become what memory is that was never used.
 *
 * While a page is FETCHING here, a thread that touches it waits for this
 * job.  So the job must not be held up between taking pages and putting
 * them in place: it reads like the fault service does, without queuing in
 * drained sections, and it does not pause or sleep there.  That is a piece, of
 * which none begins while somebody wants the store to be quiet.
 *
 * Locking: all coroutines run in the work thread.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qapi/error.h"
#include "events.h"
#include "job.h"
#include "place.h"
#include "scan.h"
#include "store.h"
#include "trace.h"

typedef struct FetchTask {
    AioTask task;
    RwpJob *job;
    uint64_t first;
    uint64_t count;
} FetchTask;

/* Pages that are FETCHING stay in the store */
static void put_back(RwpState *s, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        rwp_pages_finish(s->pages, first + i, RWP_PAGE_EVICTED);
    }
    /* Who touched one meanwhile waits for this */
    rwp_memory_wake(s->mem, first, count);
    rwp_state_settle_soon(s);
}

static void *buffer_get(RwpJob *job)
{
    uint64_t bytes = rwp_state_page_bytes(job->s, job->batch_pages);
    void *buf;

    if (job->buffers->len) {
        return g_ptr_array_steal_index_fast(job->buffers,
                                            job->buffers->len - 1);
    }
    buf = qemu_try_memalign(qemu_real_host_page_size(), bytes);
    if (buf) {
        qatomic_add(&job->s->stats.buffer_bytes, bytes);
    }
    return buf;
}

static void buffer_put(RwpJob *job, void *buf)
{
    if (buf) {
        g_ptr_array_add(job->buffers, buf);
    }
}

/* Returns 0 or -errno */
static int coroutine_fn fetch_piece(FetchTask *t)
{
    RwpJob *job = t->job;
    RwpState *s = job->s;
    uint64_t offset = rwp_state_page_bytes(s, t->first);
    void *buf = buffer_get(job);
    int ret = buf ? rwp_place_read(s, t->first, t->count, buf,
                                   true) : -ENOMEM;
    uint64_t placed;

    if (ret < 0) {
        rwp_job_failed_at(job, offset);
        put_back(s, t->first, t->count);
        buffer_put(job, buf);
        return ret;
    }
    /* Cycles run in this thread; none shall find pages that are not armed */
    placed = rwp_scanner_running(s->scanner) ?
             rwp_place_untouched(s, t->first, t->count, buf) :
             rwp_place_untouched_co(s, t->first, t->count, buf);
    buffer_put(job, buf);
    stat64_add(&s->stats.fetched_requested, placed);
    if (placed < t->count) {
        rwp_job_failed_at(job, offset);
        return -ENOMEM;
    }
    return 0;
}

static int coroutine_fn fetch_task(AioTask *task)
{
    FetchTask *t = container_of(task, FetchTask, task);
    int ret = fetch_piece(t);

    rwp_store_end_piece(t->job->s->store);
    return ret;
}

/*
 * Start to fetch a run of evicted pages, up to a page that somebody else
 * came to first.  A piece has begun.  Returns the number of pages.
 */
static uint64_t coroutine_fn start_task(RwpJob *job, uint64_t first,
                                        uint64_t count)
{
    RwpState *s = job->s;
    FetchTask *t;
    uint64_t claimed = 0;

    while (claimed < count &&
           rwp_pages_move(s->pages, first + claimed, RWP_PAGE_EVICTED,
                          RWP_PAGE_FETCHING)) {
        claimed++;
    }
    if (!claimed) {
        rwp_store_end_piece(s->store);
        return 0;
    }
    t = g_new0(FetchTask, 1);
    t->task.func = fetch_task;
    t->job = job;
    t->first = first;
    t->count = claimed;
    aio_task_pool_start_task(job->pool, &t->task);
    return claimed;
}

static void drop_zero_pages(RwpState *s, uint64_t first, uint64_t count)
{
    uint64_t pos = first, start, len;

    while (rwp_pages_next_run(s->pages, pos, first + count, RWP_PAGE_ZERO,
                              &start, &len)) {
        for (uint64_t i = 0; i < len; i++) {
            if (rwp_pages_move(s->pages, start + i, RWP_PAGE_ZERO,
                               RWP_PAGE_FETCHING)) {
                rwp_pages_finish(s->pages, start + i, RWP_PAGE_LIVE);
            }
        }
        rwp_memory_wake(s->mem, start, len);
        pos = start + len;
    }
}

static void coroutine_fn fetch_range(RwpJob *job, const RwpPageRange *range)
{
    RwpState *s = job->s;
    uint64_t pos = range->first;
    uint64_t end = range->first + range->count;
    uint64_t start, count;

    drop_zero_pages(s, range->first, range->count);
    while (rwp_pages_next_run(s->pages, pos, end, RWP_PAGE_EVICTED, &start,
                              &count)) {
        count = MIN(count, job->batch_pages);
        if (!rwp_job_may_go_on(job, count)) {
            return;
        }
        aio_task_pool_wait_slot(job->pool);
        if (!rwp_job_begin_piece(job)) {
            return;
        }
        count = start_task(job, start, count);
        pos = start + MAX(count, 1);
        job_progress_update(&job->common, rwp_state_page_bytes(s, count));
    }
}

static uint64_t count_evicted(RwpJob *job)
{
    uint64_t pages = 0;

    for (size_t i = 0; i < job->nb_ranges; i++) {
        uint64_t pos = job->ranges[i].first;
        uint64_t end = pos + job->ranges[i].count;
        uint64_t start, count;

        while (rwp_pages_next_run(job->s->pages, pos, end, RWP_PAGE_EVICTED,
                                  &start, &count)) {
            pages += count;
            pos = start + count;
        }
    }
    return pages;
}

static int coroutine_fn fetch_run(Job *common, Error **errp)
{
    RwpJob *job = container_of(common, RwpJob, common);
    RwpState *s = job->s;
    int ret;

    job->pool = aio_task_pool_new(RWP_JOB_PARALLEL);
    job->buffers = g_ptr_array_new_with_free_func(qemu_vfree);
    job_progress_set_remaining(&job->common,
                               rwp_state_page_bytes(s, count_evicted(job)));
    for (size_t i = 0; i < job->nb_ranges; i++) {
        fetch_range(job, &job->ranges[i]);
    }
    aio_task_pool_wait_all(job->pool);

    ret = aio_task_pool_status(job->pool);
    if (ret < 0) {
        error_setg(errp, "fetching from the store '%s' failed at offset "
                   "%" PRIu64 ": %s", rwp_store_node_name(s->store),
                   job->error_offset, rwp_event_reason(ret));
    }
    aio_task_pool_free(job->pool);
    qatomic_sub(&s->stats.buffer_bytes, job->buffers->len *
                rwp_state_page_bytes(s, job->batch_pages));
    g_ptr_array_unref(job->buffers);
    return ret;
}

static const JobDriver fetch_driver = {
    .instance_size = sizeof(RwpJob),
    .job_type = JOB_TYPE_RWP_FETCH,
    .run = fetch_run,
    .clean = rwp_job_clean,
    .free = rwp_job_free,
};

bool rwp_fetch_start(RwpState *s, const RwpEvictOptions *options,
                     Error **errp)
{
    RwpJob *job;

    GLOBAL_STATE_CODE();

    if (!rwp_state_start(s, errp)) {
        return false;
    }
    job = rwp_job_create(s, &fetch_driver, options, errp);
    if (!job) {
        rwp_state_settle(s);
        return false;
    }
    trace_rwp_fetch_start(s->id, job->nb_ranges);
    job_start(&job->common);
    return true;
}
