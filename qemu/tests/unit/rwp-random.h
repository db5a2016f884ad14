/*
 * What random tests share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RWP_RANDOM_H
#define RWP_RANDOM_H

#include "qemu/cutils.h"

/**
 * rwp_test_seed: a seed, which is printed; the environment variable
 * RWP_TEST_SEED can say which.
 */
static inline uint32_t rwp_test_seed(void)
{
    const char *text = g_getenv("RWP_TEST_SEED");
    unsigned seed = g_random_int();

    if (text) {
        g_assert_cmpint(qemu_strtoui(text, NULL, 0, &seed), ==, 0);
    }
    g_test_message("RWP_TEST_SEED=%u", seed);
    return seed;
}

/**
 * rwp_random_range: a part of [0, @nb_pages) of any size, maybe none, often
 * beginning or ending at the border of @block_pages.
 */
static inline void rwp_random_range(GRand *rand, uint64_t nb_pages,
                                    uint64_t block_pages, uint64_t *first,
                                    uint64_t *count)
{
    uint64_t a = g_rand_int_range(rand, 0, nb_pages);
    uint64_t b = g_rand_int_range(rand, 0, nb_pages + 1);

    switch (g_rand_int_range(rand, 0, 4)) {
    case 0:
        a = QEMU_ALIGN_DOWN(a, block_pages);
        break;
    case 1:
        b = QEMU_ALIGN_DOWN(b, block_pages);
        break;
    case 2:
        b = MIN(a + g_rand_int_range(rand, 0, 20), nb_pages);
        break;
    default:
        break;
    }
    *first = MIN(a, b);
    *count = MAX(a, b) - *first;
}

#endif
