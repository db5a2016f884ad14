/*
 * How much host memory the pages occupy
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RWP_RESIDENT_H
#define RWP_RESIDENT_H

#include "memory.h"
#include "pages.h"

typedef struct RwpResident RwpResident;

/**
 * rwp_resident_new: know nothing yet.
 *
 * @mem, @pages: must stay until rwp_resident_free()
 * @part_chunks: chunks that are counted in one go
 */
RwpResident *rwp_resident_new(RwpMemory *mem, RwpPages *pages,
                              uint64_t part_chunks);

/**
 * rwp_resident_free: free @resident, which may be NULL.
 *
 * Waits for a count that is under way.  Context: main loop.
 */
void rwp_resident_free(RwpResident *resident);

/**
 * rwp_resident_bytes: bytes of host memory that the pages occupy.
 *
 * @budget_ns: how long to count; one part is counted in any case
 *
 * Exact if all was counted within that time.  Otherwise the rest is counted in
 * the background, and the value is for now what is known: that includes
 * evictions and fetches, but of memory that came or went by other ways what was
 * there at the last count, and nothing before the first.
 *
 * Context: main loop.
 */
uint64_t rwp_resident_bytes(RwpResident *resident, int64_t budget_ns);

#endif
