/*
 * What a random test begins with
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RWP_SEED_H
#define RWP_SEED_H

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

#endif
