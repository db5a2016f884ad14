/*
 * What the rwp-evict and rwp-fetch jobs have in common
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See job.h.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qom/object.h"
#include "system/hostmem.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "job.h"
#include "store.h"
#include "trace.h"

#define SLICE_NS (100 * SCALE_MS)

/* How often to look whether the store may be used again */
#define DRAINED_POLL_NS (5 * SCALE_MS)

bool rwp_ranges_check(RwpState *s, RwpRangeList *ranges, Error **errp)
{
    for (RwpRangeList *l = ranges; l; l = l->next) {
        uint64_t offset = l->value->offset;
        uint64_t length = l->value->length;

        if (!QEMU_IS_ALIGNED(offset | length, s->mem->page_size) ||
            !length) {
            error_setg(errp, "Parameter 'ranges': offset %" PRIu64
                       ", length %" PRIu64 " are not positive multiples of "
                       "the page size of '%s', %" PRIu64, offset, length,
                       s->id, s->mem->page_size);
            return false;
        }
        if (offset >= s->mem->size || length > s->mem->size - offset) {
            error_setg(errp, "Parameter 'ranges': offset %" PRIu64
                       ", length %" PRIu64 " reach beyond the end of '%s', "
                       "%" PRIu64, offset, length, s->id, s->mem->size);
            return false;
        }
    }
    return true;
}

static void set_ranges(RwpJob *job, RwpRangeList *list)
{
    RwpMemory *mem = job->s->mem;
    size_t i = 0;

    if (!list) {
        job->ranges = g_new(RwpPageRange, 1);
        job->ranges[0] = (RwpPageRange) { .first = 0, .count = mem->nb_pages };
        job->nb_ranges = 1;
        return;
    }
    job->nb_ranges = QAPI_LIST_LENGTH(list);
    job->ranges = g_new(RwpPageRange, job->nb_ranges);
    for (RwpRangeList *l = list; l; l = l->next) {
        job->ranges[i++] = (RwpPageRange) {
            .first = l->value->offset / mem->page_size,
            .count = l->value->length / mem->page_size,
        };
    }
}

RwpJob *rwp_job_create(RwpState *s, const JobDriver *driver,
                       const RwpEvictOptions *options, Error **errp)
{
    RwpJob *job;

    GLOBAL_STATE_CODE();

    job = job_create(options->job_id, driver, NULL, s->work_ctx,
                     options->job_flags, NULL, NULL, errp);
    if (!job) {
        return NULL;
    }
    job->s = s;
    job->owner = object_ref(s->rb->mr->owner);
    job->explicit_ranges = options->ranges != NULL;
    job->min_age = options->min_age;
    job->max_pages = options->bytes / s->mem->page_size;
    job->batch_pages = MAX(RWP_BATCH_BYTES / s->mem->page_size, 1);
    set_ranges(job, options->ranges);
    ratelimit_init(&job->limit);
    ratelimit_set_speed(&job->limit, options->speed, SLICE_NS);
    s->job = &job->common;
    return job;
}

void rwp_job_free(Job *common)
{
    RwpJob *job = container_of(common, RwpJob, common);

    ratelimit_destroy(&job->limit);
    g_free(job->ranges);
}

void rwp_job_clean(Job *common)
{
    RwpJob *job = container_of(common, RwpJob, common);

    GLOBAL_STATE_CODE();

    job->s->job = NULL;
    rwp_state_settle(job->s);
    object_unref(job->owner);
}

void rwp_job_failed_at(RwpJob *job, uint64_t offset)
{
    if (!job->failed) {
        job->failed = true;
        job->error_offset = offset;
    }
}

static bool is_to_go_on(RwpJob *job)
{
    return !job_is_cancelled(&job->common) &&
           aio_task_pool_status(job->pool) >= 0;
}

bool coroutine_fn rwp_job_begin_piece(RwpJob *job)
{
    while (is_to_go_on(job)) {
        if (rwp_store_begin_piece(job->s->store)) {
            return true;
        }
        job_sleep_ns(&job->common, DRAINED_POLL_NS);
    }
    return false;
}

bool coroutine_fn rwp_job_may_go_on(RwpJob *job, uint64_t pages)
{
    int64_t delay = ratelimit_calculate_delay(&job->limit,
                                              pages * job->s->mem->page_size);

    while (is_to_go_on(job)) {
        if (delay <= 0) {
            job_pause_point(&job->common);
            return !job_is_cancelled(&job->common);
        }
        job_sleep_ns(&job->common, delay);
        delay = 0;
    }
    return false;
}
