/*
 * No tracker: eviction of explicit ranges of anonymous memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * On a kernel that can move pages (Linux 6.8) but cannot tell which ones
 * are used, ranges that somebody else knows to be cold can still be
 * evicted, because a page that was moved cannot be touched.
 */

#include "qemu/osdep.h"
#include "uapi.h"
#include "tracker.h"

static uint64_t none_modes(RwpMemory *mem)
{
    return 0;
}

static int none_trap(RwpMemory *mem, uint64_t chunk)
{
    return mem->chunk_modes[chunk] ? 0 :
           rwp_memory_register(mem, chunk, UFFDIO_REGISTER_MODE_MISSING);
}

static int none_arm(RwpMemory *mem, uint64_t first, uint64_t count)
{
    return 0;
}

static int none_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                     RwpRunFunc *fn, void *opaque)
{
    return 0;
}

static int none_admit(RwpMemory *mem, uint64_t page)
{
    return rwp_memory_wake(mem, page, 1);
}

const RwpTrackerOps rwp_tracker_none = {
    .type = RWP_TRACKER_TYPE_NONE,
    .modes = none_modes,
    .trap = none_trap,
    .arm = none_arm,
    .scan = none_scan,
    .admit = none_admit,
};
