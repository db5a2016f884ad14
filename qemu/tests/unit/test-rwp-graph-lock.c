/*
 * Unit test: a reader of the block graph that another reader waits for
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guest's request can hold the reader lock of the block graph while it
 * waits for an evicted page, and the read that fetches the page takes the
 * same lock.  The two may not wait for each other, not even if a writer
 * comes at the worst moment:
 *
 *   writer                       request            fetch
 *   sees no reader
 *                                gets the lock
 *   has_writer = 1
 *                                                   queues up
 *   sees a reader, waits for it  waits for the fetch
 *
 * The moment is forced: this file is compiled with the lock, and has it
 * call back where the others have to get in between.
 */

#include "qemu/osdep.h"
#include "qemu/coroutine.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "block/block_int.h"
#include "block/graph-lock.h"
#include "iothread.h"

static void writer_has_waited(void);
static void writer_has_announced(void);

#undef AIO_WAIT_WHILE_UNLOCKED
#define AIO_WAIT_WHILE_UNLOCKED(ctx, cond)                  \
    do {                                                    \
        AIO_WAIT_WHILE_INTERNAL(ctx, cond);                 \
        writer_has_waited();                                \
    } while (0)

#undef smp_mb
/* What it is, and a place to stop at */
#define smp_mb()                                            \
    do {                                                    \
        __atomic_thread_fence(__ATOMIC_SEQ_CST);            \
        writer_has_announced();                             \
    } while (0)

#include "../../block/graph-lock.c"

/* Only ends a test that fails */
#define LIMIT_NS (20 * NANOSECONDS_PER_SECOND)

#define POLL_US 1000

typedef enum Step {
    BEFORE,
    REQUEST_HAS_LOCK,
    FETCH_QUEUES_UP,
    AFTER,
} Step;

static Step step;               /* main loop */
static IOThread *threads[2];
static bool request_has_lock, fetch_done, gave_up;  /* atomic */

void bdrv_drain_all_begin_nopoll(void)
{
}

void bdrv_drain_all_end(void)
{
}

static void coroutine_fn request_co(void *opaque)
{
    int64_t limit = get_clock() + LIMIT_NS;

    bdrv_graph_co_rdlock();
    qatomic_set(&request_has_lock, true);
    while (!qatomic_read(&fetch_done) && !qatomic_read(&gave_up)) {
        qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, SCALE_MS);
        if (get_clock() > limit) {
            qatomic_set(&gave_up, true);
        }
    }
    bdrv_graph_co_rdunlock();
}

static void coroutine_fn fetch_co(void *opaque)
{
    bdrv_graph_co_rdlock();
    qatomic_set(&fetch_done, true);
    bdrv_graph_co_rdunlock();
}

static void start(int thread, CoroutineEntry *entry)
{
    aio_co_schedule(iothread_get_aio_context(threads[thread]),
                    qemu_coroutine_create(entry, NULL));
}

static void writer_has_waited(void)
{
    if (step == BEFORE) {
        start(0, request_co);
        while (!qatomic_read(&request_has_lock)) {
            g_usleep(POLL_US);
        }
        step = REQUEST_HAS_LOCK;
    }
}

static bool is_queued(void)
{
    QEMU_LOCK_GUARD(&aio_context_list_lock);
    return !qemu_co_queue_empty(&reader_queue);
}

static void writer_has_announced(void)
{
    /* Readers come here, too */
    if (qatomic_read(&has_writer) && qemu_in_main_thread() &&
        !qemu_in_coroutine() && step == REQUEST_HAS_LOCK) {
        step = FETCH_QUEUES_UP;
        start(1, fetch_co);
        while (!is_queued()) {
            g_usleep(POLL_US);
        }
        step = AFTER;
    }
}

static void test_readers(void)
{
    for (int i = 0; i < 2; i++) {
        threads[i] = iothread_new();
    }
    bdrv_graph_wrlock();
    g_assert_cmpint(step, ==, AFTER);
    bdrv_graph_wrunlock();
    for (int i = 0; i < 2; i++) {
        iothread_join(threads[i]);
    }
    g_assert_true(qatomic_read(&fetch_done));
    g_assert_false(qatomic_read(&gave_up));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qemu_init_main_loop(&error_abort);
    g_test_add_func("/rwp/graph-lock/readers", test_readers);
    return g_test_run();
}
