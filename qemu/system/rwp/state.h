/*
 * The state of one memory-backend-rwp, shared by the modules of this
 * directory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Threads:
 *   main loop     commands, blockers, events, lifecycle; holds the BQL
 *   fault thread  serves faults; depends on nothing that a thread which
 *                 touches guest memory may hold: neither the BQL, nor the
 *                 main loop, nor the end of a drained section
 *   work thread   cycles of tracking, and the jobs
 *
 * Both threads are created with the first use, so that a backend nobody
 * tracks costs nothing.
 */
#ifndef RWP_STATE_H
#define RWP_STATE_H

#include "qemu/job.h"
#include "qemu/stats64.h"
#include "qemu/notify.h"
#include "qemu/queue.h"
#include "system/iothread.h"
#include "system/rwp.h"
#include "ages.h"
#include "batch.h"
#include "memory.h"
#include "pages.h"
#include "pager.h"
#include "pins.h"
#include "resident.h"
#include "tracker.h"

/* Rows of the latency histogram; row n counts [2^n, 2^(n+1)) ns */
#define RWP_LATENCY_ROWS 40

typedef struct RwpChecksums RwpChecksums;
typedef struct RwpStore RwpStore;
typedef struct RwpFaults RwpFaults;
typedef struct RwpScanner RwpScanner;
typedef struct RwpPeek RwpPeek;

/* Counters, each atomic; in pages unless said otherwise */
typedef struct RwpStats {
    Stat64 evicted;
    Stat64 evicted_zero;
    Stat64 evicted_clean;
    Stat64 evict_cancelled;
    Stat64 evict_busy;
    Stat64 evict_huge;
    Stat64 evict_failed;
    Stat64 evict_bytes;
    Stat64 write_errors;        /* requests */
    Stat64 commits;             /* windows */
    Stat64 commit_max_ns;
    Stat64 commit_total_ns;
    Stat64 fetched_fault;
    Stat64 fetched_readahead;
    Stat64 fetched_requested;
    Stat64 zero_filled;
    Stat64 dropped;
    Stat64 fetch_errors;        /* requests */
    Stat64 fetch_corrupt;
    unsigned fetch_waiting;     /* touched pages, now */
    unsigned fetch_queued;      /* the same */
    unsigned fetch_running;     /* requests, now */
    Stat64 fetch_peak;          /* the most of these */
    size_t buffer_bytes;        /* of fetches and jobs, now */
    Stat64 latency[RWP_LATENCY_ROWS];
} RwpStats;

struct RwpState {
    /* Set once */
    char *id;
    RAMBlock *rb;
    RwpMemory *mem;
    RwpPages *pages;
    RwpAges *ages;
    RwpChecksums *checksums;    /* or NULL */
    uint32_t max_fetches;
    char *own_node;             /* store by property, or NULL */
    RwpThp thp;
    uint32_t default_interval;
    uint32_t readahead;
    RwpPeek *peek;
    RwpPins *pins;
    RwpResident *resident;      /* main loop only */

    /* Set with the first use, by the main loop; see rwp_state_start() */
    IOThread *fault_thread;
    IOThread *work_thread;
    AioContext *fault_ctx;
    AioContext *work_ctx;
    RwpFaults *faults;
    RwpScanner *scanner;

    /*
     * Set by the main loop while no page is away and no job runs; used
     * by all threads while a page is away or a job runs.
     */
    RwpStore *store;            /* @own_store, or one given for a job */

    /* Main loop only */
    RwpStore *own_store;        /* on @own_node, or NULL; stays attached */
    bool active;                /* the kernel reports faults, of some chunks */
    bool leaving;               /* of fewer and fewer; nothing relies on it */
    bool ending;                /* QEMU was told to end: it closes the store */
    unsigned unsettled;         /* see rwp_state_begin() */
    Job *job;
    Error *migration_blocker;
    Error *cpr_blocker;
    NotifierWithReturn migration_notifier;
    QEMUBH *settle_bh;
    QEMUTimer *leave_timer;     /* the next step, while @leaving */
    Notifier shutdown_notifier;

    /* Atomic: written by the main loop, read by all threads; see guard.h */
    bool guarded;

    /* Work thread only */
    uint64_t window_pages;      /* of the next commit window; see stage.c */

    RwpBatchList batches;
    RwpStats stats;

    QLIST_ENTRY(RwpState) next; /* see registry.h */
};

/**
 * rwp_state_start: create the threads and have the kernel report faults.
 *
 * Does nothing if that was done before.  Context: main loop.
 */
bool rwp_state_start(RwpState *s, Error **errp);

/**
 * rwp_state_need_store: have a store, for an eviction.
 *
 * @node_name: the node, or NULL for the store that there is.  Unless it is
 *     the property's, it is let go again when nothing is evicted any more.
 *
 * Fails if pages are in another store.  Context: main loop; no job runs.
 */
bool rwp_state_need_store(RwpState *s, const char *node_name, Error **errp);

/**
 * rwp_state_begin: something is being set up, or taken down, step by step.
 *
 * Bottom halves can run between the steps, but rwp_state_settle() does
 * nothing until rwp_state_end().  That does not settle, it is up to the caller.
 * Nests.  Context: main loop.
 */
static inline void rwp_state_begin(RwpState *s)
{
    s->unsettled++;
}

/** rwp_state_end: see rwp_state_begin(). */
static inline void rwp_state_end(RwpState *s)
{
    s->unsettled--;
}

/**
 * rwp_state_settle: if no job runs and no page is away, let go of what is
 * only needed for that: guards, a store given for one job, the
 * registration with the kernel if tracking is off too.
 *
 * Context: main loop.  Other threads use rwp_state_settle_soon().
 */
void rwp_state_settle(RwpState *s);

/**
 * rwp_state_registered: whether memory is registered with the kernel.
 *
 * If that is about to end, it has ended on return.  Context: main loop.
 */
bool rwp_state_registered(RwpState *s);

/**
 * rwp_state_settle_soon: a page is back; call rwp_state_settle() from the
 * main loop if it may have been the last.  Cheap, never waits.
 */
void rwp_state_settle_soon(RwpState *s);

/**
 * rwp_state_find: the state of the backend with that ID.
 *
 * Context: main loop.
 */
RwpState *rwp_state_find(const char *id, Error **errp);

/** rwp_state_foreach: call @fn for each backend, ordered by ID. */
void rwp_state_foreach(void (*fn)(RwpState *s, void *opaque), void *opaque);

/** rwp_state_page_bytes: size of @pages pages. */
static inline uint64_t rwp_state_page_bytes(RwpState *s, uint64_t pages)
{
    return pages * s->mem->page_size;
}

#endif
