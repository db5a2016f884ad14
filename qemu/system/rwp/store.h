/*
 * The store: page ranges to and from a block node
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Offsets in the store are offsets in the guest's memory, so there is
 * nothing to allocate or to look up.  The node is at least as large as the
 * memory and is used for nothing else.
 *
 * A drained section holds accesses up for a while only: a thread that waits for
 * a page, or for the end of a job, may be the one that the end of the section
 * waits for.  Instead the jobs, which access the node in pieces, begin no piece
 * while somebody wants the node to be quiet, and the section waits for those
 * that have begun.
 *
 * Context: opening and closing in the main loop with the BQL, everything
 * else in coroutines of any thread.
 */
#ifndef RWP_STORE_H
#define RWP_STORE_H

#include "block/block-common.h"

typedef struct RwpStore RwpStore;

/**
 * rwp_store_open: use the node @node_name as a store for @size bytes.
 *
 * @ctx: home of the node from now on; where timers of its drivers run
 * @removed: called in the main loop when the node is taken away, which
 *     only happens when QEMU terminates; from then on every access fails
 */
RwpStore *rwp_store_open(const char *node_name, uint64_t size,
                         AioContext *ctx, void (*removed)(void *opaque),
                         void *opaque, Error **errp);

/** rwp_store_close: let go of the node.  @store may be NULL. */
void rwp_store_close(RwpStore *store);

/**
 * rwp_store_begin_write: the node is going to be written to, and stays
 * active until rwp_store_end_write().
 *
 * Fails if it is inactive: only reads are allowed then.  Calls do not nest.
 * Context: main loop.
 */
bool rwp_store_begin_write(RwpStore *store, Error **errp);

/** rwp_store_end_write: nothing is written any more.  Context: main loop. */
void rwp_store_end_write(RwpStore *store);

/**
 * rwp_store_touched_by: whether what is done to @bs reaches the node, or one
 * below: it is one of them, or above.  Main loop.
 */
bool rwp_store_touched_by(RwpStore *store, BlockDriverState *bs);

/**
 * rwp_store_has_metadata: whether the format of the node, or of one below, keeps
 * metadata in memory: it must not be read while it is activated or inactivated.
 * Any thread.
 */
bool rwp_store_has_metadata(RwpStore *store);

/** rwp_store_node_name: name of the node. */
const char *rwp_store_node_name(RwpStore *store);

/**
 * rwp_store_read: read @bytes at @offset into @buf.  Returns 0 or -errno.
 *
 * Waits for a while if the node is drained.
 */
int coroutine_fn rwp_store_read(RwpStore *store, uint64_t offset,
                                uint64_t bytes, void *buf);

/**
 * rwp_store_read_in_piece: the same, after rwp_store_begin_piece(), without
 * waiting: the drained section waits for the piece.
 */
int coroutine_fn rwp_store_read_in_piece(RwpStore *store, uint64_t offset,
                                         uint64_t bytes, void *buf);

/**
 * rwp_store_write: write @bytes at @offset from @buf.  Returns 0 or -errno.
 *
 * Only between rwp_store_begin_write() and rwp_store_end_write().  @buf may
 * change meanwhile; what is stored then is undefined.
 */
int coroutine_fn rwp_store_write(RwpStore *store, uint64_t offset,
                                 uint64_t bytes, const void *buf);

/**
 * rwp_store_begin_piece: a job is going to access the node.
 *
 * Returns false if somebody wants the node to be quiet, or may activate it at
 * the end of a migration; try again later.  A piece may not wait for the main
 * loop, nor for another piece to begin.
 */
bool rwp_store_begin_piece(RwpStore *store);

/** rwp_store_end_piece: what rwp_store_begin_piece() allowed is done. */
void rwp_store_end_piece(RwpStore *store);

#endif
