/*
 * Transparent huge pages among pages that are to be evicted
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The unit is the page of the backend, and a huge page is many of them.
 *
 * Context: work thread, and threads of its pool that the batch is lent to.
 */
#ifndef RWP_HUGE_H
#define RWP_HUGE_H

#include "batch.h"
#include "state.h"

/**
 * rwp_huge_keep: no longer want pages of @batch that are a part of a huge
 * page which is not wanted as a whole, unless the backend has thp=split.
 *
 * Returns 0 or -errno.
 */
int rwp_huge_keep(RwpState *s, RwpBatch *batch);

/**
 * rwp_huge_rest: how many pages from @first on, at most @count, are in the
 * same huge page; 1 if it is in none.
 */
uint64_t rwp_huge_rest(RwpState *s, uint64_t first, uint64_t count);

#endif
