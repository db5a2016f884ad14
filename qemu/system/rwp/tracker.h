/*
 * Trackers: which pages were touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A tracker arms pages and can tell afterwards which of them were
 * accessed.  An access to an armed page costs the accessing thread one
 * fault in the kernel, and nothing when the page is accessed again.
 *
 * During a hold, accesses to pages that are armed wait until they are
 * admitted one by one, or until they are woken after the release.  So a
 * page that a scan within a hold reports as not accessed cannot be
 * accessed unnoticed before the release.
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
     * From now on, accesses to pages of @chunk that are not in memory
     * trap.  Cheap if that was so before.
     */
    int (*trap)(RwpMemory *mem, uint64_t chunk);

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

    /* Begin and end a hold.  It may reach further than @chunk. */
    int (*hold)(RwpMemory *mem, uint64_t chunk);
    int (*release)(RwpMemory *mem, uint64_t chunk);

    /*
     * Disarm a page and wake who waits for it.  -ENOENT: it is not in
     * memory; who waits was woken.
     */
    int (*admit)(RwpMemory *mem, uint64_t page);
};

extern const RwpTrackerOps rwp_tracker_rwp;
extern const RwpTrackerOps rwp_tracker_zap;
extern const RwpTrackerOps rwp_tracker_none;

#endif
