/*
 * The fault service and the rwp-fetch job: unit tests with fakes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Most accesses are made by the main thread, which does nothing else while
 * it waits: so every one of these tests also checks that a fault is served
 * without the main loop.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "block/block_int.h"
#include "system/rwp/fault.h"
#include "system/rwp/peek.h"
#include "system/rwp/registry.h"
#include "system/rwp/scan.h"
#include "rwp-rig.h"

#define BATCH (RWP_BATCH_BYTES / FAKE_PAGE_SIZE)
#define NEW_VALUE 0xbeef

/* More than the fault service reads at a time */
#define MANY 80

static void expect_read(uint64_t nr, uint64_t first, uint64_t count)
{
    uint64_t got_first, got_count;

    fake_store_request(FAKE_STORE_READ, nr, &got_first, &got_count);
    g_assert_cmpuint(got_first, ==, first);
    g_assert_cmpuint(got_count, ==, count);
}

static uint64_t latencies(Rig *rig)
{
    uint64_t sum = 0;

    for (int i = 0; i < RWP_LATENCY_ROWS; i++) {
        sum += stat64_get(&rig->s->stats.latency[i]);
    }
    return sum;
}

static void test_basic(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);

    fake_write(7, NEW_VALUE);
    rig_quiet(rig);
    rig_expect(rig, 7, 1, RWP_PAGE_LIVE);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 9);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, 1);
    expect_read(0, 7, 1);
    g_assert_cmpuint(stat64_get(&rig->s->stats.fetched_fault), ==, 1);
    g_assert_cmpuint(latencies(rig), ==, 1);
    g_assert_cmphex(fake_read(7), ==, NEW_VALUE);
    /* Never used before, in a chunk where that traps */
    g_assert_cmphex(fake_read(20), ==, 0);
    rig_check(rig, 0, 7);
    rig_free(rig);
}

static void test_many(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 2 * MANY, 0);
    FakeTouch *touches[MANY];

    fake_store_close_gate(FAKE_STORE_READ);
    for (int i = 0; i < MANY; i++) {
        touches[i] = fake_touch_start(2 * i, 0);
    }
    RIG_WAIT(rig_count(rig, RWP_PAGE_FETCHING) == MANY);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == RIG_FETCHES);
    g_assert_cmpuint(qatomic_read(&rig->s->stats.fetch_running), ==,
                     RIG_FETCHES);
    g_assert_cmpuint(qatomic_read(&rig->s->stats.fetch_queued), ==,
                     MANY - RIG_FETCHES);
    g_assert_cmpuint(qatomic_read(&rig->s->stats.buffer_bytes), ==,
                     RIG_FETCHES * FAKE_PAGE_SIZE);
    fake_store_open_gate(FAKE_STORE_READ);
    for (int i = 0; i < MANY; i++) {
        g_assert_cmphex(fake_touch_end(touches[i]), ==, rig_value(2 * i));
    }
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, MANY);
    g_assert_cmpuint(stat64_get(&rig->s->stats.fetch_peak), ==, RIG_FETCHES);
    rig_check(rig, 0, 2 * MANY);
    rig_free(rig);
}

/* Several threads wait for one page: one read, and all go on */
static void test_same_page(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    FakeTouch *touches[8];

    fake_store_close_gate(FAKE_STORE_READ);
    for (size_t i = 0; i < ARRAY_SIZE(touches); i++) {
        touches[i] = fake_touch_start(5, 0);
    }
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1 && fake_idle());
    fake_store_open_gate(FAKE_STORE_READ);
    for (size_t i = 0; i < ARRAY_SIZE(touches); i++) {
        g_assert_cmphex(fake_touch_end(touches[i]), ==, rig_value(5));
    }
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, 1);
    rig_free(rig);
}

static void test_readahead(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 400, 8);
    /* From 107 on, three more are ahead of what is touched */
    static const uint64_t first[] = { 100, 101, 103, 107, 115, 123, 131, 300 };
    static const uint64_t count[] = { 1, 2, 4, 8, 8, 8, 8, 1 };

    for (uint64_t page = 100; page < 131; page++) {
        g_assert_cmphex(fake_read(page), ==, rig_value(page));
        rig_quiet(rig);
    }
    /* No continuation of anything */
    g_assert_cmphex(fake_read(300), ==, rig_value(300));
    rig_quiet(rig);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==,
                     ARRAY_SIZE(first));
    for (size_t i = 0; i < ARRAY_SIZE(first); i++) {
        expect_read(i, first[i], count[i]);
    }
    g_assert_cmpuint(stat64_get(&rig->s->stats.fetched_fault), ==, 5);
    g_assert_cmpuint(stat64_get(&rig->s->stats.fetched_readahead), ==, 35);

    /* What was not asked for goes no further than evicted pages do */
    rig_check(rig, 399, 1);
    rig_check(rig, 0, 400);
    rig_free(rig);
}

/*
 * Touches 0 to 6, after which the longest reads begin; then two touches wait
 * for reads, with more reads ahead of them.
 */
static void begin_stream(Rig *rig, FakeTouch **first, FakeTouch **second)
{
    for (uint64_t page = 0; page < 7; page++) {
        fake_read(page);
        rig_quiet(rig);
    }
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, 3);

    fake_store_close_gate(FAKE_STORE_READ);
    *first = fake_touch_start(7, 0);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 4 && fake_idle());
    *second = fake_touch_start(16, 0);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 6 && fake_idle());
}

/* The guest is faster than the store, which gets more to do then */
static void test_readahead_more(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 400, 8);
    FakeTouch *first, *second;

    begin_stream(rig, &first, &second);
    expect_read(7, 39, 8);
    expect_read(8, 47, 8);

    fake_store_open_gate(FAKE_STORE_READ);
    g_assert_cmphex(fake_touch_end(first), ==, rig_value(7));
    g_assert_cmphex(fake_touch_end(second), ==, rig_value(16));
    rig_quiet(rig);
    rig_expect(rig, 0, 55, RWP_PAGE_LIVE);
    rig_expect(rig, 55, 345, RWP_PAGE_EVICTED);
    rig_check(rig, 0, 400);
    rig_free(rig);
}

/* A failed read ahead: who waits for one of its pages has it read again */
static void test_readahead_fails(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 400, 8);
    FakeTouch *first, *second;

    begin_stream(rig, &first, &second);
    fake_store_pass(FAKE_STORE_READ, 1);
    g_assert_cmphex(fake_touch_end(first), ==, rig_value(7));
    fake_store_fail(FAKE_STORE_READ, 1, -EIO);
    fake_store_open_gate(FAKE_STORE_READ);
    g_assert_cmphex(fake_touch_end(second), ==, rig_value(16));
    rig_quiet(rig);
    g_assert_cmpuint(stat64_get(&rig->s->stats.fetch_errors), ==, 1);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_FETCHING), ==, 0);
    rig_check(rig, 0, 400);
    rig_free(rig);
}

/* With tracking on, pages that nobody touched are not taken for touched */
static void test_readahead_arms(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 4);

    rwp_scanner_start(rig->s->scanner, RWP_INTERVAL_MAX);
    fake_read(0);
    rig_quiet(rig);
    fake_read(1);
    rig_quiet(rig);
    rig_expect(rig, 2, 1, RWP_PAGE_LIVE);
    g_assert(!fake_armed(0) && !fake_armed(1));
    g_assert(fake_armed(2));
    rwp_scanner_stop(rig->s->scanner);
    rig_check(rig, 0, 10);
    rig_free(rig);
}

static void test_retry(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 8);
    uint64_t errors;
    FakeTouch *touch;

    fake_store_fail(FAKE_STORE_READ, FAKE_ALWAYS, -EIO);
    touch = fake_touch_start(5, 0);
    RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
    RIG_WAIT(fake_system.store_errors == 1);
    g_assert_cmpint(fake_system.last_operation, ==, RWP_OPERATION_FETCH);
    /* By itself */
    errors = stat64_get(&rig->s->stats.fetch_errors);
    RIG_WAIT(stat64_get(&rig->s->stats.fetch_errors) > errors);
    g_assert(!fake_touch_done(touch));
    /* Because asked to: after some doublings, the pause is long */
    for (int i = 0; i < 8; i++) {
        RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
        errors = stat64_get(&rig->s->stats.fetch_errors);
        g_assert(rwp_registry_retry("mem0", &error_abort));
        RIG_WAIT(stat64_get(&rig->s->stats.fetch_errors) > errors);
    }
    g_assert_cmpuint(fake_system.store_errors, ==, 1);
    RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
    fake_store_fail(FAKE_STORE_READ, 0, 0);
    g_assert(rwp_registry_retry(NULL, &error_abort));
    g_assert_cmphex(fake_touch_end(touch), ==, rig_value(5));
    g_assert(!rwp_registry_retry("mem1", NULL));
    rig_check(rig, 0, 10);
    rig_free(rig);
}

/* Neighbours are not kept from those who touch them by a failing read */
static void test_retry_neighbours(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 8);
    FakeTouch *touch, *other;

    rig_check(rig, 0, 1);
    fake_store_close_gate(FAKE_STORE_READ);
    touch = fake_touch_start(1, 0);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1);
    rig_expect(rig, 1, 2, RWP_PAGE_FETCHING);
    other = fake_touch_start(2, 0);
    RIG_WAIT(fake_idle());
    fake_store_fail(FAKE_STORE_READ, 2, -EIO);
    fake_store_pass(FAKE_STORE_READ, 1);
    /* Page 1 alone, and page 2 for the other */
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 2);
    fake_store_open_gate(FAKE_STORE_READ);
    g_assert_cmphex(fake_touch_end(other), ==, rig_value(2));
    g_assert_cmphex(fake_touch_end(touch), ==, rig_value(1));
    rig_check(rig, 0, 10);
    rig_free(rig);
}

/*
 * A page cannot be read when QEMU ends: the vCPU that wants it waits, and
 * counts as stopped
 */
static void quit_vcpu(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    FakeTouch *touch;
    CPUState *cpu;

    fake_store_fail(FAKE_STORE_READ, FAKE_ALWAYS, -EIO);
    touch = fake_touch_start(5, 0);
    cpu = fake_add_vcpu(fake_touch_thread(touch));
    RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
    g_assert(!fake_touch_done(touch));
    g_assert(!rwp_faults_stuck(rig->s->faults));

    fake_system_shutdown();
    g_assert(cpu->stopped);
    g_assert(rwp_faults_stuck(rig->s->faults));
    rig_expect(rig, 5, 1, RWP_PAGE_FETCHING);
    /* Pages that can be read are right all the same */
    fake_store_fail(FAKE_STORE_READ, 0, 0);
    g_assert_cmphex(fake_read(6), ==, rig_value(6));

    /* As long as it waits, there is no way to give it zeros */
    rwp_faults_quit(rig->s->faults, RWP_QUIT_CLOSED);
    rwp_state_free(rig->s);
    g_assert(!fake_touch_done(touch));
    rig_expect(rig, 5, 1, RWP_PAGE_FETCHING);
    /* What ends the vCPU is the end of the process */
    _exit(EXIT_SUCCESS);
}

static void test_quit_vcpu(const RigKind *kind)
{
    if (g_test_subprocess()) {
        quit_vcpu(kind);
    }
    g_test_trap_subprocess(NULL, FAKE_TIMEOUT_MS * 1000LL, 0);
    g_test_trap_assert_passed();
}

/* A vCPU that runs is told to stop, and waited for */
static void *stop_vcpu(void *opaque)
{
    CPUState *cpu = opaque;

    while (!qatomic_read(&cpu->stop)) {
        g_usleep(1000);
    }
    g_usleep(20000);
    qatomic_set(&cpu->stopped, true);
    return NULL;
}

static void test_quit_running(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    CPUState *cpu = fake_add_vcpu(0);
    QemuThread thread;

    qemu_thread_create(&thread, "vcpu", stop_vcpu, cpu, QEMU_THREAD_JOINABLE);
    fake_system_shutdown();
    g_assert(cpu->stopped);
    g_assert_cmpuint(fake_system.kicks, >, 0);
    qemu_thread_join(&thread);
    fake_remove_vcpu(cpu);
    rig_check(rig, 0, 10);
    rig_free(rig);
}

/* When there is no disk any more to write to, others get zeros */
static void test_quit_closed(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    FakeTouch *touch;

    fake_store_fail(FAKE_STORE_READ, FAKE_ALWAYS, -EIO);
    touch = fake_touch_start(5, 0);
    RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
    g_assert(!fake_touch_done(touch));
    rwp_faults_quit(rig->s->faults, RWP_QUIT_CLOSED);
    g_assert_cmphex(fake_touch_end(touch), ==, 0);
    g_assert_cmphex(fake_read(6), ==, 0);
    fake_store_fail(FAKE_STORE_READ, 0, 0);
    g_assert_cmphex(fake_read(7), ==, rig_value(7));
    rig_free(rig);
}

/* Before, they get nothing wrong: QEMU ends, be it told or just asked to */
static void quit_other(const RigKind *kind, bool heard)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);

    fake_store_fail(FAKE_STORE_READ, FAKE_ALWAYS, -EIO);
    fake_touch_start(5, 0);
    RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
    if (heard) {
        fake_system_shutdown();
    } else {
        qatomic_set(&fake_system.shutdown, SHUTDOWN_CAUSE_HOST_SIGNAL);
    }
    RIG_WAIT(false);
}

static void expect_end(void)
{
    g_test_trap_subprocess(NULL, FAKE_TIMEOUT_MS * 1000LL, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*a thread waits for memory that the store "
                              "does not return*");
}

static void test_quit_other(const RigKind *kind)
{
    if (g_test_subprocess()) {
        quit_other(kind, true);
    }
    expect_end();
}

static void test_quit_unheard(const RigKind *kind)
{
    if (g_test_subprocess()) {
        quit_other(kind, false);
    }
    expect_end();
}

/* The store does not answer, and it was not the touch that asked it */
static void quit_silent_job(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);

    fake_store_close_gate(FAKE_STORE_READ);
    rig_add_range(rig, 0, 10);
    rig_fetch(rig);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1);
    fake_touch_start(5, 0);
    RIG_WAIT(fake_idle());
    qatomic_set(&fake_system.shutdown, SHUTDOWN_CAUSE_HOST_SIGNAL);
    RIG_WAIT(false);
}

static void test_quit_silent_job(const RigKind *kind)
{
    if (g_test_subprocess()) {
        quit_silent_job(kind);
    }
    expect_end();
}

static void *peek_thread(void *opaque)
{
    uint8_t *data = NULL;

    rwp_peek(opaque, 5 * FAKE_PAGE_SIZE, FAKE_PAGE_SIZE, &data);
    return NULL;
}

/* The same for who reads all memory without touching it */
static void quit_silent_peek(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    QemuThread thread;

    fake_store_close_gate(FAKE_STORE_READ);
    qemu_thread_create(&thread, "peek", peek_thread, rig->s,
                       QEMU_THREAD_DETACHED);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1);
    qatomic_set(&fake_system.shutdown, SHUTDOWN_CAUSE_HOST_SIGNAL);
    RIG_WAIT(false);
}

static void test_quit_silent_peek(const RigKind *kind)
{
    if (g_test_subprocess()) {
        quit_silent_peek(kind);
    }
    expect_end();
}

/* Another page is touched while the main loop waits for the first */
static void *touch_while_drained(void *opaque)
{
    Rig *rig = opaque;
    FakeTouch *touch;

    while (!qatomic_read(&rig->bs->quiesce_counter)) {
        g_usleep(100);
    }
    touch = fake_touch_start(6, 0);
    g_usleep(10000);
    fake_store_open_gate(FAKE_STORE_READ);
    return touch;
}

/* However many pages are touched, there is a moment without reads */
static void test_drain_ends(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 20, 0);
    uint64_t reads = fake_store_requests(FAKE_STORE_READ);
    FakeTouch *first, *second;
    QemuThread thread;
    int64_t begun_ns;

    fake_store_close_gate(FAKE_STORE_READ);
    first = fake_touch_start(5, 0);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1);
    qemu_thread_create(&thread, "toucher", touch_while_drained, rig,
                       QEMU_THREAD_JOINABLE);
    begun_ns = get_clock();
    bdrv_drain_all_begin();
    /* The second waits, but not for longer than it should */
    g_assert(fake_store_requests(FAKE_STORE_READ) == reads + 1 ||
             get_clock() - begun_ns > 50 * SCALE_MS);
    bdrv_drain_all_end();
    second = qemu_thread_join(&thread);
    g_assert_cmphex(fake_touch_end(first), ==, rig_value(5));
    g_assert_cmphex(fake_touch_end(second), ==, rig_value(6));
    rig_check(rig, 0, 20);
    rig_free(rig);
}

#define STORM_THREADS 2
#define STORM_PAGES 40          /* of each thread */

typedef struct Storm {
    unsigned touched;           /* atomic */
    unsigned threads;           /* that began; atomic */
    bool calm;                  /* atomic */
} Storm;

static void *storm_thread(void *opaque)
{
    Storm *storm = opaque;
    uint64_t first = qatomic_fetch_inc(&storm->threads) * STORM_PAGES;

    for (uint64_t page = first; page < first + STORM_PAGES; page++) {
        g_assert_cmphex(fake_touch_end(fake_touch_start(page, 0)), ==,
                        rig_value(page));
        qatomic_inc(&storm->touched);
    }
    return NULL;
}

/* Each read takes 100 ms, and of two one is always under way */
static void *slow_store_thread(void *opaque)
{
    Storm *storm = opaque;

    while (!qatomic_read(&storm->calm)) {
        g_usleep(50000);
        fake_store_pass(FAKE_STORE_READ, 1);
    }
    fake_store_open_gate(FAKE_STORE_READ);
    return NULL;
}

/* The same if reads take longer than drained sections usually last */
static void test_drain_slow(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, STORM_THREADS * STORM_PAGES, 0);
    QemuThread threads[STORM_THREADS], store;
    Storm storm = { 0 };

    fake_store_close_gate(FAKE_STORE_READ);
    for (int i = 0; i < STORM_THREADS; i++) {
        qemu_thread_create(&threads[i], "storm", storm_thread, &storm,
                           QEMU_THREAD_JOINABLE);
    }
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == STORM_THREADS);
    qemu_thread_create(&store, "store", slow_store_thread, &storm,
                       QEMU_THREAD_JOINABLE);
    bdrv_drain_all_begin();
    /* Not only when nothing is left to be touched */
    g_assert_cmpuint(qatomic_read(&storm.touched), <,
                     STORM_THREADS * STORM_PAGES / 2);
    bdrv_drain_all_end();
    qatomic_set(&storm.calm, true);
    qemu_thread_join(&store);
    for (int i = 0; i < STORM_THREADS; i++) {
        qemu_thread_join(&threads[i]);
    }
    rig_free(rig);
}

/* Nothing that takes for granted that nobody reads */
static void test_op_blockers(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 1, 0);
    Error *err = NULL;

    g_assert(bdrv_op_is_blocked(rig->bs, BLOCK_OP_TYPE_MIRROR_SOURCE, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "memory-backend-rwp"));
    error_free(err);
    rig_check(rig, 0, 1);
    rig_free(rig);
}

/* Whoever drains may be waiting for the thread that waits for the page */
static void test_drained(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 20, 0);
    uint64_t writes = fake_store_requests(FAKE_STORE_WRITE);
    Job *job;

    bdrv_drain_all_begin();
    rig_check(rig, 0, 10);

    /* Jobs wait for the end */
    rig_add_range(rig, 0, 10);
    job = rig_evict(rig);
    g_usleep(20000);
    rig_check(rig, 0, 5);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_LIVE), ==, FAKE_NB_PAGES - 10);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_WRITE), ==, writes);
    bdrv_drain_all_end();
    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 20);

    bdrv_drain_all_begin();
    rig_add_range(rig, 0, 20);
    job = rig_fetch(rig);
    g_usleep(20000);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 20);
    rig_check(rig, 5, 2);
    bdrv_drain_all_end();
    g_assert_cmpint(rig_wait(job), ==, 0);
    rig_expect(rig, 0, 20, RWP_PAGE_LIVE);
    rig_check(rig, 0, 20);
    rig_free(rig);
}

/* Messages that nobody waits for any more, in every state */
static void test_spurious(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    static const uint64_t flags[] = {
        0, UFFD_PAGEFAULT_FLAG_MINOR, UFFD_PAGEFAULT_FLAG_WRITE,
    };
    Job *job;

    fake_write(0, rig_value(0));
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        fake_post(0, flags[i]);         /* LIVE */
        fake_post(100 + i, flags[i]);   /* LIVE, never used */
        fake_post(5 + i, flags[i]);     /* EVICTED */
        fake_post(5 + i, flags[i]);     /* FETCHING */
    }
    fake_post(FAKE_NB_PAGES, 0);
    rig_quiet(rig);
    rig_check(rig, 0, 10);
    g_assert_cmphex(fake_read(101), ==, 0);

    job = rig_evict_begin(rig, 10);
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        fake_post(i, flags[i]);         /* STAGED */
    }
    rig_quiet(rig);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);
    rig_check(rig, 0, 10);

    /* A failing read of messages is tried again */
    rig_evict_now(rig, 0, 10);
    fake_fail(FAKE_READ_FAULTS, FAKE_ANY, 1, -EIO);
    rig_check(rig, 0, 10);
    rig_free(rig);
}

static void test_fetch_job(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 0);

    rig_fill(0, 2 * BATCH);
    fake_write(3, 0);
    rig_evict_now(rig, 0, 2 * BATCH);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_ZERO), ==, 1);
    rig_fetch_now(rig, 0, BATCH);
    rig_expect(rig, 0, BATCH, RWP_PAGE_LIVE);
    rig_expect(rig, BATCH, BATCH, RWP_PAGE_EVICTED);
    g_assert(fake_present(0) && !fake_present(3));
    g_assert_cmpuint(stat64_get(&rig->s->stats.fetched_requested), ==,
                     BATCH - 1);
    rig_fetch_now(rig, 0, FAKE_NB_PAGES);
    g_assert_cmpuint(rwp_pages_away(rig->s->pages), ==, 0);
    g_assert_cmpint(fake_system.blockers, ==, 0);
    /* With nothing away this is nothing to do */
    rig_fetch_now(rig, 0, FAKE_NB_PAGES);
    g_assert_cmphex(fake_read(3), ==, 0);
    rig_check(rig, 0, 3);
    rig_check(rig, 4, 2 * BATCH - 4);
    rig_free(rig);
}

/* Both want the page: who comes first reads it, and once */
static void test_fetch_race(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    FakeTouch *first, *second;
    Job *job;

    fake_store_close_gate(FAKE_STORE_READ);
    first = fake_touch_start(5, 0);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1);
    rig_add_range(rig, 0, 10);
    job = rig_fetch(rig);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 3);
    second = fake_touch_start(6, NEW_VALUE);
    RIG_WAIT(fake_idle());
    fake_store_open_gate(FAKE_STORE_READ);
    g_assert_cmphex(fake_touch_end(second), ==, NEW_VALUE);
    g_assert_cmphex(fake_touch_end(first), ==, rig_value(5));
    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, 3);
    g_assert_cmphex(fake_read(6), ==, NEW_VALUE);
    rig_check(rig, 0, 6);
    rig_check(rig, 7, 3);
    rig_free(rig);
}

static void test_fetch_error(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    FakeTouch *touch;
    Job *job;

    fake_store_close_gate(FAKE_STORE_READ);
    fake_store_fail(FAKE_STORE_READ, 1, -EIO);
    rig_add_range(rig, 0, 10);
    job = rig_fetch(rig);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1);
    touch = fake_touch_start(5, 0);
    RIG_WAIT(fake_idle());
    rig_discard(rig, 6, 1);
    fake_store_open_gate(FAKE_STORE_READ);
    /* The job fails, the thread is served all the same */
    g_assert_cmpint(rig_wait(job), ==, -EIO);
    g_assert_cmphex(fake_touch_end(touch), ==, rig_value(5));
    rig_quiet(rig);
    rig_expect(rig, 0, 5, RWP_PAGE_EVICTED);
    rig_expect(rig, 6, 1, RWP_PAGE_LIVE);
    g_assert_cmphex(fake_read(6), ==, 0);
    rig_check(rig, 0, 6);
    rig_check(rig, 7, 3);
    rig_free(rig);
}

static void test_fetch_cancel(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 3 * BATCH, 0);
    Job *job;

    rig_set_speed(BATCH * FAKE_PAGE_SIZE / 4);
    rig_add_range(rig, 0, 3 * BATCH);
    job = rig_fetch(rig);
    RIG_WAIT(rig_count(rig, RWP_PAGE_EVICTED) < 3 * BATCH);
    rig_cancel(job);
    g_assert_cmpint(rig_wait(job), ==, -ECANCELED);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), >=, BATCH);
    rig_check(rig, 0, 3 * BATCH);
    rig_free(rig);
}

/* No memory on the host for a page: the content must stay where it is */
static void test_no_memory_fault(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 20, 8);

    fake_fail(FAKE_COPY, 5, 2, -ENOMEM);
    rig_check(rig, 5, 1);
    /* As a neighbour */
    fake_fail(FAKE_COPY, 12, 4, -ENOMEM);
    rig_check(rig, 10, 10);
    rig_free(rig);
}

static void test_no_memory_job(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 20, 8);

    fake_fail(FAKE_COPY, 12, FAKE_ALWAYS, -ENOMEM);
    rig_add_range(rig, 0, 20);
    g_assert_cmpint(rig_wait(rig_fetch(rig)), ==, -ENOMEM);
    rig_expect(rig, 12, 1, RWP_PAGE_EVICTED);
    fake_fail(FAKE_COPY, 12, 0, 0);
    rig_check(rig, 0, 20);
    rig_free(rig);
}

static void test_no_memory_give_back(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 0);
    Job *job;

    rig_fill(0, 10);
    fake_fail(FAKE_GIVE_BACK, 5, 2, -ENOMEM);
    job = rig_evict_begin(rig, 10);
    rig_check(rig, 5, 1);
    fake_fail(FAKE_GIVE_BACK, 7, 2, -ENOMEM);
    fake_store_fail(FAKE_STORE_WRITE, 1, -EIO);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, -EIO);
    rig_check(rig, 0, 10);
    rig_free(rig);
}

static void add_tests(void)
{
    rig_add("fault/basic", test_basic);
    rig_add("fault/many", test_many);
    rig_add("fault/same-page", test_same_page);
    rig_add("fault/readahead", test_readahead);
    rig_add("fault/readahead-more", test_readahead_more);
    rig_add("fault/readahead-fails", test_readahead_fails);
    rig_add("fault/readahead-arms", test_readahead_arms);
    rig_add("fault/retry", test_retry);
    rig_add("fault/retry-neighbours", test_retry_neighbours);
    rig_add("quit/vcpu", test_quit_vcpu);
    rig_add("quit/running", test_quit_running);
    rig_add("quit/closed", test_quit_closed);
    rig_add("quit/other", test_quit_other);
    rig_add("quit/unheard", test_quit_unheard);
    /* These take ten seconds each, and what they do is not the kind's */
    rig_add_stays("quit/silent-job", test_quit_silent_job);
    rig_add_stays("quit/silent-peek", test_quit_silent_peek);
    rig_add("fault/drained", test_drained);
    rig_add("fault/drain-ends", test_drain_ends);
    rig_add("fault/drain-slow", test_drain_slow);
    rig_add("fault/op-blockers", test_op_blockers);
    rig_add("fault/spurious", test_spurious);
    rig_add("fetch/basic", test_fetch_job);
    rig_add("fetch/race", test_fetch_race);
    rig_add("fetch/error", test_fetch_error);
    rig_add("fetch/cancel", test_fetch_cancel);
    rig_add("no-memory/fault", test_no_memory_fault);
    rig_add("no-memory/job", test_no_memory_job);
    rig_add("no-memory/give-back", test_no_memory_give_back);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
