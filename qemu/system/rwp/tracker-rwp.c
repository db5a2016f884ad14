/*
 * Tracker for kernels with userfaultfd read-write protection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Arming protects resident pages against any access.  Normally the kernel
 * lifts the protection of a page by itself when it is accessed
 * (RWP_ASYNC), and a scan asks which protections are gone.
 *
 * Pages of a memfd that are not mapped carry no protection.  They are
 * registered for minor faults too, from the first eviction in their chunk
 * on, so that each access to one sends a message.
 *
 * Needs Linux 7.3, or Linux 6.12 with linux-rwp.
 */

#include "qemu/osdep.h"
#include "uapi.h"
#include "inject.h"
#include "tracker.h"

static uint64_t rwp_modes(RwpMemory *mem)
{
    return UFFDIO_REGISTER_MODE_RWP;
}

static int rwp_trap(RwpMemory *mem, uint64_t chunk)
{
    uint64_t modes = UFFDIO_REGISTER_MODE_RWP | UFFDIO_REGISTER_MODE_MISSING;

    if (mem->fd >= 0 && !rwp_inject(RWP_INJECT_SKIP_TRAP)) {
        modes |= UFFDIO_REGISTER_MODE_MINOR;
    }
    return mem->chunk_modes[chunk] == modes ? 0 :
           rwp_memory_register(mem, chunk, modes);
}

static int rwp_protect(RwpMemory *mem, uint64_t first, uint64_t count,
                       uint64_t mode)
{
    struct rwp_uffdio_rwprotect arg = {
        .start = rwp_memory_host(mem, first),
        .len = count * mem->page_size,
        .mode = mode,
    };
    int ret;

    do {
        ret = ioctl(mem->uffd, RWP_UFFDIO_RWPROTECT, &arg) < 0 ? -errno : 0;
    } while (ret == -EAGAIN);
    return ret;
}

static int rwp_arm(RwpMemory *mem, uint64_t first, uint64_t count)
{
    return rwp_protect(mem, first, count, UFFDIO_RWPROTECT_MODE_RWP);
}

static int rwp_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                    RwpRunFunc *fn, void *opaque)
{
    return rwp_memory_scan(mem, first, count, RWP_PAGE_IS_ACCESSED,
                           fn, opaque);
}

static int rwp_admit(RwpMemory *mem, uint64_t page)
{
    /* Lifts the protection of a mapped page, and wakes */
    int ret = rwp_protect(mem, page, 1, 0);

    if (ret < 0) {
        rwp_memory_wake(mem, page, 1);
    }
    return ret < 0 || mem->fd < 0 ? ret : rwp_memory_continue(mem, page);
}

const RwpTrackerOps rwp_tracker_rwp = {
    .type = RWP_TRACKER_TYPE_RWP,
    .features = UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC |
                UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS |
                UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS,
    .modes = rwp_modes,
    .trap = rwp_trap,
    .arm = rwp_arm,
    .scan = rwp_scan,
    .rearm = rwp_memory_rearm,
    .admit = rwp_admit,
};
