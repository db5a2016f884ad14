/*
 * Where the content of guest pages is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * There are four bits for each page: an RwpPage, and DISCARDED beside it
 * for pages in LEAVING and FETCHING.  LIVE is 0, so a guest of which
 * nothing was ever evicted costs no memory here.  The even page of two
 * that share a byte has the lower bits.
 *
 * Counters say how many pages are away, which means in any other state
 * than LIVE: one in all, chunk_away[] for each chunk, and counts[] for
 * each of these states.  chunk_away[] lets a walk step over a chunk that
 * has nothing but LIVE pages, which are almost all chunks of most guests.
 * Pages in LIVE are not counted, they are what is left.
 *
 * Invariants, at every moment:
 *
 * - a page has DISCARDED only together with LEAVING or FETCHING
 * - a counter is never less than the number of pages it stands for.  A
 *   change of state raises the counters of the new state before it
 *   changes the bits, lowers those of the old one after that, and takes
 *   the former back if it failed.
 *
 * The second makes it safe to step over a chunk whose counter is 0, and
 * to rely on nothing being away when the total is 0.  (If counters were
 * raised late, a page that another thread brings back could hide one that
 * went away before.)  It is also why there is a total: the sum of counts[]
 * is taken at several moments and can miss a page that changes state
 * meanwhile.
 *
 * Cost: a change of one page is a compare-and-swap, repeated if the page
 * that it shares a byte with changes at the same moment, and two or three
 * atomic additions.  Walks read each page, except in chunks that they step
 * over.
 *
 * Locking: none, see pages.h.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bitops.h"
#include "qemu/host-utils.h"
#include "qapi/error.h"
#include "pages.h"

/* The guest gave the page back, its owner was not told yet */
#define DISCARDED 8

#define BITS 4
#define MASK (BIT(BITS) - 1)
QEMU_BUILD_BUG_ON(RWP_PAGE__MAX > DISCARDED);

struct RwpPages {
    /* Set once */
    uint64_t nb_pages;
    uint64_t chunk_pages;       /* a power of two */
    unsigned chunk_shift;       /* log2 of chunk_pages */
    size_t mapped;              /* of the mapping, in bytes */

    /* Atomic */
    uint8_t *bytes;
    size_t away;
    size_t *chunk_away;
    size_t counts[RWP_PAGE__MAX];       /* [RWP_PAGE_LIVE] is not used */
};

/* The table in pages.h: for each state, those that may follow */
static const uint8_t followers[RWP_PAGE__MAX] = {
    [RWP_PAGE_LIVE] = BIT(RWP_PAGE_STAGED) | BIT(RWP_PAGE_LEAVING) |
                      BIT(RWP_PAGE_FETCHING),
    [RWP_PAGE_STAGED] = BIT(RWP_PAGE_LIVE) | BIT(RWP_PAGE_LEAVING) |
                        BIT(RWP_PAGE_EVICTED) | BIT(RWP_PAGE_ZERO) |
                        BIT(RWP_PAGE_FETCHING),
    [RWP_PAGE_LEAVING] = BIT(RWP_PAGE_LIVE) | BIT(RWP_PAGE_STAGED) |
                         BIT(RWP_PAGE_EVICTED) | BIT(RWP_PAGE_ZERO),
    [RWP_PAGE_EVICTED] = BIT(RWP_PAGE_FETCHING),
    [RWP_PAGE_ZERO] = BIT(RWP_PAGE_FETCHING),
    [RWP_PAGE_FETCHING] = BIT(RWP_PAGE_LIVE) | BIT(RWP_PAGE_STAGED) |
                          BIT(RWP_PAGE_EVICTED) | BIT(RWP_PAGE_ZERO),
};

RwpPages *rwp_pages_new(uint64_t nb_pages, uint64_t chunk_pages,
                        Error **errp)
{
    RwpPages *pages;
    uint64_t nb_chunks;
    size_t mapped;
    void *map;

    g_assert(is_power_of_2(chunk_pages));

    /* Far from what can be mapped, and far from overflow below */
    if (nb_pages > SIZE_MAX / 16) {
        error_setg(errp, "Cannot keep states of %" PRIu64 " pages", nb_pages);
        return NULL;
    }

    nb_chunks = DIV_ROUND_UP(nb_pages, chunk_pages);
    mapped = ROUND_UP(DIV_ROUND_UP(nb_pages, 2), qemu_real_host_page_size());
    map = mmap(NULL, mapped, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        error_setg_errno(errp, errno, "Cannot map %zu bytes for page states",
                         mapped);
        return NULL;
    }

    pages = g_new0(RwpPages, 1);
    pages->nb_pages = nb_pages;
    pages->chunk_pages = chunk_pages;
    pages->chunk_shift = ctz64(chunk_pages);
    pages->mapped = mapped;
    pages->bytes = map;
    pages->chunk_away = g_new0(size_t, nb_chunks);
    return pages;
}

void rwp_pages_free(RwpPages *pages)
{
    if (!pages) {
        return;
    }
    munmap(pages->bytes, pages->mapped);
    g_free(pages->chunk_away);
    g_free(pages);
}

static uint8_t *page_byte(RwpPages *pages, uint64_t page)
{
    g_assert(page < pages->nb_pages);
    return &pages->bytes[page / 2];
}

static unsigned page_shift(uint64_t page)
{
    return page % 2 * BITS;
}

/* State and mark of a page */
static uint8_t get_bits(RwpPages *pages, uint64_t page)
{
    uint8_t byte = qatomic_load_acquire(page_byte(pages, page));

    return (byte >> page_shift(page)) & MASK;
}

/* They become @to if they are @from now */
static bool swap_bits(RwpPages *pages, uint64_t page, uint8_t from, uint8_t to)
{
    uint8_t *byte = page_byte(pages, page);
    unsigned shift = page_shift(page);
    uint8_t old = qatomic_read(byte);

    while (((old >> shift) & MASK) == from) {
        uint8_t new = (old & ~(MASK << shift)) | to << shift;
        uint8_t found = qatomic_cmpxchg(byte, old, new);

        if (found == old) {
            return true;
        }
        old = found;
    }
    return false;
}

static RwpPage bits_state(uint8_t bits)
{
    return bits & ~DISCARDED;
}

static bool has_owner(RwpPage state)
{
    return state == RWP_PAGE_LEAVING || state == RWP_PAGE_FETCHING;
}

static size_t *page_chunk(RwpPages *pages, uint64_t page)
{
    return &pages->chunk_away[page >> pages->chunk_shift];
}

/* The first page after @page that is in another chunk, but at most @end */
static uint64_t chunk_end(RwpPages *pages, uint64_t page, uint64_t end)
{
    return MIN(end, QEMU_ALIGN_DOWN(page, pages->chunk_pages) +
                    pages->chunk_pages);
}

/* @page is about to be in @new, which it was not */
static void raise_counters(RwpPages *pages, uint64_t page,
                           RwpPage old, RwpPage new)
{
    if (old == RWP_PAGE_LIVE) {
        qatomic_inc(&pages->away);
        qatomic_inc(page_chunk(pages, page));
    }
    if (new != RWP_PAGE_LIVE) {
        qatomic_inc(&pages->counts[new]);
    }
}

/* @page is not in @old any more; or will not be, which undoes a raise */
static void lower_counters(RwpPages *pages, uint64_t page,
                           RwpPage old, RwpPage new)
{
    if (old != RWP_PAGE_LIVE) {
        qatomic_dec(&pages->counts[old]);
    }
    if (new == RWP_PAGE_LIVE) {
        qatomic_dec(page_chunk(pages, page));
        qatomic_dec(&pages->away);
    }
}

/*
 * The bits of @page change from @from to @to, which must be different
 * states, if they are @from now.  The only place that changes a state.
 */
static bool swap_state(RwpPages *pages, uint64_t page, uint8_t from,
                       uint8_t to)
{
    RwpPage old = bits_state(from);
    RwpPage new = bits_state(to);

    raise_counters(pages, page, old, new);
    if (!swap_bits(pages, page, from, to)) {
        lower_counters(pages, page, new, old);
        return false;
    }
    lower_counters(pages, page, old, new);
    return true;
}

RwpPage rwp_pages_get(RwpPages *pages, uint64_t page)
{
    return bits_state(get_bits(pages, page));
}

bool rwp_pages_move(RwpPages *pages, uint64_t page, RwpPage from, RwpPage to)
{
    g_assert(from < RWP_PAGE__MAX && to < RWP_PAGE__MAX);
    g_assert(followers[from] & BIT(to));

    /* Most moves that fail do so here, without touching a counter */
    if (get_bits(pages, page) != from) {
        return false;
    }
    return swap_state(pages, page, from, to);
}

RwpPage rwp_pages_finish(RwpPages *pages, uint64_t page, RwpPage to)
{
    uint8_t bits;
    RwpPage next;

    /* At most twice: only the owner changes it, except for the mark */
    do {
        bits = get_bits(pages, page);
        g_assert(has_owner(bits_state(bits)));
        g_assert(to < RWP_PAGE__MAX);
        g_assert(followers[bits_state(bits)] & BIT(to));
        next = bits & DISCARDED ? RWP_PAGE_LIVE : to;
    } while (!swap_state(pages, page, bits, next));

    return next;
}

bool rwp_pages_discarded(RwpPages *pages, uint64_t page)
{
    return get_bits(pages, page) & DISCARDED;
}

/* Returns the state before */
static RwpPage discard_page(RwpPages *pages, uint64_t page)
{
    for (;;) {
        uint8_t bits = get_bits(pages, page);
        RwpPage state = bits_state(bits);

        if (state == RWP_PAGE_LIVE) {
            return state;
        }
        if (has_owner(state)) {
            if (swap_bits(pages, page, bits, bits | DISCARDED)) {
                return state;
            }
        } else if (swap_state(pages, page, bits, RWP_PAGE_LIVE)) {
            return state;
        }
    }
}

uint64_t rwp_pages_discard(RwpPages *pages, uint64_t first, uint64_t count)
{
    uint64_t end = first + count;
    uint64_t dropped = 0;
    uint64_t page = first;

    g_assert(first <= pages->nb_pages && count <= pages->nb_pages - first);

    while (page < end) {
        uint64_t next = chunk_end(pages, page, end);

        if (!qatomic_read(page_chunk(pages, page))) {
            page = next;
        }
        for (; page < next; page++) {
            dropped += discard_page(pages, page) == RWP_PAGE_EVICTED;
        }
    }
    return dropped;
}

uint64_t rwp_pages_count(RwpPages *pages, RwpPage state)
{
    g_assert(state < RWP_PAGE__MAX);

    if (state == RWP_PAGE_LIVE) {
        /* Changes under way can make the total too high */
        return pages->nb_pages - MIN(pages->nb_pages, rwp_pages_away(pages));
    }
    return qatomic_load_acquire(&pages->counts[state]);
}

uint64_t rwp_pages_chunk_away(RwpPages *pages, uint64_t page)
{
    g_assert(page < pages->nb_pages);
    return qatomic_load_acquire(page_chunk(pages, page));
}

uint64_t rwp_pages_away(RwpPages *pages)
{
    return qatomic_load_acquire(&pages->away);
}

/*
 * The first page in [@page, @end) that is in @state, or, if not @inside,
 * is not; @end if there is none.
 */
static uint64_t find_page(RwpPages *pages, uint64_t page, uint64_t end,
                          RwpPage state, bool inside)
{
    while (page < end) {
        uint64_t next = chunk_end(pages, page, end);

        if (!qatomic_read(page_chunk(pages, page))) {
            if ((state == RWP_PAGE_LIVE) == inside) {
                return page;
            }
            page = next;
        }
        for (; page < next; page++) {
            if ((rwp_pages_get(pages, page) == state) == inside) {
                return page;
            }
        }
    }
    return end;
}

bool rwp_pages_next_run(RwpPages *pages, uint64_t first, uint64_t end,
                        RwpPage state, uint64_t *start, uint64_t *count)
{
    uint64_t run;

    g_assert(first <= end && end <= pages->nb_pages);
    g_assert(state < RWP_PAGE__MAX);

    run = find_page(pages, first, end, state, true);
    if (run == end) {
        return false;
    }
    /*
     * The page just found is not looked at again: it can change at any
     * time, and a run is not empty.
     */
    *start = run;
    *count = find_page(pages, run + 1, end, state, false) - run;
    return true;
}

uint64_t rwp_pages_bytes(RwpPages *pages)
{
    return pages->mapped + sizeof(*pages) +
           DIV_ROUND_UP(pages->nb_pages, pages->chunk_pages) *
           sizeof(pages->chunk_away[0]);
}
