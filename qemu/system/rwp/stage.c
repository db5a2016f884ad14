/*
 * The two phases of an eviction
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * If the original of a page stays in place while its content is written
 * (pager punch):
 *
 *   stage    the pages are claimed, and lose their page table entries.  Then
 *            the caller writes their content to the store.  That is a guess.
 *   commit   in windows of some pages: decide; remove the pages that nobody
 *            touched; wake.  No I/O.
 *
 * The chunk traps from before the claim to after the commit: an access to a
 * page that has no entry sends a message, whatever the tracker is.  The fault
 * service takes the page from us then (STAGED -> FETCHING -> LIVE) and maps
 * it, or lets the thread wait, if the page is about to be removed (LEAVING).
 * So a page that is STAGED at the commit was not touched since it lost its
 * entry, and what was read of it after that is its content.
 *
 * That an entry is there is no evidence of anything, and that it is gone
 * neither: the host kernel takes entries away as it likes (see tracker.h).
 * That does no harm here, because it does not put any in place without being
 * asked to: it does not map neighbours of a page in memory that is registered
 * for minor faults.  The fault service does, for pages that nobody evicts.  So
 * the entry is taken away after the page was claimed, and the content is read
 * after that.
 *
 * If the original is moved aside (pager move), the move is the commit.
 *
 * Memory that is mapped for DMA is neither staged nor removed: the host
 * kernel can write to it without any access that traps, if it looked the page
 * up before that lost its entry.  Whoever maps memory says so before, so what
 * counts is whether it is mapped after that.  (A page that was moved aside is
 * moved back then.  The kernel does not move what is pinned, but not all DMA
 * pins: some just take a reference.)
 *
 * The guest may write to what the store is being given, as it may to the
 * buffers of its own requests, so block drivers put up with it.  The page was
 * touched then, so what they made of it is never read; nor is the checksum
 * used that was taken before.
 *
 * rwp_stage() and rwp_stage_commit() are one stretch without a yield, and
 * so cannot be interleaved with a cycle of the scanner or with another
 * batch, which run in the same thread.
 *
 * Locking: everything runs in the work thread, except that content is taken
 * in threads of its pool.  Between rwp_stage() and the return of
 * rwp_stage_take() nobody else uses the batch, but the fault service, which
 * reads the content of pages that it took over.
 */

#include "qemu/osdep.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "block/thread-pool.h"
#include "checksum.h"
#include "guard.h"
#include "huge.h"
#include "inject.h"
#include "scan.h"
#include "stage.h"
#include "trace.h"

/* How long to wait before looking at a page again */
#define TAKE_BACK_POLL_NS 20000

/*
 * How long a commit window shall last, in which those wait who touch one of its
 * pages.  To remove a page takes 0.3 us; windows are made longer or shorter
 * until they fit.
 */
#define WINDOW_NS (100 * SCALE_US)
#define WINDOW_PAGES_MIN 32

/* What a function for runs of pages gets */
typedef struct RunContext {
    RwpState *s;
    RwpBatch *batch;
    int ret;
} RunContext;

/* Calls @fn for runs of wanted pages among the numbers [@pos, @end) */
static void foreach_wanted_run(RwpBatch *batch, uint64_t pos, uint64_t end,
                               RwpRunFunc *fn, void *opaque)
{
    pos = find_next_bit(batch->wanted, end, pos);
    while (pos < end) {
        uint64_t run_end = find_next_zero_bit(batch->wanted, end, pos);

        fn(opaque, batch->first + pos, run_end - pos);
        pos = find_next_bit(batch->wanted, end, run_end);
    }
}

static void unwant_run(void *opaque, uint64_t first, uint64_t count)
{
    RwpBatch *batch = opaque;

    bitmap_clear(batch->wanted, first - batch->first, count);
}

/* Pages that are evicted though they were touched not long ago */
static void forced_run(void *opaque, uint64_t first, uint64_t count)
{
    RunContext *context = opaque;
    RwpState *s = context->s;

    if (rwp_scanner_running(s->scanner)) {
        rwp_ages_touch(s->ages, first, count);
    }
    if (!s->mem->pager->stays) {
        int ret = s->mem->tracker->arm(s->mem, first, count);

        if (ret < 0) {
            context->ret = ret;
        }
    }
}

/* Pages that were touched are not wanted any more, unless @force */
static int look_at_touched(RwpState *s, RwpBatch *batch, bool force)
{
    RunContext context = { .s = s };

    return s->mem->tracker->scan(s->mem, batch->first, batch->count,
                                 force ? forced_run : unwant_run,
                                 force ? (void *)&context : batch) ?:
           context.ret;
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

static bool is_pinned(RwpState *s, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count;
         page = QEMU_ALIGN_DOWN(page, s->mem->chunk_pages) +
                s->mem->chunk_pages) {
        if (rwp_guard_pinned(s, page / s->mem->chunk_pages)) {
            return true;
        }
    }
    return false;
}

/*
 * LEAVING pages were moved aside.  If one was mapped for DMA just before, it is
 * that memory which the device writes to.  They all go back then, like they
 * came: there can be a huge page among them.
 */
static void moved_aside(RwpState *s, RwpBatch *batch, uint64_t first,
                        uint64_t count, void *buf)
{
    int64_t back = !is_pinned(s, first, count) ? 0 :
                   s->mem->pager->put_back(s->mem, first, count, buf);

    for (int64_t i = 0; i < count; i++) {
        if (i < back) {
            unclaim(s, batch, first + i, -EBUSY);
        } else {
            rwp_pages_finish(s->pages, first + i, RWP_PAGE_STAGED);
        }
    }
}

static void take_run(void *opaque, uint64_t first, uint64_t count)
{
    RunContext *context = opaque;
    RwpState *s = context->s;
    RwpBatch *batch = context->batch;
    bool stays = s->mem->pager->stays;

    while (count) {
        uint8_t *buf = batch->buf + (first - batch->first) * s->mem->page_size;
        int64_t taken = s->mem->pager->take(s->mem, first, count, buf);

        if (taken < 0) {
            int err = taken;

            /* To go on within a huge page would split it; see put_back */
            taken = stays ? 1 : rwp_huge_rest(s, first, count);
            for (int64_t i = 0; i < taken; i++) {
                unclaim(s, batch, first + i, err);
            }
        } else if (!stays) {
            moved_aside(s, batch, first, taken, buf);
        }
        first += taken;
        count -= taken;
    }
}

/*
 * Which pages are zero, and the checksums of the others.  Those with the
 * checksum that they had when they were evicted last are likely to be clean.
 */
static void look_at_content(RwpState *s, RwpBatch *batch)
{
    bitmap_zero(batch->zero, batch->count);
    bitmap_zero(batch->clean, batch->count);
    for (uint64_t i = find_first_bit(batch->wanted, batch->count);
         i < batch->count;
         i = find_next_bit(batch->wanted, batch->count, i + 1)) {
        const uint8_t *content = batch->buf + i * s->mem->page_size;

        if (buffer_is_zero(content, s->mem->page_size)) {
            set_bit(i, batch->zero);
        } else if (s->checksums &&
                   rwp_checksums_set(s->checksums, batch->first + i,
                                     content)) {
            set_bit(i, batch->clean);
        }
    }
}

static void unmap_run(void *opaque, uint64_t first, uint64_t count)
{
    RunContext *context = opaque;
    int ret = rwp_memory_unmap(context->s->mem, first, count);

    if (ret < 0) {
        context->ret = ret;
    }
}

/* Claimed pages lose their page table entries */
static int unmap_wanted(RwpState *s, RwpBatch *batch)
{
    RunContext context = { .s = s };

    if (s->mem->pager->stays && !rwp_inject(RWP_INJECT_SKIP_UNMAP)) {
        foreach_wanted_run(batch, 0, batch->count, unmap_run, &context);
    }
    return context.ret;
}

/* The originals of what is STAGED still remain; they count in @stat */
static void give_up(RwpState *s, RwpBatch *batch, Stat64 *stat)
{
    for (uint64_t i = find_first_bit(batch->wanted, batch->count);
         i < batch->count;
         i = find_next_bit(batch->wanted, batch->count, i + 1)) {
        if (rwp_pages_move(s->pages, batch->first + i, RWP_PAGE_STAGED,
                           RWP_PAGE_LIVE)) {
            stat64_add(stat, 1);
        }
    }
}

/* Give up what is mapped for DMA */
static void leave_pinned(RwpState *s, RwpBatch *batch)
{
    if (rwp_guard_pinned(s, batch->first / s->mem->chunk_pages)) {
        give_up(s, batch, &s->stats.evict_busy);
        bitmap_zero(batch->wanted, batch->count);
    }
}

/* If there is no other batch in the chunk, pages in memory need not trap */
static void relax(RwpState *s, RwpBatch *batch)
{
    RwpMemory *mem = s->mem;
    uint64_t chunk = batch->first / mem->chunk_pages;
    uint64_t count;
    uint64_t first = rwp_memory_chunk(mem, chunk, &count);

    if (mem->tracker->relax &&
        !rwp_batch_overlaps(&s->batches, first, count)) {
        int ret = mem->tracker->relax(mem, chunk);

        /* If it fails, touches cost more there until the next time */
        trace_rwp_evict_relax(s->id, chunk, ret);
    }
}

int rwp_stage(RwpState *s, RwpBatch *batch, bool force)
{
    RwpMemory *mem = s->mem;
    uint64_t chunk = batch->first / mem->chunk_pages;
    RunContext context = { .s = s, .batch = batch };
    int ret;

    ret = mem->tracker->trap(mem, chunk);
    if (ret < 0) {
        return ret;
    }
    ret = rwp_huge_keep(s, batch) ?: look_at_touched(s, batch, force);
    if (ret < 0) {
        relax(s, batch);
        return ret;
    }
    if (rwp_guard_pinned(s, chunk)) {
        stat64_add(&s->stats.evict_busy,
                   bitmap_count_one(batch->wanted, batch->count));
        bitmap_zero(batch->wanted, batch->count);
    }
    claim(s, batch, mem->pager->stays ? RWP_PAGE_STAGED : RWP_PAGE_LEAVING);
    rwp_batch_add(&s->batches, batch);
    ret = unmap_wanted(s, batch);
    if (ret < 0) {
        rwp_stage_give_up(s, batch);
        rwp_stage_end(s, batch);
        return ret;
    }
    rwp_inject_delay(RWP_INJECT_DELAY_CLAIM);
    if (mem->pager->stays) {
        leave_pinned(s, batch);
    } else {
        foreach_wanted_run(batch, 0, batch->count, take_run, &context);
        /* Who touched a page while it was being moved waits for this */
        rwp_memory_wake(mem, batch->first, batch->count);
    }
    return 0;
}

/* In a thread of the pool */
static int take_worker(void *opaque)
{
    RunContext *context = opaque;

    if (context->s->mem->pager->stays) {
        foreach_wanted_run(context->batch, 0, context->batch->count, take_run,
                           context);
    }
    look_at_content(context->s, context->batch);
    return 0;
}

void coroutine_fn rwp_stage_take(RwpState *s, RwpBatch *batch)
{
    RunContext context = { .s = s, .batch = batch };

    thread_pool_submit_co(take_worker, &context);
}

/* In a thread of the pool */
static int put_worker(void *opaque)
{
    RunContext *context = opaque;
    RwpMemory *mem = context->s->mem;

    mem->pager->buffer_reset(mem, context->batch->buf, context->batch->count);
    return 0;
}

void coroutine_fn rwp_stage_put(RwpState *s, RwpBatch *batch)
{
    RunContext context = { .s = s, .batch = batch };

    thread_pool_submit_co(put_worker, &context);
}

/* Page number @i of @batch */
static void count_evicted(RwpState *s, RwpBatch *batch, uint64_t i)
{
    stat64_add(&s->stats.evicted, 1);
    if (test_bit(i, batch->zero)) {
        stat64_add(&s->stats.evicted_zero, 1);
    } else if (test_bit(i, batch->clean)) {
        stat64_add(&s->stats.evicted_clean, 1);
    }
}

static RwpPage evicted_state(RwpBatch *batch, uint64_t i)
{
    return test_bit(i, batch->zero) ? RWP_PAGE_ZERO : RWP_PAGE_EVICTED;
}

/* The LEAVING page number @i of @batch was removed, or stays as @state says */
static void removed(RwpState *s, RwpBatch *batch, uint64_t i, RwpPage state)
{
    if (rwp_pages_finish(s->pages, batch->first + i, state) ==
        RWP_PAGE_LIVE) {
        stat64_add(&s->stats.evict_cancelled, 1);
    } else {
        count_evicted(s, batch, i);
    }
}

/* Remove pages that are LEAVING */
static void remove_run(void *opaque, uint64_t first, uint64_t count)
{
    RunContext *context = opaque;
    RwpState *s = context->s;
    RwpBatch *batch = context->batch;
    uint64_t pos = first - batch->first;
    uint64_t end = pos + count;

    while (pos < end) {
        int64_t ret = s->mem->pager->remove(s->mem, batch->first + pos,
                                            end - pos);
        uint64_t gone = ret < 0 ? end : pos + ret;

        trace_rwp_evict_remove(s->id, batch->first + pos, end - pos, ret);
        for (; pos < gone; pos++) {
            removed(s, batch, pos, ret < 0 ? RWP_PAGE_LIVE :
                                             evicted_state(batch, pos));
        }
        if (pos < end) {
            /* Still there, but without its content: as if it were away */
            trace_rwp_evict_left(s->id, batch->first + pos);
            set_bit(batch->first / s->mem->chunk_pages, s->mem->left);
            removed(s, batch, pos, evicted_state(batch, pos));
            pos++;
        }
    }
}

/* Let accesses to pages that are LEAVING proceed, which must not be */
static void admit_run(void *opaque, uint64_t first, uint64_t count)
{
    RwpMemory *mem = opaque;

    for (uint64_t page = first; page < first + count; page++) {
        mem->tracker->admit(mem, page);
    }
}

/* Remove the wanted pages among the numbers [@pos, @end) */
static void remove_untouched(RwpState *s, RwpBatch *batch, uint64_t pos,
                             uint64_t end)
{
    RunContext context = { .s = s, .batch = batch };
    bool pinned = rwp_guard_pinned(s, batch->first / s->mem->chunk_pages);

    for (uint64_t i = find_next_bit(batch->wanted, end, pos); i < end;
         i = find_next_bit(batch->wanted, end, i + 1)) {
        uint64_t page = batch->first + i;

        if (pinned &&
            rwp_pages_move(s->pages, page, RWP_PAGE_STAGED, RWP_PAGE_LIVE)) {
            stat64_add(&s->stats.evict_busy, 1);
        }
        if (!rwp_pages_move(s->pages, page, RWP_PAGE_STAGED,
                            RWP_PAGE_LEAVING)) {
            /* Touched: the fault service has it */
            clear_bit(i, batch->wanted);
        }
    }
    if (rwp_inject(RWP_INJECT_EARLY_WAKE)) {
        foreach_wanted_run(batch, pos, end, admit_run, s->mem);
    }
    rwp_inject_delay(RWP_INJECT_DELAY_PUNCH);
    foreach_wanted_run(batch, pos, end, remove_run, &context);
}

/* One commit window, for the pages number [@pos, @end) of @batch */
static void commit_window(RwpState *s, RwpBatch *batch, uint64_t pos,
                          uint64_t end)
{
    int64_t start_ns = get_clock();
    int64_t ns;

    remove_untouched(s, batch, pos, end);
    ns = get_clock() - start_ns;
    rwp_inject_delay(RWP_INJECT_DELAY_WAKE);
    rwp_memory_wake(s->mem, batch->first + pos, end - pos);

    if (ns > WINDOW_NS) {
        s->window_pages = MAX(s->window_pages / 2, WINDOW_PAGES_MIN);
    } else {
        s->window_pages += s->window_pages / 8;
    }
    stat64_add(&s->stats.commits, 1);
    stat64_add(&s->stats.commit_total_ns, ns);
    stat64_max(&s->stats.commit_max_ns, ns);
    trace_rwp_evict_commit(s->id, batch->first + pos, end - pos, ns);
}

void rwp_stage_commit(RwpState *s, RwpBatch *batch)
{
    uint64_t pos = find_first_bit(batch->wanted, batch->count);

    if (rwp_inject(RWP_INJECT_RECLAIM)) {
        rwp_memory_unmap(s->mem, batch->first, batch->count);
    }
    while (pos < batch->count) {
        uint64_t end;

        s->window_pages = MIN(MAX(s->window_pages, WINDOW_PAGES_MIN),
                              RWP_BATCH_BYTES / qemu_real_host_page_size());
        end = MIN(pos + s->window_pages, batch->count);
        commit_window(s, batch, pos, end);
        pos = find_next_bit(batch->wanted, batch->count, end);
    }
}

void rwp_stage_give_up(RwpState *s, RwpBatch *batch)
{
    give_up(s, batch, &s->stats.evict_failed);
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
        count_evicted(s, batch, i);
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
        /* Who touched it tries again, for it may have been discarded */
        rwp_memory_wake(s->mem, page, 1);
        return false;
    }
    rwp_pages_finish(s->pages, page, RWP_PAGE_LIVE);
    rwp_memory_wake(s->mem, page, 1);
    stat64_add(&s->stats.evict_failed, 1);
    return true;
}

void coroutine_fn rwp_stage_end_moved(RwpState *s, RwpBatch *batch,
                                      bool written)
{
    for (uint64_t i = find_first_bit(batch->wanted, batch->count);
         i < batch->count;
         i = find_next_bit(batch->wanted, batch->count, i + 1)) {
        while (!end_moved_page(s, batch, i, written)) {
            qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, TAKE_BACK_POLL_NS);
        }
    }
}

void rwp_stage_end(RwpState *s, RwpBatch *batch)
{
    rwp_batch_remove(&s->batches, batch);
    relax(s, batch);
}
