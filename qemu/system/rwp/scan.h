/*
 * The cycle: arm, wait one interval, scan
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RWP_SCAN_H
#define RWP_SCAN_H

#include "state.h"

/* Figures of the cycles since tracking was started */
typedef struct RwpCycleStats {
    uint64_t completed;
    int64_t arm_ns;             /* of the last cycle */
    int64_t scan_ns;            /* of the last cycle */
    uint64_t accessed;          /* of the last cycle, in pages */
} RwpCycleStats;

/** rwp_scanner_new: Context: main loop. */
RwpScanner *rwp_scanner_new(RwpState *s);

/**
 * rwp_scanner_free: stop, wait for the end, and free.  @scanner may be
 * NULL.  Context: main loop.
 */
void rwp_scanner_free(RwpScanner *scanner);

/**
 * rwp_scanner_start: start with cycles of @interval ms.
 *
 * Every populated page has age 0 then.  The arming happens in the work
 * thread; it is not waited for.  Context: main loop; not running.
 */
void rwp_scanner_start(RwpScanner *scanner, uint32_t interval);

/** rwp_scanner_stop: do not begin another cycle.  Context: main loop. */
void rwp_scanner_stop(RwpScanner *scanner);

/** rwp_scanner_running: any thread; @scanner may be NULL. */
bool rwp_scanner_running(RwpScanner *scanner);

/** rwp_scanner_ever: whether there are ages.  @scanner may be NULL. */
bool rwp_scanner_ever(RwpScanner *scanner);

/** rwp_scanner_interval: present interval in ms. */
uint32_t rwp_scanner_interval(RwpScanner *scanner);

/** rwp_scanner_stats: copy figures to @stats.  Any thread. */
void rwp_scanner_stats(RwpScanner *scanner, RwpCycleStats *stats);

#endif
