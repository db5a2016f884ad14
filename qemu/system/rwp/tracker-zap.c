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
 * While pages of a chunk are being evicted, it is registered for minor faults:
 * each access to a page that is in the memfd but not mapped sends a message.
 *
 * The kernel takes a registration as done if it has all the modes that are
 * asked for, and replaces the modes otherwise.  So the mode changes from WP,
 * or MISSING|WP, to MISSING|MINOR and back to MISSING|WP, each in one step.
 *
 * A page that is being migrated has an entry that counts as swapped.  It was
 * mapped before, and will be mapped again without a fault.  What is swapped
 * out has none.
 *
 * Only for shared mappings of a memfd.  Needs Linux 6.7.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "uapi.h"
#include "inject.h"
#include "tracker.h"

static uint64_t zap_modes(RwpMemory *mem)
{
    return UFFDIO_REGISTER_MODE_WP;
}

static int zap_trap(RwpMemory *mem, uint64_t chunk)
{
    uint64_t modes = UFFDIO_REGISTER_MODE_MISSING |
                     (rwp_inject(RWP_INJECT_SKIP_TRAP) ?
                      UFFDIO_REGISTER_MODE_WP : UFFDIO_REGISTER_MODE_MINOR);

    return mem->chunk_modes[chunk] == modes ? 0 :
           rwp_memory_register(mem, chunk, modes);
}

static int zap_relax(RwpMemory *mem, uint64_t chunk)
{
    /*
     * Not if a page is left: minor faults are all that traps there.  Nor if
     * the chunk does not trap any more at all.
     */
    if (test_bit(chunk, mem->left) ||
        !(mem->chunk_modes[chunk] & UFFDIO_REGISTER_MODE_MINOR)) {
        return 0;
    }
    return rwp_memory_register(mem, chunk, UFFDIO_REGISTER_MODE_MISSING |
                                           UFFDIO_REGISTER_MODE_WP);
}

static int zap_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                    RwpRunFunc *fn, void *opaque)
{
    return rwp_memory_scan(mem, first, count,
                           RWP_PAGE_IS_PRESENT | RWP_PAGE_IS_SWAPPED,
                           fn, opaque);
}

const RwpTrackerOps rwp_tracker_zap = {
    .type = RWP_TRACKER_TYPE_ZAP,
    .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_ASYNC |
                UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS |
                UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS,
    .modes = zap_modes,
    .trap = zap_trap,
    .relax = zap_relax,
    .arm = rwp_memory_unmap,
    .scan = zap_scan,
    .admit = rwp_memory_continue,
};
