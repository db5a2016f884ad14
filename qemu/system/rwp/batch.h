/*
 * Batches: the pages that are being evicted
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A batch is a window of neighbouring pages with a buffer that holds the
 * content of those that are being evicted.  While a page is staged, the
 * fault service may need that content: it looks the batch up by the page.
 *
 * Invariant: a page in state STAGED, or in FETCHING after STAGED, belongs
 * to exactly one listed batch.  The evictor unlists a batch only when none
 * of its pages is in one of these states.
 *
 * Listed batches do not overlap.  If they did, a page that was cancelled in
 * one batch and staged anew in the other would look as if it still belonged
 * to the first, whose copy of it is old.
 *
 * Locking: the list has a mutex that is held for a few instructions.  The
 * contents of a batch belong to the evictor, except that the fault service
 * reads the part of the buffer that belongs to a page it took over.
 */
#ifndef RWP_BATCH_H
#define RWP_BATCH_H

#include "qemu/bitmap.h"
#include "qemu/lockable.h"
#include "qemu/queue.h"
#include "qemu/thread.h"

/* Memory that one batch covers, at least one page */
#define RWP_BATCH_BYTES (2 * 1024 * 1024)

typedef struct RwpBatch {
    uint64_t first;             /* page */
    uint64_t count;             /* pages; at most as many as there is room */
    uint8_t *buf;
    unsigned long *wanted;      /* the pages that are being evicted */
    unsigned long *zero;        /* those of @wanted that are zero */
    unsigned long *clean;       /* those that the store has already */
    uint8_t *stored;            /* what it has, or NULL if never needed */
    QTAILQ_ENTRY(RwpBatch) next;
} RwpBatch;

typedef struct RwpBatchList {
    QemuMutex lock;
    QTAILQ_HEAD(, RwpBatch) batches;
} RwpBatchList;

static inline void rwp_batch_list_init(RwpBatchList *list)
{
    qemu_mutex_init(&list->lock);
    QTAILQ_INIT(&list->batches);
}

static inline void rwp_batch_list_destroy(RwpBatchList *list)
{
    assert(QTAILQ_EMPTY(&list->batches));
    qemu_mutex_destroy(&list->lock);
}

static inline void rwp_batch_add(RwpBatchList *list, RwpBatch *batch)
{
    QEMU_LOCK_GUARD(&list->lock);
    QTAILQ_INSERT_TAIL(&list->batches, batch, next);
}

static inline void rwp_batch_remove(RwpBatchList *list, RwpBatch *batch)
{
    QEMU_LOCK_GUARD(&list->lock);
    QTAILQ_REMOVE(&list->batches, batch, next);
}

/** rwp_batch_overlaps: whether a listed batch reaches into these pages. */
static inline bool rwp_batch_overlaps(RwpBatchList *list, uint64_t first,
                                      uint64_t count)
{
    RwpBatch *batch;

    QEMU_LOCK_GUARD(&list->lock);
    QTAILQ_FOREACH(batch, &list->batches, next) {
        if (first < batch->first + batch->count &&
            batch->first < first + count) {
            return true;
        }
    }
    return false;
}

/**
 * rwp_batch_content: content of the staged page @page.
 *
 * Valid as long as the caller keeps the page in FETCHING.
 */
static inline void *rwp_batch_content(RwpBatchList *list, uint64_t page,
                                      uint64_t page_size)
{
    RwpBatch *batch;

    QEMU_LOCK_GUARD(&list->lock);
    QTAILQ_FOREACH(batch, &list->batches, next) {
        if (page - batch->first < batch->count &&
            test_bit(page - batch->first, batch->wanted)) {
            return batch->buf + (page - batch->first) * page_size;
        }
    }
    return NULL;
}

#endif
