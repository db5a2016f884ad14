/*
 * Other processes that map guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RWP_FOREIGN_H
#define RWP_FOREIGN_H

/**
 * rwp_foreign_check: fail if another process maps guest memory.
 *
 * @id: ID of the backend, for the message
 *
 * Accesses of other processes are not seen by the tracker, and do not trap
 * when a page is away: they would read zeros, and their writes would be
 * lost.  Looks at the devices and network backends that exist now.
 * Context: main loop, BQL held.
 */
bool rwp_foreign_check(const char *id, Error **errp);

#endif
