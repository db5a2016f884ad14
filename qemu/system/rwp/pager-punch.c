/*
 * Pager for memfds: copy, and punch a hole if the copy is still good
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Content is read with pread(2) from the memfd and not through a second
 * mapping: reading a hole through a mapping would allocate a page of zeros
 * in the memfd, which a page that is being evicted must not get.
 */

#include "qemu/osdep.h"
#include "qemu/memalign.h"
#include "qapi/error.h"
#include <sys/mman.h>
#include <sys/stat.h>
#include "uapi.h"
#include "pager.h"

/* Pages that mincore(2) is asked about at a time */
#define INCORE_PAGES 4096

static void *punch_buffer_new(RwpMemory *mem, uint64_t count, Error **errp)
{
    void *buf = qemu_try_memalign(qemu_real_host_page_size(),
                                  count * mem->page_size);

    if (!buf) {
        error_setg(errp, "no memory for an eviction buffer of %" PRIu64
                   " bytes", count * mem->page_size);
    }
    return buf;
}

static void punch_buffer_free(RwpMemory *mem, void *buf, uint64_t count)
{
    qemu_vfree(buf);
}

static void punch_buffer_reset(RwpMemory *mem, void *buf, uint64_t count)
{
}

static int64_t punch_take(RwpMemory *mem, uint64_t first, uint64_t count,
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
    int ret;

    do {
        ret = fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        first * mem->page_size, count * mem->page_size);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0) {
        return -errno;
    }
    return mem->page_size == qemu_real_host_page_size() ?
           punch_hole(mem, first, count) : count;
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

    if (mem->page_size != qemu_real_host_page_size()) {
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
    .buffer_reset = punch_buffer_reset,
    .take = punch_take,
    .give_back = punch_give_back,
    .remove = punch_remove,
    .populated = punch_populated,
    .resident = punch_resident,
};
