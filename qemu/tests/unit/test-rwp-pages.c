/*
 * Where the content of guest pages is: unit tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Beside the real states there is a shadow: a plain array of states and
 * one of marks, changed by the most obvious loops.  After every step all
 * answers of the two are compared.  RWP_TEST_SEED=n repeats a run with
 * random steps.  Threads are checked by what must hold whatever the order.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/cutils.h"
#include "qemu/thread.h"
#include "qapi/error.h"
#include "system/rwp/pages.h"

#define CHUNK_PAGES 256

typedef struct Fixture {
    RwpPages *pages;
    uint8_t *state;
    bool *marked;
    uint64_t nb_pages;
    GRand *rand;
} Fixture;

/* One letter for each state, in order */
static const char state_letters[] = "LSVEZF";

/* The table in pages.h, once more; V is LEAVING */
static const char *const legal_moves[RWP_PAGE__MAX] = {
    [RWP_PAGE_LIVE] = "SVF",
    [RWP_PAGE_STAGED] = "VLFEZ",
    [RWP_PAGE_LEAVING] = "EZSL",
    [RWP_PAGE_EVICTED] = "F",
    [RWP_PAGE_ZERO] = "F",
    [RWP_PAGE_FETCHING] = "LEZS",
};
#define NB_LEGAL 18

static bool is_legal(RwpPage from, RwpPage to)
{
    return strchr(legal_moves[from], state_letters[to]) != NULL;
}

static bool has_owner(RwpPage state)
{
    return state == RWP_PAGE_LEAVING || state == RWP_PAGE_FETCHING;
}

static uint32_t test_seed(void)
{
    const char *text = g_getenv("RWP_TEST_SEED");
    unsigned seed = g_random_int();

    if (text) {
        g_assert_cmpint(qemu_strtoui(text, NULL, 0, &seed), ==, 0);
    }
    g_test_message("RWP_TEST_SEED=%u", seed);
    return seed;
}

static void fixture_init(Fixture *f, uint64_t nb_pages)
{
    f->pages = rwp_pages_new(nb_pages, CHUNK_PAGES, &error_abort);
    f->state = g_new0(uint8_t, nb_pages);
    f->marked = g_new0(bool, nb_pages);
    f->nb_pages = nb_pages;
    f->rand = g_rand_new_with_seed(test_seed());
}

static void fixture_clear(Fixture *f)
{
    rwp_pages_free(f->pages);
    g_free(f->state);
    g_free(f->marked);
    g_rand_free(f->rand);
}

/* Both, side by side */

static void move(Fixture *f, uint64_t page, RwpPage from, RwpPage to)
{
    bool moves = f->state[page] == from && !f->marked[page];

    g_assert_cmpint(rwp_pages_move(f->pages, page, from, to), ==, moves);
    if (moves) {
        f->state[page] = to;
    }
}

static void finish(Fixture *f, uint64_t page, RwpPage to)
{
    RwpPage next = f->marked[page] ? RWP_PAGE_LIVE : to;

    g_assert_cmpint(rwp_pages_finish(f->pages, page, to), ==, next);
    f->state[page] = next;
    f->marked[page] = false;
}

static void discard(Fixture *f, uint64_t first, uint64_t count)
{
    uint64_t dropped = 0;

    for (uint64_t i = first; i < first + count; i++) {
        dropped += f->state[i] == RWP_PAGE_EVICTED;
        if (has_owner(f->state[i])) {
            f->marked[i] = true;
        } else {
            f->state[i] = RWP_PAGE_LIVE;
        }
    }
    g_assert_cmpuint(rwp_pages_discard(f->pages, first, count), ==, dropped);
}

/* Comparisons */

static void check_states(Fixture *f)
{
    for (uint64_t i = 0; i < f->nb_pages; i++) {
        if (rwp_pages_get(f->pages, i) != f->state[i] ||
            rwp_pages_discarded(f->pages, i) != f->marked[i]) {
            g_error("page %" PRIu64 " is %c%s, not %c%s", i,
                    state_letters[rwp_pages_get(f->pages, i)],
                    rwp_pages_discarded(f->pages, i) ? " marked" : "",
                    state_letters[f->state[i]], f->marked[i] ? " marked" : "");
        }
    }
}

static void check_counters(Fixture *f)
{
    uint64_t counts[RWP_PAGE__MAX] = { 0 };

    for (uint64_t chunk = 0; chunk < f->nb_pages; chunk += CHUNK_PAGES) {
        uint64_t end = MIN(chunk + CHUNK_PAGES, f->nb_pages);
        uint64_t away = 0;

        for (uint64_t i = chunk; i < end; i++) {
            counts[f->state[i]]++;
            away += f->state[i] != RWP_PAGE_LIVE;
        }
        g_assert_cmpuint(rwp_pages_chunk_away(f->pages, chunk), ==, away);
        g_assert_cmpuint(rwp_pages_chunk_away(f->pages, end - 1), ==, away);
    }
    for (int state = 0; state < RWP_PAGE__MAX; state++) {
        g_assert_cmpuint(rwp_pages_count(f->pages, state), ==, counts[state]);
    }
    g_assert_cmpuint(rwp_pages_away(f->pages), ==,
                     f->nb_pages - counts[RWP_PAGE_LIVE]);
}

/* All runs of [first, end), one after the other */
static void check_runs(Fixture *f, uint64_t first, uint64_t end,
                       RwpPage state)
{
    uint64_t pos = first;

    for (;;) {
        uint64_t start, count, run_end;
        uint64_t from = pos;
        bool found = rwp_pages_next_run(f->pages, pos, end, state,
                                        &start, &count);

        while (from < end && f->state[from] != state) {
            from++;
        }
        g_assert_cmpint(found, ==, from < end);
        if (!found) {
            return;
        }
        run_end = from;
        while (run_end < end && f->state[run_end] == state) {
            run_end++;
        }
        g_assert_cmpuint(start, ==, from);
        g_assert_cmpuint(count, ==, run_end - from);
        pos = run_end;
    }
}

static void check_all(Fixture *f)
{
    check_states(f);
    check_counters(f);
    for (int state = 0; state < RWP_PAGE__MAX; state++) {
        check_runs(f, 0, f->nb_pages, state);
    }
}

/* Ranges of all sizes, often beginning or ending at a chunk's border */
static void random_range(Fixture *f, uint64_t *first, uint64_t *count)
{
    uint64_t a = g_rand_int_range(f->rand, 0, f->nb_pages);
    uint64_t b = g_rand_int_range(f->rand, 0, f->nb_pages + 1);

    switch (g_rand_int_range(f->rand, 0, 4)) {
    case 0:
        a = QEMU_ALIGN_DOWN(a, CHUNK_PAGES);
        break;
    case 1:
        b = QEMU_ALIGN_DOWN(b, CHUNK_PAGES);
        break;
    case 2:
        b = MIN(a + g_rand_int_range(f->rand, 0, 20), f->nb_pages);
        break;
    default:
        break;
    }
    *first = MIN(a, b);
    *count = MAX(a, b) - *first;
}

static RwpPage random_follower(Fixture *f, RwpPage from)
{
    RwpPage to;

    do {
        to = g_rand_int_range(f->rand, 0, RWP_PAGE__MAX);
    } while (!is_legal(from, to));
    return to;
}

/* The pages of a range that are in one state go to another */
static void random_moves(Fixture *f, uint64_t first, uint64_t count)
{
    RwpPage from = g_rand_int_range(f->rand, 0, RWP_PAGE__MAX);
    RwpPage to = random_follower(f, from);

    for (uint64_t i = first; i < first + count; i++) {
        move(f, i, from, to);
    }
}

static void random_finishes(Fixture *f, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        if (has_owner(f->state[i])) {
            finish(f, i, random_follower(f, f->state[i]));
        }
    }
}

static void test_random(void)
{
    Fixture f;

    fixture_init(&f, 8 * CHUNK_PAGES + 7);
    check_all(&f);

    for (int step = 0; step < 8000; step++) {
        uint64_t first, count;
        int what = g_rand_int_range(f.rand, 0, 100);

        random_range(&f, &first, &count);
        if (what < 80) {
            random_moves(&f, first, count);
        } else if (what < 90) {
            random_finishes(&f, first, count);
        } else {
            discard(&f, first, count / g_rand_int_range(f.rand, 1, 20));
        }
        check_all(&f);

        random_range(&f, &first, &count);
        check_runs(&f, first, first + count,
                   g_rand_int_range(f.rand, 0, RWP_PAGE__MAX));
    }
    fixture_clear(&f);
}

/* LIVE to @state by the shortest way */
static void bring_to(Fixture *f, uint64_t page, RwpPage state)
{
    static const RwpPage before[RWP_PAGE__MAX] = {
        [RWP_PAGE_STAGED] = RWP_PAGE_LIVE,
        [RWP_PAGE_LEAVING] = RWP_PAGE_STAGED,
        [RWP_PAGE_EVICTED] = RWP_PAGE_LEAVING,
        [RWP_PAGE_ZERO] = RWP_PAGE_LEAVING,
        [RWP_PAGE_FETCHING] = RWP_PAGE_EVICTED,
    };

    if (state != RWP_PAGE_LIVE) {
        bring_to(f, page, before[state]);
        move(f, page, before[state], state);
    }
}

/* From each state each legal move works, and those from others do not */
static void test_moves(void)
{
    Fixture f;
    uint64_t page = 0;

    fixture_init(&f, 2 * CHUNK_PAGES);
    for (int state = 0; state < RWP_PAGE__MAX; state++) {
        for (int from = 0; from < RWP_PAGE__MAX; from++) {
            for (int to = 0; to < RWP_PAGE__MAX; to++) {
                if (is_legal(from, to)) {
                    bring_to(&f, page, state);
                    move(&f, page, from, to);
                    check_all(&f);
                    page++;
                }
            }
        }
    }
    g_assert_cmpuint(page, ==, RWP_PAGE__MAX * NB_LEGAL);
    g_assert_cmpuint(page, <, f.nb_pages);
    fixture_clear(&f);
}

/* A move that the table does not have; @opaque is from * 16 + to */
static void illegal_move(const void *opaque)
{
    unsigned move = GPOINTER_TO_UINT(opaque);
    RwpPages *pages = rwp_pages_new(1, 1, &error_abort);

    rwp_pages_move(pages, 0, move / 16, move % 16);
}

/* A page that has no owner is given up */
static void illegal_finish(void)
{
    RwpPages *pages = rwp_pages_new(1, 1, &error_abort);

    rwp_pages_move(pages, 0, RWP_PAGE_LIVE, RWP_PAGE_STAGED);
    rwp_pages_finish(pages, 0, RWP_PAGE_LIVE);
}

/* The owner gives a page up to a state that cannot follow */
static void illegal_finish_to(void)
{
    RwpPages *pages = rwp_pages_new(1, 1, &error_abort);

    rwp_pages_move(pages, 0, RWP_PAGE_LIVE, RWP_PAGE_LEAVING);
    rwp_pages_finish(pages, 0, RWP_PAGE_FETCHING);
}

static void expect_assertion(const char *path)
{
    g_test_trap_subprocess(path, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*assert*");
}

static char *illegal_path(int from, int to)
{
    return g_strdup_printf("/rwp/pages/illegal/subprocess/%c-%c",
                           state_letters[from], state_letters[to]);
}

static void test_illegal(void)
{
    int illegal = 0;

    for (int from = 0; from < RWP_PAGE__MAX; from++) {
        for (int to = 0; to < RWP_PAGE__MAX; to++) {
            if (!is_legal(from, to)) {
                g_autofree char *path = illegal_path(from, to);

                expect_assertion(path);
                illegal++;
            }
        }
    }
    g_assert_cmpint(illegal, ==, RWP_PAGE__MAX * RWP_PAGE__MAX - NB_LEGAL);
    expect_assertion("/rwp/pages/illegal/subprocess/finish");
    expect_assertion("/rwp/pages/illegal/subprocess/finish-to");
}

static void add_illegal(void)
{
    for (int from = 0; from < RWP_PAGE__MAX; from++) {
        for (int to = 0; to < RWP_PAGE__MAX; to++) {
            if (!is_legal(from, to)) {
                g_autofree char *path = illegal_path(from, to);

                g_test_add_data_func(path, GUINT_TO_POINTER(from * 16 + to),
                                     illegal_move);
            }
        }
    }
    g_test_add_func("/rwp/pages/illegal/subprocess/finish", illegal_finish);
    g_test_add_func("/rwp/pages/illegal/subprocess/finish-to",
                    illegal_finish_to);
    g_test_add_func("/rwp/pages/illegal", test_illegal);
}

/* A discard in each state, and what the owner can do after it */
static void test_discard(void)
{
    static const RwpPage owned[] = { RWP_PAGE_LEAVING, RWP_PAGE_FETCHING };
    RwpPages *pages;
    Fixture f;

    fixture_init(&f, 2 * CHUNK_PAGES);
    pages = f.pages;

    /* Page 10 + s of the second chunk has state s */
    for (int state = 0; state < RWP_PAGE__MAX; state++) {
        bring_to(&f, CHUNK_PAGES + 10 + state, state);
    }
    check_all(&f);
    g_assert_cmpuint(rwp_pages_discard(pages, 0, CHUNK_PAGES + 10), ==, 0);
    check_all(&f);

    discard(&f, CHUNK_PAGES + 10, RWP_PAGE__MAX);
    check_all(&f);
    g_assert_cmpuint(rwp_pages_away(pages), ==, 2);
    for (int i = 0; i < ARRAY_SIZE(owned); i++) {
        uint64_t page = CHUNK_PAGES + 10 + owned[i];

        /* It is still in its state, but cannot be moved, only given up */
        g_assert_cmpint(rwp_pages_get(pages, page), ==, owned[i]);
        g_assert_true(rwp_pages_discarded(pages, page));
        g_assert_false(rwp_pages_move(pages, page, owned[i],
                                      RWP_PAGE_EVICTED));
        g_assert_true(rwp_pages_discarded(pages, page));
    }

    /* A second discard changes nothing */
    discard(&f, 0, f.nb_pages);
    check_all(&f);

    for (int i = 0; i < ARRAY_SIZE(owned); i++) {
        uint64_t page = CHUNK_PAGES + 10 + owned[i];

        g_assert_cmpint(rwp_pages_finish(pages, page, RWP_PAGE_EVICTED), ==,
                        RWP_PAGE_LIVE);
        g_assert_false(rwp_pages_discarded(pages, page));
        f.state[page] = RWP_PAGE_LIVE;
        f.marked[page] = false;
        check_all(&f);
    }
    g_assert_cmpuint(rwp_pages_away(pages), ==, 0);

    /* The mark is gone: the next time it is like any other page */
    for (int i = 0; i < ARRAY_SIZE(owned); i++) {
        bring_to(&f, CHUNK_PAGES + 10 + owned[i], owned[i]);
        finish(&f, CHUNK_PAGES + 10 + owned[i], RWP_PAGE_EVICTED);
    }
    check_all(&f);
    g_assert_cmpuint(rwp_pages_count(pages, RWP_PAGE_EVICTED), ==, 2);
    fixture_clear(&f);
}

/* Runs and discards over chunks in which nothing is away */
static void test_chunks(void)
{
    uint64_t start, count;
    Fixture f;

    fixture_init(&f, 5 * CHUNK_PAGES + 1);
    for (int from = -1; from <= 1; from++) {
        for (int to = -1; to <= 1; to++) {
            uint64_t first = CHUNK_PAGES + from;
            uint64_t end = 3 * CHUNK_PAGES + to;

            for (uint64_t i = first; i < end; i++) {
                bring_to(&f, i, RWP_PAGE_EVICTED);
            }
            check_all(&f);
            check_runs(&f, first + 1, end - 1, RWP_PAGE_EVICTED);
            check_runs(&f, first, end, RWP_PAGE_LIVE);
            discard(&f, first + 1, end - first - 2);
            check_all(&f);
            discard(&f, 0, f.nb_pages);
            check_all(&f);
        }
    }

    /* The last chunk is not a full one */
    bring_to(&f, f.nb_pages - 1, RWP_PAGE_ZERO);
    check_all(&f);
    discard(&f, f.nb_pages, 0);
    check_all(&f);
    g_assert_true(rwp_pages_next_run(f.pages, 1, f.nb_pages, RWP_PAGE_LIVE,
                                     &start, &count));
    g_assert_cmpuint(start, ==, 1);
    g_assert_cmpuint(count, ==, f.nb_pages - 2);
    g_assert_false(rwp_pages_next_run(f.pages, 7, 7, RWP_PAGE_LIVE,
                                      &start, &count));
    fixture_clear(&f);
}

static uint64_t resident_pages(void)
{
    g_autofree char *text = NULL;
    uint64_t size, resident;

    g_assert_true(g_file_get_contents("/proc/self/statm", &text, NULL, NULL));
    g_assert_cmpint(sscanf(text, "%" SCNu64 " %" SCNu64, &size, &resident),
                    ==, 2);
    return resident;
}

static int64_t cpu_time(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/*
 * CPU time to find the end of a run of LIVE pages, to look for a state
 * that does not occur, and to discard; best of five.
 */
static int64_t time_walks(RwpPages *pages, uint64_t nb_pages)
{
    int64_t best = INT64_MAX;

    for (int i = 0; i < 5; i++) {
        uint64_t start, count;
        int64_t begin = cpu_time();

        rwp_pages_next_run(pages, 0, nb_pages, RWP_PAGE_LIVE, &start, &count);
        g_assert_cmpuint(count, ==, nb_pages - 1);
        g_assert_false(rwp_pages_next_run(pages, 0, nb_pages, RWP_PAGE_ZERO,
                                          &start, &count));
        rwp_pages_discard(pages, 0, nb_pages - 1);
        best = MIN(best, cpu_time() - begin);
    }
    return best;
}

/*
 * A guest of 1 TiB, of which next to nothing was evicted: nothing costs
 * memory or time in proportion to its size.
 */
static void test_large(void)
{
    const uint64_t nb_pages = 1ULL << 28;
    const uint64_t nb_small = nb_pages / 64;
    uint64_t before = resident_pages();
    RwpPages *large = rwp_pages_new(nb_pages, 16384, &error_abort);
    RwpPages *small = rwp_pages_new(nb_small, nb_small, &error_abort);
    uint64_t used;
    int64_t large_time, small_time;

    g_assert_cmpuint(rwp_pages_bytes(large), >=, nb_pages / 2);
    g_assert_cmpuint(rwp_pages_bytes(large), <, nb_pages / 100 * 51);

    g_assert_true(rwp_pages_move(large, nb_pages - 1, RWP_PAGE_LIVE,
                                 RWP_PAGE_STAGED));
    g_assert_true(rwp_pages_move(small, nb_small - 1, RWP_PAGE_LIVE,
                                 RWP_PAGE_STAGED));
    g_assert_cmpuint(rwp_pages_away(large), ==, 1);
    g_assert_cmpuint(rwp_pages_count(large, RWP_PAGE_LIVE), ==, nb_pages - 1);

    /* 64 times the size, but the smaller one is all in a chunk in use */
    large_time = time_walks(large, nb_pages);
    small_time = time_walks(small, nb_small);
    g_test_message("walks: %" PRId64 " ns, in a 64th of one chunk %" PRId64
                   " ns", large_time, small_time);
    g_assert_cmpint(large_time, <, small_time);

    /* 1/16, as with transparent huge pages each page may take 2 MiB */
    used = (resident_pages() - before) * qemu_real_host_page_size();
    g_test_message("resident: %" PRIu64 " of %" PRIu64 " bytes", used,
                   rwp_pages_bytes(large));
    g_assert_cmpuint(used, <, nb_pages / 16);

    rwp_pages_free(small);
    rwp_pages_free(large);
}

static void test_too_large(void)
{
    Error *err = NULL;

    g_assert_null(rwp_pages_new(UINT64_MAX, 16384, &err));
    g_assert_nonnull(err);
    error_free(err);
    err = NULL;

    g_assert_null(rwp_pages_new(1ULL << 59, 16384, &err));
    g_assert_nonnull(err);
    error_free(err);

    rwp_pages_free(NULL);
}

#define NB_THREADS 8
#define NB_SHARED  (2 * CHUNK_PAGES)
#define NB_STEPS   200000

typedef struct Arena {
    RwpPages *pages;
    uint64_t nb_shared;         /* pages that all threads move */
    /*
     * How often each page had an owner.  Not atomic: only the owner
     * counts, so if two own a page, a count gets lost.
     */
    uint32_t owned[NB_SHARED];
    /* Whether it has one now; by the owner, who must be alone */
    uint32_t busy[NB_SHARED];
    /* Of the threads that stage: one has begun, all have to end; atomic */
    bool staging;
    bool stop;
} Arena;

typedef struct Worker {
    Arena *arena;
    GRand *rand;
    uint64_t owned;             /* result: sum over its pages */
} Worker;

/* This thread has just moved @page to a state with an owner */
static void own_page(Worker *w, uint64_t page, RwpPage to)
{
    Arena *arena = w->arena;
    RwpPage next;

    g_assert_cmpuint(qatomic_fetch_inc(&arena->busy[page]), ==, 0);
    arena->owned[page]++;
    w->owned++;
    g_assert_cmpuint(qatomic_fetch_dec(&arena->busy[page]), ==, 1);

    next = rwp_pages_finish(arena->pages, page, to);
    g_assert(next == to || next == RWP_PAGE_LIVE);
}

static void *evict_and_fetch(void *opaque)
{
    Worker *w = opaque;
    RwpPages *pages = w->arena->pages;

    for (int step = 0; step < NB_STEPS; step++) {
        uint64_t page = g_rand_int_range(w->rand, 0, w->arena->nb_shared);
        bool odd = g_rand_boolean(w->rand);

        switch (g_rand_int_range(w->rand, 0, 8)) {
        case 0:
        case 1:
        case 2:
            /* Another thread may cancel it, and may discard it */
            if (rwp_pages_move(pages, page, RWP_PAGE_LIVE, RWP_PAGE_STAGED) &&
                rwp_pages_move(pages, page, RWP_PAGE_STAGED,
                               RWP_PAGE_LEAVING)) {
                own_page(w, page, odd ? RWP_PAGE_EVICTED : RWP_PAGE_ZERO);
            }
            break;
        case 3:
            rwp_pages_move(pages, page, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
            break;
        case 4:
        case 5:
            if (rwp_pages_move(pages, page, RWP_PAGE_EVICTED,
                               RWP_PAGE_FETCHING)) {
                own_page(w, page, odd ? RWP_PAGE_LIVE : RWP_PAGE_EVICTED);
            }
            break;
        case 6:
            if (rwp_pages_move(pages, page, RWP_PAGE_ZERO,
                               RWP_PAGE_FETCHING)) {
                own_page(w, page, odd ? RWP_PAGE_LIVE : RWP_PAGE_ZERO);
            }
            break;
        default:
            rwp_pages_discard(pages, page,
                              MIN(3, w->arena->nb_shared - page));
            break;
        }
    }
    return NULL;
}

/* Stages the only shared page again and again, until told to stop */
static void *stage(void *opaque)
{
    Worker *w = opaque;

    qatomic_set(&w->arena->staging, true);
    while (!qatomic_read(&w->arena->stop)) {
        rwp_pages_move(w->arena->pages, 0, RWP_PAGE_LIVE, RWP_PAGE_STAGED);
    }
    return NULL;
}

/*
 * A page of this thread's own goes away and is discarded, while it cancels
 * what the other threads stage in the same chunk, in the moment they do.
 * That must not make the chunk look as if nothing of it was away.
 */
static void *cancel_and_discard(void *opaque)
{
    Worker *w = opaque;
    RwpPages *pages = w->arena->pages;
    uint64_t own = 1;

    while (!qatomic_read(&w->arena->staging)) {
        sched_yield();
    }
    for (int step = 0; step < 5 * NB_STEPS; step++) {
        uint64_t start, count;

        g_assert_true(rwp_pages_move(pages, own, RWP_PAGE_LIVE,
                                     RWP_PAGE_LEAVING));
        g_assert_true(rwp_pages_move(pages, own, RWP_PAGE_LEAVING,
                                     RWP_PAGE_EVICTED));

        /* Each of these can be wrong only right after a cancel */
        rwp_pages_move(pages, 0, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
        g_assert_cmpuint(rwp_pages_chunk_away(pages, own), >, 0);
        rwp_pages_move(pages, 0, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
        g_assert_cmpuint(rwp_pages_away(pages), >, 0);
        rwp_pages_move(pages, 0, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
        g_assert_true(rwp_pages_next_run(pages, own, own + 1,
                                         RWP_PAGE_EVICTED, &start, &count));
        rwp_pages_move(pages, 0, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
        g_assert_cmpuint(rwp_pages_discard(pages, own, 1), ==, 1);
        g_assert_cmpint(rwp_pages_get(pages, own), ==, RWP_PAGE_LIVE);
    }
    qatomic_set(&w->arena->stop, true);
    return NULL;
}

/* After all threads ended: no page has an owner, and counters are exact */
static void check_arena(Arena *arena, uint64_t nb_pages)
{
    Fixture f = { .pages = arena->pages, .nb_pages = nb_pages };

    f.state = g_new0(uint8_t, nb_pages);
    f.marked = g_new0(bool, nb_pages);
    for (uint64_t i = 0; i < nb_pages; i++) {
        f.state[i] = rwp_pages_get(arena->pages, i);
        g_assert_false(has_owner(f.state[i]));
    }
    check_all(&f);
    g_free(f.state);
    g_free(f.marked);
}

/* Runs @first_body in one thread and @body in the others */
static void run_threads(void *(*first_body)(void *), void *(*body)(void *),
                        uint64_t nb_shared)
{
    uint64_t nb_pages = NB_SHARED;
    g_autofree Arena *arena = g_new0(Arena, 1);
    g_autoptr(GRand) rand = g_rand_new_with_seed(test_seed());
    Worker workers[NB_THREADS] = { 0 };
    QemuThread threads[NB_THREADS];
    uint64_t owned = 0;

    arena->pages = rwp_pages_new(nb_pages, CHUNK_PAGES, &error_abort);
    arena->nb_shared = nb_shared;
    for (int i = 0; i < NB_THREADS; i++) {
        workers[i].arena = arena;
        workers[i].rand = g_rand_new_with_seed(g_rand_int(rand));
        qemu_thread_create(&threads[i], "pages", i ? body : first_body,
                           &workers[i], QEMU_THREAD_JOINABLE);
    }
    for (int i = 0; i < NB_THREADS; i++) {
        qemu_thread_join(&threads[i]);
        g_rand_free(workers[i].rand);
        owned += workers[i].owned;
    }
    for (int i = 0; i < NB_SHARED; i++) {
        owned -= arena->owned[i];
    }
    g_assert_cmpuint(owned, ==, 0);
    check_arena(arena, nb_pages);
    rwp_pages_free(arena->pages);
}

static void test_threads_owner(void)
{
    /* Few pages, so that threads meet, then many */
    run_threads(evict_and_fetch, evict_and_fetch, 3);
    run_threads(evict_and_fetch, evict_and_fetch, NB_SHARED);
}

static void test_threads_discard(void)
{
    run_threads(cancel_and_discard, stage, 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/rwp/pages/random", test_random);
    g_test_add_func("/rwp/pages/moves", test_moves);
    add_illegal();
    g_test_add_func("/rwp/pages/discard", test_discard);
    g_test_add_func("/rwp/pages/chunks", test_chunks);
    g_test_add_func("/rwp/pages/large", test_large);
    g_test_add_func("/rwp/pages/too-large", test_too_large);
    g_test_add_func("/rwp/pages/threads/owner", test_threads_owner);
    g_test_add_func("/rwp/pages/threads/discard", test_threads_discard);
    return g_test_run();
}
