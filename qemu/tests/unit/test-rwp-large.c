/*
 * Ages and states of the pages of a large guest: unit tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guest of 1 TiB that uses next to nothing costs next to nothing.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "system/rwp/ages.h"
#include "system/rwp/pages.h"

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

/* CPU time to look for a run of an age that does not occur; best of five */
static int64_t time_search(RwpAges *ages, uint64_t nb_pages)
{
    int64_t best = INT64_MAX;

    for (int i = 0; i < 5; i++) {
        uint64_t start, count;
        int64_t begin = cpu_time();

        g_assert_false(rwp_ages_next_run(ages, 0, nb_pages, 200, 210,
                                         &start, &count));
        best = MIN(best, cpu_time() - begin);
    }
    return best;
}

/*
 * A guest of 1 TiB that uses next to nothing: no change and no query costs
 * memory or time in proportion to its size.
 */
static void test_large_ages(void)
{
    const uint64_t nb_pages = 1ULL << 28;
    const uint64_t nb_small = nb_pages / 64;
    uint64_t before = resident_pages();
    RwpAges *large = rwp_ages_new(nb_pages, &error_abort);
    RwpAges *small = rwp_ages_new(nb_small, &error_abort);
    uint64_t used, start, count;
    int64_t large_time, small_time;

    g_assert_cmpuint(rwp_ages_bytes(large), >=, nb_pages);
    g_assert_cmpuint(rwp_ages_bytes(large), <, nb_pages + nb_pages / 100);

    rwp_ages_touch(large, nb_pages - 2, 2);
    rwp_ages_touch(large, nb_pages / 2, 1);
    for (int i = 0; i < 3; i++) {
        rwp_ages_tick(large, 0, nb_pages);
    }
    rwp_ages_forget(large, 0, nb_pages / 2);

    g_assert_cmpuint(rwp_ages_get(large, nb_pages - 1), ==, 3);
    g_assert_cmpuint(rwp_ages_get(large, nb_pages / 3), ==, RWP_AGE_NONE);
    g_assert_cmpuint(rwp_ages_at_least(large, 0), ==, 3);
    g_assert_true(rwp_ages_next_run(large, nb_pages / 2 + 1, nb_pages, 3, 3,
                                    &start, &count));
    g_assert_cmpuint(start, ==, nb_pages - 2);
    g_assert_cmpuint(count, ==, 2);

    /* 1/16, as with transparent huge pages each touch may take 2 MiB */
    used = (resident_pages() - before) * qemu_real_host_page_size();
    g_test_message("resident: %" PRIu64 " of %" PRIu64 " bytes", used,
                   rwp_ages_bytes(large));
    g_assert_cmpuint(used, <, nb_pages / 16);

    /* 64 times the size, but the smaller one is in use */
    rwp_ages_touch(small, 0, nb_small);
    large_time = time_search(large, nb_pages);
    small_time = time_search(small, nb_small);
    g_test_message("search: %" PRId64 " ns, in a used 64th %" PRId64 " ns",
                   large_time, small_time);
    g_assert_cmpint(large_time, <, small_time);

    /* It is as quick again when everything was forgotten */
    rwp_ages_forget(small, 0, nb_small);
    g_assert_cmpint(time_search(small, nb_small), <, small_time / 8);

    /* A reset gives memory back */
    before = resident_pages();
    rwp_ages_reset(small);
    used = (before - resident_pages()) * qemu_real_host_page_size();
    g_assert_cmpuint(used, >, nb_small / 2);
    g_assert_cmpuint(used, <=, rwp_ages_bytes(small));
    g_assert_cmpuint(rwp_ages_at_least(small, 0), ==, 0);

    rwp_ages_free(small);
    rwp_ages_free(large);
}

static void test_too_large_ages(void)
{
    Error *err = NULL;

    g_assert_null(rwp_ages_new(UINT64_MAX, &err));
    g_assert_nonnull(err);
    error_free(err);
    err = NULL;

    g_assert_null(rwp_ages_new(1ULL << 60, &err));
    g_assert_nonnull(err);
    error_free(err);

    rwp_ages_free(NULL);
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
static void test_large_pages(void)
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

static void test_too_large_pages(void)
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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/rwp/large/ages", test_large_ages);
    g_test_add_func("/rwp/large/pages", test_large_pages);
    g_test_add_func("/rwp/too-large/ages", test_too_large_ages);
    g_test_add_func("/rwp/too-large/pages", test_too_large_pages);
    return g_test_run();
}
