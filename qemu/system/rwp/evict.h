/*
 * The rwp-evict and rwp-fetch jobs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A backend has at most one of them at a time.  Context: main loop.
 */
#ifndef RWP_EVICT_H
#define RWP_EVICT_H

#include "state.h"

typedef struct RwpEvictOptions {
    const char *job_id;
    int job_flags;
    uint64_t speed;             /* bytes per second, 0 for no limit */

    /* Explicit ranges, or NULL */
    RwpRangeList *ranges;

    /* Without ranges, for eviction */
    uint8_t min_age;            /* at least 1 */
    uint64_t bytes;             /* at most; UINT64_MAX for no limit */
} RwpEvictOptions;

/**
 * rwp_evict_start: start a job that evicts.
 *
 * @target: as for rwp_state_need_store()
 *
 * @options are within their bounds.
 */
bool rwp_evict_start(RwpState *s, const char *target,
                     const RwpEvictOptions *options, Error **errp);

/** rwp_fetch_start: start a job that fetches; ages do not matter. */
bool rwp_fetch_start(RwpState *s, const RwpEvictOptions *options,
                     Error **errp);

/**
 * rwp_ranges_check: whether all of @ranges lie within the memory of @s and
 * are aligned.
 */
bool rwp_ranges_check(RwpState *s, RwpRangeList *ranges, Error **errp);

#endif
