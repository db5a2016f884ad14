/*
 * Faults injected by tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A test that never fails proves nothing.  So the tests can leave out the
 * steps that keep evictions from losing writes, one at a time, and have to
 * notice.
 *
 * The environment variable RWP_INJECT names the step.  It is only looked
 * at if QEMU is controlled by a test (option -qtest).
 */
#ifndef RWP_INJECT_H
#define RWP_INJECT_H

typedef enum RwpInject {
    RWP_INJECT_SKIP_HOLD,       /* "skip-hold": commit without a hold */
    RWP_INJECT_SKIP_RESCAN,     /* "skip-rescan": commit without a scan */
    RWP_INJECT_EARLY_WAKE,      /* "early-wake": release before removing */
    RWP_INJECT__MAX,
} RwpInject;

/** rwp_inject: whether to leave out @step.  Any thread. */
bool rwp_inject(RwpInject step);

#endif
