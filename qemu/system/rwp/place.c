/*
 * Evicted pages are read from the store, and put in place
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See place.h.  Invariants: content that is not what was written is never
 * returned as if it was; a page becomes LIVE only when it is in memory, by
 * this or by somebody who was faster.
 */

#include "qemu/osdep.h"
#include "block/thread-pool.h"
#include "checksum.h"
#include "place.h"
#include "scan.h"
#include "store.h"
#include "trace.h"

/*
 * Pages that are put in place by one system call.  Who touches one of them
 * meanwhile is woken at the end of it.
 */
#define PIECE_PAGES 32

/* So few are not worth another thread */
#define FEW_PAGES 8

typedef struct Place {
    RwpState *s;
    uint64_t first;
    uint64_t count;
    const uint8_t *buf;
    uint64_t placed;
} Place;

/* Returns 0, or -EBADMSG if it is not what was written */
static int check_content(RwpState *s, uint64_t page, const uint8_t *buf)
{
    RwpPage state;

    if (!s->checksums || rwp_checksums_match(s->checksums, page, buf)) {
        return 0;
    }
    /* Somebody else may have fetched it, if the caller does not own it */
    state = rwp_pages_get(s->pages, page);
    if (state != RWP_PAGE_EVICTED && state != RWP_PAGE_FETCHING) {
        return 0;
    }
    stat64_add(&s->stats.fetch_corrupt, 1);
    return -EBADMSG;
}

int coroutine_fn rwp_place_read(RwpState *s, uint64_t first, uint64_t count,
                                uint8_t *buf, bool in_piece)
{
    uint64_t offset = rwp_state_page_bytes(s, first);
    uint64_t bytes = rwp_state_page_bytes(s, count);
    int ret = in_piece ?
              rwp_store_read_in_piece(s->store, offset, bytes, buf) :
              rwp_store_read(s->store, offset, bytes, buf);

    for (uint64_t i = 0; ret == 0 && i < count; i++) {
        ret = check_content(s, first + i, buf + i * s->mem->page_size);
    }
    trace_rwp_fetch_read(s->id, offset, bytes, ret);
    if (ret < 0) {
        stat64_add(&s->stats.fetch_errors, 1);
    }
    return ret;
}

void rwp_place_finish(RwpState *s, uint64_t page)
{
    rwp_pages_finish(s->pages, page, RWP_PAGE_LIVE);
    rwp_checksums_trim(s->checksums, page, 1);
    rwp_state_settle_soon(s);
}

int rwp_place_page(RwpState *s, uint64_t page, const void *buf)
{
    int ret = rwp_memory_copy(s->mem, page, 1, buf, NULL);

    trace_rwp_fetch_place(s->id, page, 1, ret);
    if (ret == -EEXIST) {
        /*
         * The kernel can have left a page of zeros behind when it was
         * removed: part of a large folio that could not be split.
         */
        ret = rwp_memory_overwrite(s->mem, page, buf);
        trace_rwp_fetch_overwrite(s->id, page, ret);
    }
    return ret;
}

void rwp_place_zero(RwpState *s, uint64_t page, RwpPage state)
{
    int ret = rwp_memory_zero(s->mem, page, 1);

    trace_rwp_place_zero(s->id, page, ret);
    if (ret == 0) {
        stat64_add(&s->stats.zero_filled, 1);
    }
    /* EEXIST: the page is in memory after all; its waiter was woken */
    if (ret == 0 || ret == -EEXIST || state == RWP_PAGE_LIVE) {
        rwp_place_finish(s, page);
    } else {
        rwp_pages_finish(s->pages, page, state);
    }
    if (ret < 0 && ret != -EEXIST) {
        rwp_memory_wake(s->mem, page, 1);
    }
}

/* A run could not be placed by one call: as many pages as possible */
static uint64_t place_one_by_one(RwpState *s, uint64_t first, uint64_t count,
                                 const uint8_t *buf)
{
    uint64_t placed = 0;

    for (uint64_t i = 0; i < count; i++) {
        if (rwp_place_page(s, first + i, buf + i * s->mem->page_size) == 0) {
            rwp_place_finish(s, first + i);
            placed++;
        } else {
            rwp_pages_finish(s->pages, first + i, RWP_PAGE_EVICTED);
        }
    }
    return placed;
}

uint64_t rwp_place_untouched(RwpState *s, uint64_t first, uint64_t count,
                             const void *buf)
{
    uint64_t placed;
    int ret = rwp_memory_copy(s->mem, first, count, buf, &placed);

    trace_rwp_fetch_place(s->id, first, count, ret);
    if (placed && rwp_scanner_running(s->scanner)) {
        int arm_ret = s->mem->tracker->arm(s->mem, first, placed);

        trace_rwp_arm_unasked(s->id, first, placed, arm_ret);
    }
    for (uint64_t i = 0; i < placed; i++) {
        rwp_place_finish(s, first + i);
    }
    if (ret < 0) {
        /* Not those again: who touched one may have written to it */
        placed += place_one_by_one(s, first + placed, count - placed,
            (const uint8_t *)buf + rwp_state_page_bytes(s, placed));
    }
    /* Somebody may have touched one after it was copied, and armed */
    rwp_memory_wake(s->mem, first, count);
    return placed;
}

static int place_worker(void *opaque)
{
    Place *place = opaque;
    RwpState *s = place->s;

    for (uint64_t i = 0; i < place->count; i += PIECE_PAGES) {
        place->placed += rwp_place_untouched(s, place->first + i,
            MIN(PIECE_PAGES, place->count - i),
            place->buf + rwp_state_page_bytes(s, i));
    }
    return 0;
}

uint64_t coroutine_fn rwp_place_untouched_co(RwpState *s, uint64_t first,
                                             uint64_t count, const void *buf)
{
    Place place = { .s = s, .first = first, .count = count, .buf = buf };

    if (count < FEW_PAGES) {
        place_worker(&place);
    } else {
        thread_pool_submit_co(place_worker, &place);
    }
    return place.placed;
}
