/*
 * How much host memory the pages occupy
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The file behind a memfd knows.  Of anonymous memory the kernel has to walk
 * the page tables, some milliseconds for each GiB of small pages, and who asks
 * is the main loop, with the BQL.  So that counts for a limited time, and leaves
 * the rest to another thread.  Until that is done, it is known of each part how
 * many pages were in use when it was counted last, in memory or away; and how
 * many are away now is known without counting.
 *
 * Locking: main loop only, except that counts are atomic: the other thread
 * writes them.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "block/thread-pool.h"
#include "pager.h"
#include "resident.h"

struct RwpResident {
    RwpMemory *mem;
    RwpPages *pages;
    uint64_t part_chunks;
    uint64_t nb_parts;
    uint64_t rest;              /* first part that another thread counts */
    bool counting;              /* it does */
    bool ending;                /* atomic; it shall stop */
    uint32_t *used;             /* atomic; pages of each part */
};

RwpResident *rwp_resident_new(RwpMemory *mem, RwpPages *pages,
                              uint64_t part_chunks)
{
    RwpResident *resident = g_new0(RwpResident, 1);

    resident->mem = mem;
    resident->pages = pages;
    resident->part_chunks = part_chunks;
    resident->nb_parts = DIV_ROUND_UP(rwp_memory_nb_chunks(mem), part_chunks);
    resident->used = g_new0(uint32_t, resident->nb_parts);
    return resident;
}

void rwp_resident_free(RwpResident *resident)
{
    GLOBAL_STATE_CODE();

    if (resident) {
        qatomic_set(&resident->ending, true);
        AIO_WAIT_WHILE(NULL, resident->counting);
        g_free(resident->used);
        g_free(resident);
    }
}

/* The pages of a part; returns the first */
static uint64_t part_pages(RwpResident *resident, uint64_t part,
                           uint64_t *count)
{
    uint64_t pages = resident->part_chunks * resident->mem->chunk_pages;
    uint64_t first = part * pages;

    *count = MIN(pages, resident->mem->nb_pages - first);
    return first;
}

static uint64_t part_away(RwpResident *resident, uint64_t part)
{
    uint64_t count, away = 0;
    uint64_t first = part_pages(resident, part, &count);

    for (uint64_t page = first; page < first + count;
         page += resident->mem->chunk_pages) {
        away += rwp_pages_chunk_away(resident->pages, page);
    }
    return away;
}

static void add_pages(void *opaque, uint64_t first, uint64_t count)
{
    uint64_t *pages = opaque;

    *pages += count;
}

/* If that fails, the last count stays.  Any thread. */
static void count_part(RwpResident *resident, uint64_t part)
{
    RwpMemory *mem = resident->mem;
    uint64_t count, pages = 0;
    uint64_t first = part_pages(resident, part, &count);

    if (mem->pager->present(mem, first, count, add_pages, &pages) == 0) {
        qatomic_set(&resident->used[part], pages + part_away(resident, part));
    }
}

/* In a thread of the pool */
static int count_rest(void *opaque)
{
    RwpResident *resident = opaque;

    for (uint64_t part = resident->rest;
         part < resident->nb_parts && !qatomic_read(&resident->ending);
         part++) {
        count_part(resident, part);
    }
    return 0;
}

static void counted_rest(void *opaque, int ret)
{
    RwpResident *resident = opaque;

    resident->counting = false;
}

static void count_for(RwpResident *resident, int64_t budget_ns)
{
    int64_t start_ns = get_clock();
    uint64_t part = 0;

    do {
        count_part(resident, part);
        part++;
    } while (part < resident->nb_parts && get_clock() - start_ns < budget_ns);

    if (part < resident->nb_parts) {
        resident->rest = part;
        resident->counting = true;
        thread_pool_submit_aio(count_rest, resident, counted_rest, resident);
    }
}

uint64_t rwp_resident_bytes(RwpResident *resident, int64_t budget_ns)
{
    RwpMemory *mem = resident->mem;
    uint64_t pages = 0;

    GLOBAL_STATE_CODE();

    if (mem->pager->resident) {
        return MAX(mem->pager->resident(mem), 0);
    }
    if (!resident->counting) {
        count_for(resident, budget_ns);
    }
    for (uint64_t part = 0; part < resident->nb_parts; part++) {
        uint64_t used = qatomic_read(&resident->used[part]);
        uint64_t away = part_away(resident, part);

        /* Pages on the move can be counted either way */
        pages += used - MIN(used, away);
    }
    return pages * mem->page_size;
}
