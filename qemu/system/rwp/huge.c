/*
 * Transparent huge pages among pages that are to be evicted
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Whether a page is mapped as a part of a huge page is only known for a
 * moment: the guest and the kernel split and collapse them as they like.  So
 * what is said here is a guess, and what is done with it is right either way.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "huge.h"
#include "trace.h"

/* What a page of 8-byte entries maps */
static uint64_t huge_pages(RwpMemory *mem)
{
    return mem->page_size / 8;
}

static uint64_t place_in_huge(RwpMemory *mem, uint64_t page)
{
    return rwp_memory_host(mem, page) / mem->page_size % huge_pages(mem);
}

typedef struct KeepContext {
    RwpState *s;
    RwpBatch *batch;
} KeepContext;

/* Pages [@first, @first + @count) of the batch are mapped by huge pages */
static void keep_run(void *opaque, uint64_t first, uint64_t count)
{
    KeepContext *context = opaque;
    RwpMemory *mem = context->s->mem;
    RwpBatch *batch = context->batch;
    uint64_t huge = huge_pages(mem);
    uint64_t pos = first - batch->first;
    uint64_t end = pos + count;

    while (pos < end) {
        uint64_t in_huge = place_in_huge(mem, batch->first + pos);
        uint64_t len = MIN(huge - in_huge, end - pos);
        uint64_t wanted = bitmap_count_one_with_offset(batch->wanted, pos,
                                                       len);

        if (in_huge || wanted < huge) {
            trace_rwp_evict_keep_huge(context->s->id, batch->first + pos, len);
            bitmap_clear(batch->wanted, pos, len);
            stat64_add(&context->s->stats.evict_huge, wanted);
        }
        pos += len;
    }
}

int rwp_huge_keep(RwpState *s, RwpBatch *batch)
{
    KeepContext context = { .s = s, .batch = batch };

    return s->thp != RWP_THP_WHOLE ? 0 :
           rwp_memory_scan(s->mem, batch->first, batch->count,
                           RWP_PAGE_IS_HUGE, keep_run, &context);
}

static void see_run(void *opaque, uint64_t first, uint64_t count)
{
    bool *seen = opaque;

    *seen = true;
}

uint64_t rwp_huge_rest(RwpState *s, uint64_t first, uint64_t count)
{
    bool huge = false;

    if (rwp_memory_scan(s->mem, first, 1, RWP_PAGE_IS_HUGE, see_run,
                        &huge) < 0 || !huge) {
        return 1;
    }
    return MIN(count, huge_pages(s->mem) - place_in_huge(s->mem, first));
}
