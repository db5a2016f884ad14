/*
 * Checksums of evicted pages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The hash is XXH3 of libxxhash, which takes less than a copy.  The lower
 * 32 of its 64 bits are kept.
 *
 * Invariant: a chunk with a page in EVICTED has its array, and the array
 * has the checksum of that page.  An array goes only while no page of its
 * chunk is away.  Both are decided under the mutex, and whoever claims a
 * page for eviction counts as away before he comes here: so an array
 * either goes before the first checksum is set, and is allocated again, or
 * stays.
 *
 * Locking: a mutex, held for one page at a time.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "system/rwp.h"
#include "checksum.h"

#ifdef CONFIG_XXHASH_DISPATCH
/* Has XXH3_64bits() choose by the host's processor: several times as fast */
#include <xxh_x86dispatch.h>
#elif defined(CONFIG_XXHASH)
#include <xxhash.h>
#endif

struct RwpChecksums {
    /* Set once */
    RwpPages *pages;
    uint64_t nb_pages;
    uint64_t chunk_pages;
    uint64_t page_size;

    QemuMutex lock;
    /* Protected by lock; also looked at without, to save work */
    uint32_t **chunks;
    size_t allocated;       /* number of arrays */
};

static uint32_t page_hash(const void *buf, uint64_t bytes)
{
#ifdef CONFIG_XXHASH
    return XXH3_64bits(buf, bytes);
#else
    g_assert_not_reached();
#endif
}

bool rwp_checksums_available(void)
{
#ifdef CONFIG_XXHASH
    return true;
#else
    return false;
#endif
}

static uint64_t nb_chunks(RwpChecksums *c)
{
    return DIV_ROUND_UP(c->nb_pages, c->chunk_pages);
}

RwpChecksums *rwp_checksums_new(RwpPages *pages, uint64_t nb_pages,
                                uint64_t chunk_pages, uint64_t page_size)
{
    RwpChecksums *c = g_new0(RwpChecksums, 1);

    c->pages = pages;
    c->nb_pages = nb_pages;
    c->chunk_pages = chunk_pages;
    c->page_size = page_size;
    c->chunks = g_new0(uint32_t *, nb_chunks(c));
    qemu_mutex_init(&c->lock);
    return c;
}

void rwp_checksums_free(RwpChecksums *c)
{
    if (!c) {
        return;
    }
    for (uint64_t i = 0; i < nb_chunks(c); i++) {
        g_free(c->chunks[i]);
    }
    qemu_mutex_destroy(&c->lock);
    g_free(c->chunks);
    g_free(c);
}

bool rwp_checksums_set(RwpChecksums *c, uint64_t page, const void *buf)
{
    uint32_t hash = page_hash(buf, c->page_size);
    uint32_t **chunk = &c->chunks[page / c->chunk_pages];
    uint32_t before;

    g_assert(page < c->nb_pages);
    QEMU_LOCK_GUARD(&c->lock);
    if (!*chunk) {
        qatomic_set(chunk, g_new0(uint32_t, c->chunk_pages));
        qatomic_set(&c->allocated, c->allocated + 1);
    }
    before = (*chunk)[page % c->chunk_pages];
    (*chunk)[page % c->chunk_pages] = hash;
    return before == hash;
}

bool rwp_checksums_match(RwpChecksums *c, uint64_t page, const void *buf)
{
    uint32_t hash = page_hash(buf, c->page_size);
    uint32_t *chunk;

    g_assert(page < c->nb_pages);
    QEMU_LOCK_GUARD(&c->lock);
    chunk = c->chunks[page / c->chunk_pages];
    return !chunk || chunk[page % c->chunk_pages] == hash;
}

static void trim_chunk(RwpChecksums *c, uint64_t page)
{
    uint32_t **chunk = &c->chunks[page / c->chunk_pages];

    if (rwp_pages_chunk_away(c->pages, page) || !qatomic_read(chunk)) {
        return;
    }
    QEMU_LOCK_GUARD(&c->lock);
    if (*chunk && !rwp_pages_chunk_away(c->pages, page)) {
        g_free(*chunk);
        qatomic_set(chunk, NULL);
        qatomic_set(&c->allocated, c->allocated - 1);
    }
}

void rwp_checksums_trim(RwpChecksums *c, uint64_t first, uint64_t count)
{
    if (!c) {
        return;
    }
    for (uint64_t page = QEMU_ALIGN_DOWN(first, c->chunk_pages);
         page < first + count; page += c->chunk_pages) {
        trim_chunk(c, page);
    }
}

uint64_t rwp_checksums_bytes(RwpChecksums *c)
{
    return c ? qatomic_read(&c->allocated) * c->chunk_pages *
               sizeof(uint32_t) : 0;
}
