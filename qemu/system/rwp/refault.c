/*
 * Reads of the store for pages that somebody touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The fault service puts what is touched into a queue, from which coroutines
 * take it.  Their number is bounded, and so is that of buffers; the queue has
 * no more entries than there are threads that wait.  Whatever a guest does,
 * it only makes itself slow.
 *
 * A read takes evicted neighbours along, if the accesses look sequential, and
 * gives them back if it fails (see readahead.h).
 *
 * A failed read is tried again for as long as it takes, and gives its turn
 * to others between two tries.  It never becomes data.
 *
 * While somebody waits for a read, whoever does the reading, this looks now
 * and then whether QEMU was told to end (see quit.c).
 *
 * Invariant: from the start of a fetch to its end, its pages are FETCHING, by
 * it alone.
 *
 * Locking: everything here runs in the fault thread, unless marked.
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/coroutine.h"
#include "qemu/memalign.h"
#include "block/aio-wait.h"
#include "events.h"
#include "inject.h"
#include "place.h"
#include "readahead.h"
#include "refault.h"
#include "store.h"

/* How often to look whether QEMU was told to end while somebody waits */
#define WATCH_NS (250 * SCALE_MS)

/* Entries of @waits before those that are over are looked for */
#define MANY_WAITS 64

/* Pause before a failed read is tried again; doubled each time */
#define RETRY_MIN_NS (50 * SCALE_MS)
#define RETRY_MAX_NS (10 * NANOSECONDS_PER_SECOND)

/* A read of the store that serves a touch, or is ahead of one */
typedef struct Fetch {
    uint64_t page;
    uint64_t count;         /* pages to read, @page first */
    bool ahead;             /* @page was not touched when it began */
    bool claimed;           /* neighbours were, if there are any */
    int64_t start_ns;
    int64_t pause_ns;       /* before the last try */
    int64_t due_ns;         /* QEMU_CLOCK_REALTIME; when to try again */
    bool reported;          /* that it failed */
    QTAILQ_ENTRY(Fetch) next;   /* in @queue or @sleeping */
    QTAILQ_ENTRY(Fetch) age;
} Fetch;

typedef QTAILQ_HEAD(, Fetch) FetchList;

/* A thread touched a page that was FETCHING */
typedef struct Wait {
    uint64_t page;
    int64_t start_ns;
} Wait;

struct RwpRefaults {
    /* Set once */
    RwpState *s;
    uint64_t max_window;    /* pages of a buffer */

    unsigned running;       /* coroutines, s->max_fetches at most */
    void **buffers;         /* as many as coroutines at most */
    unsigned nb_buffers;    /* that were allocated */
    unsigned nb_free;       /* buffers[0..nb_free) are not in use */

    FetchList queue;        /* wait for their turn */
    FetchList sleeping;     /* failed, and are tried again later */
    FetchList fetches;      /* all, the oldest first */
    QEMUTimer *retry;       /* runs while one is sleeping */

    RwpReadahead readahead;

    unsigned in_flight;     /* fetches; atomic, main loop waits for 0 */
    GArray *waits;          /* Wait; some are over */
    int64_t reader_ns;      /* since when another thread waits, or 0 */
    RwpQuit *quit;
    QEMUTimer *watch;       /* runs while somebody waits, and then once */
    bool watching;
};

static void record_latency(RwpState *s, int64_t ns)
{
    int row = ns > 0 ? 63 - clz64(ns) : 0;

    stat64_add(&s->stats.latency[MIN(row, RWP_LATENCY_ROWS - 1)], 1);
}

/* There are as many as coroutines that can ask for one */
static void *get_buffer(RwpRefaults *refaults)
{
    uint64_t bytes = rwp_state_page_bytes(refaults->s, refaults->max_window);

    if (!refaults->nb_free) {
        refaults->buffers[refaults->nb_free++] =
            qemu_memalign(qemu_real_host_page_size(), bytes);
        refaults->nb_buffers++;
        qatomic_add(&refaults->s->stats.buffer_bytes, bytes);
    }
    return refaults->buffers[--refaults->nb_free];
}

static void put_buffer(RwpRefaults *refaults, void *buf)
{
    refaults->buffers[refaults->nb_free++] = buf;
}

/* Take evicted pages from @fetch->page on into FETCHING, @window in all */
static void claim_window(RwpState *s, Fetch *fetch, uint64_t window)
{
    window = MIN(window, s->mem->nb_pages - fetch->page);
    while (fetch->count < window &&
           rwp_pages_move(s->pages, fetch->page + fetch->count,
                          RWP_PAGE_EVICTED, RWP_PAGE_FETCHING)) {
        fetch->count++;
    }
}

/* The read of the neighbours failed, or they are not wanted any more */
static void release_neighbours(RwpState *s, Fetch *fetch)
{
    if (fetch->count == 1) {
        return;
    }
    for (uint64_t i = 1; i < fetch->count; i++) {
        rwp_pages_finish(s->pages, fetch->page + i, RWP_PAGE_EVICTED);
    }
    /* Somebody may have touched one meanwhile, or given it back */
    rwp_memory_wake(s->mem, fetch->page + 1, fetch->count - 1);
    rwp_state_settle_soon(s);
    fetch->count = 1;
}

/*
 * Read the pages of @fetch; if that fails with neighbours, without them.
 *
 * Returns 0 or -errno.
 */
static int coroutine_fn read_pages(RwpState *s, Fetch *fetch, void *buf)
{
    int ret = rwp_place_read(s, fetch->page, fetch->count, buf, false);

    if (ret < 0 && fetch->count > 1) {
        release_neighbours(s, fetch);
        ret = rwp_place_read(s, fetch->page, 1, buf, false);
    }
    if (ret < 0 && !fetch->reported) {
        rwp_event_store_error(s->id, rwp_store_node_name(s->store),
                              RWP_OPERATION_FETCH,
                              rwp_state_page_bytes(s, fetch->page),
                              rwp_state_page_bytes(s, 1), ret);
        fetch->reported = true;
    }
    return ret;
}

/* Put pages of @fetch in place from number @skip on */
static void coroutine_fn place_rest(RwpState *s, Fetch *fetch, uint64_t skip,
                                    const uint8_t *buf)
{
    uint64_t placed = rwp_place_untouched_co(s, fetch->page + skip,
        fetch->count - skip, buf + rwp_state_page_bytes(s, skip));

    stat64_add(&s->stats.fetched_readahead, placed);
}

/* The pages were read: put them in place.  Returns 0 or -errno. */
static int coroutine_fn place_pages(RwpState *s, Fetch *fetch, uint8_t *buf)
{
    int ret;

    rwp_inject_co_delay(RWP_INJECT_DELAY_FETCH);
    ret = rwp_place_page(s, fetch->page, buf);
    if (ret < 0) {
        warn_report_once("memory-backend-rwp '%s': a page that the guest waits "
                         "for cannot be put in place, and is tried again: %s",
                         s->id, strerror(-ret));
        return ret;
    }
    record_latency(s, get_clock() - fetch->start_ns);
    stat64_add(&s->stats.fetched_fault, 1);
    rwp_place_finish(s, fetch->page);
    if (fetch->count > 1) {
        place_rest(s, fetch, 1, buf);
    }
    return 0;
}

/* Who touched one of the pages meanwhile is woken, and tries again itself */
static void coroutine_fn fetch_ahead(RwpState *s, Fetch *fetch, void *buf)
{
    if (rwp_place_read(s, fetch->page, fetch->count, buf, false) < 0) {
        release_neighbours(s, fetch);
        rwp_pages_finish(s->pages, fetch->page, RWP_PAGE_EVICTED);
        rwp_memory_wake(s->mem, fetch->page, 1);
        rwp_state_settle_soon(s);
    } else {
        place_rest(s, fetch, 0, buf);
    }
}

/*
 * Try to bring the pages of @fetch back.
 *
 * Returns false if the touched page is still FETCHING, because it could not
 * be read, or the host has no memory for it.  It is the only one then.
 */
static bool coroutine_fn try_fetch(RwpRefaults *refaults, Fetch *fetch)
{
    RwpState *s = refaults->s;
    void *buf = get_buffer(refaults);
    int ret;

    if (fetch->ahead) {
        fetch_ahead(s, fetch, buf);
        put_buffer(refaults, buf);
        return true;
    }
    if (!fetch->claimed) {
        claim_window(s, fetch,
                     rwp_readahead_window(&refaults->readahead, fetch->page,
                                          refaults->max_window));
        fetch->claimed = true;
    }
    ret = read_pages(s, fetch, buf);
    if (rwp_pages_discarded(s->pages, fetch->page)) {
        /* Nobody wants the content any more */
        release_neighbours(s, fetch);
        rwp_place_zero(s, fetch->page, RWP_PAGE_LIVE);
        ret = 0;
    } else if (ret == 0) {
        ret = place_pages(s, fetch, buf);
        if (ret < 0) {
            release_neighbours(s, fetch);
        }
    }
    put_buffer(refaults, buf);
    return ret == 0;
}

static void end_fetch(RwpRefaults *refaults, Fetch *fetch)
{
    QTAILQ_REMOVE(&refaults->fetches, fetch, age);
    g_free(fetch);
    qatomic_dec(&refaults->in_flight);
    aio_wait_kick();
}

static void sleep_fetch(RwpRefaults *refaults, Fetch *fetch)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    fetch->pause_ns = MIN(MAX(fetch->pause_ns * 2, RETRY_MIN_NS),
                          RETRY_MAX_NS);
    fetch->due_ns = now + fetch->pause_ns;
    QTAILQ_INSERT_TAIL(&refaults->sleeping, fetch, next);
    qatomic_inc(&refaults->s->stats.fetch_waiting);
    timer_mod_anticipate_ns(refaults->retry, fetch->due_ns);
}

/* Takes fetches from the queue until there are none */
static void coroutine_fn fetch_co(void *opaque)
{
    RwpRefaults *refaults = opaque;
    RwpState *s = refaults->s;
    Fetch *fetch;

    while ((fetch = QTAILQ_FIRST(&refaults->queue))) {
        QTAILQ_REMOVE(&refaults->queue, fetch, next);
        qatomic_dec(&s->stats.fetch_queued);
        if (try_fetch(refaults, fetch)) {
            end_fetch(refaults, fetch);
        } else if (rwp_quit_phase(refaults->quit) == RWP_QUIT_NO) {
            sleep_fetch(refaults, fetch);
        } else {
            /* It stays FETCHING; see quit.c for who waits for it */
            rwp_quit_lose(refaults->quit, fetch->page);
            rwp_memory_wake(s->mem, fetch->page, 1);
            end_fetch(refaults, fetch);
        }
    }
    qatomic_set(&s->stats.fetch_running, --refaults->running);
}

/* It is the turn of @fetch after those that came before */
static void queue_fetch(RwpRefaults *refaults, Fetch *fetch)
{
    RwpState *s = refaults->s;

    QTAILQ_INSERT_TAIL(&refaults->queue, fetch, next);
    qatomic_inc(&s->stats.fetch_queued);
    if (refaults->running < s->max_fetches) {
        qatomic_set(&s->stats.fetch_running, ++refaults->running);
        stat64_max(&s->stats.fetch_peak, refaults->running);
        qemu_coroutine_enter(qemu_coroutine_create(fetch_co, refaults));
    }
}

static void start_watch(RwpRefaults *refaults)
{
    if (!refaults->watching) {
        refaults->watching = true;
        timer_mod_ns(refaults->watch,
                     qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + WATCH_NS);
    }
}

static void start_fetch(RwpRefaults *refaults, Fetch *fetch)
{
    QTAILQ_INSERT_TAIL(&refaults->fetches, fetch, age);
    qatomic_inc(&refaults->in_flight);
    start_watch(refaults);
    queue_fetch(refaults, fetch);
}

/* Try again what has slept until @now */
static void wake_sleepers(RwpRefaults *refaults, int64_t now)
{
    FetchList due = QTAILQ_HEAD_INITIALIZER(due);
    Fetch *fetch, *next;

    QTAILQ_FOREACH_SAFE(fetch, &refaults->sleeping, next, next) {
        if (fetch->due_ns <= now) {
            QTAILQ_REMOVE(&refaults->sleeping, fetch, next);
            QTAILQ_INSERT_TAIL(&due, fetch, next);
        } else {
            timer_mod_anticipate_ns(refaults->retry, fetch->due_ns);
        }
    }
    /* Each may run at once, and go back to sleep */
    while ((fetch = QTAILQ_FIRST(&due))) {
        QTAILQ_REMOVE(&due, fetch, next);
        qatomic_dec(&refaults->s->stats.fetch_waiting);
        queue_fetch(refaults, fetch);
    }
}

static void retry_timer(void *opaque)
{
    wake_sleepers(opaque, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
}

/* @page is waited for: read what is going to be waited for next */
static void read_ahead(RwpRefaults *refaults, uint64_t page, int64_t start_ns)
{
    RwpState *s = refaults->s;
    uint64_t first, window;

    while (refaults->running < s->max_fetches &&
           rwp_quit_phase(refaults->quit) == RWP_QUIT_NO &&
           (window = rwp_readahead_more(&refaults->readahead, page,
                                        refaults->max_window, &first))) {
        Fetch *fetch;

        if (first >= s->mem->nb_pages) {
            return;
        }
        fetch = g_new0(Fetch, 1);
        fetch->page = first;
        fetch->ahead = true;
        fetch->start_ns = start_ns;
        claim_window(s, fetch, window);
        if (!fetch->count) {
            g_free(fetch);
            return;
        }
        start_fetch(refaults, fetch);
    }
}

void rwp_refaults_fetch(RwpRefaults *refaults, uint64_t page,
                        int64_t start_ns)
{
    Fetch *fetch = g_new0(Fetch, 1);

    fetch->page = page;
    fetch->count = 1;
    fetch->start_ns = start_ns;
    start_fetch(refaults, fetch);
    read_ahead(refaults, page, start_ns);
}

static void forget_waits(RwpRefaults *refaults)
{
    for (guint i = refaults->waits->len; i-- > 0;) {
        Wait *wait = &g_array_index(refaults->waits, Wait, i);

        if (rwp_pages_get(refaults->s->pages, wait->page) !=
            RWP_PAGE_FETCHING) {
            g_array_remove_index_fast(refaults->waits, i);
        }
    }
}

void rwp_refaults_wait(RwpRefaults *refaults, uint64_t page, uint32_t tid,
                       int64_t start_ns)
{
    Wait wait = { .page = page, .start_ns = start_ns };

    if (refaults->waits->len >= MANY_WAITS) {
        forget_waits(refaults);
    }
    g_array_append_val(refaults->waits, wait);
    start_watch(refaults);
    read_ahead(refaults, page, start_ns);
    if (rwp_quit_phase(refaults->quit) != RWP_QUIT_NO &&
        rwp_quit_waiter(refaults->quit, page, tid)) {
        rwp_place_zero(refaults->s, page, RWP_PAGE_LIVE);
    }
}

void rwp_refaults_reader(RwpRefaults *refaults, int64_t since_ns)
{
    refaults->reader_ns = since_ns;
    if (since_ns) {
        start_watch(refaults);
    }
}

static void retry_bh(void *opaque)
{
    RwpRefaults *refaults = opaque;

    wake_sleepers(refaults, INT64_MAX);
    qatomic_dec(&refaults->in_flight);
    aio_wait_kick();
}

/* Since when somebody has been waiting for a read, or INT64_MAX */
static int64_t waiting_since(RwpRefaults *refaults)
{
    Fetch *oldest = QTAILQ_FIRST(&refaults->fetches);
    int64_t since = oldest ? oldest->start_ns : INT64_MAX;

    for (guint i = 0; i < refaults->waits->len; i++) {
        since = MIN(since,
                    g_array_index(refaults->waits, Wait, i).start_ns);
    }
    return MIN(since, refaults->reader_ns ?: INT64_MAX);
}

/* QEMU may have been told to end while a thread waits for a page */
static void watch(void *opaque)
{
    RwpRefaults *refaults = opaque;
    int64_t since;
    bool waiting;

    forget_waits(refaults);
    since = waiting_since(refaults);
    waiting = since != INT64_MAX;
    if (rwp_quit_watch(refaults->quit, waiting ? get_clock() - since : 0)) {
        wake_sleepers(refaults, INT64_MAX);
    }
    refaults->watching = false;
    if (waiting || rwp_quit_any_stuck(refaults->quit)) {
        start_watch(refaults);
    }
}

RwpRefaults *rwp_refaults_new(RwpState *s)
{
    RwpRefaults *refaults = g_new0(RwpRefaults, 1);

    GLOBAL_STATE_CODE();

    refaults->s = s;
    refaults->max_window = MAX(s->readahead / s->mem->page_size, 1);
    refaults->buffers = g_new0(void *, s->max_fetches);
    QTAILQ_INIT(&refaults->queue);
    QTAILQ_INIT(&refaults->sleeping);
    QTAILQ_INIT(&refaults->fetches);
    refaults->retry = aio_timer_new(s->fault_ctx, QEMU_CLOCK_REALTIME,
                                    SCALE_NS, retry_timer, refaults);
    refaults->waits = g_array_new(false, false, sizeof(Wait));
    refaults->quit = rwp_quit_new(s->id);
    refaults->watch = aio_timer_new(s->fault_ctx, QEMU_CLOCK_REALTIME,
                                    SCALE_NS, watch, refaults);
    return refaults;
}

/* After this no timer and no coroutine is at work, and none will be */
static void stop_timers(void *opaque)
{
    RwpRefaults *refaults = opaque;

    timer_del(refaults->watch);
    timer_del(refaults->retry);
}

void rwp_refaults_free(RwpRefaults *refaults)
{
    GLOBAL_STATE_CODE();

    rwp_refaults_quit(refaults, RWP_QUIT_CLOSED);
    AIO_WAIT_WHILE(NULL, qatomic_read(&refaults->in_flight) > 0);
    aio_wait_bh_oneshot(refaults->s->fault_ctx, stop_timers, refaults);
    timer_free(refaults->watch);
    timer_free(refaults->retry);
    rwp_quit_free(refaults->quit);
    g_array_free(refaults->waits, true);
    for (unsigned i = 0; i < refaults->nb_buffers; i++) {
        qemu_vfree(refaults->buffers[i]);
    }
    g_free(refaults->buffers);
    g_free(refaults);
}

bool rwp_refaults_stuck(RwpRefaults *refaults)
{
    return rwp_quit_any_stuck(refaults->quit);
}

void rwp_refaults_retry(RwpRefaults *refaults)
{
    qatomic_inc(&refaults->in_flight);
    aio_bh_schedule_oneshot(refaults->s->fault_ctx, retry_bh, refaults);
}

void rwp_refaults_quit(RwpRefaults *refaults, RwpQuitPhase phase)
{
    rwp_quit_set_phase(refaults->quit, phase);
    rwp_refaults_retry(refaults);
}
