/*
 * Faults injected by tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See inject.h.
 */

#include "qemu/osdep.h"
#include "qemu/timer.h"
#include "system/qtest.h"
#include "inject.h"

/* Much longer than anything that is done in a window otherwise */
#define DELAY_NS (20 * SCALE_MS)

static const char *const names[RWP_INJECT__MAX] = {
    [RWP_INJECT_SKIP_TRAP] = "skip-trap",
    [RWP_INJECT_SKIP_UNMAP] = "skip-unmap",
    [RWP_INJECT_EARLY_WAKE] = "early-wake",
    [RWP_INJECT_IGNORE_PINS] = "ignore-pins",
    [RWP_INJECT_TRUST_EAGAIN] = "trust-eagain",
    [RWP_INJECT_DELAY_CLAIM] = "delay-claim",
    [RWP_INJECT_DELAY_STAGE] = "delay-stage",
    [RWP_INJECT_DELAY_PUNCH] = "delay-punch",
    [RWP_INJECT_DELAY_WAKE] = "delay-wake",
    [RWP_INJECT_DELAY_FETCH] = "delay-fetch",
    [RWP_INJECT_RECLAIM] = "reclaim",
    [RWP_INJECT_EAGAIN] = "eagain",
};

bool rwp_inject(RwpInject what)
{
    const char *list;
    size_t len;

    if (!qtest_driver()) {
        return false;
    }
    list = g_getenv("RWP_INJECT");
    while (list && *list) {
        len = strcspn(list, ",");
        if (len == strlen(names[what]) &&
            memcmp(list, names[what], len) == 0) {
            return true;
        }
        list += len + (list[len] == ',');
    }
    return false;
}

void rwp_inject_delay(RwpInject what)
{
    if (rwp_inject(what)) {
        g_usleep(DELAY_NS / SCALE_US);
    }
}

void coroutine_fn rwp_inject_co_delay(RwpInject what)
{
    if (rwp_inject(what)) {
        qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, DELAY_NS);
    }
}
