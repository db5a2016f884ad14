/*
 * Pager for memfds: show the content, and punch a hole if nobody touched it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A buffer is a second mapping of the part of the memfd that a batch covers,
 * so that content goes to the store without being copied.  Only pages that
 * are in the file are looked at: to read a hole through a mapping allocates a
 * page of zeros.  That still happens if one is discarded while it is being
 * evicted; it costs the memory of the page.
 *
 * Not so with hugetlbfs, where such a page may not be had, and whoever reads
 * gets a SIGBUS: there the buffer is memory of its own, and the content is
 * copied with pread(2).
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include <sys/mman.h>
#include <sys/stat.h>
#include "uapi.h"
#include "pager.h"

/* Pages that mincore(2) is asked about at a time */
#define INCORE_PAGES 4096

/*
 * What the kernel maps when a page of a file is touched; so it is by default
 * (fault_around_bytes in debugfs)
 */
#define AROUND_BYTES (64 * KiB)

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22   /* Linux 5.14, madvise(2) */
#endif

static bool copies(RwpMemory *mem)
{
    return mem->page_size != qemu_real_host_page_size();
}

static void *punch_buffer_new(RwpMemory *mem, uint64_t count, Error **errp)
{
    uint64_t size = count * mem->page_size;
    void *buf = mmap(NULL, size, copies(mem) ? PROT_READ | PROT_WRITE :
                                               PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (buf == MAP_FAILED) {
        error_setg_errno(errp, errno, "cannot map an eviction buffer of %"
                         PRIu64 " bytes", size);
        return NULL;
    }
    return buf;
}

static void punch_buffer_free(RwpMemory *mem, void *buf, uint64_t count)
{
    if (buf) {
        munmap(buf, count * mem->page_size);
    }
}

static uint64_t punch_buffer_bytes(RwpMemory *mem, uint64_t count)
{
    return copies(mem) ? count * mem->page_size : 0;
}

static int punch_buffer_set(RwpMemory *mem, void *buf, uint64_t first,
                            uint64_t count)
{
    uint64_t size = count * mem->page_size;

    if (copies(mem)) {
        return 0;
    }
    if (mmap(buf, size, PROT_READ, MAP_SHARED | MAP_FIXED, mem->fd,
             first * mem->page_size) == MAP_FAILED) {
        return -errno;
    }
    /*
     * Or a page that is read where there is none comes with its neighbours,
     * which are there then, as zeros, while they are evicted.
     */
    madvise(buf, size, MADV_NOHUGEPAGE);
    /* A child would keep pages in the file that are removed here */
    madvise(buf, size, MADV_DONTFORK);
    /* To read what is to leave memory is no use of it that should count */
    madvise(buf, size, MADV_SEQUENTIAL);
    return 0;
}

static void punch_buffer_reset(RwpMemory *mem, void *buf, uint64_t count)
{
    /* What was not evicted is not to count as mapped twice */
    if (!copies(mem)) {
        madvise(buf, count * mem->page_size, MADV_DONTNEED);
    }
}

static int populate(void *buf, uint64_t bytes)
{
    int ret;

    do {
        ret = madvise(buf, bytes, MADV_POPULATE_READ);
    } while (ret < 0 && (errno == EINTR || errno == EAGAIN));
    return ret < 0 ? -errno : 0;
}

typedef struct View {
    RwpMemory *mem;
    uint8_t *buf;
    uint64_t next;              /* the pages before this one are mapped */
    int ret;
} View;

/* A run of pages is mapped: map those between the one before and it, too */
static void populate_gap(void *opaque, uint64_t first, uint64_t count)
{
    View *view = opaque;
    uint64_t page_size = view->mem->page_size;

    if (view->ret == 0 && first > view->next) {
        view->ret = populate(view->buf + view->next * page_size,
                             (first - view->next) * page_size);
    }
    view->next = first + count;
}

/*
 * Map page number @page at @host, and those around it.  That takes no lock of
 * the address space, for which a commit window would wait; but the page may
 * have a hardware error, and then it is read(2) that fails without a signal.
 */
static int touch(RwpMemory *mem, const uint8_t *host, uint64_t page)
{
    uint8_t byte;
    ssize_t len = RETRY_ON_EINTR(pread(mem->fd, &byte, 1,
                                       page * mem->page_size));

    if (len != 1) {
        return len < 0 ? -errno : -EIO;
    }
    (void)qatomic_read(host);
    return 0;
}

/*
 * Most of what the kernel does for a page that it is asked for goes to
 * marking it as used.  Neighbours that it maps along cost a quarter of that; it
 * leaves out those that are not as they should be.
 */
static int populate_view(RwpMemory *mem, uint64_t first, uint64_t count,
                         uint8_t *buf)
{
    uint64_t begin = (uintptr_t)buf;
    uint64_t end = begin + count * mem->page_size;
    View view = { .mem = mem, .buf = buf };
    int ret;

    for (uint64_t host = begin; host < end;
         host = QEMU_ALIGN_UP(host + 1, AROUND_BYTES)) {
        ret = touch(mem, (uint8_t *)(uintptr_t)host,
                    first + (host - begin) / mem->page_size);
        if (ret < 0) {
            return ret;
        }
    }
    ret = rwp_memory_scan_view(mem, buf, count, RWP_PAGE_IS_PRESENT,
                               populate_gap, &view);
    populate_gap(&view, count, 0);
    return ret < 0 ? ret : view.ret;
}

/* Fails where reading would raise a signal: the page has a hardware error */
static int64_t view_pages(RwpMemory *mem, uint64_t first, uint64_t count,
                          void *buf)
{
    int ret = count * mem->page_size <= AROUND_BYTES ?
              populate(buf, count * mem->page_size) :
              populate_view(mem, first, count, buf);

    if (ret < 0 && count > 1) {
        count = 1;
        ret = populate(buf, mem->page_size);
    }
    return ret < 0 ? ret : count;
}

static int64_t copy_pages(RwpMemory *mem, uint64_t first, uint64_t count,
                          void *buf)
{
    uint64_t total = count * mem->page_size;
    uint64_t done = 0;

    while (done < total) {
        ssize_t len = pread(mem->fd, (char *)buf + done, total - done,
                            first * mem->page_size + done);

        if (len > 0) {
            done += len;
        } else if (len == 0 || errno != EINTR) {
            return len == 0 ? -EIO : -errno;
        }
    }
    return count;
}

static int64_t punch_take(RwpMemory *mem, uint64_t first, uint64_t count,
                          void *buf)
{
    return copies(mem) ? copy_pages(mem, first, count, buf) :
                         view_pages(mem, first, count, buf);
}

static int punch_give_back(RwpMemory *mem, uint64_t page, void *buf)
{
    return 0;
}

/* Calls @fn for the runs of pages that are set in @vec, see mincore(2) */
static void report_incore(uint64_t first, uint64_t count,
                          const unsigned char *vec, RwpRunFunc *fn,
                          void *opaque)
{
    uint64_t pos = 0;

    while (pos < count) {
        uint64_t start = pos;

        while (pos < count && (vec[pos] & 1) == (vec[start] & 1)) {
            pos++;
        }
        if (vec[start] & 1) {
            fn(opaque, first + start, pos - start);
        }
    }
}

/*
 * How many of the pages [@first, @first + @count) come before the first one
 * that is in the file, as far as lseek(2) can tell
 */
static uint64_t punch_hole(RwpMemory *mem, uint64_t first, uint64_t count)
{
    off_t data = lseek(mem->fd, first * mem->page_size, SEEK_DATA);

    if (data < 0) {
        /* ENXIO: there is none */
        return errno == ENXIO ? count : 0;
    }
    return MIN(data / mem->page_size - first, count);
}

/*
 * The kernel fills a page that is part of a large folio with zeros, and leaves
 * it, if the folio cannot be split because somebody has a reference to it.
 * hugetlbfs removes its pages whole, and lseek(2) knows nothing of them.
 */
static int64_t punch_remove(RwpMemory *mem, uint64_t first, uint64_t count)
{
    int ret = RETRY_ON_EINTR(
        fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  first * mem->page_size, count * mem->page_size));

    if (ret < 0) {
        return -errno;
    }
    return copies(mem) ? count : punch_hole(mem, first, count);
}

/*
 * mincore(2) sees pages that are in the file, mapped or not.  It takes
 * pages that the host has swapped out for holes: they are evicted already.
 * lseek(2) with SEEK_HOLE would see them, but walks to the end of the data,
 * which makes going through a large file quadratic.  SEEK_DATA does not, and
 * steps over holes for which mincore(2) would look page by page.
 */
static int punch_populated(RwpMemory *mem, uint64_t first, uint64_t count,
                           RwpRunFunc *fn, void *opaque)
{
    unsigned char vec[INCORE_PAGES];

    if (copies(mem)) {
        /* For huge pages it sees only those that are mapped */
        fn(opaque, first, count);
        return 0;
    }
    while (count) {
        uint64_t skip = punch_hole(mem, first, count);
        uint64_t nb = MIN(count - skip, INCORE_PAGES);
        int ret;

        first += skip;
        count -= skip;
        if (!nb) {
            break;
        }
        do {
            ret = mincore((void *)(uintptr_t)rwp_memory_host(mem, first),
                          nb * mem->page_size, vec);
        } while (ret < 0 && errno == EAGAIN);
        if (ret < 0) {
            return -errno;
        }
        report_incore(first, nb, vec, fn, opaque);
        first += nb;
        count -= nb;
    }
    return 0;
}

static int64_t punch_resident(RwpMemory *mem)
{
    struct stat st;

    /* st_blocks counts 512 bytes, whatever st_blksize is: stat(2) */
    return fstat(mem->fd, &st) < 0 ? -errno : (int64_t)st.st_blocks * 512;
}

const RwpPagerOps rwp_pager_punch = {
    .type = RWP_PAGER_TYPE_PUNCH,
    .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS,
    .stays = true,
    .buffer_new = punch_buffer_new,
    .buffer_free = punch_buffer_free,
    .buffer_bytes = punch_buffer_bytes,
    .buffer_set = punch_buffer_set,
    .buffer_reset = punch_buffer_reset,
    .take = punch_take,
    .give_back = punch_give_back,
    .remove = punch_remove,
    .populated = punch_populated,
    .resident = punch_resident,
};
