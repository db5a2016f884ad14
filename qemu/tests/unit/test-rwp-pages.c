/*
 * Where the content of guest pages is: unit tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Beside the real states there is a shadow: a plain array of states and
 * one of marks, changed by the most obvious loops.  After every step all
 * answers of the two are compared.  RWP_TEST_SEED=n repeats a run with
 * random steps.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "system/rwp/pages.h"
#include "rwp-random.h"

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

static void fixture_init(Fixture *f, uint64_t nb_pages)
{
    f->pages = rwp_pages_new(nb_pages, CHUNK_PAGES, &error_abort);
    f->state = g_new0(uint8_t, nb_pages);
    f->marked = g_new0(bool, nb_pages);
    f->nb_pages = nb_pages;
    f->rand = g_rand_new_with_seed(rwp_test_seed());
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

        rwp_random_range(f.rand, f.nb_pages, CHUNK_PAGES, &first, &count);
        if (what < 80) {
            random_moves(&f, first, count);
        } else if (what < 90) {
            random_finishes(&f, first, count);
        } else {
            discard(&f, first, count / g_rand_int_range(f.rand, 1, 20));
        }
        check_all(&f);

        rwp_random_range(f.rand, f.nb_pages, CHUNK_PAGES, &first, &count);
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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/rwp/pages/random", test_random);
    g_test_add_func("/rwp/pages/moves", test_moves);
    add_illegal();
    g_test_add_func("/rwp/pages/discard", test_discard);
    g_test_add_func("/rwp/pages/chunks", test_chunks);
    return g_test_run();
}
