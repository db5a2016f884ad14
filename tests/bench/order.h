/*
 * The order in which pages are touched, the same with QEMU and without
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BENCH_ORDER_H
#define BENCH_ORDER_H

#include <stdint.h>

#define BENCH_PAGE 4096

/*
 * The successor of @page among @pages pages, a power of two.  All of them
 * come by: with these factors the sequence has its full period (Hull and
 * Dobell, 1962).  With @seed 0 the order is sequential.
 */
static inline uint32_t bench_next(uint32_t page, uint32_t pages, uint32_t seed)
{
    if (!seed) {
        return (page + 1) & (pages - 1);
    }
    return (page * 1664525u + (seed << 1) + 1) & (pages - 1);
}

/* The time stamp counter; its low half is enough for seconds */
static inline uint64_t bench_ticks(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a" (low), "=d" (high) : : "memory");
    return (uint64_t)high << 32 | low;
}

#endif
