/*
 * The memory of one backend, as the trackers and pagers see it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A range of host virtual memory with one userfaultfd, cut into pages of
 * the backend's page size and into chunks of 64 MiB, the unit in which
 * faults are registered.  Here is what all trackers and pagers need of the
 * kernel; what differs between them is behind two operation tables.
 *
 * All functions that return int return 0 or -errno and print nothing:
 * most errors are normal, and only the caller knows which.  Page numbers
 * count from the start of the memory.
 *
 * Locking: the functions are thread-safe unless said otherwise.  None of
 * them touches guest memory through the guest's mapping.
 */
#ifndef RWP_MEMORY_H
#define RWP_MEMORY_H

#include "qapi/qapi-types-rwp.h"
#include "uapi.h"

/* Unit of registration; a power of two and a multiple of any page size */
#define RWP_CHUNK_BYTES (64 * MiB)

typedef struct RwpMemory RwpMemory;
typedef struct RwpTrackerOps RwpTrackerOps;
typedef struct RwpPagerOps RwpPagerOps;

struct RwpMemory {
    /* Set once by rwp_memory_open() */
    const RwpTrackerOps *tracker;
    const RwpPagerOps *pager;
    uint8_t *host;
    uint64_t size;
    uint64_t page_size;
    uint64_t nb_pages;
    uint64_t chunk_pages;
    int fd;                 /* the memfd, not owned; -1 if anonymous */
    int uffd;
    int pagemap;
    uint64_t features;      /* UFFD_FEATURE_* of the kernel */
    bool rearms;            /* it can do rwp_memory_rearm() */

    /*
     * UFFDIO_REGISTER_MODE_* of each chunk, 0 if not registered.
     * Changed in the work thread, or in the main loop while no work is
     * going on there.
     */
    uint64_t *chunk_modes;

    /*
     * Chunks with a page that stayed in the file, without its content, when
     * it was removed: what touches it must trap as if it were away, until it
     * is overwritten.  Work thread.
     */
    unsigned long *left;

    /* For the fill of pages that are zero and cannot be mapped as such */
    void *zero_page;
};

/* Receives runs of pages in ascending order */
typedef void RwpRunFunc(void *opaque, uint64_t first, uint64_t count);

/**
 * rwp_memory_features: which userfaultfd features the host kernel has.
 *
 * Fails with advice on privileges if faults of the kernel itself, which
 * KVM and system calls cause, cannot be handled.
 */
bool rwp_memory_features(uint64_t *features, Error **errp);

/**
 * rwp_memory_feature_names: what the kernel can do for @mem: names of
 * UFFD_FEATURE_* bits, without that prefix, and PM_SCAN_RWP_REARM.  The
 * caller frees the list.
 */
strList *rwp_memory_feature_names(RwpMemory *mem);

/**
 * rwp_memory_open: prepare @host for tracking and paging.
 *
 * @host, @size: the guest's mapping; must stay mapped until
 *     rwp_memory_close()
 * @page_size: page size of the mapping
 * @fd: the memfd that is mapped there, or -1
 *
 * Opens the userfaultfd, but registers nothing: accesses cost what they
 * cost before.
 */
RwpMemory *rwp_memory_open(const RwpTrackerOps *tracker,
                           const RwpPagerOps *pager, void *host,
                           uint64_t size, uint64_t page_size, int fd,
                           Error **errp);

/**
 * rwp_memory_close: free @mem, which may be NULL.
 *
 * Unregisters everything: whoever waits for a page that is away gets
 * zeros.
 */
void rwp_memory_close(RwpMemory *mem);

/** rwp_memory_host: address of @page in the guest's mapping. */
static inline uint64_t rwp_memory_host(RwpMemory *mem, uint64_t page)
{
    return (uintptr_t)mem->host + page * mem->page_size;
}

/** rwp_memory_nb_chunks: number of chunks, the last may be shorter. */
static inline uint64_t rwp_memory_nb_chunks(RwpMemory *mem)
{
    return DIV_ROUND_UP(mem->nb_pages, mem->chunk_pages);
}

/**
 * rwp_memory_chunk: the pages of chunk @chunk.
 *
 * Returns the first; @count is set to their number.
 */
static inline uint64_t rwp_memory_chunk(RwpMemory *mem, uint64_t chunk,
                                        uint64_t *count)
{
    uint64_t first = chunk * mem->chunk_pages;

    *count = MIN(mem->chunk_pages, mem->nb_pages - first);
    return first;
}

/**
 * rwp_memory_register: register the chunk @chunk with @modes in place of
 * the modes it has.
 *
 * One system call if both are not empty; the kernel may refuse to take
 * modes away (-EBUSY).
 */
int rwp_memory_register(RwpMemory *mem, uint64_t chunk, uint64_t modes);

/**
 * rwp_memory_register_all: register the chunks that have no modes yet.
 *
 * On failure some may be registered; rwp_memory_unregister() undoes
 * that.
 */
int rwp_memory_register_all(RwpMemory *mem, uint64_t modes);

/**
 * rwp_memory_untrap: let accesses to missing pages of @chunk no longer
 * trap.
 *
 * Must not be called while a page of the chunk is away.  The kernel takes
 * modes away only with the whole registration, so for a moment the chunk
 * has none, and afterwards its pages must be armed anew.
 *
 * Returns 1 if that was done, 0 if they did not trap, or -errno.
 */
int rwp_memory_untrap(RwpMemory *mem, uint64_t chunk);

/**
 * rwp_memory_unregister: unregister everything; waiters are woken.
 *
 * @until_ns: on get_clock(); chunks whose turn comes later stay
 *
 * That takes milliseconds for each GiB of armed pages.  Returns whether nothing
 * is registered any more.
 */
bool rwp_memory_unregister(RwpMemory *mem, int64_t until_ns);

/**
 * rwp_memory_scan: report pages that are in one of @categories.
 *
 * @categories: RWP_PAGE_IS_*
 */
int rwp_memory_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                    uint64_t categories, RwpRunFunc *fn, void *opaque);

/**
 * rwp_memory_scan_view: the same for the first @count pages of @view, another
 * mapping; their numbers start at 0.
 */
int rwp_memory_scan_view(RwpMemory *mem, void *view, uint64_t count,
                         uint64_t categories, RwpRunFunc *fn, void *opaque);

/**
 * rwp_memory_rearm: report pages that are RWP_PAGE_IS_ACCESSED, each armed
 * in the same step.
 *
 * If this fails, pages may be armed that were not reported.  Returns
 * -ENOTSUP, having done nothing, unless @mem->rearms.
 */
int rwp_memory_rearm(RwpMemory *mem, uint64_t first, uint64_t count,
                     RwpRunFunc *fn, void *opaque);

/**
 * rwp_memory_unmap: take the page table entries of pages of a memfd away.
 *
 * The pages stay where they are, and are mapped again by the next access,
 * unless that traps.
 */
int rwp_memory_unmap(RwpMemory *mem, uint64_t first, uint64_t count);

/**
 * rwp_memory_wake: let those who wait for one of the pages try again.
 */
int rwp_memory_wake(RwpMemory *mem, uint64_t first, uint64_t count);

/**
 * rwp_memory_fill: ioctl(2) @request, one of those that put pages in place,
 * on the userfaultfd.
 *
 * As ioctl(2), but that a test can make it fail (inject.h).
 */
int rwp_memory_fill(RwpMemory *mem, unsigned long request, void *arg);

/**
 * rwp_memory_copy: put pages in place atomically, and wake.
 *
 * @buf: the content, in private memory
 * @placed: set to the number of pages that were put in place, unless NULL
 *
 * -EEXIST: a page is there already, the one after those.  Whoever waits for
 *     it has been woken.
 */
int rwp_memory_copy(RwpMemory *mem, uint64_t first, uint64_t count,
                    const void *buf, uint64_t *placed);

/**
 * rwp_memory_overwrite: give a page that is there content.
 *
 * Only for a page that nobody can access, as it is not mapped, and trapped.
 *
 * -EEXIST: that is not possible for this memory.
 */
int rwp_memory_overwrite(RwpMemory *mem, uint64_t page, const void *buf);

/**
 * rwp_memory_zero: put zero pages in place atomically, and wake.
 *
 * Errors are those of rwp_memory_copy().
 */
int rwp_memory_zero(RwpMemory *mem, uint64_t first, uint64_t count);

/**
 * rwp_memory_continue: map a page that is in the memfd, and wake.
 *
 * -ENOENT: it is not in the memfd; who waits for it was woken.
 * -EIO: it has a hardware error; the same.
 */
int rwp_memory_continue(RwpMemory *mem, uint64_t page);

/**
 * rwp_memory_poison: have accesses to a page that is not mapped end as those
 * to memory with a hardware error do (SIGBUS), and wake.
 */
int rwp_memory_poison(RwpMemory *mem, uint64_t page);

/**
 * rwp_memory_read_faults: read messages from the userfaultfd.
 *
 * @msgs, @nb: room for messages
 *
 * Returns the number of messages, 0 if there are none now, or -errno.
 */
int rwp_memory_read_faults(RwpMemory *mem, struct uffd_msg *msgs, int nb);

#endif
