/*
 * The content of evicted pages, for who reads all of the memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RWP_PEEK_H
#define RWP_PEEK_H

#include "state.h"

RwpPeek *rwp_peek_new(void);

/** rwp_peek_free: free @peek, which may be NULL. */
void rwp_peek_free(RwpPeek *peek);

/**
 * rwp_peek: copy of what is away of [@offset, @offset + @length), which lies
 * within a page.  See ram_block_pager_peek().
 *
 * While pages can be looked at, none may become evicted: see guard.c.
 *
 * Context: one thread at a time; not the fault thread.  Waits for the store
 * for as long as it answers, depends on what the fault thread depends on.
 */
int rwp_peek(RwpState *s, uint64_t offset, uint64_t length, uint8_t **data);

/**
 * rwp_peek_busy: whether somebody looks at the store now, so that it must
 * stay.  Context: main loop, no page is away.
 */
bool rwp_peek_busy(RwpState *s);

#endif
