/*
 * The content of evicted pages, for who reads all of the memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A migration goes through all of the memory in ascending order, several
 * times.  Pages that are away are read from the store to a buffer, and some
 * that follow as well; no page changes its state by that.
 *
 * What is in the buffer is the content of a page as long as the page is
 * EVICTED, because what is in the store only changes by an eviction, and
 * there is none meanwhile.  So the state is looked at before the content is
 * used, each time, and a page that is not EVICTED any more is left to the
 * mapping.  The buffer survives the end of a migration, so it remembers how
 * many evictions there had been.
 *
 * If the page comes back and is written right after that look, the copy is
 * old.  That is no different from a page in memory, written right after it
 * was read: the caller has cleared its dirty bit before, and dirty logging
 * sees the write, whoever made the page resident.
 *
 * The thread that reads is no coroutine and may hold the BQL.  It has the
 * fault thread read, which depends on neither.
 *
 * Locking: RwpPeek belongs to the one thread that looks at pages, except
 * @readers, which is atomic.  It is raised before the state of a page is
 * looked at; the main loop looks at it after it has seen that no page is
 * away.  So either the main loop sees the reader, or the reader sees that
 * the page is not EVICTED.
 */

#include "qemu/osdep.h"
#include "qemu/coroutine.h"
#include "qemu/memalign.h"
#include "qemu/thread.h"
#include "block/aio.h"
#include "events.h"
#include "fault.h"
#include "peek.h"
#include "place.h"
#include "store.h"
#include "trace.h"

/* Read at a time, at least one page */
#define PEEK_BYTES (256 * 1024)

struct RwpPeek {
    uint8_t *buf;
    uint64_t first;             /* page */
    uint64_t count;             /* pages in @buf */
    uint64_t evictions;         /* when they were read */
    uint8_t *zeros;             /* of the length of a range */
    unsigned readers;           /* 0 or 1 */
};

typedef struct PeekRead {
    RwpState *s;
    uint64_t first;
    uint64_t count;
    uint8_t *buf;
    int ret;
    QemuSemaphore done;
} PeekRead;

RwpPeek *rwp_peek_new(void)
{
    return g_new0(RwpPeek, 1);
}

void rwp_peek_free(RwpPeek *peek)
{
    if (peek) {
        qemu_vfree(peek->buf);
        g_free(peek->zeros);
        g_free(peek);
    }
}

static uint64_t window_pages(RwpState *s)
{
    return MAX(PEEK_BYTES / s->mem->page_size, 1);
}

/* In the fault thread */
static void coroutine_fn read_co(void *opaque)
{
    PeekRead *read = opaque;
    RwpState *s = read->s;

    rwp_faults_reader(s->faults, get_clock());
    read->ret = rwp_place_read(s, read->first, read->count, read->buf, false);
    rwp_faults_reader(s->faults, 0);
    qemu_sem_post(&read->done);
}

static int read_pages(RwpState *s, uint64_t first, uint64_t count,
                      uint8_t *buf)
{
    PeekRead read = { .s = s, .first = first, .count = count, .buf = buf };

    qemu_sem_init(&read.done, 0);
    aio_co_schedule(s->fault_ctx, qemu_coroutine_create(read_co, &read));
    qemu_sem_wait(&read.done);
    qemu_sem_destroy(&read.done);
    trace_rwp_peek_read(s->id, first, count, read.ret);
    if (read.ret < 0) {
        rwp_event_store_error(s->id, rwp_store_node_name(s->store),
                              RWP_OPERATION_MIGRATE,
                              rwp_state_page_bytes(s, first),
                              rwp_state_page_bytes(s, count), read.ret);
    }
    return read.ret;
}

static bool is_buffered(RwpState *s, uint64_t page)
{
    RwpPeek *peek = s->peek;

    return page - peek->first < peek->count &&
           peek->evictions == stat64_get(&s->stats.evicted);
}

/* Have @page in the buffer, if it is still EVICTED */
static int fill_buffer(RwpState *s, uint64_t page)
{
    RwpPeek *peek = s->peek;
    uint64_t end = MIN(page + window_pages(s), s->mem->nb_pages);
    uint64_t first, count;
    int ret;

    peek->count = 0;
    if (!rwp_pages_next_run(s->pages, page, end, RWP_PAGE_EVICTED, &first,
                            &count) || first != page) {
        return 0;
    }
    if (!peek->buf) {
        peek->buf = qemu_memalign(qemu_real_host_page_size(),
                                  rwp_state_page_bytes(s, window_pages(s)));
    }
    peek->evictions = stat64_get(&s->stats.evicted);
    ret = read_pages(s, first, count, peek->buf);
    if (ret == 0) {
        peek->first = first;
        peek->count = count;
    }
    return ret;
}

static uint8_t *get_zeros(RwpPeek *peek, uint64_t length)
{
    if (!peek->zeros) {
        peek->zeros = g_malloc0(length);
    }
    return peek->zeros;
}

static int look(RwpState *s, uint64_t offset, uint64_t length,
                uint8_t **data)
{
    RwpPeek *peek = s->peek;
    uint64_t page = offset / s->mem->page_size;

    for (;;) {
        RwpPage state = rwp_pages_get(s->pages, page);
        int ret;

        if (state == RWP_PAGE_ZERO) {
            *data = get_zeros(peek, length);
            return 0;
        }
        if (state != RWP_PAGE_EVICTED) {
            return 0;
        }
        if (is_buffered(s, page)) {
            *data = peek->buf + offset -
                    rwp_state_page_bytes(s, peek->first);
            return 0;
        }
        ret = fill_buffer(s, page);
        if (ret < 0) {
            return ret;
        }
    }
}

int rwp_peek(RwpState *s, uint64_t offset, uint64_t length, uint8_t **data)
{
    int ret;

    /* Most backends, most of the time */
    if (!rwp_pages_chunk_away(s->pages, offset / s->mem->page_size)) {
        return 0;
    }
    qatomic_inc(&s->peek->readers);
    ret = look(s, offset, length, data);
    qatomic_dec(&s->peek->readers);
    if (!rwp_pages_away(s->pages)) {
        /* Who brought the last page back may have left it to us */
        rwp_state_settle_soon(s);
    }
    return ret;
}

bool rwp_peek_busy(RwpState *s)
{
    return qatomic_read(&s->peek->readers) > 0;
}
