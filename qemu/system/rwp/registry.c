/*
 * The backends that exist
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See registry.h.  The lock is held for walks of the list, and never
 * while something is waited for.
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "fault.h"
#include "registry.h"

static QemuMutex registry_lock;

/* Under @registry_lock, but only changed with the BQL; ordered by ID */
static QLIST_HEAD(, RwpState) registry = QLIST_HEAD_INITIALIZER(registry);

static void __attribute__((constructor)) registry_init(void)
{
    qemu_mutex_init(&registry_lock);
}

void rwp_registry_add(RwpState *s)
{
    RwpState *other, *last = NULL;

    QEMU_LOCK_GUARD(&registry_lock);
    QLIST_FOREACH(other, &registry, next) {
        /*
         * Before one of the same ID: that was deleted, and is there until
         * nobody can look at its memory any more.
         */
        if (strcmp(other->id, s->id) >= 0) {
            break;
        }
        last = other;
    }
    if (last) {
        QLIST_INSERT_AFTER(last, s, next);
    } else {
        QLIST_INSERT_HEAD(&registry, s, next);
    }
}

void rwp_registry_remove(RwpState *s)
{
    QEMU_LOCK_GUARD(&registry_lock);
    QLIST_REMOVE(s, next);
}

static bool not_found(const char *id, Error **errp)
{
    error_set(errp, ERROR_CLASS_DEVICE_NOT_FOUND,
              "there is no memory-backend-rwp object '%s'", id);
    return false;
}

RwpState *rwp_state_find(const char *id, Error **errp)
{
    RwpState *s;

    GLOBAL_STATE_CODE();

    QLIST_FOREACH(s, &registry, next) {
        if (g_str_equal(s->id, id)) {
            return s;
        }
    }
    not_found(id, errp);
    return NULL;
}

void rwp_state_foreach(void (*fn)(RwpState *s, void *opaque), void *opaque)
{
    RwpState *s;

    GLOBAL_STATE_CODE();

    QLIST_FOREACH(s, &registry, next) {
        fn(s, opaque);
    }
}

bool rwp_registry_retry(const char *id, Error **errp)
{
    bool found = !id;
    RwpState *s;

    QEMU_LOCK_GUARD(&registry_lock);
    QLIST_FOREACH(s, &registry, next) {
        RwpFaults *faults = qatomic_read(&s->faults);

        if (id && !g_str_equal(s->id, id)) {
            continue;
        }
        found = true;
        if (faults) {
            rwp_faults_retry(faults);
        }
    }
    return found || not_found(id, errp);
}
