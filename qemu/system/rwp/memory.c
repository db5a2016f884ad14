/*
 * The memory of one backend, as the trackers and pagers see it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See memory.h for the contract.  Invariant: chunk_modes[] says what the
 * kernel has registered; a failed system call leaves both as they were.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bitmap.h"
#include "qemu/bitops.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qemu/userfaultfd.h"
#include "qapi/error.h"
#include "uapi.h"
#include "inject.h"
#include "memory.h"
#include "tracker.h"
#include "pager.h"
#include "trace.h"

/*
 * Regions that one PAGEMAP_SCAN returns.  With more than 512, Linux 6.18
 * reports a walk_end that lies before the last region, so that going on
 * from there would report regions twice.
 */
#define SCAN_REGIONS 512

static const char *const feature_names[] = {
    "PAGEFAULT_FLAG_WP", "EVENT_FORK", "EVENT_REMAP", "EVENT_REMOVE",
    "MISSING_HUGETLBFS", "MISSING_SHMEM", "EVENT_UNMAP", "SIGBUS",
    "THREAD_ID", "MINOR_HUGETLBFS", "MINOR_SHMEM", "EXACT_ADDRESS",
    "WP_HUGETLBFS_SHMEM", "WP_UNPOPULATED", "POISON", "WP_ASYNC", "MOVE",
    "RWP", "RWP_ASYNC",
};

bool rwp_memory_features(uint64_t *features, Error **errp)
{
    if (uffd_query_features(features) < 0) {
        int err = errno;

        error_setg_errno(errp, err, "memory-backend-rwp cannot use "
                         "userfaultfd");
        if (err == EPERM || err == EACCES) {
            error_append_hint(errp, "Faults taken inside the host kernel, "
                "which KVM and system calls cause, must be handled too.  "
                "Give QEMU access to /dev/userfaultfd, or the capability "
                "CAP_SYS_PTRACE, or set the sysctl "
                "vm.unprivileged_userfaultfd to 1.\n");
        } else {
            error_append_hint(errp, "The host kernel must be built with "
                              "CONFIG_USERFAULTFD.\n");
        }
        return false;
    }
    return true;
}

strList *rwp_memory_feature_names(RwpMemory *mem)
{
    strList *list = NULL, **tail = &list;

    for (size_t i = 0; i < ARRAY_SIZE(feature_names); i++) {
        if (mem->features & BIT_ULL(i)) {
            QAPI_LIST_APPEND(tail, g_strdup(feature_names[i]));
        }
    }
    if (mem->rearms) {
        QAPI_LIST_APPEND(tail, g_strdup("PM_SCAN_RWP_REARM"));
    }
    return list;
}

/* An empty range is how to ask (linux-rwp, admin-guide/mm/pagemap.rst) */
static bool kernel_rearms(RwpMemory *mem)
{
    struct rwp_pm_scan_arg arg = {
        .size = sizeof(arg),
        .flags = RWP_PM_SCAN_RWP_REARM,
    };

    return ioctl(mem->pagemap, RWP_PAGEMAP_SCAN, &arg) == 0;
}

RwpMemory *rwp_memory_open(const RwpTrackerOps *tracker,
                           const RwpPagerOps *pager, void *host,
                           uint64_t size, uint64_t page_size, int fd,
                           Error **errp)
{
    g_autofree RwpMemory *mem = g_new0(RwpMemory, 1);

    mem->tracker = tracker;
    mem->pager = pager;
    mem->host = host;
    mem->size = size;
    mem->page_size = page_size;
    mem->nb_pages = size / page_size;
    mem->chunk_pages = MAX(RWP_CHUNK_BYTES, page_size) / page_size;
    mem->fd = fd;
    if (!rwp_memory_features(&mem->features, errp)) {
        return NULL;
    }
    /* Who waits matters when QEMU ends; kernels since 4.14 say it */
    mem->uffd = uffd_create_fd(tracker->features | pager->features |
                               (mem->features & UFFD_FEATURE_THREAD_ID),
                               true);
    if (mem->uffd < 0) {
        error_setg_errno(errp, errno, "cannot create a userfaultfd for "
                         "tracker=%s", RwpTrackerType_str(tracker->type));
        return NULL;
    }
    mem->pagemap = qemu_open_old("/proc/self/pagemap", O_RDONLY);
    if (mem->pagemap < 0) {
        error_setg_errno(errp, errno, "memory-backend-rwp cannot open "
                         "/proc/self/pagemap");
        close(mem->uffd);
        return NULL;
    }
    /* Never written, so it is the kernel's zero page and takes no memory */
    mem->zero_page = mmap(NULL, page_size, PROT_READ,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mem->zero_page == MAP_FAILED) {
        error_setg_errno(errp, errno, "memory-backend-rwp cannot map a page");
        close(mem->pagemap);
        close(mem->uffd);
        return NULL;
    }
    mem->chunk_modes = g_new0(uint64_t, rwp_memory_nb_chunks(mem));
    mem->left = bitmap_new(rwp_memory_nb_chunks(mem));
    mem->rearms = kernel_rearms(mem);
    return g_steal_pointer(&mem);
}

void rwp_memory_close(RwpMemory *mem)
{
    if (!mem) {
        return;
    }
    rwp_memory_unregister(mem, INT64_MAX);
    close(mem->pagemap);
    close(mem->uffd);
    munmap(mem->zero_page, mem->page_size);
    g_free(mem->chunk_modes);
    g_free(mem->left);
    g_free(mem);
}

static int register_range(RwpMemory *mem, uint64_t first, uint64_t count,
                          uint64_t modes)
{
    struct uffdio_register reg = {
        .range.start = rwp_memory_host(mem, first),
        .range.len = count * mem->page_size,
        .mode = modes,
    };

    if (ioctl(mem->uffd, UFFDIO_REGISTER, &reg) < 0) {
        int ret = -errno;

        trace_rwp_register_failed(first, count, modes, ret);
        return ret;
    }
    return 0;
}

int rwp_memory_register(RwpMemory *mem, uint64_t chunk, uint64_t modes)
{
    uint64_t count;
    uint64_t first = rwp_memory_chunk(mem, chunk, &count);
    int ret = register_range(mem, first, count, modes);

    if (ret == 0) {
        mem->chunk_modes[chunk] = modes;
    }
    return ret;
}

static void unregister_range(RwpMemory *mem, uint64_t first, uint64_t count)
{
    struct uffdio_range range = {
        .start = rwp_memory_host(mem, first),
        .len = count * mem->page_size,
    };

    /*
     * A failure means that the mapping is gone, and the registration
     * with it.  The wake is for kernels that wake only those who wait for
     * missing pages.
     */
    if (ioctl(mem->uffd, UFFDIO_UNREGISTER, &range) < 0) {
        trace_rwp_register_failed(first, count, 0, -errno);
    }
    rwp_memory_wake(mem, first, count);
}

int rwp_memory_untrap(RwpMemory *mem, uint64_t chunk)
{
    uint64_t count;
    uint64_t first = rwp_memory_chunk(mem, chunk, &count);
    int ret;

    if (!(mem->chunk_modes[chunk] & UFFDIO_REGISTER_MODE_MISSING)) {
        return 0;
    }
    unregister_range(mem, first, count);
    mem->chunk_modes[chunk] = 0;
    clear_bit(chunk, mem->left);
    ret = rwp_memory_register(mem, chunk, mem->tracker->modes(mem));
    trace_rwp_untrap(chunk, ret);
    return ret < 0 ? ret : 1;
}

bool rwp_memory_unregister(RwpMemory *mem, int64_t until_ns)
{
    uint64_t nb_chunks = rwp_memory_nb_chunks(mem);

    for (uint64_t chunk = 0; chunk < nb_chunks; chunk++) {
        uint64_t count;
        uint64_t first = rwp_memory_chunk(mem, chunk, &count);

        if (!mem->chunk_modes[chunk]) {
            continue;
        }
        if (get_clock() >= until_ns) {
            return false;
        }
        unregister_range(mem, first, count);
        mem->chunk_modes[chunk] = 0;
        clear_bit(chunk, mem->left);
    }
    return true;
}

int rwp_memory_register_all(RwpMemory *mem, uint64_t modes)
{
    uint64_t nb_chunks = rwp_memory_nb_chunks(mem);

    for (uint64_t chunk = 0; chunk < nb_chunks; chunk++) {
        uint64_t end = chunk;
        uint64_t last_count;
        int ret;

        while (end < nb_chunks && !mem->chunk_modes[end]) {
            end++;
        }
        if (end == chunk) {
            continue;
        }
        /* One call for many chunks: a terabyte has 16384 of them */
        rwp_memory_chunk(mem, end - 1, &last_count);
        ret = register_range(mem, chunk * mem->chunk_pages,
                             (end - 1 - chunk) * mem->chunk_pages + last_count,
                             modes);
        if (ret < 0) {
            return ret;
        }
        for (; chunk < end; chunk++) {
            mem->chunk_modes[chunk] = modes;
        }
    }
    return 0;
}

/*
 * @flags: PM_SCAN_* of the kernel
 * @host: where page 0 is mapped
 */
static int scan(RwpMemory *mem, uint64_t flags, void *host, uint64_t first,
                uint64_t count, uint64_t categories, RwpRunFunc *fn,
                void *opaque)
{
    struct rwp_page_region regions[SCAN_REGIONS];
    uint64_t base = (uintptr_t)host;
    /* To ask for all of one category is what the kernel is fastest at */
    bool one = is_power_of_2(categories);
    struct rwp_pm_scan_arg arg = {
        .size = sizeof(arg),
        .flags = flags,
        .start = base + first * mem->page_size,
        .end = base + (first + count) * mem->page_size,
        .vec = (uintptr_t)regions,
        .vec_len = SCAN_REGIONS,
        .category_mask = one ? categories : 0,
        .category_anyof_mask = one ? 0 : categories,
        .return_mask = categories,
    };

    while (arg.start < arg.end) {
        int nb = ioctl(mem->pagemap, RWP_PAGEMAP_SCAN, &arg);

        if (nb < 0) {
            return -errno;
        }
        for (int i = 0; i < nb; i++) {
            uint64_t from = (regions[i].start - base) / mem->page_size;
            uint64_t to = DIV_ROUND_UP(regions[i].end - base, mem->page_size);

            fn(opaque, from, to - from);
        }
        if (arg.walk_end <= arg.start) {
            return -EIO;
        }
        arg.start = arg.walk_end;
    }
    return 0;
}

int rwp_memory_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                    uint64_t categories, RwpRunFunc *fn, void *opaque)
{
    return scan(mem, 0, mem->host, first, count, categories, fn, opaque);
}

int rwp_memory_scan_view(RwpMemory *mem, void *view, uint64_t count,
                         uint64_t categories, RwpRunFunc *fn, void *opaque)
{
    return scan(mem, 0, view, 0, count, categories, fn, opaque);
}

int rwp_memory_rearm(RwpMemory *mem, uint64_t first, uint64_t count,
                     RwpRunFunc *fn, void *opaque)
{
    return mem->rearms ? scan(mem, RWP_PM_SCAN_RWP_REARM, mem->host, first,
                              count, RWP_PAGE_IS_ACCESSED, fn, opaque) :
                         -ENOTSUP;
}

int rwp_memory_unmap(RwpMemory *mem, uint64_t first, uint64_t count)
{
    void *addr = (void *)(uintptr_t)rwp_memory_host(mem, first);

    return madvise(addr, count * mem->page_size, MADV_DONTNEED) < 0 ?
           -errno : 0;
}

int rwp_memory_wake(RwpMemory *mem, uint64_t first, uint64_t count)
{
    struct uffdio_range range = {
        .start = rwp_memory_host(mem, first),
        .len = count * mem->page_size,
    };

    return ioctl(mem->uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int rwp_memory_fill(RwpMemory *mem, unsigned long request, void *arg)
{
    static unsigned calls;

    if (rwp_inject(RWP_INJECT_EAGAIN) && qatomic_fetch_inc(&calls) % 2) {
        if (rwp_inject(RWP_INJECT_TRUST_EAGAIN) && request == UFFDIO_COPY) {
            return 0;
        }
        errno = EAGAIN;
        return -1;
    }
    return ioctl(mem->uffd, request, arg);
}

/*
 * One system call that fills [@dst, @dst + @len) from @src, or with zeros
 * if that is NULL.
 *
 * Returns 0 or -errno; @filled is then the number of bytes before the one
 * that failed, or negative.
 */
static int fill_once(RwpMemory *mem, uint64_t dst, uint64_t len,
                     const uint8_t *src, int64_t *filled)
{
    struct uffdio_copy copy = {
        .dst = dst,
        .src = (uintptr_t)src,
        .len = len,
    };
    struct uffdio_zeropage zero = {
        .range.start = dst,
        .range.len = len,
    };
    int ret = src ? rwp_memory_fill(mem, UFFDIO_COPY, &copy) :
                    rwp_memory_fill(mem, UFFDIO_ZEROPAGE, &zero);

    *filled = src ? copy.copy : zero.zeropage;
    return ret < 0 ? -errno : 0;
}

static int fill(RwpMemory *mem, uint64_t first, uint64_t count,
                const uint8_t *buf, uint64_t *placed)
{
    uint64_t start = rwp_memory_host(mem, first);
    uint64_t total = count * mem->page_size;
    uint64_t done = 0;
    int64_t filled;
    int ret;

    do {
        ret = fill_once(mem, start + done, total - done,
                        buf ? buf + done : NULL, &filled);
        if (ret < 0 && filled > 0) {
            done += filled;
            ret = -EAGAIN;
        }
        /* The mapping was changing; nothing is wrong with the page */
    } while (ret == -EAGAIN);

    if (ret == -EEXIST) {
        rwp_memory_wake(mem, first + done / mem->page_size, 1);
    }
    if (placed) {
        *placed = ret < 0 ? done / mem->page_size : count;
    }
    return ret;
}

int rwp_memory_copy(RwpMemory *mem, uint64_t first, uint64_t count,
                    const void *buf, uint64_t *placed)
{
    return fill(mem, first, count, buf, placed);
}

int rwp_memory_overwrite(RwpMemory *mem, uint64_t page, const void *buf)
{
    const uint8_t *bytes = buf;
    uint64_t done = 0;

    /* pwrite(2) does not work on hugetlbfs */
    if (mem->fd < 0 || mem->page_size != qemu_real_host_page_size()) {
        return -EEXIST;
    }
    while (done < mem->page_size) {
        ssize_t len = pwrite(mem->fd, bytes + done, mem->page_size - done,
                             page * mem->page_size + done);

        if (len > 0) {
            done += len;
        } else if (len == 0 || errno != EINTR) {
            return len == 0 ? -EIO : -errno;
        }
    }
    return 0;
}

/*
 * To fill a huge page from memory that is not mapped takes the kernel another
 * huge page for a moment.  That may be one which was evicted, and is about to
 * be filled: then there is none for it.
 */
static void map_zero_page(RwpMemory *mem)
{
    const uint8_t *bytes = mem->zero_page;

    for (uint64_t i = 0; i < mem->page_size; i += qemu_real_host_page_size()) {
        (void)qatomic_read(bytes + i);
    }
}

int rwp_memory_zero(RwpMemory *mem, uint64_t first, uint64_t count)
{
    if (mem->page_size == qemu_real_host_page_size()) {
        return fill(mem, first, count, NULL, NULL);
    }
    /* The kernel has no zero page of that size */
    map_zero_page(mem);
    for (uint64_t i = 0; i < count; i++) {
        int ret = fill(mem, first + i, 1, mem->zero_page, NULL);

        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

/* rwp_memory_fill(), again while the mapping is changing.  Returns 0 or -errno. */
static int fill_page(RwpMemory *mem, unsigned long request, void *arg)
{
    int ret;

    do {
        ret = rwp_memory_fill(mem, request, arg) < 0 ? -errno : 0;
    } while (ret == -EAGAIN);
    return ret;
}

int rwp_memory_continue(RwpMemory *mem, uint64_t page)
{
    struct uffdio_continue cont = {
        .range.start = rwp_memory_host(mem, page),
        .range.len = mem->page_size,
    };
    int ret = fill_page(mem, UFFDIO_CONTINUE, &cont);

    if (ret < 0) {
        rwp_memory_wake(mem, page, 1);
    }
    /* EFAULT is what the kernel says of a page that is not in the file */
    return ret == -EEXIST ? 0 : ret == -EFAULT ? -ENOENT : ret;
}

int rwp_memory_poison(RwpMemory *mem, uint64_t page)
{
    struct uffdio_poison poison = {
        .range.start = rwp_memory_host(mem, page),
        .range.len = mem->page_size,
    };

    return fill_page(mem, UFFDIO_POISON, &poison);
}

int rwp_memory_read_faults(RwpMemory *mem, struct uffd_msg *msgs, int nb)
{
    ssize_t len = RETRY_ON_EINTR(read(mem->uffd, msgs, nb * sizeof(*msgs)));

    if (len < 0) {
        return errno == EAGAIN ? 0 : -errno;
    }
    return len / sizeof(*msgs);
}
