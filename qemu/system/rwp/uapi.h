/*
 * Kernel interface of the working set tracker
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Constants and structures that the headers QEMU is built with may lack:
 * userfaultfd read-write protection (Linux 7.3 and Linux 6.12 with
 * linux-rwp; include/uapi/linux/userfaultfd.h there) and the ioctl
 * PAGEMAP_SCAN (Linux 6.7; include/uapi/linux/fs.h,
 * Documentation/admin-guide/mm/pagemap.rst).  Structures have names of
 * our own, so that newer headers do not clash.
 */
#ifndef RWP_UAPI_H
#define RWP_UAPI_H

#include <sys/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

#ifndef UFFD_FEATURE_RWP
#define UFFD_FEATURE_RWP                (1 << 17)
#define UFFD_FEATURE_RWP_ASYNC          (1 << 18)
#define UFFDIO_REGISTER_MODE_RWP        ((__u64)1 << 3)
#define UFFD_PAGEFAULT_FLAG_RWP         (1 << 3)
#define UFFDIO_RWPROTECT_MODE_RWP       ((__u64)1 << 0)
#define UFFDIO_RWPROTECT_MODE_DONTWAKE  ((__u64)1 << 1)
#endif

struct rwp_uffdio_rwprotect {
    __u64 start;
    __u64 len;
    __u64 mode;
};

#define RWP_UFFDIO_RWPROTECT    _IOWR(UFFDIO, 0x09, struct rwp_uffdio_rwprotect)

struct rwp_page_region {
    __u64 start;
    __u64 end;
    __u64 categories;
};

struct rwp_pm_scan_arg {
    __u64 size;
    __u64 flags;
    __u64 start;
    __u64 end;
    __u64 walk_end;
    __u64 vec;
    __u64 vec_len;
    __u64 max_pages;
    __u64 category_inverted;
    __u64 category_mask;
    __u64 category_anyof_mask;
    __u64 return_mask;
};

#define RWP_PAGEMAP_SCAN        _IOWR('f', 16, struct rwp_pm_scan_arg)
/* Only linux-rwp has it: arm what is reported as accessed */
#define RWP_PM_SCAN_RWP_REARM   (1ULL << 48)
#define RWP_PAGE_IS_PRESENT     (1 << 3)
#define RWP_PAGE_IS_SWAPPED     (1 << 4)
#define RWP_PAGE_IS_HUGE        (1 << 6)
#define RWP_PAGE_IS_ACCESSED    (1 << 9)

#endif
