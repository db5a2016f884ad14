/*
 * Evicted pages are read from the store, and put in place
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * For pages that the caller has in FETCHING.  Context: fault thread, work
 * thread, or a thread of their pools.
 */
#ifndef RWP_PLACE_H
#define RWP_PLACE_H

#include "state.h"

/**
 * rwp_place_read: read pages from the store, and check their content.
 *
 * @buf: room for @count pages
 * @in_piece: see rwp_store_read_in_piece()
 *
 * They need not be the caller's; what is in @buf is of no use for pages
 * that are not EVICTED or FETCHING any more.  Returns 0 or -errno; -EBADMSG
 * if a page is not what was written.  Context: any AioContext.
 */
int coroutine_fn rwp_place_read(RwpState *s, uint64_t first, uint64_t count,
                                uint8_t *buf, bool in_piece);

/**
 * rwp_place_finish: @page is where it belongs, or will be zero when it is
 * touched again.  It becomes LIVE.
 */
void rwp_place_finish(RwpState *s, uint64_t page);

/**
 * rwp_place_page: put one page in place, and wake.  It stays FETCHING.
 *
 * Returns 0 or -errno.
 */
int rwp_place_page(RwpState *s, uint64_t page, const void *buf);

/**
 * rwp_place_zero: zero @page, which was touched, and wake.  It is not
 * FETCHING any more.
 *
 * @state: where it was before, and is again if the host has no memory; who
 *     touched it is woken then and tries again
 */
void rwp_place_zero(RwpState *s, uint64_t page, RwpPage state);

/**
 * rwp_place_untouched: put pages in place that nobody is known to wait for.
 *
 * @buf: their content
 *
 * The pages count as not accessed.  They are not FETCHING any more: a page
 * that could not be put in place is EVICTED again.  Returns the number of
 * pages that are in place.
 */
uint64_t rwp_place_untouched(RwpState *s, uint64_t first, uint64_t count,
                             const void *buf);

/**
 * rwp_place_untouched_co: the same, by another thread if they are many.
 *
 * The thread of the caller can go on with the next read meanwhile.  A
 * cycle of tracking can then take them for accessed.
 */
uint64_t coroutine_fn rwp_place_untouched_co(RwpState *s, uint64_t first,
                                             uint64_t count, const void *buf);

#endif
