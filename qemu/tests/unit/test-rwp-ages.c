/*
 * Ages of guest pages: unit tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Beside the real ages there is a shadow: a plain array of ages, changed
 * by the most obvious loops.  After every step all answers of the two are
 * compared.  RWP_TEST_SEED=n repeats a run with random steps.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/thread.h"
#include "qapi/error.h"
#include "system/rwp/ages.h"
#include "rwp-random.h"

/* Of ages.c; the tests hold with any, but look for errors around these */
#define BLOCK_PAGES 16384

#define NB_AGES (RWP_AGE_MAX + 1)

typedef struct Fixture {
    RwpAges *ages;
    uint8_t *shadow;
    uint64_t nb_pages;
    GRand *rand;
} Fixture;

static void fixture_init(Fixture *f, uint64_t nb_pages)
{
    f->ages = rwp_ages_new(nb_pages, &error_abort);
    f->shadow = g_malloc(nb_pages);
    memset(f->shadow, RWP_AGE_NONE, nb_pages);
    f->nb_pages = nb_pages;
    f->rand = g_rand_new_with_seed(rwp_test_seed());
}

static void fixture_clear(Fixture *f)
{
    rwp_ages_free(f->ages);
    g_free(f->shadow);
    g_rand_free(f->rand);
}

/* The obvious loops */

static void shadow_tick(Fixture *f, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        if (f->shadow[i] < RWP_AGE_MAX) {
            f->shadow[i]++;
        }
    }
}

static void shadow_see(Fixture *f, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        if (f->shadow[i] == RWP_AGE_NONE) {
            f->shadow[i] = 0;
        }
    }
}

static uint64_t shadow_at_least(Fixture *f, unsigned min_age)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < f->nb_pages; i++) {
        n += f->shadow[i] != RWP_AGE_NONE && f->shadow[i] >= min_age;
    }
    return n;
}

static bool shadow_in(Fixture *f, uint64_t page, uint8_t min, uint8_t max)
{
    return f->shadow[page] != RWP_AGE_NONE && f->shadow[page] >= min &&
           f->shadow[page] <= max;
}

/* Both, side by side */

static void tick(Fixture *f, uint64_t first, uint64_t count)
{
    rwp_ages_tick(f->ages, first, count);
    shadow_tick(f, first, count);
}

static void touch(Fixture *f, uint64_t first, uint64_t count)
{
    rwp_ages_touch(f->ages, first, count);
    memset(f->shadow + first, 0, count);
}

static void see(Fixture *f, uint64_t first, uint64_t count)
{
    rwp_ages_see(f->ages, first, count);
    shadow_see(f, first, count);
}

static void forget(Fixture *f, uint64_t first, uint64_t count)
{
    rwp_ages_forget(f->ages, first, count);
    memset(f->shadow + first, RWP_AGE_NONE, count);
}

static void reset(Fixture *f)
{
    rwp_ages_reset(f->ages);
    memset(f->shadow, RWP_AGE_NONE, f->nb_pages);
}

/* Comparisons */

static void check_pages(Fixture *f)
{
    for (uint64_t i = 0; i < f->nb_pages; i++) {
        if (rwp_ages_get(f->ages, i) != f->shadow[i]) {
            g_error("page %" PRIu64 " has age %u, not %u", i,
                    rwp_ages_get(f->ages, i), f->shadow[i]);
        }
    }
}

static void check_histogram(Fixture *f)
{
    uint64_t counts[NB_AGES];
    uint64_t expected[NB_AGES + 1] = { 0 };

    for (uint64_t i = 0; i < f->nb_pages; i++) {
        expected[f->shadow[i]]++;
    }
    rwp_ages_histogram(f->ages, counts);
    for (int age = 0; age < NB_AGES; age++) {
        g_assert_cmpuint(counts[age], ==, expected[age]);
    }
}

static void check_sums(Fixture *f, unsigned age)
{
    uint64_t older = shadow_at_least(f, age);

    g_assert_cmpuint(rwp_ages_at_least(f->ages, age), ==, older);
    g_assert_cmpuint(rwp_ages_younger(f->ages, age), ==,
                     shadow_at_least(f, 0) - older);
}

static void check_threshold(Fixture *f, uint64_t wanted, uint8_t min_age)
{
    int expected = min_age;

    for (int age = min_age; age <= RWP_AGE_MAX; age++) {
        if (shadow_at_least(f, age) >= wanted) {
            expected = age;
        }
    }
    g_assert_cmpuint(rwp_ages_threshold(f->ages, wanted, min_age), ==,
                     expected);
}

/* All runs of [first, end), one after the other */
static void check_runs(Fixture *f, uint64_t first, uint64_t end,
                       uint8_t min_age, uint8_t max_age)
{
    uint64_t pos = first;

    for (;;) {
        uint64_t start, count, run_end;
        uint64_t from = pos;
        bool found = rwp_ages_next_run(f->ages, pos, end, min_age, max_age,
                                       &start, &count);

        while (from < end && !shadow_in(f, from, min_age, max_age)) {
            from++;
        }
        g_assert_cmpint(found, ==, from < end);
        if (!found) {
            return;
        }
        for (run_end = from; run_end < end; run_end++) {
            if (!shadow_in(f, run_end, min_age, max_age)) {
                break;
            }
        }
        g_assert_cmpuint(start, ==, from);
        g_assert_cmpuint(count, ==, run_end - from);
        pos = run_end;
    }
}

static void check_all(Fixture *f)
{
    check_pages(f);
    check_histogram(f);
}

static void random_step(Fixture *f)
{
    uint64_t first, count;
    int what = g_rand_int_range(f->rand, 0, 100);

    rwp_random_range(f->rand, f->nb_pages, BLOCK_PAGES, &first, &count);
    if (what < 45) {
        tick(f, first, count);
    } else if (what < 55) {
        tick(f, 0, f->nb_pages);
    } else if (what < 75) {
        touch(f, first, count / g_rand_int_range(f->rand, 1, 50));
    } else if (what < 85) {
        see(f, first, count);
    } else if (what < 99) {
        forget(f, first, count / g_rand_int_range(f->rand, 1, 20));
    } else {
        reset(f);
    }
}

static void test_random(void)
{
    Fixture f;

    fixture_init(&f, 2 * BLOCK_PAGES + 77);
    check_all(&f);

    for (int step = 0; step < 1500; step++) {
        uint64_t first, count;
        uint8_t min_age = g_rand_int_range(f.rand, 0, 30);
        uint8_t max_age = min_age + g_rand_int_range(f.rand, 0, 30);

        random_step(&f);
        check_all(&f);

        rwp_random_range(f.rand, f.nb_pages, BLOCK_PAGES, &first, &count);
        check_runs(&f, first, first + count, min_age, max_age);
        check_sums(&f, min_age);
        if (step % 20 == 0) {
            check_threshold(&f, count, min_age);
        }
    }
    fixture_clear(&f);
}

/* Every change, with each end of its range on each side of a border */
static void test_borders(void)
{
    static void (*const changes[])(Fixture *, uint64_t, uint64_t) = {
        touch, tick, see, forget,
    };
    Fixture f;

    fixture_init(&f, 3 * BLOCK_PAGES);
    for (int c = 0; c < ARRAY_SIZE(changes); c++) {
        for (int from = -1; from <= 1; from++) {
            for (int to = -1; to <= 1; to++) {
                uint64_t first = BLOCK_PAGES + from;
                uint64_t end = 2 * BLOCK_PAGES + to;

                /* Something on both sides that must not change */
                touch(&f, first - 5, 10);
                touch(&f, end - 5, 10);
                tick(&f, first - 5, end - first + 10);

                changes[c](&f, first, end - first);
                check_all(&f);
                check_runs(&f, 0, f.nb_pages, 0, RWP_AGE_MAX);
                check_runs(&f, first, end, 0, 0);
                check_runs(&f, first - 1, end + 1, 1, 1);
                reset(&f);
            }
        }
        /* Empty ranges, also at the very end */
        changes[c](&f, 0, 0);
        changes[c](&f, f.nb_pages, 0);
        changes[c](&f, f.nb_pages - 1, 1);
        check_all(&f);
        reset(&f);
    }
    fixture_clear(&f);
}

static void test_saturation(void)
{
    Fixture f;

    fixture_init(&f, 1000);
    touch(&f, 10, 500);
    for (int i = 0; i < RWP_AGE_MAX; i++) {
        g_assert_cmpuint(rwp_ages_get(f.ages, 10), ==, i);
        tick(&f, 0, f.nb_pages);
        check_all(&f);
    }
    touch(&f, 10, 1);
    for (int i = 0; i < 3; i++) {
        tick(&f, 0, f.nb_pages);
        check_all(&f);
        g_assert_cmpuint(rwp_ages_get(f.ages, 11), ==, RWP_AGE_MAX);
        g_assert_cmpuint(rwp_ages_get(f.ages, 9), ==, RWP_AGE_NONE);
        g_assert_cmpuint(rwp_ages_at_least(f.ages, RWP_AGE_MAX), ==, 499);
    }
    fixture_clear(&f);
}

static void test_sums(void)
{
    Fixture f;

    fixture_init(&f, BLOCK_PAGES + 1000);
    /* i pages of each age i, and some without one */
    for (int age = RWP_AGE_MAX; age >= 0; age--) {
        tick(&f, 0, f.nb_pages);
        touch(&f, age * (age - 1) / 2 % BLOCK_PAGES, age);
    }
    check_all(&f);
    for (unsigned age = 0; age <= RWP_AGE_MAX + 3; age++) {
        check_sums(&f, age);
    }
    check_sums(&f, UINT_MAX);
    g_assert_cmpuint(rwp_ages_younger(f.ages, UINT_MAX), ==,
                     rwp_ages_at_least(f.ages, 0));
    fixture_clear(&f);
}

static void test_threshold(void)
{
    Fixture f;

    fixture_init(&f, 100);
    touch(&f, 0, 10);
    tick(&f, 0, 100);
    tick(&f, 0, 100);
    touch(&f, 10, 20);
    tick(&f, 0, 100);
    touch(&f, 30, 30);

    /* Now 10 pages have age 3, 20 have 1, 30 have 0 and 40 have none */
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 0, 0), ==, RWP_AGE_MAX);
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 1, 0), ==, 3);
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 10, 0), ==, 3);
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 11, 0), ==, 1);
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 11, 2), ==, 2);
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 30, 0), ==, 1);
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 31, 0), ==, 0);
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 61, 0), ==, 0);
    g_assert_cmpuint(rwp_ages_threshold(f.ages, 1, RWP_AGE_MAX), ==,
                     RWP_AGE_MAX);
    for (int wanted = 0; wanted <= 61; wanted++) {
        for (int age = 0; age < 5; age++) {
            check_threshold(&f, wanted, age);
        }
    }
    fixture_clear(&f);
}

static void test_runs(void)
{
    Fixture f;
    uint64_t start, count;

    fixture_init(&f, 4 * BLOCK_PAGES);

    /* A run that spans all of a block, between blocks never seen */
    touch(&f, BLOCK_PAGES - 1, BLOCK_PAGES + 2);
    g_assert_true(rwp_ages_next_run(f.ages, 0, f.nb_pages, 0, 0,
                                    &start, &count));
    g_assert_cmpuint(start, ==, BLOCK_PAGES - 1);
    g_assert_cmpuint(count, ==, BLOCK_PAGES + 2);

    /* It is cut by the range asked for, and only by that */
    g_assert_true(rwp_ages_next_run(f.ages, BLOCK_PAGES + 3,
                                    BLOCK_PAGES + 5, 0, 0, &start, &count));
    g_assert_cmpuint(start, ==, BLOCK_PAGES + 3);
    g_assert_cmpuint(count, ==, 2);

    /* Pages never seen match no ages, not even all of them */
    g_assert_false(rwp_ages_next_run(f.ages, 2 * BLOCK_PAGES + 1, f.nb_pages,
                                     0, UINT8_MAX, &start, &count));
    g_assert_false(rwp_ages_next_run(f.ages, 0, f.nb_pages,
                                     RWP_AGE_NONE, UINT8_MAX,
                                     &start, &count));
    /* No ages at all, no pages at all */
    g_assert_false(rwp_ages_next_run(f.ages, 0, f.nb_pages, 1, 0,
                                     &start, &count));
    g_assert_false(rwp_ages_next_run(f.ages, BLOCK_PAGES, BLOCK_PAGES, 0, 0,
                                     &start, &count));
    fixture_clear(&f);
}

#define NB_THREADS 4

typedef struct Worker {
    Fixture part;       /* the ages of all, and the shadow of all */
    uint64_t first;
    uint64_t count;
    unsigned *waiting;  /* number of threads not ready yet; atomic */
} Worker;

/* Changes of this thread's own pages, in blocks that it shares */
static void *change_own_pages(void *opaque)
{
    Worker *w = opaque;
    Fixture *f = &w->part;

    qatomic_dec(w->waiting);
    while (qatomic_read(w->waiting)) {
        sched_yield();
    }

    for (int step = 0; step < 300000; step++) {
        uint64_t first = w->first + g_rand_int_range(f->rand, 0, w->count);
        uint64_t end = w->first + w->count;
        uint64_t count = g_rand_int_range(f->rand, 0, MIN(end - first, 40));

        switch (g_rand_int_range(f->rand, 0, 4)) {
        case 0:
            touch(f, first, count);
            break;
        case 1:
            forget(f, first, count);
            break;
        case 2:
            see(f, first, count);
            break;
        default:
            tick(f, first, count);
            break;
        }
    }
    return NULL;
}

static void test_threads(void)
{
    Worker workers[NB_THREADS];
    QemuThread threads[NB_THREADS];
    unsigned waiting = NB_THREADS;
    Fixture f;

    fixture_init(&f, BLOCK_PAGES + 4 * 100);
    for (int i = 0; i < NB_THREADS; i++) {
        workers[i].part = f;
        workers[i].part.rand = g_rand_new_with_seed(g_rand_int(f.rand));
        workers[i].first = BLOCK_PAGES - 200 + i * 100;
        workers[i].count = 100;
        workers[i].waiting = &waiting;
        qemu_thread_create(&threads[i], "ages", change_own_pages, &workers[i],
                           QEMU_THREAD_JOINABLE);
    }
    for (int i = 0; i < NB_THREADS; i++) {
        qemu_thread_join(&threads[i]);
        g_rand_free(workers[i].part.rand);
    }
    check_all(&f);
    check_runs(&f, 0, f.nb_pages, 0, RWP_AGE_MAX);

    /* The blocks know that nothing is seen any more, so nothing changes */
    forget(&f, 0, f.nb_pages);
    tick(&f, 0, f.nb_pages);
    check_all(&f);
    fixture_clear(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/rwp/ages/random", test_random);
    g_test_add_func("/rwp/ages/borders", test_borders);
    g_test_add_func("/rwp/ages/saturation", test_saturation);
    g_test_add_func("/rwp/ages/sums", test_sums);
    g_test_add_func("/rwp/ages/threshold", test_threshold);
    g_test_add_func("/rwp/ages/runs", test_runs);
    g_test_add_func("/rwp/ages/threads", test_threads);
    return g_test_run();
}
