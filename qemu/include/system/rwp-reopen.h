/*
 * Working set tracking and eviction of guest memory: its stores
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef SYSTEM_RWP_REOPEN_H
#define SYSTEM_RWP_REOPEN_H

#include "qemu/typedefs.h"

/**
 * rwp_allow_reopen: whether the node @bs may be reopened now.
 *
 * Fails while evicted pages are in it, or in a node that uses it: they are read
 * even in a drained section.  Context: main loop, BQL held.
 */
bool rwp_allow_reopen(BlockDriverState *bs, Error **errp);

#endif
