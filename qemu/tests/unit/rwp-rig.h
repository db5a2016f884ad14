/*
 * A memory-backend-rwp on fakes, for tests of its jobs and faults
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Everything but what rwp-fake.h lists is the real thing, with the real
 * threads.  Context of all functions: main loop.
 */
#ifndef RWP_RIG_H
#define RWP_RIG_H

#include "exec/memory.h"
#include "exec/ramblock-pager.h"
#include "system/rwp/state.h"
#include "system/rwp/evict.h"
#include "rwp-fake.h"

#define RIG_NODE "node0"

/* Wait for something that other threads bring about */
#define RIG_WAIT(condition)                                         \
    do {                                                            \
        int64_t end_us_ = g_get_monotonic_time() +                  \
                          FAKE_TIMEOUT_MS * 1000LL;                 \
        while (!(condition)) {                                      \
            if (g_get_monotonic_time() > end_us_) {                 \
                g_error("waited in vain for: %s", #condition);      \
            }                                                       \
            if (!aio_poll(qemu_get_aio_context(), false)) {         \
                g_usleep(100);                                      \
            }                                                       \
        }                                                           \
    } while (0)

typedef struct RigKind {
    const char *name;
    RwpTracker tracker;
    RwpBacking backing;
} RigKind;

typedef struct Rig {
    const RigKind *kind;
    RAMBlock rb;
    MemoryRegion mr;
    Object *owner;
    BlockDriverState *bs;
    RwpState *s;
    GRand *rand;
    RwpRangeList *ranges;
} Rig;

/** rig_stays: whether the original stays in place while it is staged. */
static inline bool rig_stays(Rig *rig)
{
    return rig->kind->backing == RWP_BACKING_MEMFD;
}

/* Reads for touched pages at a time */
#define RIG_FETCHES 32

/** rig_new: @kind, with a store, readahead of @readahead pages. */
Rig *rig_new(const RigKind *kind, uint64_t readahead);

/** rig_new_evicted: the same, and pages [0, @count) are evicted. */
Rig *rig_new_evicted(const RigKind *kind, uint64_t count, uint64_t readahead);

/** rig_free: checks that nothing is left behind. */
void rig_free(Rig *rig);

/** rig_value: what rig_fill() writes to @page. */
static inline uint64_t rig_value(uint64_t page)
{
    return 0xc0ffee0000000000ULL + page + 1;
}

/** rig_quiet: wait until the fault service is done with everything. */
void rig_quiet(Rig *rig);

/** rig_fill, rig_check: write to pages; expect the same content. */
void rig_fill(uint64_t first, uint64_t count);
void rig_check(Rig *rig, uint64_t first, uint64_t count);

/** rig_check_but: the same, without @but, and pages may be on the way. */
void rig_check_but(Rig *rig, uint64_t first, uint64_t count, uint64_t but);

/** rig_count: number of pages in @state. */
uint64_t rig_count(Rig *rig, RwpPage state);

/** rig_expect: all pages of the range are in @state. */
void rig_expect(Rig *rig, uint64_t first, uint64_t count, RwpPage state);

/** rig_discard: the guest gives pages back. */
void rig_discard(Rig *rig, uint64_t first, uint64_t count);

/** rig_add_range: let the next job have the range too. */
void rig_add_range(Rig *rig, uint64_t first, uint64_t count);

/**
 * rig_evict, rig_fetch: start a job on the ranges added since the last.
 * rig_evict_by_age: start a job on old pages, at most @pages.
 */
Job *rig_evict(Rig *rig);
Job *rig_fetch(Rig *rig);
Job *rig_evict_by_age(Rig *rig, uint8_t min_age, uint64_t pages);

/**
 * rig_evict_begin: evict pages [0, @count), one batch, until they are being
 * written.  That ends when the gate of writes is opened.
 */
Job *rig_evict_begin(Rig *rig, uint64_t count);

/** rig_set_speed: of jobs that are started later, bytes per second. */
void rig_set_speed(uint64_t speed);

/** rig_wait: wait for the end of @job; returns its result. */
int rig_wait(Job *job);

/** rig_cancel, rig_pause, rig_resume: like the user does. */
void rig_cancel(Job *job);
void rig_pause(Job *job);
void rig_resume(Job *job);

/** rig_evict_now, rig_fetch_now: all of that, successfully. */
void rig_evict_now(Rig *rig, uint64_t first, uint64_t count);
void rig_fetch_now(Rig *rig, uint64_t first, uint64_t count);

/* A touch at the moment of a race: hook for fake_before(), fake_after() */
typedef struct RigTouch {
    uint64_t page;
    uint64_t value;             /* 0 to read */
    bool wait;                  /* until the access is done */
    FakeTouch *touch;           /* set by the first call that has @page */
} RigTouch;

void rig_touch(void *opaque, uint64_t first, uint64_t count);

/**
 * rig_add: add a test for each kind, /rwp/KIND/@name.
 * rig_add_stays: only for the one whose originals stay in place.
 * rig_add_moves: only for the other.
 */
void rig_add(const char *name, void (*test)(const RigKind *kind));
void rig_add_stays(const char *name, void (*test)(const RigKind *kind));
void rig_add_moves(const char *name, void (*test)(const RigKind *kind));

/** rig_main: initialise, and run what @add adds. */
int rig_main(int argc, char **argv, void (*add)(void));

#endif
