/*
 * The cycle: arm, wait one interval, scan
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A coroutine in the work thread.  When it is started it arms everything;
 * after each interval it goes through memory chunk by chunk: scan, let
 * all pages get older, give the accessed ones age 0, arm exactly those
 * again.  Pages that were not accessed are armed already.  So nothing is
 * missed, but accesses in the short time between scan and arm to a page
 * that was found accessed anyway; and not even those where scan and arm are
 * one step of the kernel.
 *
 * Between chunks it yields, so that evictions go on.
 *
 * Locking: the fields of RwpScanner say who may use them.
 */

#include "qemu/osdep.h"
#include "qemu/coroutine.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "events.h"
#include "scan.h"
#include "trace.h"

/* Runs of touched pages that one chunk is expected to have at most */
#define TOUCHED_RUNS 256

/* Chunks that are gone through without a yield */
#define CHUNKS_PER_YIELD 4

/* RWP_CYCLE is sent at most that often */
#define EVENT_PAUSE_NS NANOSECONDS_PER_SECOND

struct RwpScanner {
    RwpState *s;                /* set once */

    /* Atomic: set by the main loop, read by all threads */
    bool running;
    bool ever;
    uint32_t interval;
    uint32_t generation;        /* changed by each start */

    bool co_alive;              /* atomic: the coroutine exists */

    /* Work thread only */
    QemuCoSleep sleep;
    int64_t last_event_ns;

    QemuMutex lock;
    RwpCycleStats stats;        /* under @lock */
};

/* Runs of touched pages of one chunk */
typedef struct Touched {
    GArray *runs;
    uint64_t pages;
} Touched;

typedef struct Run {
    uint64_t first;
    uint64_t count;
} Run;

static void add_run(void *opaque, uint64_t first, uint64_t count)
{
    Touched *touched = opaque;
    Run run = { .first = first, .count = count };

    g_array_append_val(touched->runs, run);
    touched->pages += count;
}

static void see_run(void *opaque, uint64_t first, uint64_t count)
{
    RwpState *s = opaque;

    rwp_ages_touch(s->ages, first, count);
}

/* Evicted pages are populated too: somebody used them */
static void see_away(RwpState *s, uint64_t first, uint64_t count)
{
    static const RwpPage away[] = { RWP_PAGE_EVICTED, RWP_PAGE_ZERO };

    for (size_t i = 0; i < ARRAY_SIZE(away); i++) {
        uint64_t pos = first, start, len;

        while (rwp_pages_next_run(s->pages, pos, first + count, away[i],
                                  &start, &len)) {
            rwp_ages_see(s->ages, start, len);
            pos = start + len;
        }
    }
}

static int arm_runs(RwpState *s, GArray *runs)
{
    for (guint i = 0; i < runs->len; i++) {
        Run *run = &g_array_index(runs, Run, i);
        int ret = s->mem->tracker->arm(s->mem, run->first, run->count);

        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

/*
 * If no page of the chunk is away any more, let the first touch of its
 * memory cost nothing again.  Touches of cold pages in the moment that
 * takes are missed.
 */
static int drop_trap(RwpState *s, uint64_t chunk)
{
    uint64_t count;
    uint64_t first = rwp_memory_chunk(s->mem, chunk, &count);
    int ret;

    if (rwp_pages_chunk_away(s->pages, first)) {
        return 0;
    }
    ret = rwp_memory_untrap(s->mem, chunk);
    return ret <= 0 ? ret : s->mem->tracker->arm(s->mem, first, count);
}

/*
 * Scan one chunk and arm what was touched.
 *
 * @begin: this is the start of tracking: no cycle was completed, and what
 *     is populated has age 0
 */
static int scan_chunk(RwpScanner *scanner, uint64_t chunk, bool begin,
                      Touched *touched, RwpCycleStats *stats)
{
    RwpState *s = scanner->s;
    const RwpTrackerOps *tracker = s->mem->tracker;
    uint64_t count;
    uint64_t first = rwp_memory_chunk(s->mem, chunk, &count);
    int64_t start_ns = get_clock();
    int64_t scan_ns;
    bool armed;
    int ret;

    g_array_set_size(touched->runs, 0);
    ret = tracker->rearm ? tracker->rearm(s->mem, first, count, add_run,
                                          touched) : -ENOTSUP;
    armed = ret != -ENOTSUP;
    if (!armed) {
        ret = tracker->scan(s->mem, first, count, add_run, touched);
    }
    if (ret < 0) {
        return ret;
    }
    if (begin) {
        ret = s->mem->pager->populated(s->mem, first, count, see_run, s);
        if (ret < 0) {
            return ret;
        }
        see_away(s, first, count);
    } else {
        rwp_ages_tick(s->ages, first, count);
        for (guint i = 0; i < touched->runs->len; i++) {
            Run *run = &g_array_index(touched->runs, Run, i);

            rwp_ages_touch(s->ages, run->first, run->count);
        }
    }
    scan_ns = get_clock();
    ret = armed ? 0 : arm_runs(s, touched->runs);
    ret = ret ?: drop_trap(s, chunk);
    stats->scan_ns += scan_ns - start_ns;
    stats->arm_ns += get_clock() - scan_ns;
    return ret;
}

/* Let other coroutines of this thread run */
static void coroutine_fn yield_to_others(RwpScanner *scanner)
{
    aio_co_schedule(scanner->s->work_ctx, qemu_coroutine_self());
    qemu_coroutine_yield();
}

static bool generation_is(RwpScanner *scanner, uint32_t generation)
{
    return qatomic_read(&scanner->running) &&
           qatomic_read(&scanner->generation) == generation;
}

static void publish(RwpScanner *scanner, const RwpCycleStats *stats,
                    bool begin)
{
    RwpState *s = scanner->s;
    int64_t now = get_clock();
    uint64_t completed;

    WITH_QEMU_LOCK_GUARD(&scanner->lock) {
        completed = begin ? 0 : scanner->stats.completed + 1;
        scanner->stats = *stats;
        scanner->stats.completed = completed;
    }
    trace_rwp_cycle(s->id, completed, stats->accessed, stats->scan_ns,
                    stats->arm_ns);
    if (!begin && now - scanner->last_event_ns >= EVENT_PAUSE_NS) {
        uint64_t seen = rwp_ages_at_least(s->ages, 0);
        uint64_t away = rwp_pages_away(s->pages);
        uint64_t evicted = rwp_pages_count(s->pages, RWP_PAGE_EVICTED);

        scanner->last_event_ns = now;
        rwp_event_cycle(s->id, completed,
                        rwp_state_page_bytes(s, stats->accessed),
                        rwp_state_page_bytes(s, seen - MIN(seen, away)),
                        rwp_state_page_bytes(s, evicted));
    }
}

/* Go through memory once.  Returns false if tracking was stopped. */
static bool coroutine_fn cycle(RwpScanner *scanner, uint32_t generation,
                               bool begin)
{
    RwpState *s = scanner->s;
    uint64_t nb_chunks = rwp_memory_nb_chunks(s->mem);
    RwpCycleStats stats = {};
    Touched touched = {
        .runs = g_array_sized_new(false, false, sizeof(Run), TOUCHED_RUNS),
    };
    int ret = 0;

    for (uint64_t chunk = 0; chunk < nb_chunks && ret == 0; chunk++) {
        if (chunk % CHUNKS_PER_YIELD == CHUNKS_PER_YIELD - 1) {
            yield_to_others(scanner);
        }
        if (!generation_is(scanner, generation)) {
            break;
        }
        ret = scan_chunk(scanner, chunk, begin, &touched, &stats);
    }
    g_array_free(touched.runs, true);

    if (!generation_is(scanner, generation)) {
        return false;
    }
    if (ret < 0) {
        error_report("memory-backend-rwp '%s': tracking has stopped, "
                     "memory cannot be scanned: %s; start it again with "
                     "rwp-track-start", s->id, strerror(-ret));
        qatomic_set(&scanner->running, false);
        rwp_state_settle_soon(s);
        return false;
    }
    stats.accessed = touched.pages;
    publish(scanner, &stats, begin);
    return true;
}

/* All the cycles from one start to the stop, or to the next start */
static void coroutine_fn run_generation(RwpScanner *scanner,
                                        uint32_t generation)
{
    int64_t begun_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    int64_t next_ns;

    rwp_ages_reset(scanner->s->ages);
    if (!cycle(scanner, generation, true)) {
        return;
    }
    next_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    while (generation_is(scanner, generation)) {
        int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

        next_ns += qatomic_read(&scanner->interval) * (int64_t)SCALE_MS;
        /*
         * If an interval is too short, nothing but cycles would be done.  KVM
         * abandons faults while something is being armed, so the guest would
         * hardly get on.
         */
        next_ns = MAX(next_ns, now + (now - begun_ns));
        if (next_ns > now) {
            qemu_co_sleep_ns_wakeable(&scanner->sleep, QEMU_CLOCK_REALTIME,
                                      next_ns - now);
        }
        begun_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        if (generation_is(scanner, generation) &&
            !cycle(scanner, generation, false)) {
            return;
        }
    }
}

static void coroutine_fn scanner_co(void *opaque)
{
    RwpScanner *scanner = opaque;

    while (qatomic_read(&scanner->running)) {
        run_generation(scanner, qatomic_read(&scanner->generation));
    }
    rwp_state_settle_soon(scanner->s);
    /* It may be freed now */
    qatomic_set(&scanner->co_alive, false);
    aio_wait_kick();
}

/* In the work thread: the main loop changed @running or @generation */
static void scanner_changed(void *opaque)
{
    RwpScanner *scanner = opaque;

    if (qatomic_read(&scanner->co_alive)) {
        qemu_co_sleep_wake(&scanner->sleep);
    } else if (qatomic_read(&scanner->running)) {
        qatomic_set(&scanner->co_alive, true);
        qemu_coroutine_enter(qemu_coroutine_create(scanner_co, scanner));
    }
}

RwpScanner *rwp_scanner_new(RwpState *s)
{
    RwpScanner *scanner = g_new0(RwpScanner, 1);

    scanner->s = s;
    qemu_mutex_init(&scanner->lock);
    return scanner;
}

void rwp_scanner_free(RwpScanner *scanner)
{
    GLOBAL_STATE_CODE();

    if (!scanner) {
        return;
    }
    rwp_scanner_stop(scanner);
    AIO_WAIT_WHILE(NULL, qatomic_read(&scanner->co_alive));
    qemu_mutex_destroy(&scanner->lock);
    g_free(scanner);
}

void rwp_scanner_start(RwpScanner *scanner, uint32_t interval)
{
    GLOBAL_STATE_CODE();

    qatomic_set(&scanner->interval, interval);
    qatomic_set(&scanner->generation, scanner->generation + 1);
    qatomic_set(&scanner->ever, true);
    qatomic_set(&scanner->running, true);
    WITH_QEMU_LOCK_GUARD(&scanner->lock) {
        scanner->stats = (RwpCycleStats) {};
    }
    trace_rwp_track_start(scanner->s->id, interval);
    aio_wait_bh_oneshot(scanner->s->work_ctx, scanner_changed, scanner);
}

void rwp_scanner_stop(RwpScanner *scanner)
{
    GLOBAL_STATE_CODE();

    qatomic_set(&scanner->running, false);
    trace_rwp_track_stop(scanner->s->id);
    aio_wait_bh_oneshot(scanner->s->work_ctx, scanner_changed, scanner);
}

bool rwp_scanner_running(RwpScanner *scanner)
{
    return scanner && qatomic_read(&scanner->running);
}

bool rwp_scanner_ever(RwpScanner *scanner)
{
    return scanner && qatomic_read(&scanner->ever);
}

uint32_t rwp_scanner_interval(RwpScanner *scanner)
{
    return qatomic_read(&scanner->interval);
}

void rwp_scanner_stats(RwpScanner *scanner, RwpCycleStats *stats)
{
    QEMU_LOCK_GUARD(&scanner->lock);
    *stats = scanner->stats;
}
