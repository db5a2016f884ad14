/*
 * Fakes for tests of memory-backend-rwp: what their files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See rwp-fake.h for the interface, and rwp-fake.c for how it works.
 */
#ifndef RWP_FAKE_INT_H
#define RWP_FAKE_INT_H

#include "qemu/queue.h"
#include "qemu/thread.h"
#include "system/iothread.h"
#include "rwp-fake.h"

#define FAKE_GARBAGE 0xee
#define FAKE_NB_CHUNKS DIV_ROUND_UP(FAKE_NB_PAGES, FAKE_CHUNK_PAGES)

typedef struct FakeCallState {
    FakeHook *before, *after;
    void *before_opaque, *after_opaque;
    uint64_t page;
    uint64_t times;
    int err;
    uint64_t calls;
} FakeCallState;

typedef struct FakeWaiter {
    uint64_t page;
    bool woken;
    QLIST_ENTRY(FakeWaiter) next;
} FakeWaiter;

typedef struct FakePage {
    bool present;
    bool armed;
    bool unmapped;
    bool poisoned;
} FakePage;

typedef struct FakeMemory {
    QemuMutex lock;             /* for everything here */
    QemuCond cond;              /* something happened */
    RwpMemory *mem;
    FakePage pages[FAKE_NB_PAGES];
    bool trap[FAKE_NB_CHUNKS];
    bool minor[FAKE_NB_CHUNKS];     /* pages that are not mapped trap, too */
    GArray *messages;
    QLIST_HEAD(, FakeWaiter) waiters;
    uint64_t max_take;
    uint64_t taken_first, taken_count;  /* by the last take */
    FakeCallState calls[FAKE__MAX];
} FakeMemory;

extern FakeMemory fake;

/*
 * Calls the hook.  Returns the error that the call is to return; @count
 * becomes the number of pages that it is to deal with before.
 */
int fake_call_begin(FakeCall call, uint64_t first, uint64_t *count);

/* Calls the hook */
void fake_call_end(FakeCall call, uint64_t first, uint64_t count);

/* Content of a page, present or not */
uint64_t *fake_page_words(uint64_t page);

/* With the lock: a page appears or goes; those who wait may try again */
void fake_set_present(uint64_t page, bool present);
void fake_wake_range(uint64_t first, uint64_t count);

/* Pages appear with content from @buf, or zero, and wake */
int fake_place_pages(FakeCall call, uint64_t first, uint64_t count,
                     const uint8_t *buf, uint64_t *placed);

/* Of tests/unit/iothread.h, which cannot be included beside the real one */
IOThread *iothread_new(void);
void iothread_join(IOThread *iothread);

#endif
