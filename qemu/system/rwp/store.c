/*
 * The store: page ranges to and from a block node
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See store.h for the contract.
 *
 * @writer is the only one that may write, and shares nothing but reading.
 * @reader has no permission to write, so that it stays usable while the
 * image is inactive.  Neither queues requests while the node is drained
 * (blk_set_disable_request_queuing()), like NBD exports do.
 *
 * Who drains a node waits for a moment without any request, which need not come
 * while many threads touch pages.  So reads that begin in a drained section
 * wait for its end, but not for long: whoever drains may need the page, or wait
 * for somebody who does.  (Reads of a piece do not wait: the section waits for
 * the piece.)  So in a drained section there can be reads, and what relies on
 * there being none is refused: block jobs and the like by an op blocker as long
 * as the node is the store, blockdev-reopen and snapshots while pages are in it
 * (guard.c).  And no store is opened on a node that has such a blocker: a job
 * may replace it at its end.
 *
 * The node may be made inactive, by an outgoing migration or by command,
 * and can still be read then.  A write would end QEMU.  So as long as
 * something is written, @reader has a permission that @writer has anyway,
 * but does not give up: inactivation fails meanwhile.  @writer itself cannot
 * do that, it has to agree always or never.
 *
 * When a node is activated or inactivated, formats like qcow2 throw away what
 * they keep in memory, with no regard to requests.  At the end of a migration
 * the guest is stopped and touches nothing more, and no piece begins; else it is
 * refused as long as pages are away (guard.c).
 */

#include "qemu/osdep.h"
#include "qemu/coroutine.h"
#include "qemu/main-loop.h"
#include "qemu/stats64.h"
#include "qapi/error.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "block/block_int-global-state.h"
#include "system/block-backend.h"
#include "system/runstate.h"
#include "store.h"

struct RwpStore {
    /* Set once */
    char *node_name;
    BlockBackend *reader;
    BlockBackend *writer;
    void (*removed)(void *opaque);
    void *opaque;

    Notifier remove_notifier;   /* main loop */
    BlockDriverState *bs;       /* a reference; has @blocker; main loop */
    Error *blocker;             /* main loop */
    Stat64 drained_ns;          /* QEMU_CLOCK_REALTIME at the begin, or 0 */
    int drained;                /* @writer is, so often; atomic */
    unsigned pieces;            /* that have begun; atomic */
    unsigned requests;          /* in flight; atomic */
    bool gone;                  /* the node; no more requests; atomic */
    bool has_metadata;          /* atomic; written by the main loop */
};

/*
 * In a drained section time is divided into periods, the first of which takes
 * DRAINED_FIRST_NS, and each of the others twice as long as the one before.  A
 * read waits for the end of the period that it comes in, or of the section.  So
 * reads that take no longer than a period are done at some time before the next
 * ones begin.  After DRAINED_PERIODS of them they do not wait any more: whoever
 * needs a page in the section has waited for less than two seconds then.
 */
#define DRAINED_FIRST_NS (50 * SCALE_MS)
#define DRAINED_PERIODS 5
/* How often they look */
#define DRAINED_POLL_NS (1 * SCALE_MS)

/* What @reader needs at least, and while something is written */
#define PERM_READ BLK_PERM_CONSISTENT_READ
#define PERM_STAY_ACTIVE (PERM_READ | BLK_PERM_WRITE_UNCHANGED)

/*
 * Drivers that QEMU calls when it activates nodes, and have much to forget.
 * In the middle of a change, a child may have no node.
 */
static bool GRAPH_RDLOCK has_metadata(BlockDriverState *bs)
{
    BdrvChild *child;

    if (bs->drv && bs->drv->is_format && bs->drv->bdrv_co_invalidate_cache) {
        return true;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (child->bs && has_metadata(child->bs)) {
            return true;
        }
    }
    return false;
}

/* The graph below the node changes in drained sections only */
static void store_look_for_metadata(RwpStore *store)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    qatomic_set(&store->has_metadata, store->bs && has_metadata(store->bs));
}

static void store_drained_begin(void *opaque)
{
    RwpStore *store = opaque;

    stat64_set(&store->drained_ns, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
    qatomic_inc(&store->drained);
}

static bool store_drained_poll(void *opaque)
{
    RwpStore *store = opaque;

    return qatomic_read(&store->pieces) > 0;
}

static void store_drained_end(void *opaque)
{
    RwpStore *store = opaque;

    store_look_for_metadata(store);
    qatomic_dec(&store->drained);
    stat64_set(&store->drained_ns, 0);
}

static const BlockDevOps store_dev_ops = {
    .drained_begin = store_drained_begin,
    .drained_poll = store_drained_poll,
    .drained_end = store_drained_end,
};

/* No node may go with a blocker. */
static void store_block(RwpStore *store, BlockDriverState *bs)
{
    bdrv_ref(bs);
    store->bs = bs;
    error_setg(&store->blocker, "it is the store of a memory-backend-rwp");
    bdrv_op_block_all(bs, store->blocker);
    store_look_for_metadata(store);
}

/* Does nothing if it is not blocked */
static void store_unblock(RwpStore *store)
{
    if (store->blocker) {
        bdrv_op_unblock_all(store->bs, store->blocker);
        error_free(store->blocker);
        store->blocker = NULL;
        bdrv_unref(store->bs);
        store->bs = NULL;
    }
}

/*
 * A request looks at the root of its BlockBackend several times, so none may
 * begin from now on, nor be about to: blk_drain() does not see that.
 */
static void store_removed(Notifier *notifier, void *data)
{
    RwpStore *store = container_of(notifier, RwpStore, remove_notifier);

    qatomic_set(&store->gone, true);
    /* Either a request sees that, or we see the request */
    smp_mb();
    /* Nothing is throttled in a drained section */
    bdrv_drained_begin(store->bs);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&store->requests) > 0);
    bdrv_drained_end(store->bs);
    store_unblock(store);
    store->removed(store->opaque);
}

/* Returns whether a request may begin; the caller calls store_end_request(). */
static bool store_begin_request(RwpStore *store)
{
    /* A full barrier; see store_removed() */
    qatomic_inc(&store->requests);
    return !qatomic_read(&store->gone);
}

static void store_end_request(RwpStore *store)
{
    qatomic_dec(&store->requests);
    aio_wait_kick();
}

static bool store_check_size(BlockDriverState *bs, const char *node_name,
                             uint64_t size, Error **errp)
{
    int64_t length = bdrv_getlength(bs);

    if (length < 0) {
        error_setg_errno(errp, -length, "cannot get the size of node '%s'",
                         node_name);
        return false;
    }
    if (length < size) {
        error_setg(errp, "node '%s' is too small to be the store: it has "
                   "%" PRId64 " bytes, the memory has %" PRIu64,
                   node_name, length, size);
        return false;
    }
    return true;
}

static bool store_check_active(BlockDriverState *bs, Error **errp)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (bdrv_is_inactive(bs)) {
        error_setg(errp, "node '%s' is inactive, nothing can be written to it",
                   bdrv_get_node_name(bs));
        error_append_hint(errp, "Activate it with blockdev-set-active, if no "
                          "other QEMU uses the image.\n");
        return false;
    }
    return true;
}

static bool store_is_free(BlockDriverState *bs, Error **errp)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    return !bdrv_op_is_blocked(bs, BLOCK_OP_TYPE_REPLACE, errp);
}

static bool store_attach(RwpStore *store, BlockDriverState *bs,
                         AioContext *ctx, Error **errp)
{
    if (!store_is_free(bs, errp)) {
        return false;
    }
    /* First where the node is now, to learn who else uses it */
    store->writer = blk_new(bdrv_get_aio_context(bs),
                            BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE,
                            PERM_STAY_ACTIVE);
    if (blk_insert_bs(store->writer, bs, errp) < 0 ||
        blk_set_aio_context(store->writer, ctx, errp) < 0) {
        return false;
    }
    store->reader = blk_new(ctx, PERM_READ, BLK_PERM_ALL);
    if (blk_insert_bs(store->reader, bs, errp) < 0) {
        return false;
    }
    return true;
}

RwpStore *rwp_store_open(const char *node_name, uint64_t size,
                         AioContext *ctx, void (*removed)(void *opaque),
                         void *opaque, Error **errp)
{
    ERRP_GUARD();
    BlockDriverState *bs;
    RwpStore *store;

    GLOBAL_STATE_CODE();

    bs = bdrv_find_node(node_name);
    if (!bs) {
        error_setg(errp, "there is no block node '%s' to be the store",
                   node_name);
        error_append_hint(errp, "Add it with blockdev-add or -blockdev.\n");
        return NULL;
    }
    if (bdrv_is_read_only(bs)) {
        error_setg(errp, "node '%s' cannot be the store: it is read-only",
                   node_name);
        return NULL;
    }
    if (!store_check_size(bs, node_name, size, errp) ||
        !store_check_active(bs, errp)) {
        return NULL;
    }

    store = g_new0(RwpStore, 1);
    store->node_name = g_strdup(node_name);
    store->removed = removed;
    store->opaque = opaque;
    if (!store_attach(store, bs, ctx, errp)) {
        error_prepend(errp, "node '%s' cannot be the store, it is in use: ",
                      node_name);
        rwp_store_close(store);
        return NULL;
    }
    blk_set_disable_request_queuing(store->reader, true);
    blk_set_disable_request_queuing(store->writer, true);
    blk_set_force_allow_inactivate(store->writer);
    blk_set_dev_ops(store->writer, &store_dev_ops, store);
    store_block(store, bs);
    store->remove_notifier.notify = store_removed;
    blk_add_remove_bs_notifier(store->reader, &store->remove_notifier);
    return store;
}

void rwp_store_close(RwpStore *store)
{
    GLOBAL_STATE_CODE();

    if (!store) {
        return;
    }
    if (store->remove_notifier.notify) {
        notifier_remove(&store->remove_notifier);
        blk_set_dev_ops(store->writer, NULL, NULL);
    }
    store_unblock(store);
    blk_unref(store->reader);
    if (store->writer && blk_bs(store->writer)) {
        /* The node survives us, and the thread that was its home does not */
        blk_set_aio_context(store->writer, qemu_get_aio_context(), NULL);
    }
    blk_unref(store->writer);
    g_free(store->node_name);
    g_free(store);
}

bool rwp_store_begin_write(RwpStore *store, Error **errp)
{
    GLOBAL_STATE_CODE();

    return store_check_active(blk_bs(store->writer), errp) &&
           blk_set_perm(store->reader, PERM_STAY_ACTIVE, BLK_PERM_ALL,
                        errp) == 0;
}

void rwp_store_end_write(RwpStore *store)
{
    GLOBAL_STATE_CODE();

    /* Fewer permissions: it cannot fail, or we keep them */
    blk_set_perm(store->reader, PERM_READ, BLK_PERM_ALL, NULL);
}

static bool GRAPH_RDLOCK is_below(BlockDriverState *bs, BlockDriverState *top)
{
    BdrvChild *child;

    if (bs == top) {
        return true;
    }
    QLIST_FOREACH(child, &top->children, next) {
        if (is_below(bs, child->bs)) {
            return true;
        }
    }
    return false;
}

bool rwp_store_has_metadata(RwpStore *store)
{
    return qatomic_read(&store->has_metadata);
}

bool rwp_store_touched_by(RwpStore *store, BlockDriverState *bs)
{
    BlockDriverState *own = blk_bs(store->writer);

    GLOBAL_STATE_CODE();
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    return own && (is_below(bs, own) || is_below(own, bs));
}

const char *rwp_store_node_name(RwpStore *store)
{
    return store->node_name;
}

/*
 * When a read that comes at @now, QEMU_CLOCK_REALTIME, may begin at the latest,
 * if the section that is drained has begun at @drained.
 */
static int64_t end_of_period(int64_t drained, int64_t now)
{
    int64_t period = DRAINED_FIRST_NS;
    int64_t end = drained;

    for (int i = 0; i < DRAINED_PERIODS; i++) {
        end += period;
        if (now < end) {
            return end;
        }
        period *= 2;
    }
    return now;
}

/* Returns when the section ends, or soon */
static void coroutine_fn wait_for_section(RwpStore *store)
{
    int64_t drained = stat64_get(&store->drained_ns);
    int64_t now, end;

    if (!drained) {
        return;
    }
    now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    end = end_of_period(drained, now);
    while (now < end && stat64_get(&store->drained_ns) == drained) {
        qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, DRAINED_POLL_NS);
        now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    }
}

int coroutine_fn rwp_store_read(RwpStore *store, uint64_t offset,
                                uint64_t bytes, void *buf)
{
    wait_for_section(store);
    return rwp_store_read_in_piece(store, offset, bytes, buf);
}

int coroutine_fn rwp_store_read_in_piece(RwpStore *store, uint64_t offset,
                                         uint64_t bytes, void *buf)
{
    int ret = -ENOMEDIUM;

    if (store_begin_request(store)) {
        ret = blk_co_pread(store->reader, offset, bytes, buf, 0);
    }
    store_end_request(store);
    return MIN(ret, 0);
}

int coroutine_fn rwp_store_write(RwpStore *store, uint64_t offset,
                                 uint64_t bytes, const void *buf)
{
    int ret = -ENOMEDIUM;

    if (store_begin_request(store)) {
        ret = blk_co_pwrite(store->writer, offset, bytes, buf, 0);
    }
    store_end_request(store);
    return MIN(ret, 0);
}

/* That goes without a drained section */
static bool may_be_activated(void)
{
    return runstate_check(RUN_STATE_FINISH_MIGRATE) ||
           runstate_check(RUN_STATE_POSTMIGRATE);
}

bool rwp_store_begin_piece(RwpStore *store)
{
    /*
     * Either we see the section, or its poll sees the piece.  The same for the
     * end of a migration, which drains all nodes.
     */
    qatomic_inc(&store->pieces);
    if (qatomic_read(&store->drained) == 0 &&
        !(rwp_store_has_metadata(store) && may_be_activated())) {
        return true;
    }
    rwp_store_end_piece(store);
    return false;
}

void rwp_store_end_piece(RwpStore *store)
{
    qatomic_dec(&store->pieces);
    aio_wait_kick();
}
