/*
 * Tracker for kernels without read-write protection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Arming removes page table entries of the guest's mapping; the pages stay
 * in the memfd.  An access makes the kernel map the page again, so the
 * pages that are mapped are those that were accessed.  For that to be
 * exact the kernel may not map neighbours along with the accessed page:
 * it refrains from that in memory that is registered for write protection
 * (with WP_ASYNC, which makes the registration cost nothing else) or for
 * minor faults.
 *
 * A hold registers minor faults: an access to a page that is in the memfd
 * but not mapped sends a message then.  The kernel takes a registration
 * as done if it has all the modes that are asked for, and replaces the
 * modes otherwise.  So the mode changes from WP, or MISSING|WP, to
 * MISSING|MINOR and back to MISSING|WP, each in one step.
 *
 * Only for shared mappings of a memfd.  Needs Linux 6.7.
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qemu/bitmap.h"
#include "uapi.h"
#include "tracker.h"

static uint64_t zap_modes(RwpMemory *mem)
{
    return UFFDIO_REGISTER_MODE_WP;
}

static int zap_trap(RwpMemory *mem, uint64_t chunk)
{
    if (mem->chunk_modes[chunk] & UFFDIO_REGISTER_MODE_MISSING) {
        return 0;
    }
    return rwp_memory_register(mem, chunk, UFFDIO_REGISTER_MODE_MISSING |
                                           UFFDIO_REGISTER_MODE_WP);
}

static int zap_arm(RwpMemory *mem, uint64_t first, uint64_t count)
{
    void *addr = (void *)(uintptr_t)rwp_memory_host(mem, first);

    return madvise(addr, count * mem->page_size, MADV_DONTNEED) < 0 ?
           -errno : 0;
}

static int zap_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                    RwpRunFunc *fn, void *opaque)
{
    return rwp_memory_scan(mem, first, count, RWP_PAGE_IS_PRESENT,
                           fn, opaque);
}

static int zap_hold(RwpMemory *mem, uint64_t chunk)
{
    return rwp_memory_register(mem, chunk, UFFDIO_REGISTER_MODE_MISSING |
                                           UFFDIO_REGISTER_MODE_MINOR);
}

static int zap_release(RwpMemory *mem, uint64_t chunk)
{
    if (test_bit(chunk, mem->left)) {
        /* Minor faults are all that traps there; other pages are admitted */
        return 0;
    }
    return rwp_memory_register(mem, chunk, UFFDIO_REGISTER_MODE_MISSING |
                                           UFFDIO_REGISTER_MODE_WP);
}

const RwpTrackerOps rwp_tracker_zap = {
    .type = RWP_TRACKER_TYPE_ZAP,
    .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_ASYNC |
                UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS |
                UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS,
    .modes = zap_modes,
    .trap = zap_trap,
    .arm = zap_arm,
    .scan = zap_scan,
    .hold = zap_hold,
    .release = zap_release,
    .admit = rwp_memory_continue,
};
