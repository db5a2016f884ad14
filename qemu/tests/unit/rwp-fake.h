/*
 * Fakes for tests of the jobs and the fault service of memory-backend-rwp
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * In place of the kernel: memory whose pages are present or missing, armed
 * or not, and threads that touch them and wait like threads do that have
 * raised a fault.  It implements memory.h, and the tables of the trackers
 * and pagers; those of the pager "punch" and the tracker "zap" leave the
 * original in place, those of "move" and "rwp" take it aside.
 *
 * In place of storage: a block node that can fail, and that keeps requests
 * waiting until the test lets them pass.
 *
 * A test can have each call fail, and can have a function called before
 * and after it, in the thread and at the very moment of a race.
 *
 * There is one memory and one node at a time.
 *
 * Locking: all functions may be called from any thread, unless marked.  A
 * mutex protects the memory and another the node; hooks are called without
 * them.
 */
#ifndef RWP_FAKE_H
#define RWP_FAKE_H

#include "block/block-common.h"
#include "qapi/qapi-types-run-state.h"
#include "system/rwp/memory.h"

#define FAKE_PAGE_SIZE 4096
#define FAKE_CHUNK_PAGES 1024
#define FAKE_NB_PAGES (3 * FAKE_CHUNK_PAGES + FAKE_CHUNK_PAGES / 2)

/* Whoever waits for longer was forgotten; far more than anything takes */
#define FAKE_TIMEOUT_MS 30000

#define FAKE_ANY UINT64_MAX     /* any page */
#define FAKE_ALWAYS UINT64_MAX  /* any number of times */

typedef enum FakeCall {
    FAKE_BUFFER_NEW,
    FAKE_TAKE,
    FAKE_GIVE_BACK,
    FAKE_PUT_BACK,
    FAKE_REMOVE,
    FAKE_POPULATED,
    FAKE_PRESENT,
    FAKE_TRAP,
    FAKE_ARM,
    FAKE_SCAN,
    FAKE_REARM,
    FAKE_RELAX,
    FAKE_UNMAP,
    FAKE_ADMIT,
    FAKE_REGISTER,
    FAKE_UNREGISTER,
    FAKE_WAKE,
    FAKE_COPY,
    FAKE_ZERO,
    FAKE_POISON,
    FAKE_READ_FAULTS,
    FAKE__MAX,
} FakeCall;

typedef void FakeHook(void *opaque, uint64_t first, uint64_t count);

/** fake_reset: forget hooks, failures and counts.  Nothing is going on. */
void fake_reset(void);

/** fake_before, fake_after: have @fn called with each @call; or NULL. */
void fake_before(FakeCall call, FakeHook *fn, void *opaque);
void fake_after(FakeCall call, FakeHook *fn, void *opaque);

/**
 * fake_fail: have @call fail @times times with @err when it comes to
 * @page, having dealt with the pages before it.
 */
void fake_fail(FakeCall call, uint64_t page, uint64_t times, int err);

/** fake_take_at_most: have the pagers take no more than @pages at once. */
void fake_take_at_most(uint64_t pages);

/** fake_calls: how often @call was called. */
uint64_t fake_calls(FakeCall call);

/*
 * Guest accesses.  A page that was written @value is full of a pattern made
 * of it; 0 makes a page of zeros.  Reads check the whole pattern.  Both
 * wait until the page can be accessed.  FAKE_SIGBUS: it has a hardware error.
 */
#define FAKE_SIGBUS UINT64_MAX

void fake_write(uint64_t page, uint64_t value);
uint64_t fake_read(uint64_t page);

/* An access in a thread of its own */
typedef struct FakeTouch FakeTouch;

/**
 * fake_touch_start: have a thread write @value, or read if @value is 0.
 *
 * Returns when the access is done, or waits for somebody.
 */
FakeTouch *fake_touch_start(uint64_t page, uint64_t value);

/** fake_touch_done: whether the access is done. */
bool fake_touch_done(FakeTouch *touch);

/** fake_touch_end: wait for the end; returns what was read or written. */
uint64_t fake_touch_end(FakeTouch *touch);

/** fake_touch_thread: ID of the thread of an access that has to wait. */
int fake_touch_thread(FakeTouch *touch);

/** fake_post: send a message of a fault that nobody has any more. */
void fake_post(uint64_t page, uint64_t flags);

/** fake_idle: whether all messages were read. */
bool fake_idle(void);

/** fake_drop: what the kernel does for a discard. */
void fake_drop(uint64_t first, uint64_t count);

/** fake_present, fake_armed: the kernel's view of a page. */
bool fake_present(uint64_t page);
bool fake_armed(uint64_t page);

/** fake_write_by_dma: write to a page that was looked up before. */
void fake_write_by_dma(uint64_t page, uint64_t value);

/** fake_unmap: what a host kernel does that is short of memory. */
void fake_unmap(uint64_t first, uint64_t count);

/*
 * The node
 */
typedef enum FakeStoreOp {
    FAKE_STORE_READ,
    FAKE_STORE_WRITE,
    FAKE_STORE__MAX,
} FakeStoreOp;

/** fake_store_new: the caller unrefs the node.  Context: main loop. */
BlockDriverState *fake_store_new(const char *node_name, uint64_t size);

/** fake_store_fail: have the next @times requests of @op fail. */
void fake_store_fail(FakeStoreOp op, uint64_t times, int err);

/** fake_store_corrupt: reads return something else for @page, or not. */
void fake_store_corrupt(uint64_t page, bool corrupt);

/**
 * fake_store_close_gate: requests of @op wait from now on.
 * fake_store_pass: let the @nb oldest pass that did not yet.
 * fake_store_open_gate: let all pass from now on.
 */
void fake_store_close_gate(FakeStoreOp op);
void fake_store_pass(FakeStoreOp op, uint64_t nb);
void fake_store_open_gate(FakeStoreOp op);

/** fake_store_waiting: number of requests at the gate. */
uint64_t fake_store_waiting(FakeStoreOp op);

/** fake_store_requests: number of requests of @op that began. */
uint64_t fake_store_requests(FakeStoreOp op);

/** fake_store_request: first page and number of pages of request @nr. */
void fake_store_request(FakeStoreOp op, uint64_t nr, uint64_t *first,
                        uint64_t *count);

/** fake_store_has: whether the page of the store has what @value makes. */
bool fake_store_has(uint64_t page, uint64_t value);

/*
 * The rest of the emulator
 */
typedef struct FakeSystem {
    bool qtest;                 /* RWP_INJECT counts */
    int blocker_error;          /* of a migration blocker */
    int discard_error;          /* of a requirement of discards */
    int blockers;               /* that there are */
    int discards_required;
    unsigned store_errors;      /* events */
    int last_operation;         /* of the last of these */
    char last_reason[80];       /* the same */
    unsigned cycles;            /* events */
    ShutdownCause shutdown;     /* was requested, and nobody heard of it */
    unsigned kicks;             /* of vCPUs */
} FakeSystem;

extern FakeSystem fake_system;

/** fake_add_vcpu, fake_remove_vcpu: a vCPU whose thread is @tid. */
CPUState *fake_add_vcpu(int tid);
void fake_remove_vcpu(CPUState *cpu);

/** fake_system_shutdown: QEMU begins to terminate.  Context: main loop. */
void fake_system_shutdown(void);

#endif
