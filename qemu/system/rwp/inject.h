/*
 * Faults injected by tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A test that never fails proves nothing.  So the tests can leave out the
 * steps that keep evictions from losing writes, and have to notice.  And a
 * race that needs luck is hardly tested.  So they can stretch the moments
 * in which a touch of the guest matters.
 *
 * The environment variable RWP_INJECT has names of these, separated by
 * commas.  It is only looked at if QEMU is controlled by a test (option
 * -qtest).
 */
#ifndef RWP_INJECT_H
#define RWP_INJECT_H

#include "qemu/coroutine.h"

typedef enum RwpInject {
    /* Steps to leave out */
    RWP_INJECT_SKIP_TRAP,       /* "skip-trap": for pages in memory */
    RWP_INJECT_SKIP_UNMAP,      /* "skip-unmap": evict pages that are mapped */
    RWP_INJECT_EARLY_WAKE,      /* "early-wake": admit before removing */
    RWP_INJECT_IGNORE_PINS,     /* "ignore-pins": of memory mapped for DMA */
    RWP_INJECT_TRUST_EAGAIN,    /* "trust-eagain": of a copy, as success */

    /* Windows to stretch */
    RWP_INJECT_DELAY_CLAIM,     /* "delay-claim": claimed, not yet taken */
    RWP_INJECT_DELAY_STAGE,     /* "delay-stage": taken, not yet written */
    RWP_INJECT_DELAY_PUNCH,     /* "delay-punch": decided, not yet removed */
    RWP_INJECT_DELAY_WAKE,      /* "delay-wake": removed, not yet woken */
    RWP_INJECT_DELAY_FETCH,     /* "delay-fetch": read, not yet in place */

    /* What the host kernel may do at any time */
    RWP_INJECT_RECLAIM,         /* "reclaim": before the commit, unmap */

    /* Errors to return */
    RWP_INJECT_EAGAIN,          /* "eagain": every other fill fails so */
    RWP_INJECT__MAX,
} RwpInject;

/** rwp_inject: whether to do @what.  Any thread. */
bool rwp_inject(RwpInject what);

/** rwp_inject_delay: block this thread for a while, if @what is wanted. */
void rwp_inject_delay(RwpInject what);

/** rwp_inject_co_delay: the same for this coroutine only. */
void coroutine_fn rwp_inject_co_delay(RwpInject what);

#endif
