/*
 * Working set tracking and eviction of guest memory: what may not be done to
 * nodes with evicted pages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Pages are read whenever they are touched, even in a drained section.  All
 * functions return whether something may be done now, and set an error that
 * names the backend whose pages are in the way if not.  Context: main loop,
 * BQL held.
 */
#ifndef SYSTEM_RWP_NODES_H
#define SYSTEM_RWP_NODES_H

#include "qapi/qapi-builtin-types.h"
#include "qemu/typedefs.h"

/**
 * rwp_allow_reopen: reopen the node @bs.
 */
bool rwp_allow_reopen(BlockDriverState *bs, Error **errp);

/**
 * rwp_allow_set_active: activate or inactivate @node_name, or all nodes if that
 * is NULL.
 *
 * Formats with metadata in memory, such as qcow2, must not be read meanwhile.
 */
bool rwp_allow_set_active(const char *node_name, Error **errp);

/**
 * rwp_allow_snapshot: take or delete a snapshot of @devices, or of all, or go
 * back to one.
 */
bool rwp_allow_snapshot(bool has_devices, strList *devices, Error **errp);

#endif
