/*
 * Lifecycle of the working set tracker of one backend
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Three levels, each entered only when it is needed:
 *   created   the kernel's userfaultfd is open; nothing is registered
 *   active    threads exist, the memory is registered; while tracking
 *             runs, a job runs, or pages are away
 *   guarded   pages are away or a job may take some; see guard.h
 *
 * Locking: everything here runs in the main loop with the BQL, unless
 * marked.  See state.h for who uses which field.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qemu/error-report.h"
#include "qapi/error.h"
#include "block/thread-pool.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "system/hostmem.h"
#include "system/runstate.h"
#include "system/runstate-action.h"
#include "checksum.h"
#include "fault.h"
#include "guard.h"
#include "migrate.h"
#include "peek.h"
#include "quit.h"
#include "registry.h"
#include "scan.h"
#include "state.h"
#include "store.h"
#include "trace.h"
#include "uapi.h"

/* Chunks whose pages are counted in one go: 1 GiB, some milliseconds at most */
#define RESIDENT_CHUNKS 16

/* With that many pages away it may be time to settle */
#define SETTLE_AWAY 4

/*
 * How long the main loop, and so the guest, may wait for memory to be let go,
 * and how long it is left alone then.  A bottom half would have the BQL again
 * before a vCPU that waits for it is awake.
 */
#define LET_GO_NS (2 * SCALE_MS)

/* Threads that are kept for reads of the store, with aio=threads */
#define FAULT_POOL_MIN 2

/*
 * How long the fault thread polls before it sleeps, as long as that pays.  It is
 * more than an IOThread's default, because a read of a device mostly takes
 * longer than that, and a vCPU waits for it.  One slow read is no reason to
 * begin all over.
 */
#define FAULT_POLL_MAX_NS (150 * SCALE_US)
#define FAULT_POLL_SHRINK 2

static const RwpTrackerOps *const trackers[] = {
    [RWP_TRACKER_RWP] = &rwp_tracker_rwp,
    [RWP_TRACKER_ZAP] = &rwp_tracker_zap,
    [RWP_TRACKER_NONE] = &rwp_tracker_none,
};

static const RwpPagerOps *const pagers[] = {
    [RWP_BACKING_ANONYMOUS] = &rwp_pager_move,
    [RWP_BACKING_MEMFD] = &rwp_pager_punch,
};

/* Which kernels have what a tracker or pager needs, for messages */
static const char *tracker_needs(RwpTracker tracker)
{
    return tracker == RWP_TRACKER_RWP ?
           "userfaultfd read-write protection (Linux 7.3, or Linux 6.12 "
           "with linux-rwp)" :
           "userfaultfd asynchronous write protection (Linux 6.7)";
}

static bool has_tracker(uint64_t features, RwpTracker tracker)
{
    uint64_t needed = trackers[tracker]->features;

    return (features & needed) == needed;
}

static bool has_pager(uint64_t features, RwpBacking backing)
{
    uint64_t needed = pagers[backing]->features;

    return (features & needed) == needed;
}

bool rwp_select(RwpTracker *tracker, RwpBacking *backing, bool share,
                bool hugetlb, Error **errp)
{
    bool memfd_only = share || hugetlb || *tracker == RWP_TRACKER_ZAP;
    uint64_t features;

    if (!rwp_memory_features(&features, errp)) {
        return false;
    }
    if (*backing == RWP_BACKING_ANONYMOUS && (share || hugetlb)) {
        error_setg(errp, "backing=anonymous cannot be combined with %s",
                   share ? "share=on" : "hugetlb=on");
        return false;
    }
    if (*backing == RWP_BACKING_ANONYMOUS && *tracker == RWP_TRACKER_ZAP) {
        error_setg(errp, "tracker=zap needs backing=memfd, it cannot track "
                   "anonymous memory");
        return false;
    }
    if (*tracker == RWP_TRACKER_NONE &&
        (memfd_only || *backing == RWP_BACKING_MEMFD)) {
        error_setg(errp, "tracker=none needs anonymous memory, pages of a "
                   "memfd (backing=memfd, share=on, hugetlb=on) cannot be "
                   "evicted without a tracker");
        return false;
    }

    if (*tracker == RWP_TRACKER_AUTO) {
        if (has_tracker(features, RWP_TRACKER_RWP)) {
            *tracker = RWP_TRACKER_RWP;
        } else if (*backing == RWP_BACKING_ANONYMOUS) {
            error_setg(errp, "backing=anonymous cannot be tracked: the host "
                       "kernel has no %s; use backing=memfd",
                       tracker_needs(RWP_TRACKER_RWP));
            return false;
        } else {
            *tracker = RWP_TRACKER_ZAP;
            memfd_only = true;
        }
    }
    if (!has_tracker(features, *tracker)) {
        error_setg(errp, "tracker=%s: the host kernel has no %s",
                   RwpTracker_str(*tracker), tracker_needs(*tracker));
        return false;
    }

    if (*backing == RWP_BACKING_AUTO) {
        *backing = memfd_only || !has_pager(features, RWP_BACKING_ANONYMOUS) ?
                   RWP_BACKING_MEMFD : RWP_BACKING_ANONYMOUS;
    }
    if (!has_pager(features, *backing)) {
        error_setg(errp, "backing=%s: the host kernel has no %s",
                   RwpBacking_str(*backing),
                   *backing == RWP_BACKING_ANONYMOUS ?
                   "UFFDIO_MOVE (Linux 6.8)" :
                   "userfaultfd for shared memory (Linux 4.11)");
        return false;
    }
    return true;
}

static bool start_threads(RwpState *s, Error **errp)
{
    /* A deleted backend of the same ID may have its threads still */
    static unsigned nr;
    g_autofree char *fault_id = NULL;
    g_autofree char *work_id = NULL;

    if (s->work_thread) {
        return true;
    }
    nr++;
    fault_id = g_strdup_printf("rwp-fault-%s-%u", s->id, nr);
    work_id = g_strdup_printf("rwp-work-%s-%u", s->id, nr);
    s->fault_thread = iothread_create(fault_id, errp);
    if (!s->fault_thread) {
        return false;
    }
    s->work_thread = iothread_create(work_id, errp);
    if (!s->work_thread) {
        iothread_destroy(s->fault_thread);
        s->fault_thread = NULL;
        return false;
    }
    s->fault_ctx = iothread_get_aio_context(s->fault_thread);
    s->work_ctx = iothread_get_aio_context(s->work_thread);
    aio_context_set_poll_params(s->fault_ctx, FAULT_POLL_MAX_NS, 0,
                                FAULT_POLL_SHRINK, NULL);
    /* A vCPU shall not wait for a thread to be created */
    aio_context_set_thread_pool_params(s->fault_ctx, FAULT_POOL_MIN,
                                       THREAD_POOL_MAX_THREADS_DEFAULT, NULL);
    return true;
}

/* Nobody needs the registration.  No work is going on. */
static void let_go(RwpState *s, int64_t until_ns)
{
    s->leaving = !rwp_memory_unregister(s->mem, until_ns);
    s->active = s->leaving;
    if (s->leaving) {
        timer_mod(s->leave_timer,
                  qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + LET_GO_NS);
    }
}

bool rwp_state_registered(RwpState *s)
{
    GLOBAL_STATE_CODE();

    if (s->leaving) {
        let_go(s, INT64_MAX);
    }
    return s->active;
}

bool rwp_state_start(RwpState *s, Error **errp)
{
    uint64_t modes = s->mem->tracker->modes(s->mem);
    bool again = s->active && !s->leaving;
    int ret;

    GLOBAL_STATE_CODE();

    if (!again && !rwp_migrate_may_track(s, errp)) {
        return false;
    }
    if (!start_threads(s, errp)) {
        return false;
    }
    if (!s->scanner) {
        s->scanner = rwp_scanner_new(s);
    }
    if (!s->faults) {
        qatomic_set(&s->faults, rwp_faults_new(s));
    }
    if (!again && modes) {
        ret = rwp_memory_register_all(s->mem, modes);
        if (ret < 0) {
            let_go(s, INT64_MAX);
            error_setg_errno(errp, -ret, "memory-backend-rwp '%s': cannot "
                             "register the memory with userfaultfd", s->id);
            return false;
        }
    }
    s->active = true;
    s->leaving = false;
    return true;
}

/* The node of the store went away: QEMU terminates */
static void store_removed(void *opaque)
{
    RwpState *s = opaque;

    rwp_faults_quit(s->faults, RWP_QUIT_CLOSED);
}

/*
 * Go on with @store, which may be NULL, instead of the present one.  That is
 * closed, unless it is the property's; closing can run bottom halves.
 */
static void use_store(RwpState *s, RwpStore *store)
{
    RwpStore *old = s->store;

    s->store = store;
    if (old != s->own_store) {
        rwp_state_begin(s);
        rwp_store_close(old);
        rwp_state_end(s);
    }
}

/* Use the node @node_name as the store.  Fails if pages are in another one. */
static bool set_store(RwpState *s, const char *node_name, Error **errp)
{
    RwpStore *store;

    if (s->store && g_str_equal(node_name, rwp_store_node_name(s->store))) {
        return true;
    }
    /* Without a store, those that are away are about to be mapped again */
    if (s->store && rwp_pages_away(s->pages)) {
        error_setg(errp, "memory-backend-rwp '%s': there are pages in the "
                   "store '%s'; bring them back with rwp-fetch before using "
                   "another one", s->id, rwp_store_node_name(s->store));
        return false;
    }
    if (!start_threads(s, errp)) {
        return false;
    }
    if (!s->faults) {
        qatomic_set(&s->faults, rwp_faults_new(s));
    }
    if (s->own_store &&
        g_str_equal(node_name, rwp_store_node_name(s->own_store))) {
        use_store(s, s->own_store);
        return true;
    }
    store = rwp_store_open(node_name, s->mem->size, s->fault_ctx,
                           store_removed, s, errp);
    if (!store) {
        return false;
    }
    if (!g_strcmp0(node_name, s->own_node)) {
        s->own_store = store;
    }
    use_store(s, store);
    return true;
}

bool rwp_state_need_store(RwpState *s, const char *node_name, Error **errp)
{
    GLOBAL_STATE_CODE();

    if (node_name) {
        return set_store(s, node_name, errp);
    }
    if (!s->store && s->own_node) {
        return set_store(s, s->own_node, errp);
    }
    if (!s->store) {
        error_setg(errp, "memory-backend-rwp '%s' has no store", s->id);
        error_append_hint(errp, "Set its property 'store', or name a block "
                          "node with the argument 'target'.\n");
        return false;
    }
    return true;
}

void rwp_state_settle(RwpState *s)
{
    GLOBAL_STATE_CODE();

    if (s->unsettled || s->job || rwp_pages_away(s->pages) || rwp_peek_busy(s)) {
        return;
    }
    rwp_checksums_trim(s->checksums, 0, s->mem->nb_pages);
    rwp_guard_leave(s);
    if (s->store != s->own_store && !s->ending) {
        use_store(s, s->own_store);
    }
    if (s->active && !rwp_scanner_running(s->scanner)) {
        let_go(s, get_clock() + LET_GO_NS);
    }
}

static void settle_bh(void *opaque)
{
    rwp_state_settle(opaque);
}

void rwp_state_settle_soon(RwpState *s)
{
    /*
     * Not 0: another thread that tries to claim a page raises the number
     * for a moment.  Whether it is 0 is looked at in the main loop.
     */
    if (rwp_pages_away(s->pages) > SETTLE_AWAY) {
        return;
    }
    /* With tracking on, every fault in a quiet chunk comes through here */
    if (qatomic_read(&s->guarded) || !rwp_scanner_running(s->scanner)) {
        qemu_bh_schedule(s->settle_bh);
    }
}

static void begin_quit(RwpState *s, void *opaque)
{
    RwpQuitPhase *phase = opaque;

    if (s->faults) {
        rwp_faults_quit(s->faults, *phase);
    }
}

/*
 * QEMU is about to stop the guest for good.  A vCPU that waits for a page
 * which the store does not deliver would keep it from that; see quit.c.
 */
static void state_shutdown(Notifier *notifier, void *data)
{
    RwpState *s = container_of(notifier, RwpState, shutdown_notifier);
    RwpQuitPhase phase = RWP_QUIT_BEGUN;

    if (shutdown_action == SHUTDOWN_ACTION_PAUSE) {
        return;
    }
    /*
     * QEMU is going to close all stores, and walks over them while bottom
     * halves run: what is closed by one then is freed under its feet.
     */
    s->ending = true;
    if (!s->faults || !rwp_pages_away(s->pages)) {
        return;
    }
    /* A vCPU may wait for a page of any of them */
    rwp_state_foreach(begin_quit, &phase);
    rwp_quit_stop_vcpus();
    phase = RWP_QUIT_ANNOUNCED;
    rwp_state_foreach(begin_quit, &phase);
}

RwpState *rwp_state_new(RAMBlock *rb, const RwpConfig *config, Error **errp)
{
    g_autofree RwpState *s = g_new0(RwpState, 1);

    GLOBAL_STATE_CODE();

    s->rb = rb;
    s->mem = rwp_memory_open(trackers[config->tracker],
                             pagers[config->backing], rb->host,
                             rb->max_length, rb->page_size, rb->fd, errp);
    if (!s->mem) {
        return NULL;
    }
    s->ages = rwp_ages_new(s->mem->nb_pages, errp);
    if (!s->ages) {
        goto fail_mem;
    }
    s->pages = rwp_pages_new(s->mem->nb_pages, s->mem->chunk_pages, errp);
    if (!s->pages) {
        goto fail_ages;
    }
    if (config->checksum) {
        s->checksums = rwp_checksums_new(s->pages, s->mem->nb_pages,
                                         s->mem->chunk_pages,
                                         s->mem->page_size);
    }
    s->resident = rwp_resident_new(s->mem, s->pages, RESIDENT_CHUNKS);
    s->pins = rwp_pins_new(s->mem->size,
                           rwp_state_page_bytes(s, s->mem->chunk_pages));
    s->id = g_strdup(config->id);
    s->thp = config->thp;
    s->default_interval = config->interval;
    s->readahead = config->readahead;
    s->max_fetches = config->max_fetches;
    rwp_batch_list_init(&s->batches);
    s->settle_bh = qemu_bh_new(settle_bh, s);
    s->leave_timer = aio_timer_new(qemu_get_aio_context(), QEMU_CLOCK_REALTIME,
                                   SCALE_NS, settle_bh, s);
    s->shutdown_notifier.notify = state_shutdown;
    qemu_register_shutdown_notifier(&s->shutdown_notifier);
    s->peek = rwp_peek_new();
    rwp_guard_hook(s);
    rwp_registry_add(s);
    if (!rwp_migrate_watch(s, errp)) {
        rwp_state_free(g_steal_pointer(&s));
        return NULL;
    }

    s->own_node = g_strdup(config->store);
    /* Before an incoming migration has ended, nobody may write to a node */
    if (s->own_node && !runstate_check(RUN_STATE_INMIGRATE) &&
        !set_store(s, s->own_node, errp)) {
        rwp_state_free(g_steal_pointer(&s));
        return NULL;
    }
    return g_steal_pointer(&s);

fail_ages:
    rwp_ages_free(s->ages);
fail_mem:
    rwp_memory_close(s->mem);
    return NULL;
}

void rwp_state_free(RwpState *s)
{
    GLOBAL_STATE_CODE();

    if (!s) {
        return;
    }
    assert(!s->job);
    if (rwp_faults_stuck(s->faults)) {
        /* The process ends, and until then the vCPU must find no page */
        return;
    }
    rwp_state_begin(s);
    rwp_registry_remove(s);
    rwp_migrate_unwatch(s);
    notifier_remove(&s->shutdown_notifier);
    /* Reads of the store end here, which look whether the scanner runs */
    rwp_faults_free(s->faults);
    rwp_scanner_free(s->scanner);
    rwp_resident_free(s->resident);
    rwp_guard_unhook(s);
    /* Nobody schedules it any more, and closing runs bottom halves */
    qemu_bh_delete(s->settle_bh);
    timer_free(s->leave_timer);
    rwp_memory_close(s->mem);
    use_store(s, NULL);
    rwp_store_close(s->own_store);
    if (s->work_thread) {
        iothread_destroy(s->work_thread);
        iothread_destroy(s->fault_thread);
    }
    rwp_guard_leave(s);
    rwp_batch_list_destroy(&s->batches);
    rwp_checksums_free(s->checksums);
    rwp_pages_free(s->pages);
    rwp_ages_free(s->ages);
    rwp_peek_free(s->peek);
    rwp_pins_free(s->pins);
    g_free(s->own_node);
    g_free(s->id);
    g_free(s);
}

bool rwp_state_busy(RwpState *s)
{
    return s->job != NULL;
}
