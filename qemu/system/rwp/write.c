/*
 * Writing a batch to the store
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A page that was fetched and only read since is in the store already.  That
 * its checksum is what it was when it was written makes this likely; so the
 * store is read, and what is there compared.  Nothing else would do: not
 * the checksum, which different contents can share, and not that it was
 * written once, for the store may have lost it since.
 *
 * Invariant: a wanted page is zero, was written, or was read from the store
 * with the content that it has in the buffer.  If it changes meanwhile, it was
 * touched, and is not evicted (see stage.c).
 *
 * Locking: everything runs in the work thread, except that contents are
 * compared in a thread of its pool, while nobody else uses the batch.
 */

#include "qemu/osdep.h"
#include "qemu/memalign.h"
#include "block/thread-pool.h"
#include "events.h"
#include "store.h"
#include "trace.h"
#include "write.h"

/* Requests of one batch in flight at a time, if its pages are scattered */
#define REQUESTS_PARALLEL 8

/*
 * To read so many pages and to compare them takes less than to write them
 * along with their neighbours
 */
#define CLEAN_PAGES_MIN 16

/* One request, for the pages number [@pos, @pos + @count) of a batch */
typedef struct Request {
    AioTask task;
    RwpJob *job;
    RwpBatch *batch;
    uint64_t pos;
    uint64_t count;
    uint64_t offset;            /* in the store */
    uint64_t bytes;
    uint64_t buf_offset;        /* in a buffer of the batch */
} Request;

/* Make requests of the runs of @map; each may clear bits of its own run */
static int coroutine_fn foreach_run(RwpJob *job, RwpBatch *batch,
                                    const unsigned long *map,
                                    AioTaskFunc func)
{
    AioTaskPool *pool = aio_task_pool_new(REQUESTS_PARALLEL);
    uint64_t pos = find_first_bit(map, batch->count);
    int ret;

    while (pos < batch->count && aio_task_pool_status(pool) == 0) {
        uint64_t end = find_next_zero_bit(map, batch->count, pos);
        Request *r = g_new0(Request, 1);

        r->task.func = func;
        r->job = job;
        r->batch = batch;
        r->pos = pos;
        r->count = end - pos;
        r->offset = rwp_state_page_bytes(job->s, batch->first + pos);
        r->bytes = rwp_state_page_bytes(job->s, r->count);
        r->buf_offset = rwp_state_page_bytes(job->s, pos);
        aio_task_pool_start_task(pool, &r->task);
        pos = find_next_bit(map, batch->count, end);
    }
    aio_task_pool_wait_all(pool);
    ret = aio_task_pool_status(pool);
    aio_task_pool_free(pool);
    return ret;
}

static int coroutine_fn write_run(AioTask *task)
{
    Request *r = container_of(task, Request, task);
    RwpState *s = r->job->s;
    int ret = rwp_store_write(s->store, r->offset, r->bytes,
                              r->batch->buf + r->buf_offset);

    trace_rwp_evict_write(s->id, r->offset, r->bytes, ret);
    if (ret < 0) {
        stat64_add(&s->stats.write_errors, 1);
        rwp_job_failed_at(r->job, r->offset);
        rwp_event_store_error(s->id, rwp_store_node_name(s->store),
                              RWP_OPERATION_EVICT, r->offset, r->bytes, ret);
        return ret;
    }
    stat64_add(&s->stats.evict_bytes, r->bytes);
    return 0;
}

static int compare_worker(void *opaque)
{
    Request *r = opaque;
    uint64_t page_size = r->job->s->mem->page_size;

    for (uint64_t i = r->pos; i < r->pos + r->count; i++) {
        if (memcmp(r->batch->buf + i * page_size,
                   r->batch->stored + i * page_size, page_size)) {
            clear_bit_atomic(i, r->batch->clean);
        }
    }
    return 0;
}

static int coroutine_fn compare_run(AioTask *task)
{
    Request *r = container_of(task, Request, task);
    RwpState *s = r->job->s;
    int ret = rwp_store_read_in_piece(s->store, r->offset, r->bytes,
                                      r->batch->stored + r->buf_offset);

    trace_rwp_evict_compare(s->id, r->offset, r->bytes, ret);
    if (ret < 0) {
        /* No matter: they are written */
        bitmap_test_and_clear_atomic(r->batch->clean, r->pos, r->count);
    } else {
        thread_pool_submit_co(compare_worker, r);
    }
    return 0;
}

/* Short runs are written if their neighbours are: that is one request */
static void drop_short_runs(RwpBatch *batch, const unsigned long *map)
{
    uint64_t pos = find_first_bit(batch->clean, batch->count);

    while (pos < batch->count) {
        uint64_t end = find_next_zero_bit(batch->clean, batch->count, pos);

        if (end - pos < CLEAN_PAGES_MIN &&
            ((pos > 0 && test_bit(pos - 1, map)) ||
             (end < batch->count && test_bit(end, map)))) {
            bitmap_clear(batch->clean, pos, end - pos);
        }
        pos = find_next_bit(batch->clean, batch->count, end);
    }
}

/* Of the pages that are likely to be clean, keep those that are */
static void coroutine_fn compare_clean(RwpJob *job, RwpBatch *batch,
                                       const unsigned long *map)
{
    RwpState *s = job->s;
    uint64_t bytes = rwp_state_page_bytes(s, job->batch_pages);

    bitmap_and(batch->clean, batch->clean, map, batch->count);
    drop_short_runs(batch, map);
    if (bitmap_empty(batch->clean, batch->count)) {
        return;
    }
    if (!batch->stored) {
        batch->stored = qemu_try_memalign(qemu_real_host_page_size(), bytes);
        if (!batch->stored) {
            bitmap_zero(batch->clean, batch->count);
            return;
        }
        qatomic_add(&s->stats.buffer_bytes, bytes);
    }
    foreach_run(job, batch, batch->clean, compare_run);
}

int coroutine_fn rwp_write_batch(RwpJob *job, RwpBatch *batch)
{
    g_autofree unsigned long *map = bitmap_new(batch->count);

    bitmap_andnot(map, batch->wanted, batch->zero, batch->count);
    compare_clean(job, batch, map);
    bitmap_andnot(map, map, batch->clean, batch->count);
    return foreach_run(job, batch, map, write_run);
}

void rwp_write_done(RwpJob *job, RwpBatch *batch)
{
    if (batch->stored) {
        qatomic_sub(&job->s->stats.buffer_bytes,
                    rwp_state_page_bytes(job->s, job->batch_pages));
        qemu_vfree(batch->stored);
    }
}
