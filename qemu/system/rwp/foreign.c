/*
 * Who accesses guest memory behind QEMU's back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Three kinds of devices do not fit evicted pages:
 *
 *   Other processes to which QEMU hands the memfd of the guest: vhost-user
 *   backends, among them virtiofsd, and remote devices.  The tracker does
 *   not see their accesses, and these do not trap when a page is away: they
 *   would read zeros, and what they write would be lost.
 *
 *   Graphics with blob resources: the host kernel makes buffers of the
 *   guest's memfd (udmabuf), for which it fills the holes in it.
 *
 *   Devices of the host that write to guest memory by DMA: VFIO and vDPA,
 *   which pin it, and vhost-scsi, which takes references to pages that nobody
 *   here can see.  Most of the former disable the discarding of guest memory,
 *   which guard.c notices; here they are found by name, for those that do
 *   not (VFIO with x-balloon-allowed=on, vfio-ap, vfio-ccw), and for a
 *   message that says who it is.
 *
 * Nor do guests of the guest on Intel processors.  While one runs, the
 * processor writes to its virtual-APIC page and posted-interrupt descriptor,
 * which are pages of our guest, by their physical address: they lose their
 * entries without a fault, look unused, and are replaced under its hands.  Linux
 * before 6.13 does not even say that they are pinned.  Which guest will run
 * guests nobody knows, so the processor's feature counts.  (AMD processors
 * write to guest memory through page tables; KVM has pages of their guests
 * only for a moment.)
 *
 * There is no list of any kind, so devices are found by the names of their
 * types, or a property, and network backends by their driver.
 *
 * Locking: main loop, BQL held.
 */

#include "qemu/osdep.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "hw/qdev-core.h"
#include "net/net.h"
#include "qobject/qdict.h"
#include "qom/object.h"
#include "foreign.h"
#include "trace.h"

/* Network backends that are looked at; a guest has one or two */
#define MAX_NET_CLIENTS 256

static const struct {
    const char *part;           /* of names of types and network drivers */
    bool only_shared;           /* harmless without a file descriptor */
    const char *reason;
} foreigners[] = {
    { "vhost-user", true, "lets another process access guest memory" },
    { "x-pci-proxy-dev", true, "lets another process access guest memory" },
    { "vhost-vdpa", false, "pins guest memory" },
    { "vfio-", false, "pins guest memory" },
    { "vhost-scsi", false, "lets the host write to guest memory by DMA" },
};

/* Who might not fit evicted pages, and which of its properties are on */
typedef struct Party {
    const char *name;
    bool blob;
    bool vmx;
} Party;

/* Why @party does not fit evicted pages of @s, or NULL */
static const char *find_reason(RwpState *s, const Party *party)
{
    bool shared = s->mem->fd >= 0;

    if (party->vmx) {
        return "with vmx=on lets nested guests write to memory without a fault "
               "(-cpu ...,vmx=off does not)";
    }
    if (party->blob && shared) {
        return "with blob=on shares guest memory with the host's graphics";
    }
    for (size_t i = 0; i < ARRAY_SIZE(foreigners); i++) {
        if (strstr(party->name, foreigners[i].part) &&
            (shared || !foreigners[i].only_shared)) {
            return foreigners[i].reason;
        }
    }
    return NULL;
}

typedef struct Search {
    RwpState *s;
    const char *kind;
    const char *name;
    const char *reason;
} Search;

static bool look_at(Search *search, const char *kind, const Party *party)
{
    search->kind = kind;
    search->name = party->name;
    search->reason = find_reason(search->s, party);
    return search->reason != NULL;
}

static bool property_is_on(Object *obj, const char *name)
{
    return object_property_find(obj, name) &&
           object_property_get_bool(obj, name, NULL);
}

static int look_at_object(Object *obj, void *opaque)
{
    Party party = {
        .name = object_get_typename(obj),
        .blob = property_is_on(obj, "blob"),
        .vmx = property_is_on(obj, "vmx"),
    };

    return look_at(opaque, "", &party);
}

static bool find_foreigner(Search *search)
{
    NetClientState *clients[MAX_NET_CLIENTS];
    int nb;

    if (object_child_foreach_recursive(object_get_root(), look_at_object,
                                       search)) {
        return true;
    }
    nb = qemu_find_net_clients_except(NULL, clients, NET_CLIENT_DRIVER_NIC,
                                      MAX_NET_CLIENTS);
    for (int i = 0; i < MIN(nb, MAX_NET_CLIENTS); i++) {
        Party party = {
            .name = NetClientDriver_str(clients[i]->info->type),
        };

        if (look_at(search, "netdev ", &party)) {
            return true;
        }
    }
    return false;
}

bool rwp_foreign_check(RwpState *s, Error **errp)
{
    Search search = { .s = s };

    if (find_foreigner(&search)) {
        error_setg(errp, "memory-backend-rwp '%s' cannot evict: %s%s %s",
                   s->id, search.kind, search.name, search.reason);
        return false;
    }
    return true;
}

typedef struct Newcomer {
    const Party *party;
    Error **errp;
    bool allowed;
} Newcomer;

static void check_newcomer(RwpState *s, void *opaque)
{
    Newcomer *newcomer = opaque;
    const char *name = newcomer->party->name;
    const char *reason = find_reason(s, newcomer->party);

    if (newcomer->allowed && s->guarded && reason) {
        trace_rwp_foreign_refuse(s->id, name);
        error_setg(newcomer->errp, "%s %s, but memory of memory-backend-rwp "
                   "'%s' is evicted; bring it back with rwp-fetch first",
                   name, reason, s->id);
        newcomer->allowed = false;
    }
}

static bool allow(const Party *party, Error **errp)
{
    Newcomer newcomer = { .party = party, .errp = errp, .allowed = true };

    rwp_state_foreach(check_newcomer, &newcomer);
    return newcomer.allowed;
}

bool rwp_allow_foreigner(const char *name, Error **errp)
{
    Party party = { .name = name };

    GLOBAL_STATE_CODE();

    return allow(&party, errp);
}

/* The value of an option as it is written, or true in JSON */
static bool is_on(const QDict *options, const char *name)
{
    const char *value = qdict_get_try_str(options, name);
    bool on = qdict_get_try_bool(options, name, false);

    return on || (value && qapi_bool_parse(name, value, &on, NULL) && on);
}

/*
 * A device is about to be created.  The hook was made to hide devices; it
 * is called before anything else happens, and may refuse with an error.
 */
static bool check_new_device(DeviceListener *listener, const QDict *options,
                             bool from_json, Error **errp)
{
    Party party = {
        .name = qdict_get_try_str(options, "driver"),
        .blob = is_on(options, "blob"),
        .vmx = is_on(options, "vmx"),
    };

    if (party.name) {
        allow(&party, errp);
    }
    return false;
}

static DeviceListener listener = {
    .hide_device = check_new_device,
};

void rwp_foreign_watch(void)
{
    static bool watching;

    GLOBAL_STATE_CODE();

    if (!watching) {
        device_listener_register(&listener);
        watching = true;
    }
}
