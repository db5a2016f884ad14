/*
 * A memory-backend-rwp on fakes, for tests of its jobs and faults
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See rwp-rig.h.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "qom/object.h"
#include "rwp-rig.h"
#include "rwp-random.h"

#define OWNER_TYPE "container"
#define MEMORY_BYTES ((uint64_t)FAKE_NB_PAGES * FAKE_PAGE_SIZE)

static const RigKind kinds[] = {
    { "punch", RWP_TRACKER_ZAP, RWP_BACKING_MEMFD },
    { "move", RWP_TRACKER_RWP, RWP_BACKING_ANONYMOUS },
};

static uint64_t speed;

Rig *rig_new(const RigKind *kind, uint64_t readahead)
{
    RwpConfig config = {
        .id = "mem0",
        .tracker = kind->tracker,
        .backing = kind->backing,
        .interval = 1000,
        .readahead = readahead * FAKE_PAGE_SIZE,
        .store = RIG_NODE,
        .checksum = rwp_checksums_available(),
        .max_fetches = RIG_FETCHES,
    };
    Rig *rig = g_new0(Rig, 1);

    rig->kind = kind;
    rig->rand = g_rand_new_with_seed(rwp_test_seed());
    rig->owner = object_new(OWNER_TYPE);
    rig->mr.owner = rig->owner;
    rig->rb.mr = &rig->mr;
    rig->rb.fd = -1;
    rig->rb.page_size = FAKE_PAGE_SIZE;
    rig->rb.max_length = MEMORY_BYTES;
    rig->rb.host = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert(rig->rb.host != MAP_FAILED);
    memset(&fake_system, 0, sizeof(fake_system));
    fake_reset();
    speed = 0;
    rig->bs = fake_store_new(RIG_NODE, MEMORY_BYTES);
    rig->s = rwp_state_new(&rig->rb, &config, &error_abort);
    return rig;
}

void rig_free(Rig *rig)
{
    fake_reset();
    g_assert(!rwp_state_busy(rig->s));
    RIG_WAIT(fake_idle());
    rwp_state_free(rig->s);
    g_assert(!rig->rb.pager);
    g_assert_cmpint(fake_system.blockers, ==, 0);
    g_assert_cmpint(fake_system.discards_required, ==, 0);
    g_assert_cmpuint(rig->owner->ref, ==, 1);
    object_unref(rig->owner);
    bdrv_unref(rig->bs);
    munmap(rig->rb.host, MEMORY_BYTES);
    g_rand_free(rig->rand);
    g_free(rig);
}

void rig_fill(uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++) {
        fake_write(page, rig_value(page));
    }
}

static void nothing(void *opaque)
{
}

/*
 * A message that was read may not have been handled yet, and the service
 * may be about to read ahead of a page that is in memory already.  Handlers
 * run after bottom halves, so the second one comes after what was read
 * before the first.
 */
static void finish_messages(Rig *rig)
{
    RIG_WAIT(fake_idle());
    for (int i = 0; i < 2; i++) {
        aio_wait_bh_oneshot(rig->s->fault_ctx, nothing, NULL);
    }
}

void rig_quiet(Rig *rig)
{
    finish_messages(rig);
    RIG_WAIT(fake_idle() && rig_count(rig, RWP_PAGE_FETCHING) == 0);
}

void rig_check(Rig *rig, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++) {
        g_assert_cmphex(fake_read(page), ==, rig_value(page));
    }
    rig_quiet(rig);
}

void rig_check_but(Rig *rig, uint64_t first, uint64_t count, uint64_t but)
{
    for (uint64_t page = first; page < first + count; page++) {
        if (page != but) {
            g_assert_cmphex(fake_read(page), ==, rig_value(page));
        }
    }
}

uint64_t rig_count(Rig *rig, RwpPage state)
{
    return rwp_pages_count(rig->s->pages, state);
}

void rig_expect(Rig *rig, uint64_t first, uint64_t count, RwpPage state)
{
    for (uint64_t page = first; page < first + count; page++) {
        g_assert_cmpint(rwp_pages_get(rig->s->pages, page), ==, state);
    }
}

void rig_discard(Rig *rig, uint64_t first, uint64_t count)
{
    ram_block_pager_discard(&rig->rb, first * FAKE_PAGE_SIZE,
                            count * FAKE_PAGE_SIZE);
    fake_drop(first, count);
}

void rig_add_range(Rig *rig, uint64_t first, uint64_t count)
{
    RwpRangeList **tail = &rig->ranges;
    RwpRange *range = g_new0(RwpRange, 1);

    range->offset = first * FAKE_PAGE_SIZE;
    range->length = count * FAKE_PAGE_SIZE;
    while (*tail) {
        tail = &(*tail)->next;
    }
    QAPI_LIST_APPEND(tail, range);
}

static Job *start_job(Rig *rig, RwpEvictOptions *options,
                      bool (*start)(RwpState *s, const RwpEvictOptions *o,
                                    Error **errp))
{
    Job *job;

    options->job_id = "job0";
    options->job_flags = JOB_MANUAL_DISMISS;
    options->speed = speed;
    start(rig->s, options, &error_abort);
    job = rig->s->job;
    g_assert(job);
    return job;
}

static bool start_evict(RwpState *s, const RwpEvictOptions *options,
                        Error **errp)
{
    return rwp_evict_start(s, NULL, options, errp);
}

Job *rig_evict(Rig *rig)
{
    RwpEvictOptions options = { .ranges = rig->ranges };
    Job *job;

    g_assert(rwp_ranges_check(rig->s, rig->ranges, &error_abort));
    job = start_job(rig, &options, start_evict);
    qapi_free_RwpRangeList(g_steal_pointer(&rig->ranges));
    return job;
}

Job *rig_fetch(Rig *rig)
{
    RwpEvictOptions options = { .ranges = rig->ranges };
    Job *job = start_job(rig, &options, rwp_fetch_start);

    qapi_free_RwpRangeList(g_steal_pointer(&rig->ranges));
    return job;
}

Job *rig_evict_by_age(Rig *rig, uint8_t min_age, uint64_t pages)
{
    RwpEvictOptions options = {
        .min_age = min_age,
        .bytes = pages > UINT64_MAX / FAKE_PAGE_SIZE ? UINT64_MAX :
                 pages * FAKE_PAGE_SIZE,
    };

    return start_job(rig, &options, start_evict);
}

Job *rig_evict_begin(Rig *rig, uint64_t count)
{
    Job *job;

    fake_store_close_gate(FAKE_STORE_WRITE);
    rig_add_range(rig, 0, count);
    job = rig_evict(rig);
    RIG_WAIT(fake_store_waiting(FAKE_STORE_WRITE) == 1);
    return job;
}

void rig_set_speed(uint64_t new_speed)
{
    speed = new_speed;
}

static JobStatus job_status(Job *job)
{
    JOB_LOCK_GUARD();
    return job->status;
}

int rig_wait(Job *job)
{
    int ret;

    RIG_WAIT(job_status(job) == JOB_STATUS_CONCLUDED);
    JOB_LOCK_GUARD();
    ret = job->ret;
    /* An error has a text */
    g_assert(!job->err == (ret == 0));
    job_dismiss_locked(&job, &error_abort);
    return ret;
}

void rig_cancel(Job *job)
{
    JOB_LOCK_GUARD();
    job_user_cancel_locked(job, true, &error_abort);
}

void rig_pause(Job *job)
{
    JOB_LOCK_GUARD();
    job_user_pause_locked(job, &error_abort);
}

void rig_resume(Job *job)
{
    JOB_LOCK_GUARD();
    job_user_resume_locked(job, &error_abort);
}

void rig_evict_now(Rig *rig, uint64_t first, uint64_t count)
{
    rig_add_range(rig, first, count);
    g_assert_cmpint(rig_wait(rig_evict(rig)), ==, 0);
}

Rig *rig_new_evicted(const RigKind *kind, uint64_t count, uint64_t readahead)
{
    Rig *rig = rig_new(kind, readahead);

    rig_fill(0, count);
    rig_evict_now(rig, 0, count);
    rig_expect(rig, 0, count, RWP_PAGE_EVICTED);
    return rig;
}

void rig_fetch_now(Rig *rig, uint64_t first, uint64_t count)
{
    rig_add_range(rig, first, count);
    g_assert_cmpint(rig_wait(rig_fetch(rig)), ==, 0);
}

void rig_touch(void *opaque, uint64_t first, uint64_t count)
{
    RigTouch *t = opaque;
    int64_t end_us = g_get_monotonic_time() + FAKE_TIMEOUT_MS * 1000LL;

    if (t->touch || t->page < first || t->page - first >= count) {
        return;
    }
    t->touch = fake_touch_start(t->page, t->value);
    while (t->wait && !fake_touch_done(t->touch)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end_us);
        g_usleep(50);
    }
    if (!t->wait) {
        /* Let the fault service see the page as it is now */
        while (!fake_idle()) {
            g_assert_cmpint(g_get_monotonic_time(), <, end_us);
            g_usleep(50);
        }
        g_usleep(2000);
    }
}

typedef struct RigTest {
    const RigKind *kind;
    void (*test)(const RigKind *kind);
} RigTest;

static void run_test(gconstpointer data)
{
    const RigTest *test = data;

    test->test(test->kind);
}

static void add_test(const char *name, void (*test)(const RigKind *kind),
                     const RigKind *kind)
{
    g_autofree char *path = g_strdup_printf("/rwp/%s/%s", kind->name, name);
    RigTest *t = g_new0(RigTest, 1);

    t->kind = kind;
    t->test = test;
    g_test_add_data_func_full(path, t, run_test, g_free);
}

void rig_add(const char *name, void (*test)(const RigKind *kind))
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        add_test(name, test, &kinds[i]);
    }
}

void rig_add_stays(const char *name, void (*test)(const RigKind *kind))
{
    add_test(name, test, &kinds[0]);
}

void rig_add_moves(const char *name, void (*test)(const RigKind *kind))
{
    add_test(name, test, &kinds[1]);
}

static const TypeInfo owner_info = {
    .name = OWNER_TYPE,
    .parent = TYPE_OBJECT,
};

int rig_main(int argc, char **argv, void (*add)(void))
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    if (!object_class_by_name(OWNER_TYPE)) {
        type_register_static(&owner_info);
    }
    g_test_init(&argc, &argv, NULL);
    add();
    return g_test_run();
}
