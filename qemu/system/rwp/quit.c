/*
 * What becomes of those who wait for a page when QEMU ends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A thread that touched an evicted page waits until the store returns it.
 * If the store does not, it waits for as long as QEMU lives, and would keep
 * QEMU from ending.  A thread that waits in a page fault cannot be talked
 * to: it goes on when the page is there, and not before.  So what it gets
 * depends on what it could do with wrong content:
 *
 * vCPUs would compute from it, and write the result to memory or to a
 * device before they can be stopped.  They get nothing.  They stay in the
 * fault until the process is gone, and count as stopped.
 *
 * All others (the main loop, iothreads, workers, the host kernel) could
 * write it to a disk of the guest or send it somewhere.  While that is
 * possible, the process ends instead, as it would by SIGKILL: content that
 * cannot be read is not written anywhere.
 *
 * After all block nodes were closed, which QEMU does after it has stopped
 * the vCPUs and ended migration, there is nothing left to write to.  Then
 * these others get zeros, so that they can end properly.
 *
 * This is decided for each thread that waits, by the thread ID that the
 * kernel reports with a fault.
 *
 * The main loop normally announces the end.  It cannot if it waits for a
 * page itself, or for the BQL that a thread holds which does.  So the fault
 * thread looks for the request itself, and does not wait for ever for a
 * main loop that does not react.
 *
 * Locking: @phase is atomic, the lists have a mutex, the rest belongs to
 * the fault thread.  The list of vCPUs is read with RCU.
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "hw/core/cpu.h"
#include "system/runstate.h"
#include "system/runstate-action.h"
#include "quit.h"
#include "trace.h"

/* How long the main loop may take to announce the end */
#define ANNOUNCE_NS (10 * NANOSECONDS_PER_SECOND)

/* How long QEMU may take to end, while somebody waits for a page */
#define END_NS (60 * NANOSECONDS_PER_SECOND)

#define STOP_POLL_US 1000

struct RwpQuit {
    char *id;
    RwpQuitPhase phase;         /* atomic */
    int64_t begun_ns;           /* fault thread: when it saw the phase */

    QLIST_ENTRY(RwpQuit) next;  /* of all backends; main loop */

    QemuMutex lock;
    /* Protected by lock */
    GHashTable *lost;           /* pages; those for which a vCPU waits: 1 */
    GHashTable *stuck;          /* thread IDs of such vCPUs */
};

static QLIST_HEAD(, RwpQuit) backends = QLIST_HEAD_INITIALIZER(backends);

RwpQuit *rwp_quit_new(const char *id)
{
    RwpQuit *quit = g_new0(RwpQuit, 1);

    GLOBAL_STATE_CODE();

    quit->id = g_strdup(id);
    quit->lost = g_hash_table_new(NULL, NULL);
    quit->stuck = g_hash_table_new(NULL, NULL);
    qemu_mutex_init(&quit->lock);
    QLIST_INSERT_HEAD(&backends, quit, next);
    return quit;
}

void rwp_quit_free(RwpQuit *quit)
{
    GLOBAL_STATE_CODE();

    QLIST_REMOVE(quit, next);
    qemu_mutex_destroy(&quit->lock);
    g_hash_table_unref(quit->lost);
    g_hash_table_unref(quit->stuck);
    g_free(quit->id);
    g_free(quit);
}

void rwp_quit_set_phase(RwpQuit *quit, RwpQuitPhase phase)
{
    RwpQuitPhase old = qatomic_read(&quit->phase);

    while (old < phase) {
        RwpQuitPhase found = qatomic_cmpxchg(&quit->phase, old, phase);

        if (found == old) {
            trace_rwp_quit_phase(quit->id, phase);
            break;
        }
        old = found;
    }
}

RwpQuitPhase rwp_quit_phase(RwpQuit *quit)
{
    return qatomic_read(&quit->phase);
}

/* Whether QEMU was told to end, heard of it or not */
static bool quit_requested(void)
{
    sigset_t pending;

    if (qemu_shutdown_requested_get() != SHUTDOWN_CAUSE_NONE) {
        return shutdown_action != SHUTDOWN_ACTION_PAUSE;
    }
    /*
     * Only the main thread takes these signals, and only on the way back
     * from a system call: never, if that call touched the page.
     */
    return sigpending(&pending) == 0 &&
           (sigismember(&pending, SIGTERM) == 1 ||
            sigismember(&pending, SIGINT) == 1 ||
            sigismember(&pending, SIGHUP) == 1);
}

static bool is_vcpu(uint32_t tid)
{
    CPUState *cpu;

    RCU_READ_LOCK_GUARD();
    CPU_FOREACH(cpu) {
        if (cpu->thread_id == tid) {
            return true;
        }
    }
    return false;
}

/*
 * End the process.  No buffer is flushed and no notifier runs: they could
 * use guest memory.
 */
static G_NORETURN void end_process(RwpQuit *quit, const char *who)
{
    error_report("memory-backend-rwp '%s': %s waits for memory that the store "
                 "does not return; QEMU ends without closing anything",
                 quit->id, who);
    _exit(EXIT_FAILURE);
}

void rwp_quit_lose(RwpQuit *quit, uint64_t page)
{
    trace_rwp_quit_lose(quit->id, page);
    QEMU_LOCK_GUARD(&quit->lock);
    g_hash_table_insert(quit->lost, (gpointer)(uintptr_t)page, NULL);
}

bool rwp_quit_waiter(RwpQuit *quit, uint64_t page, uint32_t tid)
{
    gpointer key = (gpointer)(uintptr_t)page;
    gpointer vcpu_waits;

    QEMU_LOCK_GUARD(&quit->lock);
    if (!g_hash_table_lookup_extended(quit->lost, key, NULL, &vcpu_waits)) {
        return false;
    }
    trace_rwp_quit_waiter(quit->id, page, tid);
    if (is_vcpu(tid)) {
        g_hash_table_insert(quit->lost, key, GINT_TO_POINTER(1));
        g_hash_table_add(quit->stuck, GUINT_TO_POINTER(tid));
        return false;
    }
    if (rwp_quit_phase(quit) < RWP_QUIT_CLOSED || vcpu_waits) {
        end_process(quit, tid == getpid() ? "the main loop" : "a thread");
    }
    g_hash_table_remove(quit->lost, key);
    return true;
}

static bool is_stuck(uint32_t tid)
{
    RwpQuit *quit;

    QLIST_FOREACH(quit, &backends, next) {
        QEMU_LOCK_GUARD(&quit->lock);
        if (g_hash_table_contains(quit->stuck, GUINT_TO_POINTER(tid))) {
            return true;
        }
    }
    return false;
}

bool rwp_quit_any_stuck(RwpQuit *quit)
{
    QEMU_LOCK_GUARD(&quit->lock);
    return g_hash_table_size(quit->stuck) > 0;
}

bool rwp_quit_watch(RwpQuit *quit, int64_t wait_ns)
{
    RwpQuitPhase phase = rwp_quit_phase(quit);
    int64_t now = get_clock();
    int64_t limit_ns = phase == RWP_QUIT_BEGUN ? ANNOUNCE_NS : END_NS;

    if (phase == RWP_QUIT_NO) {
        if (!quit_requested()) {
            return false;
        }
        rwp_quit_set_phase(quit, RWP_QUIT_BEGUN);
        quit->begun_ns = now;
        return true;
    }
    if (!quit->begun_ns) {
        /* It was begun by the main loop, a moment ago */
        quit->begun_ns = now;
    }
    if (now - quit->begun_ns > limit_ns &&
        (wait_ns > limit_ns || rwp_quit_any_stuck(quit))) {
        end_process(quit, "a thread");
    }
    return false;
}

void rwp_quit_stop_vcpus(void)
{
    CPUState *cpu;
    bool running;

    GLOBAL_STATE_CODE();

    do {
        running = false;
        CPU_FOREACH(cpu) {
            if (!cpu->stopped && is_stuck(cpu->thread_id)) {
                trace_rwp_quit_stuck(cpu->cpu_index);
                cpu->stopped = true;
            } else if (!cpu->stopped) {
                cpu->stop = true;
                qemu_cpu_kick(cpu);
                running = true;
            }
        }
        if (running) {
            bql_unlock();
            g_usleep(STOP_POLL_US);
            bql_lock();
        }
    } while (running);
}
