/*
 * Everybody else who touches guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Kept out while pages are away:
 *   CPR                            migration blocker
 *   postcopy, background snapshots see migrate.c
 *   VFIO, vDPA, blkio, nvme, SEV,  they disable discarding of memory,
 *   RDMA                           which we require here
 *   vhost-user, virtiofs, VFIO,    looked for before the first eviction, and
 *   vDPA, vhost-scsi, blob=on,     refused afterwards; see foreign.c
 *   vmx=on, remote devices
 *   changes of the store's node    they ask; see rwp-nodes.h
 *
 * The hooks of the RAMBlock are called from any thread, with any lock held.
 * They change states, ages and counters, and never wait, except for the one
 * that a migration reads pages by.
 *
 * Works, because it is counted: DMA of devices; see pins.h.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "block/block.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "exec/ramblock-pager.h"
#include "migration/blocker.h"
#include "system/rwp-nodes.h"
#include "checksum.h"
#include "foreign.h"
#include "guard.h"
#include "inject.h"
#include "peek.h"
#include "store.h"
#include "trace.h"

bool rwp_guard_enter(RwpState *s, Error **errp)
{
    ERRP_GUARD();
    int ret;

    GLOBAL_STATE_CODE();

    if (s->guarded) {
        return true;
    }
    if (!rwp_foreign_check(s, errp)) {
        return false;
    }

    error_setg(&s->migration_blocker, "memory of memory-backend-rwp '%s' is "
               "evicted; bring it back with rwp-fetch first", s->id);
    ret = migrate_add_blocker_modes(&s->migration_blocker, errp,
                                    MIG_MODE_CPR_REBOOT,
                                    MIG_MODE_CPR_TRANSFER, -1);
    if (ret < 0) {
        error_prepend(errp, "memory-backend-rwp '%s' cannot evict: ", s->id);
        return false;
    }

    ret = ram_block_discard_require(true);
    if (ret < 0) {
        migrate_del_blocker(&s->migration_blocker);
        error_setg_errno(errp, -ret, "memory-backend-rwp '%s' cannot evict: "
                         "a device has pinned guest memory", s->id);
        error_append_hint(errp, "VFIO, vhost-vdpa, the block drivers nvme "
                          "and blkio, and encrypted guests do that.\n");
        return false;
    }
    qatomic_set(&s->guarded, true);
    return true;
}

void rwp_guard_leave(RwpState *s)
{
    GLOBAL_STATE_CODE();

    if (!s->guarded) {
        return;
    }
    ram_block_discard_require(false);
    migrate_del_blocker(&s->migration_blocker);
    qatomic_set(&s->guarded, false);
}

static void guard_discard(void *opaque, uint64_t offset, uint64_t length)
{
    RwpState *s = opaque;
    uint64_t first = offset / s->mem->page_size;
    uint64_t count = length / s->mem->page_size;
    uint64_t dropped = rwp_pages_discard(s->pages, first, count);

    rwp_ages_forget(s->ages, first, count);
    if (dropped) {
        rwp_checksums_trim(s->checksums, first, count);
    }
    stat64_add(&s->stats.dropped, dropped);
    trace_rwp_discard(s->id, offset, length, dropped);
    rwp_state_settle_soon(s);
}

static void guard_pin(void *opaque, uint64_t offset, uint64_t length)
{
    RwpState *s = opaque;

    rwp_pins_add(s->pins, offset, length);
}

static void guard_unpin(void *opaque, uint64_t offset, uint64_t length)
{
    RwpState *s = opaque;

    rwp_pins_remove(s->pins, offset, length);
}

bool rwp_guard_pinned(RwpState *s, uint64_t chunk)
{
    return rwp_pins_any(s->pins, chunk) &&
           !rwp_inject(RWP_INJECT_IGNORE_PINS);
}

/* A search for somebody whose pages are in the way of a change */
typedef struct Change {
    BlockDriverState *bs;       /* of that node, or NULL: of any */
    bool any_format;            /* or only of one that keeps metadata */
    RwpState *s;                /* the result */
} Change;

static void check_change(RwpState *s, void *opaque)
{
    Change *change = opaque;

    if (s->store &&
        (s->job || rwp_pages_away(s->pages) || rwp_peek_busy(s)) &&
        (change->any_format || rwp_store_has_metadata(s->store)) &&
        (!change->bs || rwp_store_touched_by(s->store, change->bs))) {
        change->s = s;
    }
}

/* @what: "be ..." */
static bool allow(Change *change, const char *what, Error **errp)
{
    const char *node_name;
    RwpState *s;

    GLOBAL_STATE_CODE();

    rwp_state_foreach(check_change, change);
    s = change->s;
    if (!s) {
        return true;
    }
    node_name = change->bs ? bdrv_get_node_name(change->bs) :
                             rwp_store_node_name(s->store);
    if (s->job) {
        error_setg(errp, "node '%s' cannot %s: the job '%s' of "
                   "memory-backend-rwp '%s' uses it; wait for its end, or "
                   "cancel it", node_name, what, s->job->id, s->id);
    } else {
        error_setg(errp, "node '%s' cannot %s: evicted pages of "
                   "memory-backend-rwp '%s' are in it; bring them back with "
                   "rwp-fetch first", node_name, what, s->id);
    }
    return false;
}

bool rwp_allow_reopen(BlockDriverState *bs, Error **errp)
{
    Change change = { .bs = bs, .any_format = true };

    return allow(&change, "be reopened", errp);
}

bool rwp_allow_set_active(const char *node_name, Error **errp)
{
    Change change = { .bs = node_name ? bdrv_find_node(node_name) : NULL };

    /* That there is no such node the caller knows how to tell */
    return (node_name && !change.bs) ||
           allow(&change, "be activated or inactivated", errp);
}

bool rwp_allow_snapshot(bool has_devices, strList *devices, Error **errp)
{
    Change change = { .any_format = true };

    if (!has_devices) {
        return allow(&change, "be part of a snapshot", errp);
    }
    for (; devices; devices = devices->next) {
        change.bs = bdrv_find_node(devices->value);
        if (change.bs && !allow(&change, "be part of a snapshot", errp)) {
            return false;
        }
    }
    return true;
}

static int guard_peek(void *opaque, uint64_t offset, uint64_t length,
                      uint8_t **data)
{
    return rwp_peek(opaque, offset, length, data);
}

static const RAMBlockPager guard_pager = {
    .discard = guard_discard,
    .pin = guard_pin,
    .unpin = guard_unpin,
    .peek = guard_peek,
};

void rwp_guard_hook(RwpState *s)
{
    s->rb->pager_opaque = s;
    s->rb->pager = &guard_pager;
    rwp_foreign_watch();
}

void rwp_guard_unhook(RwpState *s)
{
    s->rb->pager = NULL;
    s->rb->pager_opaque = NULL;
}
