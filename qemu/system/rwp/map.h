/*
 * The map of a backend: runs of pages of one state and age
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RWP_MAP_H
#define RWP_MAP_H

#include "state.h"

#define RWP_MAP_DEFAULT_RUNS 4096
#define RWP_MAP_MAX_RUNS 65536

typedef struct RwpMapOptions {
    uint64_t offset;            /* bytes */
    uint64_t length;            /* bytes */
    uint64_t granularity;       /* bytes */
    uint8_t min_age;            /* RWP_AGE_NONE: report all pages */
    uint32_t max_runs;
} RwpMapOptions;

/**
 * rwp_map: make the answer of query-rwp-map.
 *
 * Checks @options.  Context: main loop.  O(pages looked at).
 */
RwpMap *rwp_map(RwpState *s, const RwpMapOptions *options, Error **errp);

#endif
