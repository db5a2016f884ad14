/*
 * Migration of a guest whose memory is tracked or evicted
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Context: main loop, BQL held.
 */
#ifndef RWP_MIGRATE_H
#define RWP_MIGRATE_H

#include "state.h"

/**
 * rwp_migrate_watch: from now on, refuse migrations that do not fit @s.
 *
 * Fails if one is under way that does not.
 */
bool rwp_migrate_watch(RwpState *s, Error **errp);

/** rwp_migrate_unwatch: undo rwp_migrate_watch(), if called. */
void rwp_migrate_unwatch(RwpState *s);

/**
 * rwp_migrate_may_track: whether memory may be registered with userfaultfd
 * now, which others could need it for.
 */
bool rwp_migrate_may_track(RwpState *s, Error **errp);

/** rwp_migrate_may_evict: whether an eviction may begin now. */
bool rwp_migrate_may_evict(RwpState *s, Error **errp);

#endif
