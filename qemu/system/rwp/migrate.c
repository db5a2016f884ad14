/*
 * Migration of a guest whose memory is tracked or evicted
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A migration that sends memory while the guest runs, or when it has
 * stopped, works: pages that are away are sent from the store (peek.c).
 * While it is under way nothing is evicted, because peek.c relies on that,
 * and because the store is made inactive before its end.
 *
 * Refused are
 *   postcopy            the destination has its own userfaultfd on the
 *                       memory, and a memory has one at most; the source
 *                       is treated alike
 *   background          the same, on the source
 *   snapshots
 *   COLO                memory is sent again and again for as long as the
 *                       guest runs, so nothing could ever be evicted
 *   CPR                 the new QEMU would take over a memfd with holes
 *
 * Locking: main loop, BQL held.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "migration/blocker.h"
#include "migration/misc.h"
#include "migration/options.h"
#include "system/runstate.h"
#include "migrate.h"
#include "trace.h"

/* A capability that does not fit a state of the backend, or NULL */
static const char *unfit_capability(RwpState *s)
{
    if (migrate_background_snapshot() && rwp_state_registered(s)) {
        return "background-snapshot";
    }
    if (s->guarded && migrate_postcopy_ram()) {
        return "postcopy-ram";
    }
    if (s->guarded && migrate_colo()) {
        return "x-colo";
    }
    return NULL;
}

static int migration_event(NotifierWithReturn *notifier, MigrationEvent *e,
                           Error **errp)
{
    RwpState *s = container_of(notifier, RwpState, migration_notifier);
    const char *capability = unfit_capability(s);

    /* Only the setup may be refused */
    if (e->type != MIG_EVENT_PRECOPY_SETUP) {
        return 0;
    }
    if (s->job && s->job->driver->job_type == JOB_TYPE_RWP_EVICT) {
        error_setg(errp, "memory of memory-backend-rwp '%s' is being evicted "
                   "by the job '%s'; wait for its end, or cancel it", s->id,
                   s->job->id);
    } else if (capability) {
        error_setg(errp, "the migration capability '%s' cannot be used while "
                   "memory of memory-backend-rwp '%s' is %s", capability,
                   s->id, s->guarded ?
                   "evicted; bring it back with rwp-fetch first" :
                   "tracked; stop that with rwp-track-stop first");
    } else {
        return 0;
    }
    trace_rwp_migrate_refuse(s->id, capability ?: "job");
    return -EBUSY;
}

bool rwp_migrate_watch(RwpState *s, Error **errp)
{
    GLOBAL_STATE_CODE();

    migration_add_notifier(&s->migration_notifier, migration_event);
    if (s->mem->fd < 0) {
        /* Private memory is refused for CPR by whoever registers it */
        return true;
    }
    error_setg(&s->cpr_blocker, "the memory of memory-backend-rwp '%s' "
               "cannot be handed over to another QEMU", s->id);
    return migrate_add_blocker_modes(&s->cpr_blocker, errp,
                                     MIG_MODE_CPR_TRANSFER, -1) == 0;
}

void rwp_migrate_unwatch(RwpState *s)
{
    GLOBAL_STATE_CODE();

    migration_remove_notifier(&s->migration_notifier);
    migrate_del_blocker(&s->cpr_blocker);
}

bool rwp_migrate_may_track(RwpState *s, Error **errp)
{
    const char *reason = NULL;

    GLOBAL_STATE_CODE();

    if (runstate_check(RUN_STATE_INMIGRATE)) {
        reason = "an incoming migration has not ended";
    } else if (migration_in_incoming_postcopy()) {
        reason = "an incoming postcopy migration has not ended";
    } else if (migration_in_bg_snapshot()) {
        reason = "a background snapshot is under way";
    }
    if (reason) {
        error_setg(errp, "memory-backend-rwp '%s' cannot be tracked or "
                   "evicted now: %s", s->id, reason);
    }
    return !reason;
}

bool rwp_migrate_may_evict(RwpState *s, Error **errp)
{
    const char *reason = NULL;

    GLOBAL_STATE_CODE();

    if (migration_is_running()) {
        reason = "a migration is under way";
    } else if (runstate_check(RUN_STATE_POSTMIGRATE)) {
        reason = "the guest has been migrated";
    }
    if (reason) {
        error_setg(errp, "memory-backend-rwp '%s' cannot evict: %s", s->id,
                   reason);
    }
    return !reason;
}
