/*
 * Eviction of guest memory against everybody else: unit tests with fakes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Discards, cancellation, what keeps others out, and guest threads that
 * write and check memory while jobs come and go.  RWP_TEST_SEED=n repeats
 * the choices of the latter, though not the order of the threads.
 *
 * A test that cannot fail is worth nothing: the steps that keep evictions
 * from losing writes are left out one by one (inject.h), and each time a
 * write has to be lost.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "block/block.h"
#include "system/rwp/fault.h"
#include "system/rwp/scan.h"
#include "system/rwp/guard.h"
#include "system/rwp/store.h"
#include "rwp-rig.h"

#define BATCH (RWP_BATCH_BYTES / FAKE_PAGE_SIZE)
#define NEW_VALUE 0xbeef

/* Page 5 was given back: nothing is left of it, the rest is intact */
static void expect_discarded(Rig *rig)
{
    rig_quiet(rig);
    rig_expect(rig, 5, 1, RWP_PAGE_LIVE);
    fake_write(5, NEW_VALUE);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    /* And it can go again */
    rig_evict_now(rig, 0, 10);
    rig_expect(rig, 0, 10, RWP_PAGE_EVICTED);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_free(rig);
}

static void test_discard_away(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    fake_write(4, 0);
    rig_evict_now(rig, 0, 10);
    rig_discard(rig, 4, 2);
    g_assert_cmpuint(stat64_get(&rig->s->stats.dropped), ==, 1);
    rig_expect(rig, 4, 2, RWP_PAGE_LIVE);
    g_assert_cmphex(fake_read(5), ==, 0);
    g_assert_cmphex(fake_read(4), ==, 0);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, 0);
    fake_write(4, rig_value(4));
    expect_discarded(rig);
}

static void test_discard_staged(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    Job *job;

    rig_fill(0, 10);
    job = rig_evict_begin(rig, 10);
    rig_discard(rig, 5, 1);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 9);
    expect_discarded(rig);
}

static void discard_5(void *opaque, uint64_t first, uint64_t count)
{
    Rig *rig = opaque;

    if (first <= 5) {
        rig_expect(rig, 5, 1, RWP_PAGE_LEAVING);
        rig_discard(rig, 5, 1);
    }
}

static void test_discard_leaving(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    fake_before(rig_stays(rig) ? FAKE_REMOVE : FAKE_TAKE, discard_5, rig);
    rig_evict_now(rig, 0, 10);
    fake_reset();
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 9);
    expect_discarded(rig);
}

static void test_discard_fetching(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    FakeTouch *touch;

    rig_fill(0, 10);
    rig_evict_now(rig, 0, 10);
    fake_store_close_gate(FAKE_STORE_READ);
    touch = fake_touch_start(5, 0);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1);
    rig_discard(rig, 5, 1);
    rig_expect(rig, 5, 1, RWP_PAGE_FETCHING);
    fake_store_open_gate(FAKE_STORE_READ);
    fake_touch_end(touch);
    expect_discarded(rig);
}

/* The store cannot be read, but nobody wants it any more */
static void test_discard_failing(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    FakeTouch *touch;

    rig_fill(0, 10);
    rig_evict_now(rig, 0, 10);
    fake_store_fail(FAKE_STORE_READ, FAKE_ALWAYS, -EIO);
    touch = fake_touch_start(5, 0);
    RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
    rig_discard(rig, 5, 1);
    rwp_faults_retry(rig->s->faults);
    g_assert_cmphex(fake_touch_end(touch), ==, 0);
    fake_store_fail(FAKE_STORE_READ, 0, 0);
    expect_discarded(rig);
}

static void test_cancel(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    Job *job;

    rig_fill(0, 3 * FAKE_CHUNK_PAGES);
    rig_set_speed(BATCH * FAKE_PAGE_SIZE / 4);
    rig_add_range(rig, 0, 3 * FAKE_CHUNK_PAGES);
    job = rig_evict(rig);
    RIG_WAIT(rig_count(rig, RWP_PAGE_EVICTED) >= BATCH);
    g_assert(rwp_state_busy(rig->s));
    rig_cancel(job);
    g_assert_cmpint(rig_wait(job), ==, -ECANCELED);
    g_assert(!rwp_state_busy(rig->s));
    /* With the speed it would have taken half a minute */
    g_assert_cmpuint(rwp_pages_away(rig->s->pages), <, FAKE_CHUNK_PAGES);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==,
                     rwp_pages_away(rig->s->pages));
    rig_check(rig, 0, 3 * FAKE_CHUNK_PAGES);
    rig_free(rig);
}

static void test_pause(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    uint64_t begun;
    Job *job;

    rig_fill(0, 3 * FAKE_CHUNK_PAGES);
    fake_store_close_gate(FAKE_STORE_WRITE);
    rig_add_range(rig, 0, BATCH);
    rig_add_range(rig, 0, 3 * FAKE_CHUNK_PAGES);
    job = rig_evict(rig);
    /* The second range waits for the first batch, which is the same pages */
    RIG_WAIT(fake_store_waiting(FAKE_STORE_WRITE) == 1);
    rig_pause(job);
    fake_store_open_gate(FAKE_STORE_WRITE);
    RIG_WAIT(qatomic_read(&job->paused));
    begun = fake_store_requests(FAKE_STORE_WRITE);
    g_assert_cmpuint(begun, <, 6);
    /* Those that are away can be used meanwhile */
    rig_check(rig, 0, 5);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_WRITE), ==, begun);
    rig_resume(job);
    g_assert_cmpint(rig_wait(job), ==, 0);
    rig_check(rig, 0, 3 * FAKE_CHUNK_PAGES);
    rig_free(rig);
}

/*
 * The same pages twice: the second batch must not take the place of the
 * first while that one is being written.
 */
static void test_overlap(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    Job *job;

    rig_fill(0, 10);
    fake_store_close_gate(FAKE_STORE_WRITE);
    rig_add_range(rig, 0, 10);
    rig_add_range(rig, 4, 4);
    rig_add_range(rig, 0, 10);
    job = rig_evict(rig);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_WRITE) == 1);
    fake_write(5, NEW_VALUE);
    rig_quiet(rig);
    g_usleep(20000);
    fake_store_pass(FAKE_STORE_WRITE, 1);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_WRITE) == 1);
    g_usleep(20000);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    rig_free(rig);
}

/* Who does not fit evicted pages is kept out as long as there are some */
static void test_guard(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    RwpRange range = { .offset = 0, .length = FAKE_PAGE_SIZE };
    RwpRangeList ranges = { .value = &range };
    RwpEvictOptions options = { .job_id = "job0", .ranges = &ranges };
    Error *err = NULL;

    rig_fill(0, 10);
    fake_system.blocker_error = -EBUSY;
    g_assert(!rwp_evict_start(rig->s, NULL, &options, &err));
    error_free(g_steal_pointer(&err));
    fake_system.blocker_error = 0;
    fake_system.discard_error = -EBUSY;
    g_assert(!rwp_evict_start(rig->s, NULL, &options, &err));
    error_free(g_steal_pointer(&err));
    fake_system.discard_error = 0;
    g_assert_cmpint(fake_system.blockers, ==, 0);
    g_assert(!rwp_state_busy(rig->s) && !rig->s->active);

    rig_evict_now(rig, 0, 10);
    g_assert_cmpint(fake_system.blockers, ==, 1);
    g_assert_cmpint(fake_system.discards_required, ==, 1);
    rig_check(rig, 0, 9);
    g_assert_cmpint(fake_system.blockers, ==, 1);
    rig_check(rig, 9, 1);
    RIG_WAIT(fake_system.blockers == 0);
    RIG_WAIT(!rig->s->active);
    g_assert_cmpint(fake_system.discards_required, ==, 0);

    /* The last page can go by a discard too */
    rig_evict_now(rig, 0, 1);
    g_assert_cmpint(fake_system.blockers, ==, 1);
    rig_discard(rig, 0, 1);
    RIG_WAIT(fake_system.blockers == 0);
    rig_free(rig);
}

/* Memory that is mapped for DMA stays, and so does the rest of its chunk */
static void test_pinned(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    const RAMBlockPager *pager = rig->rb.pager;
    void *opaque = rig->rb.pager_opaque;
    uint64_t offset = (FAKE_CHUNK_PAGES - 1) * FAKE_PAGE_SIZE;

    rig_fill(0, 3 * FAKE_CHUNK_PAGES);
    /* One mapping, that reaches into two chunks */
    pager->pin(opaque, offset, 2 * FAKE_PAGE_SIZE);
    pager->pin(opaque, offset, FAKE_PAGE_SIZE);
    rig_evict_now(rig, 0, 3 * FAKE_CHUNK_PAGES);
    rig_expect(rig, 0, 2 * FAKE_CHUNK_PAGES, RWP_PAGE_LIVE);
    rig_expect(rig, 2 * FAKE_CHUNK_PAGES, FAKE_CHUNK_PAGES, RWP_PAGE_EVICTED);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evict_busy), ==,
                     2 * FAKE_CHUNK_PAGES);

    pager->unpin(opaque, offset, 2 * FAKE_PAGE_SIZE);
    rig_evict_now(rig, 0, 2 * FAKE_CHUNK_PAGES);
    rig_expect(rig, 0, FAKE_CHUNK_PAGES, RWP_PAGE_LIVE);
    rig_expect(rig, FAKE_CHUNK_PAGES, FAKE_CHUNK_PAGES, RWP_PAGE_EVICTED);
    pager->unpin(opaque, offset, FAKE_PAGE_SIZE);
    rig_evict_now(rig, 0, FAKE_CHUNK_PAGES);
    rig_expect(rig, 0, 3 * FAKE_CHUNK_PAGES, RWP_PAGE_EVICTED);
    rig_check(rig, 0, 3 * FAKE_CHUNK_PAGES);
    rig_free(rig);
}

/* Who unmaps memory need not say how much */
static void test_unpinned(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    const RAMBlockPager *pager = rig->rb.pager;
    void *opaque = rig->rb.pager_opaque;
    uint64_t other = FAKE_CHUNK_PAGES * FAKE_PAGE_SIZE;
    uint64_t last = (FAKE_NB_PAGES - 1) * FAKE_PAGE_SIZE;

    rig_fill(0, FAKE_NB_PAGES);
    pager->pin(opaque, other, FAKE_PAGE_SIZE);
    pager->pin(opaque, 0, FAKE_PAGE_SIZE);
    pager->unpin(opaque, 0, 2 * other);
    pager->pin(opaque, last, FAKE_PAGE_SIZE);
    pager->unpin(opaque, last, UINT64_MAX / 2);
    /* Never mapped */
    pager->unpin(opaque, other + FAKE_PAGE_SIZE, FAKE_PAGE_SIZE);
    pager->unpin(opaque, UINT64_MAX - 10, UINT64_MAX);

    rig_evict_now(rig, 0, FAKE_NB_PAGES);
    rig_expect(rig, 0, FAKE_CHUNK_PAGES, RWP_PAGE_EVICTED);
    rig_expect(rig, FAKE_CHUNK_PAGES, FAKE_CHUNK_PAGES, RWP_PAGE_LIVE);
    rig_expect(rig, 2 * FAKE_CHUNK_PAGES, FAKE_NB_PAGES - 2 * FAKE_CHUNK_PAGES,
               RWP_PAGE_EVICTED);
    pager->unpin(opaque, other, 0);
    rig_evict_now(rig, FAKE_CHUNK_PAGES, FAKE_CHUNK_PAGES);
    rig_expect(rig, 0, FAKE_NB_PAGES, RWP_PAGE_EVICTED);
    rig_check(rig, 0, FAKE_NB_PAGES);
    rig_free(rig);
}

static void pin_page(void *opaque, uint64_t first, uint64_t count)
{
    Rig *rig = opaque;

    rig->rb.pager->pin(rig->rb.pager_opaque, 5 * FAKE_PAGE_SIZE,
                       FAKE_PAGE_SIZE);
}

/* The device writes to the page, which does not trap, and is done */
static void write_and_unpin(void *opaque, uint64_t first, uint64_t count)
{
    Rig *rig = opaque;

    fake_write_by_dma(5, NEW_VALUE);
    rig->rb.pager->unpin(rig->rb.pager_opaque, 5 * FAKE_PAGE_SIZE,
                         FAKE_PAGE_SIZE);
}

/*
 * DMA that begins before the page is moved aside, to memory that was looked up
 * before, and ends after that.
 */
static void test_dma_moved(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    fake_before(FAKE_TAKE, pin_page, rig);
    rig_evict_now(rig, 0, 10);
    fake_before(FAKE_TAKE, NULL, NULL);
    /* Otherwise it is nobody's memory any more */
    if (fake_present(5)) {
        fake_write_by_dma(5, NEW_VALUE);
    }
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig->rb.pager->unpin(rig->rb.pager_opaque, 5 * FAKE_PAGE_SIZE,
                         FAKE_PAGE_SIZE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);

    /* What cannot be moved back is evicted */
    fake_before(FAKE_TAKE, pin_page, rig);
    fake_fail(FAKE_PUT_BACK, 5, 1, -ENOMEM);
    rig_evict_now(rig, 0, 10);
    fake_before(FAKE_TAKE, NULL, NULL);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 5);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig->rb.pager->unpin(rig->rb.pager_opaque, 5 * FAKE_PAGE_SIZE,
                         FAKE_PAGE_SIZE);
    rig_free(rig);
}

/* DMA that begins before the page loses its entry, and ends before the commit */
static void test_dma(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    fake_before(FAKE_UNMAP, pin_page, rig);
    fake_after(FAKE_TAKE, write_and_unpin, rig);
    rig_evict_now(rig, 0, 10);
    fake_before(FAKE_UNMAP, NULL, NULL);
    fake_after(FAKE_TAKE, NULL, NULL);
    if (!fake_calls(FAKE_TAKE)) {
        /* It was left alone */
        write_and_unpin(rig, 5, 1);
    }
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    rig_free(rig);
}

/* Guest threads for the rest of the tests; each has every NTH page */
#define GUEST_THREADS 3

typedef struct Guest {
    QemuThread thread;
    Rig *rig;
    unsigned nr;
    GRand *rand;
    uint64_t *values;           /* of all pages */
    unsigned long accesses;     /* atomic */
    bool stop;                  /* atomic */
} Guest;

static void guest_step(Guest *guest, uint64_t *version)
{
    uint64_t nb = FAKE_NB_PAGES / GUEST_THREADS;
    uint64_t page = g_rand_int_range(guest->rand, 0, nb) * GUEST_THREADS +
                    guest->nr;
    int choice = g_rand_int_range(guest->rand, 0, 100);

    if (choice < 50) {
        g_assert_cmphex(fake_read(page), ==, guest->values[page]);
        return;
    }
    if (choice >= 97) {
        /* What the page has now is undefined until it is written */
        rig_discard(guest->rig, page, 1);
    }
    guest->values[page] = choice < 55 ? 0 : page << 32 | ++*version;
    fake_write(page, guest->values[page]);
}

static void *guest_thread(void *opaque)
{
    Guest *guest = opaque;
    uint64_t version = 0;

    while (!qatomic_read(&guest->stop)) {
        guest_step(guest, &version);
        qatomic_inc(&guest->accesses);
    }
    return NULL;
}

static void start_guests(Rig *rig, Guest *guests)
{
    for (unsigned i = 0; i < GUEST_THREADS; i++) {
        guests[i] = (Guest) {
            .rig = rig,
            .nr = i,
            .rand = g_rand_new_with_seed(g_rand_int(rig->rand)),
            .values = g_new0(uint64_t, FAKE_NB_PAGES),
        };
        qemu_thread_create(&guests[i].thread, "guest", guest_thread,
                           &guests[i], QEMU_THREAD_JOINABLE);
    }
}

static void stop_guests(Rig *rig, Guest *guests)
{
    for (unsigned i = 0; i < GUEST_THREADS; i++) {
        qatomic_set(&guests[i].stop, true);
        qemu_thread_join(&guests[i].thread);
        g_test_message("thread %u: %lu accesses", i,
                       guests[i].accesses);
        for (uint64_t page = i; page < FAKE_NB_PAGES; page += GUEST_THREADS) {
            g_assert_cmphex(fake_read(page), ==, guests[i].values[page]);
        }
        g_free(guests[i].values);
        g_rand_free(guests[i].rand);
    }
    rig_quiet(rig);
}

static Job *random_job(Rig *rig)
{
    int choice = g_rand_int_range(rig->rand, 0, 10);
    uint64_t first = g_rand_int_range(rig->rand, 0, FAKE_NB_PAGES);
    uint64_t count = g_rand_int_range(rig->rand, 1, FAKE_NB_PAGES - first + 1);

    if (choice < 2) {
        rig_add_range(rig, first, count);
        return rig_fetch(rig);
    } else if (choice < 6) {
        return rig_evict_by_age(rig, 1, count);
    }
    rig_add_range(rig, first, count);
    if (choice == 6) {
        rig_add_range(rig, 0, FAKE_NB_PAGES);
    }
    return rig_evict(rig);
}

static void test_storm(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 8);
    int jobs = g_test_quick() ? 60 : 2000;
    Guest guests[GUEST_THREADS];
    RwpStats *stats = &rig->s->stats;

    start_guests(rig, guests);
    /* With nothing to evict, all jobs may be over before a thread runs */
    for (int i = 0; i < GUEST_THREADS; i++) {
        RIG_WAIT(qatomic_read(&guests[i].accesses) > 100);
    }
    g_assert(rwp_state_start(rig->s, &error_abort));
    rwp_scanner_start(rig->s->scanner, RWP_INTERVAL_MIN);
    for (int i = 0; i < jobs; i++) {
        Job *job = random_job(rig);

        if (g_rand_int_range(rig->rand, 0, 10) == 0) {
            g_usleep(g_rand_int_range(rig->rand, 0, 2000));
            if (rig->s->job) {
                rig_cancel(job);
            }
        }
        rig_wait(job);
    }
    rwp_scanner_stop(rig->s->scanner);
    stop_guests(rig, guests);
    g_test_message("evicted %" PRIu64 " cancelled %" PRIu64 " fetched %"
                   PRIu64, stat64_get(&stats->evicted),
                   stat64_get(&stats->evict_cancelled),
                   stat64_get(&stats->fetched_fault));
    g_assert_cmpuint(stat64_get(&stats->evicted), >, FAKE_NB_PAGES);
    g_assert_cmpuint(stat64_get(&stats->evict_cancelled), >, 0);
    g_assert_cmpuint(stat64_get(&stats->fetched_fault), >, 0);
    rig_free(rig);
}

/*
 * Evict with one step left out, and write to page 5 where the step matters.
 * Returns what is there afterwards.
 */
static uint64_t value_without(const RigKind *kind, const char *step,
                              FakeCall call, bool before)
{
    Rig *rig = rig_new(kind, 1);
    RigTouch touch = { .page = 5, .value = NEW_VALUE };
    uint64_t value;

    g_setenv("RWP_INJECT", step, true);
    fake_system.qtest = true;
    rig_fill(0, 10);
    if (before) {
        fake_before(call, rig_touch, &touch);
    } else {
        fake_after(call, rig_touch, &touch);
    }
    rig_evict_now(rig, 0, 10);
    g_assert_cmphex(fake_touch_end(touch.touch), ==, NEW_VALUE);
    rig_quiet(rig);
    value = fake_read(5);
    g_unsetenv("RWP_INJECT");
    rig_free(rig);
    return value;
}

static void test_control(const RigKind *kind)
{
    static const struct {
        const char *step;
        FakeCall call;
        bool before;
    } cases[] = {
        { "skip-trap", FAKE_REMOVE, true },
        { "skip-unmap", FAKE_TAKE, false },
        { "early-wake", FAKE_REMOVE, true },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        g_test_message("%s", cases[i].step);
        g_assert_cmphex(value_without(kind, "nothing", cases[i].call,
                                      cases[i].before), ==, NEW_VALUE);
        g_assert_cmphex(value_without(kind, cases[i].step, cases[i].call,
                                      cases[i].before), !=, NEW_VALUE);
    }
}

/* Have whoever takes content wait until @opaque is set */
static void wait_for_flag(void *opaque, uint64_t first, uint64_t count)
{
    bool *flag = opaque;

    while (!qatomic_read(flag)) {
        g_usleep(100);
    }
}

static void *set_flag_soon(void *opaque)
{
    bool *flag = opaque;

    g_usleep(50000);
    qatomic_set(flag, true);
    return NULL;
}

/* A drained section waits for what has begun, and then nothing begins */
static void test_drained(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    uint64_t writes, evicted;
    QemuThread thread;
    bool flag = false;
    Job *job;

    rig_fill(0, FAKE_NB_PAGES);
    fake_before(FAKE_TAKE, wait_for_flag, &flag);
    rig_add_range(rig, 0, FAKE_NB_PAGES);
    job = rig_evict(rig);
    RIG_WAIT(fake_calls(FAKE_TAKE) > 0);

    qemu_thread_create(&thread, "flag", set_flag_soon, &flag,
                       QEMU_THREAD_JOINABLE);
    bdrv_drain_all_begin();
    g_assert(qatomic_read(&flag));
    qemu_thread_join(&thread);
    for (int i = 0; i < 2; i++) {
        writes = fake_store_requests(FAKE_STORE_WRITE);
        evicted = rig_count(rig, RWP_PAGE_EVICTED);
        g_assert_cmpuint(evicted, >, 0);
        g_assert_cmpuint(rig_count(rig, RWP_PAGE_LIVE), ==,
                         FAKE_NB_PAGES - evicted);
        g_usleep(20000);
        g_assert_cmpuint(fake_store_requests(FAKE_STORE_WRITE), ==, writes);
    }
    bdrv_drain_all_end();

    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, FAKE_NB_PAGES);
    rig_free(rig);
}

static void run_bottom_halves(void)
{
    while (aio_poll(qemu_get_aio_context(), false)) {
        continue;
    }
}

/* What is being set up is not taken down by a bottom half */
static void test_unsettled(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rwp_state_begin(rig->s);
    g_assert(rwp_state_start(rig->s, &error_abort));
    g_assert(rwp_guard_enter(rig->s, &error_abort));
    qemu_bh_schedule(rig->s->settle_bh);
    run_bottom_halves();
    g_assert(rig->s->active && rig->s->guarded);
    rwp_state_end(rig->s);
    rwp_state_settle(rig->s);
    g_assert(!rig->s->active && !rig->s->guarded);
    rig_free(rig);
}

/* The first store is named while the fault service maps a page */
static void test_first_store(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    RwpState *s = rig->s;
    RwpStore *store = g_steal_pointer(&s->own_store);

    g_free(g_steal_pointer(&s->own_node));
    s->store = NULL;
    rwp_store_close(store);
    g_assert(rwp_state_start(s, &error_abort));
    g_assert(rwp_pages_move(s->pages, 3, RWP_PAGE_LIVE, RWP_PAGE_FETCHING));
    g_assert(rwp_state_need_store(s, RIG_NODE, &error_abort));
    rwp_pages_finish(s->pages, 3, RWP_PAGE_LIVE);
    rwp_state_settle(s);
    g_assert_null(s->store);
    rig_free(rig);
}

/* Memory is unregistered step by step, and can be needed again meanwhile */
static void test_leaving(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    RwpState *s = rig->s;
    uint64_t registered;

    g_assert(rwp_state_start(s, &error_abort));
    registered = fake_calls(FAKE_REGISTER);
    fake_fail(FAKE_UNREGISTER, FAKE_ANY, 2, -EAGAIN);
    rwp_state_settle(s);
    g_assert(s->active);
    g_assert(rwp_state_start(s, &error_abort));
    g_assert_cmpuint(fake_calls(FAKE_REGISTER), ==, registered + 1);
    rwp_scanner_start(s->scanner, RWP_INTERVAL_MAX);
    run_bottom_halves();
    g_assert_cmpuint(fake_calls(FAKE_UNREGISTER), ==, 1);
    rwp_scanner_stop(s->scanner);
    rwp_state_settle(s);
    RIG_WAIT(!s->active);
    g_assert_cmpuint(fake_calls(FAKE_UNREGISTER), ==, 3);

    /* Who cannot do with a part of it does not wait for the steps */
    g_assert(rwp_state_start(s, &error_abort));
    g_assert(rwp_state_registered(s));
    fake_fail(FAKE_UNREGISTER, FAKE_ANY, FAKE_ALWAYS, -EAGAIN);
    rwp_state_settle(s);
    g_assert(s->active);
    g_assert(!rwp_state_registered(s));
    rig_free(rig);
}

static void add_tests(void)
{
    rig_add("job/drained", test_drained);
    rig_add("unsettled", test_unsettled);
    rig_add("leaving", test_leaving);
    rig_add("first-store", test_first_store);
    rig_add("discard/away", test_discard_away);
    rig_add("discard/staged", test_discard_staged);
    rig_add("discard/leaving", test_discard_leaving);
    rig_add("discard/fetching", test_discard_fetching);
    rig_add("discard/failing", test_discard_failing);
    rig_add("job/cancel", test_cancel);
    rig_add("job/pause", test_pause);
    rig_add("job/overlap", test_overlap);
    rig_add("guard", test_guard);
    rig_add("pinned", test_pinned);
    rig_add("unpinned", test_unpinned);
    rig_add_stays("dma", test_dma);
    rig_add_moves("dma", test_dma_moved);
    rig_add_stays("control", test_control);
    rig_add("storm", test_storm);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
