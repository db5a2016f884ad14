/*
 * Checksums of evicted pages: unit tests with fakes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The store returns other content than it was given.  Nobody may ever see
 * it.  And what the store has already is not written again.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "system/rwp.h"
#include "system/rwp/checksum.h"
#include "system/rwp/registry.h"
#include "rwp-rig.h"

#define CHUNK_BYTES (FAKE_CHUNK_PAGES * sizeof(uint32_t))

static uint64_t corrupt(Rig *rig)
{
    return stat64_get(&rig->s->stats.fetch_corrupt);
}

static void test_fault(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);
    FakeTouch *touch;

    fake_store_corrupt(5, true);
    touch = fake_touch_start(5, 0);
    RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
    RIG_WAIT(fake_system.store_errors == 1);
    g_assert_nonnull(strstr(fake_system.last_reason, "checksum"));
    g_assert_cmpuint(corrupt(rig), >=, 1);
    /* By itself, and when asked to: it stays like that */
    RIG_WAIT(corrupt(rig) >= 3);
    RIG_WAIT(qatomic_read(&rig->s->stats.fetch_waiting) == 1);
    g_assert(!fake_touch_done(touch));
    g_assert(!fake_present(5));
    /* The others are what they were */
    rig_check_but(rig, 0, 10, 5);

    fake_store_corrupt(5, false);
    g_assert(rwp_registry_retry("mem0", &error_abort));
    g_assert_cmphex(fake_touch_end(touch), ==, rig_value(5));
    rig_check(rig, 0, 10);
    g_assert_cmpuint(fake_system.store_errors, ==, 1);
    rig_free(rig);
}

/* A wrong page that is read ahead keeps nobody from the right ones */
static void test_neighbour(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 8);

    rig_check(rig, 0, 1);
    fake_store_corrupt(2, true);
    g_assert_cmphex(fake_read(1), ==, rig_value(1));
    rig_quiet(rig);
    g_assert_cmpuint(corrupt(rig), ==, 1);
    rig_expect(rig, 2, 1, RWP_PAGE_EVICTED);
    g_assert_cmpuint(fake_system.store_errors, ==, 0);
    fake_store_corrupt(2, false);
    rig_check(rig, 0, 10);
    rig_free(rig);
}

static void test_job(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);

    fake_store_corrupt(5, true);
    rig_add_range(rig, 0, 10);
    g_assert_cmpint(rig_wait(rig_fetch(rig)), ==, -EBADMSG);
    g_assert_cmpuint(corrupt(rig), ==, 1);
    rig_expect(rig, 5, 1, RWP_PAGE_EVICTED);
    fake_store_corrupt(5, false);
    rig_fetch_now(rig, 0, 10);
    rig_check(rig, 0, 10);
    rig_free(rig);
}

/* What is written last counts */
static void test_rewritten(const RigKind *kind)
{
    Rig *rig = rig_new_evicted(kind, 10, 0);

    for (uint64_t value = 100; value < 110; value++) {
        fake_write(5, value);
        rig_quiet(rig);
        rig_evict_now(rig, 0, 10);
        rig_expect(rig, 5, 1, RWP_PAGE_EVICTED);
        g_assert_cmphex(fake_read(5), ==, value);
        rig_quiet(rig);
    }
    g_assert_cmpuint(corrupt(rig), ==, 0);
    rig_check_but(rig, 0, 10, 5);
    rig_free(rig);
}

/* Memory for a chunk is there when something of it is evicted */
static void test_memory(const RigKind *kind)
{
    const uint64_t second = FAKE_CHUNK_PAGES;
    Rig *rig = rig_new(kind, 0);
    RwpChecksums *c = rig->s->checksums;

    g_assert_cmpuint(rwp_checksums_bytes(c), ==, 0);
    fake_write(20, 0);
    rig_evict_now(rig, 20, 1);
    rig_expect(rig, 20, 1, RWP_PAGE_ZERO);
    g_assert_cmpuint(rwp_checksums_bytes(c), ==, 0);
    rig_fill(0, 10);
    rig_evict_now(rig, 0, 10);
    g_assert_cmpuint(rwp_checksums_bytes(c), ==, CHUNK_BYTES);
    rig_fill(second, 10);
    rig_evict_now(rig, second, 10);
    g_assert_cmpuint(rwp_checksums_bytes(c), ==, 2 * CHUNK_BYTES);

    /* Touched, given back, asked for */
    rig_check(rig, second, 9);
    g_assert_cmpuint(rwp_checksums_bytes(c), ==, 2 * CHUNK_BYTES);
    rig_check(rig, second + 9, 1);
    RIG_WAIT(rwp_checksums_bytes(c) == CHUNK_BYTES);
    g_assert_cmphex(fake_read(20), ==, 0);
    rig_quiet(rig);
    rig_discard(rig, 0, 10);
    RIG_WAIT(rwp_checksums_bytes(c) == 0);
    rig_evict_now(rig, second, 10);
    g_assert_cmpuint(rwp_checksums_bytes(c), ==, CHUNK_BYTES);
    rig_fetch_now(rig, second, 10);
    RIG_WAIT(rwp_checksums_bytes(c) == 0);
    rig_check(rig, second, 10);
    rig_free(rig);
}

/*
 * Pages [0, @count) were evicted, and only read since.  One of the same chunk
 * is away, so that the checksums are kept.
 */
static Rig *new_fetched(const RigKind *kind, uint64_t count)
{
    Rig *rig = rig_new_evicted(kind, count + 1, 0);

    rig_check(rig, 0, count);
    rig_quiet(rig);
    rig_expect(rig, 0, count, RWP_PAGE_LIVE);
    return rig;
}

/* Evict pages [0, @count) of new_fetched(); @written is what it takes */
static void evict_again(Rig *rig, uint64_t count, uint64_t written)
{
    uint64_t before = stat64_get(&rig->s->stats.evict_bytes);

    rig_evict_now(rig, 0, count);
    rig_expect(rig, 0, count, RWP_PAGE_EVICTED);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evict_bytes) - before, ==,
                     written * FAKE_PAGE_SIZE);
    g_assert_cmpuint(stat64_get(&rig->s->stats.evicted_clean), ==,
                     count - written);
    g_assert_cmpuint(fake_system.store_errors, ==, 0);
}

static void test_clean(const RigKind *kind)
{
    Rig *rig = new_fetched(kind, 40);

    evict_again(rig, 40, 0);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_WRITE), ==, 1);
    rig_check(rig, 0, 41);
    rig_free(rig);
}

/* Few clean pages beside one that is not are written along with it */
static void test_clean_but_one(const RigKind *kind)
{
    Rig *rig = new_fetched(kind, 40);

    fake_write(10, 7);
    evict_again(rig, 40, 11);
    g_assert_cmpuint(fake_store_requests(FAKE_STORE_WRITE), ==, 2);
    g_assert_cmphex(fake_read(10), ==, 7);
    rig_quiet(rig);
    rig_check_but(rig, 0, 41, 10);
    rig_free(rig);
}

/* What was written is not what the store has */
static void test_clean_lost(const RigKind *kind)
{
    Rig *rig = new_fetched(kind, 40);

    fake_store_corrupt(20, true);
    evict_again(rig, 40, 1);
    fake_store_corrupt(20, false);
    rig_check(rig, 0, 41);
    rig_free(rig);
}

static void test_clean_unreadable(const RigKind *kind)
{
    Rig *rig = new_fetched(kind, 40);

    fake_store_fail(FAKE_STORE_READ, 1, -EIO);
    evict_again(rig, 40, 40);
    rig_check(rig, 0, 41);
    rig_free(rig);
}

/* A page changes while the store is being read */
static void test_clean_touched(const RigKind *kind)
{
    Rig *rig = new_fetched(kind, 40);
    Job *job;

    fake_store_close_gate(FAKE_STORE_READ);
    rig_add_range(rig, 0, 40);
    job = rig_evict(rig);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_READ) == 1);
    fake_write(20, 7);
    fake_store_open_gate(FAKE_STORE_READ);
    g_assert_cmpint(rig_wait(job), ==, 0);
    rig_expect(rig, 20, 1, RWP_PAGE_LIVE);
    g_assert_cmphex(fake_read(20), ==, 7);
    rig_check_but(rig, 0, 41, 20);
    rig_free(rig);
}

static void add_tests(void)
{
    if (!rwp_checksums_available()) {
        return;
    }
    rig_add("checksum/fault", test_fault);
    rig_add("checksum/neighbour", test_neighbour);
    rig_add("checksum/job", test_job);
    rig_add("checksum/rewritten", test_rewritten);
    rig_add("checksum/memory", test_memory);
    rig_add("clean/all", test_clean);
    rig_add("clean/but-one", test_clean_but_one);
    rig_add("clean/lost", test_clean_lost);
    rig_add("clean/unreadable", test_clean_unreadable);
    rig_add("clean/touched", test_clean_touched);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
