/*
 * Faults injected by tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See inject.h.
 */

#include "qemu/osdep.h"
#include "system/qtest.h"
#include "inject.h"

static const char *const step_names[RWP_INJECT__MAX] = {
    [RWP_INJECT_SKIP_HOLD] = "skip-hold",
    [RWP_INJECT_SKIP_RESCAN] = "skip-rescan",
    [RWP_INJECT_EARLY_WAKE] = "early-wake",
};

bool rwp_inject(RwpInject step)
{
    const char *name;

    if (!qtest_driver()) {
        return false;
    }
    name = g_getenv("RWP_INJECT");
    return name && g_str_equal(name, step_names[step]);
}
