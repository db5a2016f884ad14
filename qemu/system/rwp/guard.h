/*
 * Everybody else who touches guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * While pages are away, or a job may take some away, whoever would read
 * guest memory other than through the guest's mapping, or would pin it, is
 * kept out; and a discard of guest memory drops the stored content.
 *
 * Context: main loop, BQL held.
 */
#ifndef RWP_GUARD_H
#define RWP_GUARD_H

#include "state.h"

/**
 * rwp_guard_enter: exclude everybody who does not fit evicted pages.
 *
 * Fails, with nothing changed, if one of them is there already.  Does
 * nothing if entered before.
 */
bool rwp_guard_enter(RwpState *s, Error **errp);

/** rwp_guard_leave: undo rwp_guard_enter(), if entered. */
void rwp_guard_leave(RwpState *s);

/**
 * rwp_guard_pinned: whether a part of @chunk is mapped for DMA.
 *
 * The host kernel may then write there without a fault: what is copied
 * now, or removed now, may be changed afterwards unnoticed.  A mapping that
 * is made after a page has lost its entry does no harm, because its first
 * access faults.
 * Context: any thread.
 */
bool rwp_guard_pinned(RwpState *s, uint64_t chunk);

/** rwp_guard_hook, rwp_guard_unhook: learn of discards of the block. */
void rwp_guard_hook(RwpState *s);
void rwp_guard_unhook(RwpState *s);

#endif
