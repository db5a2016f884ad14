/*
 * The fault service: whoever touches a page that is away gets it back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The kernel sends a message for each access that has to wait.  What the
 * message says of the page may be outdated when it is read, so the page's
 * state alone decides (see pages.h):
 *
 *   LIVE           the page is in memory, but has no page table entry, and
 *                  pages near it are being evicted: admit.  Or it was never
 *                  used, in a chunk in which missing pages trap: zero it
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
 * All but EVICTED is done at once with one system call.  EVICTED is left to
 * coroutines, see refault.c.
 *
 * This thread may depend on nothing that a thread which touches guest
 * memory may hold.  It takes no lock but those of batches, checksums and
 * quit.c, which are held for a few instructions, it never touches guest
 * memory itself, and it reaches the monitor only by a bottom half in the main
 * loop that nobody waits for.
 *
 * Locking: everything here runs in the fault thread, unless marked.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "block/aio-wait.h"
#include "fault.h"
#include "place.h"
#include "refault.h"
#include "trace.h"
#include "uapi.h"

/* Messages that one read(2) returns at most */
#define MAX_MESSAGES 64

struct RwpFaults {
    RwpState *s;
    RwpRefaults *refaults;

    struct uffd_msg messages[MAX_MESSAGES];
    int nb_messages;        /* that were read and not handled yet */
};

/*
 * Let accesses to a page in memory, which this thread has in FETCHING,
 * proceed.
 */
static void admit_page(RwpFaults *faults, uint64_t page)
{
    RwpState *s = faults->s;
    int ret = s->mem->tracker->admit(s->mem, page);

    trace_rwp_fault_admit(s->id, page, ret);
    if (ret == -EIO) {
        /*
         * The page has a hardware error.  Who touches it has to learn that, and
         * would do so from the kernel, if it did not trap here.
         */
        ret = rwp_memory_poison(s->mem, page);
        trace_rwp_fault_poison(s->id, page, ret);
    }
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
            rwp_refaults_wait(faults->refaults, page,
                              msg->arg.pagefault.feat.ptid, start_ns);
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
            rwp_place_zero(s, page, state);
        }
        break;
    case RWP_PAGE_STAGED:
        take_back(faults, page);
        break;
    case RWP_PAGE_ZERO:
        rwp_place_zero(s, page, state);
        break;
    case RWP_PAGE_EVICTED:
        rwp_refaults_fetch(faults->refaults, page, start_ns);
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

RwpFaults *rwp_faults_new(RwpState *s)
{
    RwpFaults *faults = g_new0(RwpFaults, 1);

    GLOBAL_STATE_CODE();

    faults->s = s;
    faults->refaults = rwp_refaults_new(s);
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
    rwp_refaults_free(faults->refaults);
    g_free(faults);
}

bool rwp_faults_stuck(RwpFaults *faults)
{
    return faults && rwp_refaults_stuck(faults->refaults);
}

void rwp_faults_retry(RwpFaults *faults)
{
    rwp_refaults_retry(faults->refaults);
}

void rwp_faults_reader(RwpFaults *faults, int64_t since_ns)
{
    rwp_refaults_reader(faults->refaults, since_ns);
}

void rwp_faults_quit(RwpFaults *faults, RwpQuitPhase phase)
{
    rwp_refaults_quit(faults->refaults, phase);
}
