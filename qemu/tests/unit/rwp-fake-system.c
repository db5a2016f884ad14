/*
 * Fakes for tests of memory-backend-rwp: the node, and the emulator
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See rwp-fake.h.  Of the emulator there is just what state.c, guard.c,
 * inject.c and events.c call and what the block layer's stubs do not have.
 */

#include "qemu/osdep.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "qapi/error.h"
#include "qapi/qapi-events-rwp.h"
#include "block/block_int.h"
#include "exec/memory.h"
#include "hw/core/cpu.h"
#include "migration/blocker.h"
#include "system/iothread.h"
#include "system/qtest.h"
#include "system/runstate.h"
#include "system/runstate-action.h"
#include "system/rwp/foreign.h"
#include "system/rwp/migrate.h"
#include "rwp-fake-int.h"

/* How often a request looks whether the gate is open */
#define GATE_POLL_NS (SCALE_MS / 4)

typedef struct Request {
    uint64_t offset;
    uint64_t bytes;
} Request;

typedef struct Side {
    GArray *requests;
    uint64_t may_pass;          /* requests with a lower number may */
    uint64_t passed;
    uint64_t fail_times;
    int err;
} Side;

static struct {
    QemuMutex lock;             /* for everything here */
    uint8_t *data;
    uint64_t size;
    uint64_t corrupt;           /* a page, or FAKE_ANY */
    Side sides[FAKE_STORE__MAX];
} store;

static void __attribute__((constructor)) store_init(void)
{
    qemu_mutex_init(&store.lock);
}

void fake_store_fail(FakeStoreOp op, uint64_t times, int err)
{
    QEMU_LOCK_GUARD(&store.lock);
    store.sides[op].fail_times = times;
    store.sides[op].err = err;
}

void fake_store_close_gate(FakeStoreOp op)
{
    QEMU_LOCK_GUARD(&store.lock);
    store.sides[op].may_pass = store.sides[op].requests->len;
}

void fake_store_pass(FakeStoreOp op, uint64_t nb)
{
    QEMU_LOCK_GUARD(&store.lock);
    store.sides[op].may_pass += nb;
}

void fake_store_open_gate(FakeStoreOp op)
{
    QEMU_LOCK_GUARD(&store.lock);
    store.sides[op].may_pass = UINT64_MAX;
}

uint64_t fake_store_waiting(FakeStoreOp op)
{
    QEMU_LOCK_GUARD(&store.lock);
    return store.sides[op].requests->len - store.sides[op].passed;
}

uint64_t fake_store_requests(FakeStoreOp op)
{
    QEMU_LOCK_GUARD(&store.lock);
    return store.sides[op].requests->len;
}

void fake_store_request(FakeStoreOp op, uint64_t nr, uint64_t *first,
                        uint64_t *count)
{
    Request *request;

    QEMU_LOCK_GUARD(&store.lock);
    g_assert_cmpuint(nr, <, store.sides[op].requests->len);
    request = &g_array_index(store.sides[op].requests, Request, nr);
    *first = request->offset / FAKE_PAGE_SIZE;
    *count = request->bytes / FAKE_PAGE_SIZE;
}

void fake_store_corrupt(uint64_t page, bool corrupt)
{
    QEMU_LOCK_GUARD(&store.lock);
    store.corrupt = corrupt ? page : FAKE_ANY;
}

bool fake_store_has(uint64_t page, uint64_t value)
{
    QEMU_LOCK_GUARD(&store.lock);
    return *(uint64_t *)(store.data + page * FAKE_PAGE_SIZE) == value;
}

static uint64_t begin_request(Side *side, int64_t offset, int64_t bytes)
{
    Request request = { .offset = offset, .bytes = bytes };

    QEMU_LOCK_GUARD(&store.lock);
    g_array_append_val(side->requests, request);
    return side->requests->len - 1;
}

static bool pass_gate(Side *side, uint64_t nr)
{
    QEMU_LOCK_GUARD(&store.lock);
    if (nr >= side->may_pass) {
        return false;
    }
    side->passed++;
    return true;
}

static int coroutine_fn store_request(FakeStoreOp op, int64_t offset,
                                      int64_t bytes, QEMUIOVector *qiov)
{
    Side *side = &store.sides[op];
    uint64_t nr = begin_request(side, offset, bytes);

    while (!pass_gate(side, nr)) {
        qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, GATE_POLL_NS);
    }

    QEMU_LOCK_GUARD(&store.lock);
    if (side->fail_times) {
        side->fail_times -= side->fail_times != FAKE_ALWAYS;
        return side->err;
    }
    if (op == FAKE_STORE_READ) {
        uint64_t corrupt = store.corrupt * FAKE_PAGE_SIZE - offset;

        qemu_iovec_from_buf(qiov, 0, store.data + offset, bytes);
        if (store.corrupt != FAKE_ANY && corrupt < bytes) {
            qemu_iovec_from_buf(qiov, corrupt + FAKE_PAGE_SIZE - 1, "!", 1);
        }
    } else {
        qemu_iovec_to_buf(qiov, 0, store.data + offset, bytes);
    }
    return 0;
}

static int coroutine_fn store_co_preadv(BlockDriverState *bs, int64_t offset,
                                        int64_t bytes, QEMUIOVector *qiov,
                                        BdrvRequestFlags flags)
{
    return store_request(FAKE_STORE_READ, offset, bytes, qiov);
}

static int coroutine_fn store_co_pwritev(BlockDriverState *bs, int64_t offset,
                                         int64_t bytes, QEMUIOVector *qiov,
                                         BdrvRequestFlags flags)
{
    return store_request(FAKE_STORE_WRITE, offset, bytes, qiov);
}

static int64_t coroutine_fn store_co_getlength(BlockDriverState *bs)
{
    return store.size;
}

static void store_driver_close(BlockDriverState *bs)
{
    for (int op = 0; op < FAKE_STORE__MAX; op++) {
        g_array_free(store.sides[op].requests, true);
    }
    g_free(store.data);
}

static BlockDriver store_driver = {
    .format_name = "rwp-fake-store",
    .bdrv_close = store_driver_close,
    .bdrv_co_preadv = store_co_preadv,
    .bdrv_co_pwritev = store_co_pwritev,
    .bdrv_co_getlength = store_co_getlength,
};

BlockDriverState *fake_store_new(const char *node_name, uint64_t size)
{
    GLOBAL_STATE_CODE();

    store.size = size;
    store.corrupt = FAKE_ANY;
    store.data = g_malloc(size);
    /* Nothing that a page could have */
    memset(store.data, 0xdd, size);
    for (int op = 0; op < FAKE_STORE__MAX; op++) {
        store.sides[op] = (Side) {
            .requests = g_array_new(false, false, sizeof(Request)),
            .may_pass = UINT64_MAX,
        };
    }
    return bdrv_new_open_driver(&store_driver, node_name, BDRV_O_RDWR,
                                &error_abort);
}

/* The emulator */

FakeSystem fake_system;
CPUTailQ cpus_queue = QTAILQ_HEAD_INITIALIZER(cpus_queue);
ShutdownAction shutdown_action = SHUTDOWN_ACTION_POWEROFF;
static NotifierList shutdown_notifiers =
    NOTIFIER_LIST_INITIALIZER(shutdown_notifiers);

void qemu_register_shutdown_notifier(Notifier *notifier)
{
    notifier_list_add(&shutdown_notifiers, notifier);
}

void fake_system_shutdown(void)
{
    notifier_list_notify(&shutdown_notifiers, NULL);
}

ShutdownCause qemu_shutdown_requested_get(void)
{
    return fake_system.shutdown;
}

CPUState *fake_add_vcpu(int tid)
{
    CPUState *cpu = g_new0(CPUState, 1);

    cpu->thread_id = tid;
    QTAILQ_INSERT_TAIL_RCU(&cpus_queue, cpu, node);
    return cpu;
}

void fake_remove_vcpu(CPUState *cpu)
{
    QTAILQ_REMOVE_RCU(&cpus_queue, cpu, node);
    synchronize_rcu();
    g_free(cpu);
}

void qemu_cpu_kick(CPUState *cpu)
{
    fake_system.kicks++;
}

bool qtest_driver(void)
{
    return fake_system.qtest;
}

IOThread *iothread_create(const char *id, Error **errp)
{
    return iothread_new();
}

void iothread_destroy(IOThread *iothread)
{
    iothread_join(iothread);
}

static int add_blocker(Error **reasonp, Error **errp)
{
    if (fake_system.blocker_error) {
        error_propagate(errp, *reasonp);
        *reasonp = NULL;
        return fake_system.blocker_error;
    }
    fake_system.blockers++;
    return 0;
}

int migrate_add_blocker(Error **reasonp, Error **errp)
{
    return add_blocker(reasonp, errp);
}

int migrate_add_blocker_normal(Error **reasonp, Error **errp)
{
    return add_blocker(reasonp, errp);
}

int migrate_add_blocker_modes(Error **reasonp, Error **errp, MigMode mode, ...)
{
    return add_blocker(reasonp, errp);
}

void migrate_del_blocker(Error **reasonp)
{
    if (*reasonp) {
        fake_system.blockers--;
        error_free(*reasonp);
        *reasonp = NULL;
    }
}

int ram_block_discard_require(bool state)
{
    if (state && fake_system.discard_error) {
        return fake_system.discard_error;
    }
    fake_system.discards_required += state ? 1 : -1;
    return 0;
}

void qapi_event_send_rwp_store_error(const char *id, const char *node_name,
                                     RwpOperation operation, uint64_t offset,
                                     uint64_t length, const char *reason)
{
    GLOBAL_STATE_CODE();
    fake_system.store_errors++;
    fake_system.last_operation = operation;
    pstrcpy(fake_system.last_reason, sizeof(fake_system.last_reason), reason);
}

void qapi_event_send_rwp_cycle(const char *id, int64_t cycle, uint64_t hot,
                               uint64_t resident, uint64_t evicted)
{
    GLOBAL_STATE_CODE();
    fake_system.cycles++;
}

bool rwp_migrate_watch(RwpState *s, Error **errp)
{
    return true;
}

void rwp_migrate_unwatch(RwpState *s)
{
}

bool rwp_migrate_may_track(RwpState *s, Error **errp)
{
    return true;
}

bool rwp_migrate_may_evict(RwpState *s, Error **errp)
{
    return true;
}

bool rwp_foreign_check(RwpState *s, Error **errp)
{
    return true;
}

void rwp_foreign_watch(void)
{
}
