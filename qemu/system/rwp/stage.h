/*
 * The two phases of an eviction
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Between the phases the caller writes the content to the store.  All
 * functions run in the work thread.
 */
#ifndef RWP_STAGE_H
#define RWP_STAGE_H

#include "state.h"

/**
 * rwp_stage: take the wanted pages of @batch for eviction.
 *
 * @force: also pages that were touched since they were armed; otherwise
 *     those are not wanted any more
 *
 * Afterwards @batch is listed, and the wanted pages are STAGED, until
 * rwp_stage_end().  Returns 0, or -errno with nothing done.
 */
int rwp_stage(RwpState *s, RwpBatch *batch, bool force);

/** rwp_stage_end: none of the pages of @batch is STAGED any more. */
void rwp_stage_end(RwpState *s, RwpBatch *batch);

/**
 * rwp_stage_take: have the content of the wanted pages in the buffer.
 *
 * Afterwards those of them that are zero are marked.  Pages that could not
 * be taken are not wanted any more.
 */
void coroutine_fn rwp_stage_take(RwpState *s, RwpBatch *batch);

/**
 * rwp_stage_put: the content in the buffer is not needed any more.
 *
 * Takes some time, which other threads spend.
 */
void coroutine_fn rwp_stage_put(RwpState *s, RwpBatch *batch);

/**
 * rwp_stage_commit: remove the wanted pages that were not touched since.
 *
 * The content is in the store, and the originals stayed in place.
 */
void rwp_stage_commit(RwpState *s, RwpBatch *batch);

/** rwp_stage_give_up: the originals stayed in place and remain there. */
void rwp_stage_give_up(RwpState *s, RwpBatch *batch);

/**
 * rwp_stage_end_moved: the end of an eviction whose pages were moved aside.
 *
 * @written: the content is in the store; otherwise the pages go back
 *
 * Returns when nobody needs the buffer any more.
 */
void coroutine_fn rwp_stage_end_moved(RwpState *s, RwpBatch *batch,
                                      bool written);

#endif
