/*
 * Writing a batch to the store
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RWP_WRITE_H
#define RWP_WRITE_H

#include "job.h"
#include "state.h"

/**
 * rwp_write_batch: have the wanted pages of @batch in the store.
 *
 * On return, @batch->clean says which of them were there already.
 * Returns 0, or -errno; that was reported then.
 *
 * Context: a coroutine in the work thread.
 */
int coroutine_fn rwp_write_batch(RwpJob *job, RwpBatch *batch);

/** rwp_write_done: @batch will not be written again. */
void rwp_write_done(RwpJob *job, RwpBatch *batch);

#endif
