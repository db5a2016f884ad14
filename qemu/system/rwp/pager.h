/*
 * Pagers: how a page leaves memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An eviction takes the content of some pages, which gives a buffer that
 * can be written to the store, and ends by removing the pages or by giving
 * them back.
 *
 *   punch   taking has the buffer show the content, which stays in place and
 *           can change; so what is read from it is a guess until the tracker
 *           says that the page was not touched since.  Removing punches a
 *           hole into the memfd.  Giving back is nothing.
 *   move    taking moves the page into the buffer in one step, from then
 *           on an access traps.  Removing is nothing.  Giving back copies
 *           from the buffer, which stays intact for a write under way.
 *
 * How pages come back is common to both: rwp_memory_copy() and
 * rwp_memory_zero().
 *
 * Locking: all operations run in the work thread of the backend.
 * give_back runs in the fault thread, too; buffer_reset, and take of a pager
 * with stays, run in other threads, too.  Return values are 0 or
 * -errno unless said otherwise.
 */
#ifndef RWP_PAGER_H
#define RWP_PAGER_H

#include "memory.h"

struct RwpPagerOps {
    RwpPagerType type;

    /* UFFD_FEATURE_* that a kernel needs for this pager */
    uint64_t features;

    /*
     * True if the original stays in place while it is staged, so that
     * removing it needs a trap of the tracker.
     */
    bool stays;

    /* A buffer for @count pages, to be used with take */
    void *(*buffer_new)(RwpMemory *mem, uint64_t count, Error **errp);
    void (*buffer_free)(RwpMemory *mem, void *buf, uint64_t count);

    /* Host memory that such a buffer takes when it is full */
    uint64_t (*buffer_bytes)(RwpMemory *mem, uint64_t count);

    /* Before take: it will be of pages from @first on.  NULL if no matter. */
    int (*buffer_set)(RwpMemory *mem, void *buf, uint64_t first,
                      uint64_t count);

    /* Make a used buffer ready for another use */
    void (*buffer_reset)(RwpMemory *mem, void *buf, uint64_t count);

    /*
     * Have the content of pages in @buf.  Returns the number of pages taken
     * from @first on, which can be less than @count; or the reason why not
     * even the first could be taken: -EBUSY if somebody uses it, -ENOENT if
     * it is not in memory.
     */
    int64_t (*take)(RwpMemory *mem, uint64_t first, uint64_t count,
                    void *buf);

    /* Put one page back from @buf and wake who waits for it. */
    int (*give_back)(RwpMemory *mem, uint64_t page, void *buf);

    /*
     * Undo a take, of all pages that it took, none of which somebody can have
     * put in place since: not a copy comes back, but the very memory.  Returns
     * like take.  NULL if it stays.
     */
    int64_t (*put_back)(RwpMemory *mem, uint64_t first, uint64_t count,
                        void *buf);

    /*
     * Remove pages.  Returns the number of pages removed from @first on; if
     * that is less than @count, the page after them is still there, but its
     * content is lost.
     */
    int64_t (*remove)(RwpMemory *mem, uint64_t first, uint64_t count);

    /*
     * Report pages that are populated: neither away nor never used.
     * May report more than that where it cannot tell.
     */
    int (*populated)(RwpMemory *mem, uint64_t first, uint64_t count,
                     RwpRunFunc *fn, void *opaque);

    /*
     * Report pages in host memory; or, of all pages, the bytes of host memory
     * that they occupy, or -errno.  A pager has what costs least.  Main loop.
     */
    int (*present)(RwpMemory *mem, uint64_t first, uint64_t count,
                   RwpRunFunc *fn, void *opaque);
    int64_t (*resident)(RwpMemory *mem);
};

extern const RwpPagerOps rwp_pager_move;
extern const RwpPagerOps rwp_pager_punch;

#endif
