/*
 * Devices that access guest memory behind QEMU's back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Context: main loop, BQL held.
 */
#ifndef RWP_FOREIGN_H
#define RWP_FOREIGN_H

#include "state.h"

/**
 * rwp_foreign_check: fail if there is a device or a network backend now
 * that does not fit evicted pages of @s.
 */
bool rwp_foreign_check(RwpState *s, Error **errp);

/**
 * rwp_foreign_watch: from now on, refuse new ones while a backend is
 * guarded; see rwp_allow_foreigner().  Does nothing if called before.
 */
void rwp_foreign_watch(void);

#endif
