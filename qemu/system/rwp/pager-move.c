/*
 * Pager for anonymous memory: move the page aside
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * UFFDIO_MOVE (Linux 6.8, ioctl_userfaultfd(2)) takes a page from the
 * guest's address to a staging buffer in one step.  From then on an access
 * of the guest traps, and the content in the buffer can no longer change.
 * The kernel refuses to move pages that are pinned for DMA (EBUSY).
 *
 * The destination of a move must be registered with the same userfaultfd;
 * missing faults are the mode that fits, because nobody ever accesses a
 * part of a buffer that holds no page.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include <sys/mman.h>
#include "uapi.h"
#include "pager.h"

static void *move_buffer_new(RwpMemory *mem, uint64_t count, Error **errp)
{
    uint64_t size = count * mem->page_size;
    struct uffdio_register reg = {
        .range.len = size,
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    void *buf;

    buf = mmap(NULL, size, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (buf == MAP_FAILED) {
        error_setg_errno(errp, errno, "cannot map a staging buffer");
        return NULL;
    }
    /* A huge page cannot appear in a buffer that is registered, but this
     * keeps the kernel from trying */
    madvise(buf, size, MADV_NOHUGEPAGE);
    madvise(buf, size, MADV_DONTFORK);
    reg.range.start = (uintptr_t)buf;
    if (ioctl(mem->uffd, UFFDIO_REGISTER, &reg) < 0) {
        error_setg_errno(errp, errno, "cannot register a staging buffer");
        munmap(buf, size);
        return NULL;
    }
    return buf;
}

static void move_buffer_free(RwpMemory *mem, void *buf, uint64_t count)
{
    if (buf) {
        munmap(buf, count * mem->page_size);
    }
}

static uint64_t move_buffer_bytes(RwpMemory *mem, uint64_t count)
{
    return count * mem->page_size;
}

static void move_buffer_reset(RwpMemory *mem, void *buf, uint64_t count)
{
    madvise(buf, count * mem->page_size, MADV_DONTNEED);
}

/* Returns the number of bytes moved, or -errno if there are none */
static int64_t move(RwpMemory *mem, uint64_t dst, uint64_t src, uint64_t total)
{
    uint64_t done = 0;

    while (done < total) {
        struct uffdio_move move = {
            .dst = dst + done,
            .src = src + done,
            .len = total - done,
        };

        if (rwp_memory_fill(mem, UFFDIO_MOVE, &move) == 0) {
            return total;
        }
        if (move.move > 0) {
            done += move.move;
        } else if (errno != EAGAIN) {
            return done ?: -errno;
        }
    }
    return total;
}

static int64_t move_take(RwpMemory *mem, uint64_t first, uint64_t count,
                         void *buf)
{
    int64_t moved = move(mem, (uintptr_t)buf, rwp_memory_host(mem, first),
                         count * mem->page_size);

    return moved < 0 ? moved : moved / mem->page_size;
}

/*
 * In one call: a huge page comes back as one.  Page by page it would have to be
 * split, and UFFDIO_MOVE tries that again and again as long as somebody has a
 * reference, which is the reason why the page is put back.
 */
static int64_t move_put_back(RwpMemory *mem, uint64_t first, uint64_t count,
                             void *buf)
{
    int64_t moved = move(mem, rwp_memory_host(mem, first), (uintptr_t)buf,
                         count * mem->page_size);

    return moved < 0 ? moved : moved / mem->page_size;
}

static int move_give_back(RwpMemory *mem, uint64_t page, void *buf)
{
    return rwp_memory_copy(mem, page, 1, buf, NULL);
}

static int64_t move_remove(RwpMemory *mem, uint64_t first, uint64_t count)
{
    return count;
}

static int move_populated(RwpMemory *mem, uint64_t first, uint64_t count,
                          RwpRunFunc *fn, void *opaque)
{
    return rwp_memory_scan(mem, first, count,
                           RWP_PAGE_IS_PRESENT | RWP_PAGE_IS_SWAPPED,
                           fn, opaque);
}

static int move_present(RwpMemory *mem, uint64_t first, uint64_t count,
                        RwpRunFunc *fn, void *opaque)
{
    return rwp_memory_scan(mem, first, count, RWP_PAGE_IS_PRESENT, fn, opaque);
}

const RwpPagerOps rwp_pager_move = {
    .type = RWP_PAGER_TYPE_MOVE,
    .features = UFFD_FEATURE_MOVE,
    .stays = false,
    .buffer_new = move_buffer_new,
    .buffer_free = move_buffer_free,
    .buffer_bytes = move_buffer_bytes,
    .buffer_reset = move_buffer_reset,
    .take = move_take,
    .give_back = move_give_back,
    .put_back = move_put_back,
    .remove = move_remove,
    .populated = move_populated,
    .present = move_present,
};
