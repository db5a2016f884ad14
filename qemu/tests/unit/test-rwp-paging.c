/*
 * Eviction of guest memory: unit tests with fakes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Every test runs for both pagers: the one that leaves the original in
 * place while it is staged, and the one that moves it aside.  Whatever
 * happens, no write may be lost: every test ends by reading back what the
 * guest wrote last.
 *
 * The steps that keep evictions from losing writes are left out one by one
 * at the end (inject.h): each time a write has to be lost, otherwise the
 * tests could not notice.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "system/rwp/fault.h"
#include "system/rwp/scan.h"
#include "rwp-rig.h"

/* Pages of a batch */
#define BATCH (RWP_BATCH_BYTES / FAKE_PAGE_SIZE)

#define NEW_VALUE 0xbeef

static void test_ranges(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    uint64_t odd = 2 * FAKE_CHUNK_PAGES - 7;

    rig_fill(3, BATCH);
    rig_fill(odd, 20);
    rig_add_range(rig, 0, 2 * BATCH);
    rig_add_range(rig, odd, 10);
    g_assert_cmpint(rig_wait(rig_evict(rig)), ==, 0);

    rig_expect(rig, 0, 3, RWP_PAGE_LIVE);
    rig_expect(rig, 3, BATCH, RWP_PAGE_EVICTED);
    rig_expect(rig, 3 + BATCH, 10, RWP_PAGE_LIVE);
    rig_expect(rig, odd, 10, RWP_PAGE_EVICTED);
    rig_expect(rig, odd + 10, 10, RWP_PAGE_LIVE);
    g_assert_cmpuint(rwp_pages_away(rig->s->pages), ==, BATCH + 10);
    g_assert(!fake_present(3) && !fake_present(odd + 9));
    g_assert(fake_present(odd + 10));
    g_assert(fake_store_has(odd + 9, rig_value(odd + 9)));
    g_assert_cmpuint(stat64_get(&rig->s->stats.evicted), ==, BATCH + 10);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evict_bytes), ==,
                     (BATCH + 10) * FAKE_PAGE_SIZE);

    rig_check(rig, 3, BATCH);
    rig_check(rig, odd, 20);
    g_assert_cmpuint(rwp_pages_away(rig->s->pages), ==, 0);
    rig_free(rig);
}

static void test_zero_pages(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 8);
    for (uint64_t page = 2; page < 6; page++) {
        fake_write(page, 0);
    }
    rig_evict_now(rig, 0, 8);
    rig_expect(rig, 2, 4, RWP_PAGE_ZERO);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 4);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evicted_zero), ==, 4);
    /* Those before and those after, and nothing of those between */
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_WRITE), ==, 2);

    for (uint64_t page = 2; page < 6; page++) {
        g_assert_cmphex(fake_read(page), ==, 0);
    }
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, 0);
    rig_check(rig, 0, 2);
    rig_check(rig, 6, 2);
    rig_free(rig);
}

/* Pages [0, 100) have age 5, [100, 200) age 2, [200, 300) age 0 */
static Rig *new_with_ages(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 400);
    for (int age = 0; age <= 5; age++) {
        uint64_t touched = age == 0 ? 0 : age == 3 ? 100 : 200;

        rwp_ages_tick(rig->s->ages, 0, FAKE_NB_PAGES);
        if (age == 0 || age >= 3) {
            rwp_ages_touch(rig->s->ages, touched, 300 - touched);
        }
    }
    g_assert_cmpint(rwp_ages_get(rig->s->ages, 0), ==, 5);
    g_assert_cmpint(rwp_ages_get(rig->s->ages, 100), ==, 2);
    g_assert_cmpint(rwp_ages_get(rig->s->ages, 200), ==, 0);
    return rig;
}

static void test_by_age(const RigKind *kind)
{
    Rig *rig = new_with_ages(kind);

    g_assert_cmpint(rig_wait(rig_evict_by_age(rig, 6, UINT64_MAX)), ==, 0);
    g_assert_cmpuint(rwp_pages_away(rig->s->pages), ==, 0);
    g_assert_cmpint(rig_wait(rig_evict_by_age(rig, 2, UINT64_MAX)), ==, 0);
    rig_expect(rig, 0, 200, RWP_PAGE_EVICTED);
    rig_expect(rig, 200, 200, RWP_PAGE_LIVE);
    rig_check(rig, 0, 400);
    rig_free(rig);
}

static void test_by_bytes(const RigKind *kind)
{
    Rig *rig = new_with_ages(kind);

    /* The oldest, and as many of the next as are missing */
    g_assert_cmpint(rig_wait(rig_evict_by_age(rig, 1, 130)), ==, 0);
    rig_expect(rig, 0, 100, RWP_PAGE_EVICTED);
    g_assert_cmpuint(rwp_pages_away(rig->s->pages), ==, 130);
    rig_expect(rig, 200, 200, RWP_PAGE_LIVE);
    rig_check(rig, 0, 400);
    rig_free(rig);
}

/* What is away already does not count */
static void test_by_bytes_again(const RigKind *kind)
{
    Rig *rig = new_with_ages(kind);

    for (uint64_t pages = 40; pages <= 200; pages += 40) {
        g_assert_cmpint(rig_wait(rig_evict_by_age(rig, 1, 40)), ==, 0);
        g_assert_cmpuint(rwp_pages_away(rig->s->pages), ==, pages);
    }
    rig_check(rig, 0, 400);
    rig_free(rig);
}

/* @call is when page 5 is written; @before or after it */
static void touch_at(const RigKind *kind, FakeCall call, bool before,
                     bool wait, bool stays)
{
    Rig *rig = rig_new(kind, 1);
    RigTouch touch = { .page = 5, .value = NEW_VALUE, .wait = wait };
    Job *job;

    rig_fill(0, 10);
    if (before) {
        fake_before(call, rig_touch, &touch);
    } else {
        fake_after(call, rig_touch, &touch);
    }
    if (!rig_stays(rig)) {
        /* So that the page is still staged when the touch is dealt with */
        fake_store_close_gate(FAKE_STORE_WRITE);
    }
    rig_add_range(rig, 0, 10);
    job = rig_evict(rig);
    RIG_WAIT(qatomic_read(&touch.touch) && fake_touch_done(touch.touch));
    rig_quiet(rig);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert_cmphex(fake_touch_end(touch.touch), ==, NEW_VALUE);
    if (stays) {
        g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, 0);
        g_assert_cmpuint(stat64_get(&rig->s->stats.evict_cancelled), ==, 1);
        g_assert_cmpuint(stat64_get(&rig->s->stats.evicted), ==, 9);
    }
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    rig_free(rig);
}

static void test_touch_after_take(const RigKind *kind)
{
    touch_at(kind, FAKE_TAKE, false, false, true);
}

static void test_touch_before_take(const RigKind *kind)
{
    /* With the pager that moves this is just what is moved */
    touch_at(kind, FAKE_TAKE, true, false,
             kind->backing == RWP_BACKING_MEMFD);
}

/* The rest are moments that only one of the pagers has */
static void test_touch_before_unmap(const RigKind *kind)
{
    /* Seen by nobody, but it is what is read then */
    touch_at(kind, FAKE_UNMAP, true, true, false);
}

static void test_touch_after_unmap(const RigKind *kind)
{
    touch_at(kind, FAKE_UNMAP, false, true, true);
}

static void test_touch_before_remove(const RigKind *kind)
{
    /* Too late: it waits, and the page is fetched */
    touch_at(kind, FAKE_REMOVE, true, false, false);
}

static void test_touch_after_remove(const RigKind *kind)
{
    touch_at(kind, FAKE_REMOVE, false, false, false);
}

static void test_touch_before_wake(const RigKind *kind)
{
    touch_at(kind, FAKE_WAKE, true, false, false);
}

/* The page is used while its copy is being written */
static void test_touch_in_write(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    Job *job;

    rig_fill(0, 10);
    job = rig_evict_begin(rig, 10);
    rig_expect(rig, 0, 10, RWP_PAGE_STAGED);
    g_assert_cmpint(fake_present(5), ==, rig_stays(rig));

    fake_write(5, NEW_VALUE);
    g_assert_cmphex(fake_read(6), ==, rig_value(6));
    g_assert(fake_present(5));
    rig_quiet(rig);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);

    rig_expect(rig, 5, 2, RWP_PAGE_LIVE);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 8);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evict_cancelled), ==, 2);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_READ), ==, 0);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    rig_free(rig);
}

static uint64_t cycles(Rig *rig)
{
    RwpCycleStats stats;

    rwp_scanner_stats(rig->s->scanner, &stats);
    return stats.completed;
}

/*
 * Ten pages are being evicted by @job, with one cycle after the other
 *
 * @in_one_step: the kernel can scan and arm in one step
 */
static Rig *evict_in_cycles(const RigKind *kind, bool in_one_step, Job **job)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    g_assert(rwp_state_start(rig->s, &error_abort));
    rig->s->mem->rearms = in_one_step;
    rwp_scanner_start(rig->s->scanner, RWP_INTERVAL_MIN);
    *job = rig_evict_begin(rig, 10);
    return rig;
}

/* A cycle arms the touched page again before the commit looks at it */
static void touch_and_rearm(const RigKind *kind, bool in_one_step)
{
    Job *job;
    Rig *rig = evict_in_cycles(kind, in_one_step, &job);
    uint64_t cycle;

    fake_write(5, NEW_VALUE);
    cycle = cycles(rig);
    RIG_WAIT(cycles(rig) >= cycle + 2);
    g_assert(fake_armed(5));
    rig_expect(rig, 5, 1, RWP_PAGE_LIVE);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert(fake_present(5));
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 9);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    g_assert_cmpint(fake_calls(FAKE_REARM) > 0, ==, in_one_step);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    rwp_scanner_stop(rig->s->scanner);
    rig_free(rig);
}

static void test_rearmed(const RigKind *kind)
{
    touch_and_rearm(kind, false);
}

static void test_rearmed_in_one_step(const RigKind *kind)
{
    touch_and_rearm(kind, true);
}

/* A cycle armed the touched page again, and fails before it gets to know */
static void test_rearm_fails(const RigKind *kind)
{
    Job *job;
    Rig *rig = evict_in_cycles(kind, true, &job);
    RigTouch touch = { .page = 5, .value = NEW_VALUE, .wait = true };

    fake_fail(FAKE_REARM, 8, 1, -EFAULT);
    fake_before(FAKE_REARM, rig_touch, &touch);
    RIG_WAIT(!rwp_scanner_running(rig->s->scanner));
    g_assert(fake_armed(5));
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 9);
    g_assert_cmphex(fake_touch_end(touch.touch), ==, NEW_VALUE);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    rig_free(rig);
}

/* The host takes memory, and so what the page tables say, while it is evicted */
static void test_reclaimed(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    Job *job;

    rig_fill(0, 10);
    job = rig_evict_begin(rig, 10);
    fake_write(5, NEW_VALUE);
    fake_unmap(0, 10);
    g_assert_cmphex(fake_read(6), ==, rig_value(6));
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 8);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    rig_free(rig);
}

/* With a job by age, a page that was touched since the scan is not cold */
static void test_touched_is_not_cold(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    g_assert(rwp_state_start(rig->s, &error_abort));
    rwp_scanner_start(rig->s->scanner, RWP_INTERVAL_MIN);
    RIG_WAIT(cycles(rig) >= 4);
    rwp_scanner_start(rig->s->scanner, RWP_INTERVAL_MAX);
    RIG_WAIT(rwp_ages_at_least(rig->s->ages, 0) == 10 && fake_armed(9));
    rwp_ages_tick(rig->s->ages, 0, FAKE_NB_PAGES);
    fake_write(5, NEW_VALUE);
    g_assert_cmpint(rig_wait(rig_evict_by_age(rig, 1, UINT64_MAX)), ==, 0);
    rig_expect(rig, 5, 1, RWP_PAGE_LIVE);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 9);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rwp_scanner_stop(rig->s->scanner);
    rig_free(rig);
}

static void test_busy(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 100);
    fake_take_at_most(7);
    fake_fail(FAKE_TAKE, 33, 1, -EBUSY);
    rig_evict_now(rig, 0, 100);
    rig_expect(rig, 33, 1, RWP_PAGE_LIVE);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 99);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evict_busy), ==, 1);
    g_assert(fake_present(33));
    rig_check(rig, 0, 100);

    /* Not there at all, which is nothing to report */
    fake_fail(FAKE_TAKE, 33, 1, -ENOENT);
    rig_evict_now(rig, 0, 100);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 99);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evict_busy), ==, 1);
    rig_check(rig, 0, 100);
    rig_free(rig);
}

static void test_write_error(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    fake_store_fail(FAKE_STORE_WRITE, 1, -ENOSPC);
    rig_add_range(rig, 0, 10);
    g_assert_cmpint(rig_wait(rig_evict(rig)), ==, -ENOSPC);
    rig_expect(rig, 0, 10, RWP_PAGE_LIVE);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evict_failed), ==, 10);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evicted), ==, 0);
    RIG_WAIT(fake_system.store_errors == 1);
    g_assert_cmpint(fake_system.last_operation, ==, RWP_OPERATION_EVICT);
    for (uint64_t page = 0; page < 10; page++) {
        g_assert(fake_present(page));
    }
    /* Nothing is away: the exclusions end */
    g_assert_cmpint(fake_system.blockers, ==, 0);
    rig_check(rig, 0, 10);

    rig_evict_now(rig, 0, 10);
    rig_expect(rig, 0, 10, RWP_PAGE_EVICTED);
    rig_check(rig, 0, 10);
    rig_free(rig);
}

/* The page is given back, or was, when the write fails */
static void test_write_error_touched(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    Job *job;

    rig_fill(0, 10);
    fake_store_fail(FAKE_STORE_WRITE, 1, -EIO);
    job = rig_evict_begin(rig, 10);
    fake_write(5, NEW_VALUE);
    rig_quiet(rig);
    rig_discard(rig, 6, 1);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, -EIO);
    rig_expect(rig, 0, 10, RWP_PAGE_LIVE);
    g_assert_cmphex(fake_read(5), ==, NEW_VALUE);
    rig_check(rig, 0, 5);
    rig_check(rig, 7, 3);
    rig_free(rig);
}

/* The job fails, and nothing else happens */
static void test_failing_calls(const RigKind *kind)
{
    static const FakeCall both[] = {
        FAKE_BUFFER_NEW, FAKE_TRAP, FAKE_SCAN, FAKE_POPULATED,
    };
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    for (size_t i = 0; i < ARRAY_SIZE(both) + rig_stays(rig); i++) {
        FakeCall call = i < ARRAY_SIZE(both) ? both[i] : FAKE_UNMAP;

        g_test_message("call %d fails", call);
        fake_fail(call, FAKE_ANY, 1, -ENOMEM);
        rig_add_range(rig, 0, 10);
        g_assert_cmpint(rig_wait(rig_evict(rig)), ==, -ENOMEM);
        rig_expect(rig, 0, 10, RWP_PAGE_LIVE);
        g_assert_cmpint(fake_system.blockers, ==, 0);
        rig_check(rig, 0, 10);
    }
    rig_evict_now(rig, 0, 10);
    rig_check(rig, 0, 10);
    rig_free(rig);
}

static void test_failing_commit(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    FakeTouch *touch;

    rig_fill(0, 10);
    /* Pages that cannot be removed stay, the others go */
    fake_fail(FAKE_REMOVE, FAKE_ANY, 1, -EPERM);
    rig_evict_now(rig, 0, 10);
    rig_expect(rig, 0, 10, RWP_PAGE_LIVE);
    rig_check(rig, 0, 10);

    /* Pages trap still; the fault service admits everybody */
    fake_fail(FAKE_RELAX, FAKE_ANY, 1, -EBUSY);
    fake_fail(FAKE_TAKE, 9, 1, -EBUSY);
    rig_evict_now(rig, 0, 10);
    g_assert_cmpuint(rig_count(rig, RWP_PAGE_EVICTED), ==, 9);
    touch = fake_touch_start(9, NEW_VALUE);
    g_assert_cmphex(fake_touch_end(touch), ==, NEW_VALUE);
    rig_check(rig, 0, 9);
    rig_free(rig);
}

/* Who touches a page with a hardware error learns of it, and others go on */
static void test_poisoned(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);
    Job *job;

    rig_fill(0, 10);
    fake_fail(FAKE_ADMIT, 5, FAKE_ALWAYS, -EIO);
    job = rig_evict_begin(rig, 10);
    g_assert_cmphex(fake_read(5), ==, FAKE_SIGBUS);
    /* It is woken before the page is poisoned, and can have tried again then */
    g_assert_cmpuint(fake_calls(FAKE_POISON), <=, 2);
    rig_check(rig, 4, 1);
    fake_store_open_gate(FAKE_STORE_WRITE);
    g_assert_cmpint(rig_wait(job), ==, 0);
    rig_expect(rig, 4, 2, RWP_PAGE_LIVE);
    rig_check(rig, 0, 5);
    rig_check(rig, 6, 4);
    rig_free(rig);
}

static uint64_t resident_pages(RwpResident *resident, int64_t budget_ns)
{
    return rwp_resident_bytes(resident, budget_ns) / FAKE_PAGE_SIZE;
}

/* The main loop has no time for more than the first part */
static void expect_first_part(void *opaque, uint64_t first, uint64_t count)
{
    g_assert(first == 0 || !qemu_in_main_thread());
}

/* The main loop does not walk page tables for longer than it is told to */
static void test_resident(const RigKind *kind)
{
    const uint64_t second = FAKE_CHUNK_PAGES;
    Rig *rig = rig_new(kind, 1);
    RwpResident *resident = rwp_resident_new(rig->s->mem, rig->s->pages, 1);

    rig_fill(0, 100);
    rig_fill(second, 200);
    rig_fill(FAKE_NB_PAGES - 10, 10);
    g_assert_cmpuint(resident_pages(resident, INT64_MAX), ==, 310);

    fake_before(FAKE_PRESENT, expect_first_part, NULL);
    rig_fill(second + 200, 5);
    g_assert_cmpuint(resident_pages(resident, 0), >=, 310);
    RIG_WAIT(resident_pages(resident, 0) == 315);

    /* Without a new count the last one stays, but for what was evicted */
    fake_fail(FAKE_PRESENT, FAKE_ANY, FAKE_ALWAYS, -ENOMEM);
    rig_fill(second + 205, 1);
    rig_evict_now(rig, second, 50);
    g_assert_cmpuint(resident_pages(resident, 0), ==, 265);
    rig_check(rig, second, 20);
    g_assert_cmpuint(resident_pages(resident, 0), ==, 285);
    rig_check(rig, second, 50);
    rig_quiet(rig);
    g_assert_cmpuint(resident_pages(resident, 0), ==, 315);
    fake_fail(FAKE_PRESENT, FAKE_ANY, 0, 0);

    RIG_WAIT(resident_pages(resident, 0) == 316);
    resident_pages(resident, 0);
    rwp_resident_free(resident);
    rig_free(rig);
}

static void add_tests(void)
{
    rig_add("evict/ranges", test_ranges);
    rig_add("evict/zero-pages", test_zero_pages);
    rig_add("evict/by-age", test_by_age);
    rig_add("evict/by-bytes", test_by_bytes);
    rig_add("evict/touched-is-not-cold", test_touched_is_not_cold);
    rig_add("touch/before-take", test_touch_before_take);
    rig_add("touch/after-take", test_touch_after_take);
    rig_add("touch/in-write", test_touch_in_write);
    rig_add("touch/rearmed", test_rearmed);
    rig_add("touch/rearmed-in-one-step", test_rearmed_in_one_step);
    rig_add_stays("touch/rearm-fails", test_rearm_fails);
    rig_add_stays("touch/reclaimed", test_reclaimed);
    rig_add_stays("touch/before-unmap", test_touch_before_unmap);
    rig_add_stays("touch/after-unmap", test_touch_after_unmap);
    rig_add_stays("touch/before-remove", test_touch_before_remove);
    rig_add_stays("touch/after-remove", test_touch_after_remove);
    rig_add_stays("touch/before-wake", test_touch_before_wake);
    rig_add("error/busy", test_busy);
    rig_add("error/write", test_write_error);
    rig_add("error/write-touched", test_write_error_touched);
    rig_add("error/calls", test_failing_calls);
    rig_add_stays("error/commit", test_failing_commit);
    rig_add_stays("error/poisoned", test_poisoned);
    rig_add("evict/by-bytes-again", test_by_bytes_again);
    rig_add_moves("resident", test_resident);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
