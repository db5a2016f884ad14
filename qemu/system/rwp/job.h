/*
 * What the rwp-evict and rwp-fetch jobs have in common
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Both go through a list of page ranges in the work thread, in pieces of
 * at most one batch, with some pieces in progress at a time, pausing,
 * cancelling and limiting their speed between pieces.
 */
#ifndef RWP_JOB_H
#define RWP_JOB_H

#include "qemu/job.h"
#include "qemu/ratelimit.h"
#include "block/aio_task.h"
#include "evict.h"

/* Pieces in progress at a time */
#define RWP_JOB_PARALLEL 8

typedef struct RwpPageRange {
    uint64_t first;
    uint64_t count;
} RwpPageRange;

typedef struct RwpJob {
    Job common;

    /* Set once */
    RwpState *s;
    Object *owner;              /* reference to the backend */
    bool explicit_ranges;
    uint8_t min_age;
    uint64_t max_pages;
    RwpPageRange *ranges;
    size_t nb_ranges;
    uint64_t batch_pages;

    RateLimit limit;

    /* Work thread only */
    AioTaskPool *pool;
    GPtrArray *batches;         /* of rwp-evict: idle ones */
    GPtrArray *buffers;         /* of rwp-fetch: idle ones */
    bool failed;
    uint64_t error_offset;      /* of the first failed access */
} RwpJob;

/**
 * rwp_job_create: create a job of @driver and let @s know.
 *
 * Everything is set up but the pool.
 */
RwpJob *rwp_job_create(RwpState *s, const JobDriver *driver,
                       const RwpEvictOptions *options, Error **errp);

/** rwp_job_free, rwp_job_clean: callbacks for the driver. */
void rwp_job_free(Job *job);
void rwp_job_clean(Job *job);

/** rwp_job_failed_at: what is at @offset could not be written or fetched. */
void rwp_job_failed_at(RwpJob *job, uint64_t offset);

/**
 * rwp_job_may_go_on: pause if asked to, and wait until @pages more may be
 * processed without exceeding the speed.
 *
 * Returns false if the job is to end: it was cancelled, or a piece failed.
 */
bool coroutine_fn rwp_job_may_go_on(RwpJob *job, uint64_t pages);

/**
 * rwp_job_begin_piece: wait until rwp_store_begin_piece() allows a piece.
 *
 * Returns false if there is none, because the job is to end.
 */
bool coroutine_fn rwp_job_begin_piece(RwpJob *job);

#endif
