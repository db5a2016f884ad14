/*
 * Somebody who moves pages of a RAMBlock out of memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the rest of QEMU has to tell or to ask him.  An access through the
 * mapping of the block needs none of this: it waits for the page.
 *
 * The pager of a block is set before the block is used by a guest, and
 * taken away after that, with the BQL.  All functions here can be called
 * with any lock held, and do nothing for a block that has no pager.
 */
#ifndef EXEC_RAMBLOCK_PAGER_H
#define EXEC_RAMBLOCK_PAGER_H

#include "exec/ramblock.h"

typedef struct RAMBlockPager {
    void (*discard)(void *opaque, uint64_t offset, uint64_t length);
    void (*pin)(void *opaque, uint64_t offset, uint64_t length);
    void (*unpin)(void *opaque, uint64_t offset, uint64_t length);
    int (*peek)(void *opaque, uint64_t offset, uint64_t length,
                uint8_t **data);
} RAMBlockPager;

/**
 * ram_block_pager_discard: the content of the range is not wanted any more.
 *
 * Any thread; does not wait.
 */
static inline void ram_block_pager_discard(RAMBlock *rb, uint64_t offset,
                                           uint64_t length)
{
    if (rb->pager) {
        rb->pager->discard(rb->pager_opaque, offset, length);
    }
}

/**
 * ram_block_pager_pin: somebody is about to get a pointer to the range, and
 * may have the host kernel write there without a fault.
 *
 * @rb: may be NULL
 *
 * Any thread; does not wait.  Undone by ram_block_pager_unpin(), once the
 * pointer is given back.
 */
static inline void ram_block_pager_pin(RAMBlock *rb, uint64_t offset,
                                       uint64_t length)
{
    if (rb && rb->pager) {
        rb->pager->pin(rb->pager_opaque, offset, length);
    }
}

static inline void ram_block_pager_unpin(RAMBlock *rb, uint64_t offset,
                                         uint64_t length)
{
    if (rb->pager) {
        rb->pager->unpin(rb->pager_opaque, offset, length);
    }
}

/**
 * ram_block_pager_peek: look at what is not in memory, and leave it there.
 *
 * @offset, @length: a range within a target page
 * @data: set to a copy of its content, which is valid until the next call
 *     for that block; or to NULL if the range is to be read by the mapping
 *
 * For one thread at a time, which goes through all of the memory: that of a
 * migration, or the main loop when it takes a snapshot.  Waits for I/O.
 *
 * The copy has all that was written before the call.  What is written
 * afterwards is seen by dirty logging, as it is for a page in memory.
 *
 * Returns 0, or -errno if the content cannot be had now.
 */
static inline int ram_block_pager_peek(RAMBlock *rb, uint64_t offset,
                                       uint64_t length, uint8_t **data)
{
    *data = NULL;
    return rb->pager ? rb->pager->peek(rb->pager_opaque, offset, length,
                                       data) : 0;
}

#endif
