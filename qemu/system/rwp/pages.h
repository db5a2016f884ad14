/*
 * Where the content of guest pages is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * One small state per page, changed only by compare-and-swap.  Whoever
 * moves a page into STAGED, LEAVING or FETCHING owns it until it leaves
 * that state; everybody else has to wait, or may cancel it where that is
 * said below.
 *
 *   LIVE      the host kernel has the page: resident, or never populated
 *   STAGED    the evictor took its content and is writing that; the original
 *             is still good.  A touch cancels: STAGED -> LIVE (or, if the
 *             original was moved aside, STAGED -> FETCHING -> LIVE)
 *   LEAVING   the evictor is taking the original away; short, no I/O
 *   EVICTED   only the store has it
 *   ZERO      nobody has it, it is all zeros
 *   FETCHING  somebody is bringing it back
 *
 *   from        to             because
 *   LIVE        STAGED         the evictor copies it
 *               LEAVING        the evictor moves the original aside
 *               FETCHING       touched while it cannot be accessed: it is
 *                              admitted, or zeroed if it was never used
 *   STAGED      LEAVING        the copy is written, the original may go
 *               LIVE           cancelled
 *               FETCHING       cancelled; the original, aside, comes back
 *               EVICTED, ZERO  the original was aside already
 *   LEAVING     EVICTED, ZERO  the original is gone
 *               STAGED         the original is aside, to be written
 *               LIVE           the original stayed
 *   EVICTED     FETCHING       touched, or asked for
 *   ZERO        FETCHING       the same
 *   FETCHING    LIVE           it is back
 *               EVICTED, ZERO  it could not be brought back
 *               STAGED         the same, and the evictor has it still
 *
 * A discard (the guest gave the page back) turns every state into LIVE at
 * once, except the two in which somebody is just replacing the page:
 * LEAVING and FETCHING get a mark, and rwp_pages_finish() tells their
 * owner.  After a discard the content is undefined, so an owner that has
 * already put the old content in place may leave it there.
 *
 * The data is pure: no I/O, no kernel interface, no other module.
 * Memory: four bits a page, allocated when a page first leaves LIVE, and a
 * counter for each chunk.
 *
 * Locking: none; all functions may be called from any thread.  A change
 * of state is a sequentially consistent atomic operation.  Counters of
 * pages that are away are raised before the state changes and lowered
 * after it, so for a moment a reader can see them too high, but never too
 * low: no page is away if rwp_pages_away() or rwp_pages_chunk_away() is 0.
 */
#ifndef RWP_PAGES_H
#define RWP_PAGES_H

typedef enum RwpPage {
    RWP_PAGE_LIVE = 0,      /* zero, so that untouched memory means LIVE */
    RWP_PAGE_STAGED,
    RWP_PAGE_LEAVING,
    RWP_PAGE_EVICTED,
    RWP_PAGE_ZERO,
    RWP_PAGE_FETCHING,
    RWP_PAGE__MAX,
} RwpPage;

typedef struct RwpPages RwpPages;

/**
 * rwp_pages_new: create states for pages [0, @nb_pages), all LIVE.
 *
 * @chunk_pages: pages of a chunk, the unit of rwp_pages_chunk_away();
 *     a power of two
 *
 * Returns NULL with @errp set if the memory cannot be mapped.
 */
RwpPages *rwp_pages_new(uint64_t nb_pages, uint64_t chunk_pages,
                        Error **errp);

/** rwp_pages_free: free @pages, which may be NULL. */
void rwp_pages_free(RwpPages *pages);

/** rwp_pages_get: the state of @page, without a discard mark. */
RwpPage rwp_pages_get(RwpPages *pages, uint64_t page);

/**
 * rwp_pages_move: @page goes from @from to @to, if it is in @from now.
 *
 * A page in FETCHING or LEAVING can only be moved by its owner, and with
 * a discard mark it is not in @from: use rwp_pages_finish().  A move that
 * the table above does not have is a bug of the caller (assertion).
 *
 * Returns false, and changes nothing, if the page is in another state.
 */
bool rwp_pages_move(RwpPages *pages, uint64_t page, RwpPage from, RwpPage to);

/**
 * rwp_pages_finish: the owner of a page in LEAVING or FETCHING gives it up.
 *
 * @to: the new state, unless the page was discarded meanwhile, which makes
 *     it LIVE
 *
 * Returns the new state.
 */
RwpPage rwp_pages_finish(RwpPages *pages, uint64_t page, RwpPage to);

/**
 * rwp_pages_discarded: whether @page, in LEAVING or FETCHING, has a
 * discard mark.  For its owner, to save useless work.
 */
bool rwp_pages_discarded(RwpPages *pages, uint64_t page);

/**
 * rwp_pages_discard: the guest gave [@first, @first + @count) back.
 *
 * O(@count), but chunks in which all pages are LIVE are skipped.
 *
 * Returns the number of pages whose stored content was dropped (EVICTED
 * before).
 */
uint64_t rwp_pages_discard(RwpPages *pages, uint64_t first, uint64_t count);

/** rwp_pages_count: number of pages in @state. */
uint64_t rwp_pages_count(RwpPages *pages, RwpPage state);

/**
 * rwp_pages_chunk_away: number of pages of the chunk that contains @page
 * which are in any other state than LIVE.
 */
uint64_t rwp_pages_chunk_away(RwpPages *pages, uint64_t page);

/** rwp_pages_away: number of pages in any other state than LIVE. */
uint64_t rwp_pages_away(RwpPages *pages);

/**
 * rwp_pages_next_run: find the first run of pages within [@first, @end)
 * that are all in @state.
 *
 * @start, @count: set to the run if there is one.  The run is maximal
 *     within [@first, @end).
 *
 * Chunks in which all pages are LIVE are dealt with in constant time.
 *
 * Returns false if there is none.
 */
bool rwp_pages_next_run(RwpPages *pages, uint64_t first, uint64_t end,
                        RwpPage state, uint64_t *start, uint64_t *count);

/** rwp_pages_bytes: memory allocated for @pages, touched or not. */
uint64_t rwp_pages_bytes(RwpPages *pages);

#endif
