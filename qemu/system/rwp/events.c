/*
 * QMP events of the working set tracker
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See events.h.  The data of an event is copied, so that it does not
 * matter whether the backend still exists when it is sent.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/qapi-events-rwp.h"
#include "qemu/main-loop.h"
#include "events.h"

typedef struct StoreError {
    char *id;
    char *node_name;
    RwpOperation operation;
    uint64_t offset;
    uint64_t bytes;
    int err;
} StoreError;

typedef struct Cycle {
    char *id;
    uint64_t cycle;
    uint64_t hot;
    uint64_t resident;
    uint64_t evicted;
} Cycle;

const char *rwp_event_reason(int err)
{
    return err == -EBADMSG ? "Wrong checksum: this is not what was written" :
           strerror(-err);
}

static void send_store_error(void *opaque)
{
    StoreError *e = opaque;

    qapi_event_send_rwp_store_error(e->id, e->node_name, e->operation,
                                    e->offset, e->bytes,
                                    rwp_event_reason(e->err));
    g_free(e->id);
    g_free(e->node_name);
    g_free(e);
}

void rwp_event_store_error(const char *id, const char *node_name,
                           RwpOperation operation, uint64_t offset,
                           uint64_t bytes, int err)
{
    StoreError *e = g_new(StoreError, 1);

    *e = (StoreError) {
        .id = g_strdup(id),
        .node_name = g_strdup(node_name),
        .operation = operation,
        .offset = offset,
        .bytes = bytes,
        .err = err,
    };
    aio_bh_schedule_oneshot(qemu_get_aio_context(), send_store_error, e);
}

static void send_cycle(void *opaque)
{
    Cycle *c = opaque;

    qapi_event_send_rwp_cycle(c->id, c->cycle, c->hot, c->resident,
                              c->evicted);
    g_free(c->id);
    g_free(c);
}

void rwp_event_cycle(const char *id, uint64_t cycle, uint64_t hot,
                     uint64_t resident, uint64_t evicted)
{
    Cycle *c = g_new(Cycle, 1);

    *c = (Cycle) {
        .id = g_strdup(id),
        .cycle = cycle,
        .hot = hot,
        .resident = resident,
        .evicted = evicted,
    };
    aio_bh_schedule_oneshot(qemu_get_aio_context(), send_cycle, c);
}
