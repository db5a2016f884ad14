/*
 * Trackers: which pages were touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A tracker arms pages and can tell afterwards which of them were
 * accessed.  An access to an armed page costs the accessing thread one
 * fault in the kernel, and nothing when the page is accessed again.
 *
 * What a tracker knows of a page is in the page table, and the kernel can take
 * the page's entry away at any time: when it reclaims memory, or splits or
 * collapses a large folio of a file.  A page of a memfd without an entry may
 * have been accessed or not.  That makes ages a little wrong, but is not good
 * enough for removing pages; see stage.c.
 *
 * Locking: all operations run in the work thread of the backend, except
 * admit, which runs in the fault thread too.  Return values are 0 or
 * -errno.
 */
#ifndef RWP_TRACKER_H
#define RWP_TRACKER_H

#include "memory.h"

struct RwpTrackerOps {
    RwpTrackerType type;

    /* UFFD_FEATURE_* that a kernel needs for this tracker */
    uint64_t features;

    /* Modes of a chunk that is tracked, but has lost no page so far */
    uint64_t (*modes)(RwpMemory *mem);

    /*
     * From now on, accesses to pages of @chunk trap that have no page table
     * entry, be they in memory or not; those that are in memory until relax().
     * Cheap if that was so before.
     */
    int (*trap)(RwpMemory *mem, uint64_t chunk);

    /*
     * Pages of @chunk that are in memory need not trap any more.  NULL if it
     * costs nothing that they do.
     */
    int (*relax)(RwpMemory *mem, uint64_t chunk);

    /* Arm pages; those that are not in memory are left alone. */
    int (*arm)(RwpMemory *mem, uint64_t first, uint64_t count);

    /* Report pages that are in memory and not armed. */
    int (*scan)(RwpMemory *mem, uint64_t first, uint64_t count,
                RwpRunFunc *fn, void *opaque);

    /*
     * Report as scan does, and have armed what is reported, with no access
     * missed in between.  NULL if the tracker cannot, -ENOTSUP if the host's
     * kernel cannot; else a failure may leave pages armed and not reported.
     */
    int (*rearm)(RwpMemory *mem, uint64_t first, uint64_t count,
                 RwpRunFunc *fn, void *opaque);

    /*
     * Let accesses to a page proceed: disarm it, map it if it has no entry,
     * and wake who waits for it.  -ENOENT: it is not in memory; who waits was
     * woken.
     */
    int (*admit)(RwpMemory *mem, uint64_t page);
};

extern const RwpTrackerOps rwp_tracker_rwp;
extern const RwpTrackerOps rwp_tracker_zap;
extern const RwpTrackerOps rwp_tracker_none;

#endif
