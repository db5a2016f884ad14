/*
 * The fault service: whoever touches a page that is away gets it back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The kernel sends a message for each access that has to wait.  What the
 * message says of the page may be outdated when it is read, so the page's
 * state alone decides (see pages.h):
 *
 *   LIVE           the page is in memory and a hold is on: admit.  Or it
 *                  was never used, in a chunk in which missing pages trap:
 *                  zero it
 *   STAGED         take it from the evictor: admit, or give it back
 *   LEAVING        the evictor is about to decide, and will wake
 *   ZERO           zero it
 *   EVICTED        read it from the store, and some that follow, if the
 *                  accesses look sequential (see readahead.h)
 *   FETCHING       somebody is at it, and will wake
 *
 * In every case the service takes the page into FETCHING before it acts,
 * so that the page cannot be evicted between the look at its state and the
 * action, which would make the action wrong: a zero page in place of an
 * evicted one, or access to a page that is about to be removed.
 *
 * All but EVICTED is done at once with one system call.  EVICTED is put
 * into a queue, from which coroutines take it.  Their number is bounded,
 * and so is that of buffers; the queue has no more entries than there are
 * threads that wait.  Whatever a guest does, it only makes itself slow.
 *
 * A failed read is tried again for as long as it takes, and gives its turn
 * to others between two tries.  It never becomes data.
 *
 * This thread may depend on nothing that a thread which touches guest
 * memory may hold.  It takes no lock but those of pages, ages and batches,
 * it never touches guest memory itself, and it reaches the monitor only by
 * a bottom half in the main loop that nobody waits for.
 *
 * Locking: everything here runs in the fault thread, unless marked.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "qemu/coroutine.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qapi/error.h"
#include "block/aio-wait.h"
#include "events.h"
#include "fault.h"
#include "inject.h"
#include "place.h"
#include "quit.h"
#include "readahead.h"
#include "scan.h"
#include "store.h"
#include "trace.h"
#include "uapi.h"

/* Messages that one read(2) returns at most */
#define MAX_MESSAGES 64

/* How often to look whether QEMU was told to end while somebody waits */
#define WATCH_NS (250 * SCALE_MS)

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

struct RwpFaults {
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

    struct uffd_msg messages[MAX_MESSAGES];
    int nb_messages;        /* that were read and not handled yet */

    unsigned in_flight;     /* fetches; atomic, main loop waits for 0 */
    RwpQuit *quit;
    QEMUTimer *watch;       /* runs while there are fetches, and then once */
    bool watching;
};

static void record_latency(RwpState *s, int64_t ns)
{
    int row = ns > 0 ? 63 - clz64(ns) : 0;

    stat64_add(&s->stats.latency[MIN(row, RWP_LATENCY_ROWS - 1)], 1);
}

/*
 * Zero one page that this thread has in FETCHING.
 *
 * @state: where it was before, and is again if the host has no memory; who
 *     touched it is woken then and tries again
 */
static void zero_page(RwpFaults *faults, uint64_t page, RwpPage state)
{
    RwpState *s = faults->s;
    int ret = rwp_memory_zero(s->mem, page, 1);

    trace_rwp_fault_zero(s->id, page, ret);
    if (ret == 0) {
        stat64_add(&s->stats.zero_filled, 1);
    }
    /* EEXIST: the page is in memory after all; its waiter was woken */
    if (ret == 0 || ret == -EEXIST || state == RWP_PAGE_LIVE) {
        rwp_place_finish(s, page);
    } else {
        rwp_pages_finish(s->pages, page, state);
    }
    if (ret < 0 && ret != -EEXIST) {
        rwp_memory_wake(s->mem, page, 1);
    }
}

/*
 * Let accesses to a page in memory, which this thread has in FETCHING,
 * proceed.
 */
static void admit_page(RwpFaults *faults, uint64_t page)
{
    RwpState *s = faults->s;
    int ret = s->mem->tracker->admit(s->mem, page);

    trace_rwp_fault_admit(s->id, page, ret);
    rwp_place_finish(s, page);
}

/* A staged page was touched; this thread has it in FETCHING */
static void take_back(RwpFaults *faults, uint64_t page)
{
    RwpState *s = faults->s;

    if (s->mem->pager->stays) {
        stat64_add(&s->stats.evict_cancelled, 1);
        admit_page(faults, page);
    } else {
        void *content = rwp_batch_content(&s->batches, page,
                                          s->mem->page_size);
        int ret = s->mem->pager->give_back(s->mem, page, content);

        trace_rwp_fault_give_back(s->id, page, ret);
        if (ret == 0 || ret == -EEXIST) {
            stat64_add(&s->stats.evict_cancelled, 1);
            rwp_place_finish(s, page);
        } else {
            /* No memory: the evictor keeps it; who waits tries again */
            rwp_pages_finish(s->pages, page, RWP_PAGE_STAGED);
            rwp_memory_wake(s->mem, page, 1);
        }
    }
}

/* There are as many as coroutines that can ask for one */
static void *get_buffer(RwpFaults *faults)
{
    uint64_t bytes = rwp_state_page_bytes(faults->s, faults->max_window);

    if (!faults->nb_free) {
        faults->buffers[faults->nb_free++] =
            qemu_memalign(qemu_real_host_page_size(), bytes);
        faults->nb_buffers++;
        qatomic_add(&faults->s->stats.buffer_bytes, bytes);
    }
    return faults->buffers[--faults->nb_free];
}

static void put_buffer(RwpFaults *faults, void *buf)
{
    faults->buffers[faults->nb_free++] = buf;
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
    int ret = rwp_place_read(s, fetch->page, fetch->count, buf);

    if (ret < 0 && fetch->count > 1) {
        release_neighbours(s, fetch);
        ret = rwp_place_read(s, fetch->page, 1, buf);
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
    if (rwp_place_read(s, fetch->page, fetch->count, buf) < 0) {
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
static bool coroutine_fn try_fetch(RwpFaults *faults, Fetch *fetch)
{
    RwpState *s = faults->s;
    void *buf = get_buffer(faults);
    int ret;

    if (fetch->ahead) {
        fetch_ahead(s, fetch, buf);
        put_buffer(faults, buf);
        return true;
    }
    if (!fetch->claimed) {
        claim_window(s, fetch, rwp_readahead_window(&faults->readahead,
                                                    fetch->page,
                                                    faults->max_window));
        fetch->claimed = true;
    }
    ret = read_pages(s, fetch, buf);
    if (rwp_pages_discarded(s->pages, fetch->page)) {
        /* Nobody wants the content any more */
        release_neighbours(s, fetch);
        zero_page(faults, fetch->page, RWP_PAGE_LIVE);
        ret = 0;
    } else if (ret == 0) {
        ret = place_pages(s, fetch, buf);
        if (ret < 0) {
            release_neighbours(s, fetch);
        }
    }
    put_buffer(faults, buf);
    return ret == 0;
}

static void end_fetch(RwpFaults *faults, Fetch *fetch)
{
    QTAILQ_REMOVE(&faults->fetches, fetch, age);
    g_free(fetch);
    qatomic_dec(&faults->in_flight);
    aio_wait_kick();
}

static void sleep_fetch(RwpFaults *faults, Fetch *fetch)
{
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);

    fetch->pause_ns = MIN(MAX(fetch->pause_ns * 2, RETRY_MIN_NS),
                          RETRY_MAX_NS);
    fetch->due_ns = now + fetch->pause_ns;
    QTAILQ_INSERT_TAIL(&faults->sleeping, fetch, next);
    qatomic_inc(&faults->s->stats.fetch_waiting);
    timer_mod_anticipate_ns(faults->retry, fetch->due_ns);
}

/* Takes fetches from the queue until there are none */
static void coroutine_fn fetch_co(void *opaque)
{
    RwpFaults *faults = opaque;
    RwpState *s = faults->s;
    Fetch *fetch;

    while ((fetch = QTAILQ_FIRST(&faults->queue))) {
        QTAILQ_REMOVE(&faults->queue, fetch, next);
        qatomic_dec(&s->stats.fetch_queued);
        if (try_fetch(faults, fetch)) {
            end_fetch(faults, fetch);
        } else if (rwp_quit_phase(faults->quit) == RWP_QUIT_NO) {
            sleep_fetch(faults, fetch);
        } else {
            /* It stays FETCHING; see quit.c for who waits for it */
            rwp_quit_lose(faults->quit, fetch->page);
            rwp_memory_wake(s->mem, fetch->page, 1);
            end_fetch(faults, fetch);
        }
    }
    qatomic_set(&s->stats.fetch_running, --faults->running);
}

/* It is the turn of @fetch after those that came before */
static void queue_fetch(RwpFaults *faults, Fetch *fetch)
{
    RwpState *s = faults->s;

    QTAILQ_INSERT_TAIL(&faults->queue, fetch, next);
    qatomic_inc(&s->stats.fetch_queued);
    if (faults->running < s->max_fetches) {
        qatomic_set(&s->stats.fetch_running, ++faults->running);
        stat64_max(&s->stats.fetch_peak, faults->running);
        qemu_coroutine_enter(qemu_coroutine_create(fetch_co, faults));
    }
}

static void start_fetch(RwpFaults *faults, Fetch *fetch)
{
    QTAILQ_INSERT_TAIL(&faults->fetches, fetch, age);
    qatomic_inc(&faults->in_flight);
    if (!faults->watching) {
        faults->watching = true;
        timer_mod_ns(faults->watch,
                     qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + WATCH_NS);
    }
    queue_fetch(faults, fetch);
}

/* Try again what has slept until @now */
static void wake_sleepers(RwpFaults *faults, int64_t now)
{
    FetchList due = QTAILQ_HEAD_INITIALIZER(due);
    Fetch *fetch, *next;

    QTAILQ_FOREACH_SAFE(fetch, &faults->sleeping, next, next) {
        if (fetch->due_ns <= now) {
            QTAILQ_REMOVE(&faults->sleeping, fetch, next);
            QTAILQ_INSERT_TAIL(&due, fetch, next);
        } else {
            timer_mod_anticipate_ns(faults->retry, fetch->due_ns);
        }
    }
    /* Each may run at once, and go back to sleep */
    while ((fetch = QTAILQ_FIRST(&due))) {
        QTAILQ_REMOVE(&due, fetch, next);
        qatomic_dec(&faults->s->stats.fetch_waiting);
        queue_fetch(faults, fetch);
    }
}

static void retry_timer(void *opaque)
{
    wake_sleepers(opaque, qemu_clock_get_ns(QEMU_CLOCK_REALTIME));
}

/* Read @page, which this thread has in FETCHING, from the store */
static void fetch_page(RwpFaults *faults, uint64_t page, int64_t start_ns)
{
    Fetch *fetch = g_new0(Fetch, 1);

    fetch->page = page;
    fetch->count = 1;
    fetch->start_ns = start_ns;
    start_fetch(faults, fetch);
}

/* @page is waited for: read what is going to be waited for next */
static void read_ahead(RwpFaults *faults, uint64_t page, int64_t start_ns)
{
    RwpState *s = faults->s;
    uint64_t first, window;

    while (faults->running < s->max_fetches &&
           rwp_quit_phase(faults->quit) == RWP_QUIT_NO &&
           (window = rwp_readahead_more(&faults->readahead, page,
                                        faults->max_window, &first))) {
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
        start_fetch(faults, fetch);
    }
}

/* The thread @tid touched a page that somebody is bringing back */
static void handle_fetching(RwpFaults *faults, uint64_t page, uint32_t tid,
                            int64_t start_ns)
{
    read_ahead(faults, page, start_ns);
    if (rwp_quit_phase(faults->quit) != RWP_QUIT_NO &&
        rwp_quit_waiter(faults->quit, page, tid)) {
        zero_page(faults, page, RWP_PAGE_LIVE);
    }
}

/* One access waits for @page; @msg is the kernel's message */
static void handle_fault(RwpFaults *faults, uint64_t page,
                         const struct uffd_msg *msg, int64_t start_ns)
{
    uint64_t flags = msg->arg.pagefault.flags;
    RwpState *s = faults->s;
    RwpPage state;

    for (;;) {
        state = rwp_pages_get(s->pages, page);
        trace_rwp_fault(s->id, page, flags, state);
        if (state == RWP_PAGE_FETCHING) {
            handle_fetching(faults, page, msg->arg.pagefault.feat.ptid,
                            start_ns);
            return;
        }
        if (state == RWP_PAGE_LEAVING) {
            return;
        }
        if (rwp_pages_move(s->pages, page, state, RWP_PAGE_FETCHING)) {
            break;
        }
    }

    switch (state) {
    case RWP_PAGE_LIVE:
        if (flags & (UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_RWP)) {
            admit_page(faults, page);
        } else {
            zero_page(faults, page, state);
        }
        break;
    case RWP_PAGE_STAGED:
        take_back(faults, page);
        break;
    case RWP_PAGE_ZERO:
        zero_page(faults, page, state);
        break;
    case RWP_PAGE_EVICTED:
        fetch_page(faults, page, start_ns);
        read_ahead(faults, page, start_ns);
        break;
    default:
        g_assert_not_reached();
    }
}

/* Returns whether there is a message that was not handled yet */
static bool read_messages(void *opaque)
{
    RwpFaults *faults = opaque;
    RwpState *s = faults->s;
    int nb;

    if (!faults->nb_messages) {
        nb = rwp_memory_read_faults(s->mem, faults->messages, MAX_MESSAGES);
        if (nb < 0) {
            trace_rwp_fault_read_failed(s->id, nb);
        }
        faults->nb_messages = MAX(nb, 0);
    }
    return faults->nb_messages > 0;
}

static void handle_messages(void *opaque)
{
    RwpFaults *faults = opaque;
    RwpMemory *mem = faults->s->mem;
    int64_t now = get_clock();

    for (int i = 0; i < faults->nb_messages; i++) {
        const struct uffd_msg *msg = &faults->messages[i];
        uint64_t page = (msg->arg.pagefault.address -
                         (uintptr_t)mem->host) / mem->page_size;

        /* Staging buffers are registered too, but never touched */
        if (msg->event == UFFD_EVENT_PAGEFAULT && page < mem->nb_pages) {
            handle_fault(faults, page, msg, now);
        }
    }
    /* If there are more, the file descriptor is readable still */
    faults->nb_messages = 0;
}

static void faults_readable(void *opaque)
{
    if (read_messages(opaque)) {
        handle_messages(opaque);
    }
}

/*
 * Faults often come one after the other, and to put the thread to sleep
 * takes as long as to read a page: so the thread polls for a while, like
 * IOThreads do.  A read of the userfaultfd is the cheapest way to do that.
 */
static void start_serving(void *opaque)
{
    RwpFaults *faults = opaque;
    RwpState *s = faults->s;

    aio_set_fd_handler(s->fault_ctx, s->mem->uffd, faults_readable, NULL,
                       read_messages, handle_messages, faults);
}

static void stop_serving(void *opaque)
{
    RwpFaults *faults = opaque;
    RwpState *s = faults->s;

    aio_set_fd_handler(s->fault_ctx, s->mem->uffd, NULL, NULL, NULL, NULL,
                       NULL);
}

static void retry_bh(void *opaque)
{
    RwpFaults *faults = opaque;

    wake_sleepers(faults, INT64_MAX);
    qatomic_dec(&faults->in_flight);
    aio_wait_kick();
}

/* QEMU may have been told to end while a thread waits for a page */
static void watch(void *opaque)
{
    RwpFaults *faults = opaque;
    Fetch *oldest = QTAILQ_FIRST(&faults->fetches);
    int64_t wait_ns = oldest ? get_clock() - oldest->start_ns : 0;

    if (rwp_quit_watch(faults->quit, wait_ns)) {
        wake_sleepers(faults, INT64_MAX);
    }
    faults->watching = oldest || rwp_quit_any_stuck(faults->quit);
    if (faults->watching) {
        timer_mod_ns(faults->watch,
                     qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + WATCH_NS);
    }
}

RwpFaults *rwp_faults_new(RwpState *s)
{
    RwpFaults *faults = g_new0(RwpFaults, 1);

    GLOBAL_STATE_CODE();

    faults->s = s;
    faults->max_window = MAX(s->readahead / s->mem->page_size, 1);
    faults->buffers = g_new0(void *, s->max_fetches);
    QTAILQ_INIT(&faults->queue);
    QTAILQ_INIT(&faults->sleeping);
    QTAILQ_INIT(&faults->fetches);
    faults->retry = aio_timer_new(s->fault_ctx, QEMU_CLOCK_REALTIME, SCALE_NS,
                                  retry_timer, faults);
    faults->quit = rwp_quit_new(s->id);
    faults->watch = aio_timer_new(s->fault_ctx, QEMU_CLOCK_REALTIME, SCALE_NS,
                                  watch, faults);
    aio_wait_bh_oneshot(s->fault_ctx, start_serving, faults);
    return faults;
}

void rwp_faults_free(RwpFaults *faults)
{
    GLOBAL_STATE_CODE();

    if (!faults) {
        return;
    }
    aio_wait_bh_oneshot(faults->s->fault_ctx, stop_serving, faults);
    rwp_faults_quit(faults, RWP_QUIT_CLOSED);
    AIO_WAIT_WHILE(NULL, qatomic_read(&faults->in_flight) > 0);
    timer_free(faults->watch);
    timer_free(faults->retry);
    rwp_quit_free(faults->quit);
    for (unsigned i = 0; i < faults->nb_buffers; i++) {
        qemu_vfree(faults->buffers[i]);
    }
    g_free(faults->buffers);
    g_free(faults);
}

bool rwp_faults_stuck(RwpFaults *faults)
{
    return faults && rwp_quit_any_stuck(faults->quit);
}

void rwp_faults_retry(RwpFaults *faults)
{
    qatomic_inc(&faults->in_flight);
    aio_bh_schedule_oneshot(faults->s->fault_ctx, retry_bh, faults);
}

void rwp_faults_quit(RwpFaults *faults, RwpQuitPhase phase)
{
    rwp_quit_set_phase(faults->quit, phase);
    rwp_faults_retry(faults);
}
