/*
 * Checksums of evicted pages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Tell whether the store returned what it was given.  They are against
 * faults, not against an adversary: whoever can write to the store on
 * purpose can also look for a page with the same checksum.
 *
 * 32 bits for each page, in one piece of memory for each chunk that pages
 * were evicted from, and not more: rwp_checksums_trim() gives it back.
 *
 * Locking: see the functions.  Whether a chunk may have evicted pages is
 * told by RwpPages.
 */
#ifndef RWP_CHECKSUM_H
#define RWP_CHECKSUM_H

#include "pages.h"

typedef struct RwpChecksums RwpChecksums;

/**
 * rwp_checksums_new: for the pages of @pages, which must stay.
 *
 * @page_size: in bytes
 *
 * Only if rwp_checksums_available(), see include/system/rwp.h.
 */
RwpChecksums *rwp_checksums_new(RwpPages *pages, uint64_t nb_pages,
                                uint64_t chunk_pages, uint64_t page_size);

/** rwp_checksums_free: free @c, which may be NULL. */
void rwp_checksums_free(RwpChecksums *c);

/**
 * rwp_checksums_set: remember the content of @page, which is in @buf.
 *
 * The caller has claimed the page for eviction.  Returns whether that seems
 * to be what was remembered of it; a guess.  Any thread.
 */
bool rwp_checksums_set(RwpChecksums *c, uint64_t page, const void *buf);

/**
 * rwp_checksums_match: whether @buf is what was remembered of @page.
 *
 * Only means something if the page is EVICTED or FETCHING afterwards, and
 * was all the while.  Any thread.
 */
bool rwp_checksums_match(RwpChecksums *c, uint64_t page, const void *buf);

/**
 * rwp_checksums_trim: some of @count pages from @first on are not evicted
 * any more; free what their chunks do not need.
 *
 * Cheap if there is nothing to free.  @c may be NULL.  Any thread.
 */
void rwp_checksums_trim(RwpChecksums *c, uint64_t first, uint64_t count);

/** rwp_checksums_bytes: memory in use.  @c may be NULL.  Any thread. */
uint64_t rwp_checksums_bytes(RwpChecksums *c);

#endif
