/*
 * The backends that exist
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * For commands, which name a backend by its ID.  Has a lock of its own,
 * because a command that is executed out of band does not have the BQL.
 */
#ifndef RWP_REGISTRY_H
#define RWP_REGISTRY_H

#include "state.h"

/** rwp_registry_add, rwp_registry_remove: Context: main loop. */
void rwp_registry_add(RwpState *s);
void rwp_registry_remove(RwpState *s);

/**
 * rwp_registry_retry: rwp_faults_retry() for the backend @id, or all.
 *
 * Context: any thread, any lock held.
 */
bool rwp_registry_retry(const char *id, Error **errp);

#endif
