/*
 * QMP events of the working set tracker
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * An event is sent from the main loop.  These functions only schedule it
 * there: they never wait and take no lock that a thread could hold while
 * it touches guest memory.  Context: any thread.
 */
#ifndef RWP_EVENTS_H
#define RWP_EVENTS_H

#include "qapi/qapi-types-rwp.h"

/**
 * rwp_event_store_error: an access to the store failed.
 *
 * @offset, @bytes: the range in the store
 * @err: negative errno
 */
void rwp_event_store_error(const char *id, const char *node_name,
                           RwpOperation operation, uint64_t offset,
                           uint64_t bytes, int err);

/** rwp_event_reason: what is said of the error @err, a negative errno. */
const char *rwp_event_reason(int err);

/** rwp_event_cycle: cycle number @cycle was completed; sizes in bytes. */
void rwp_event_cycle(const char *id, uint64_t cycle, uint64_t hot,
                     uint64_t resident, uint64_t evicted);

#endif
