/*
 * Other processes that map guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See foreign.h.  QEMU hands the memfd of a guest to vhost-user backends,
 * among them virtiofsd.  There is no list of them, so devices are found by
 * the names of their types, and network backends by their driver.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "net/net.h"
#include "qom/object.h"
#include "foreign.h"

/* Network backends that are looked at; a guest has one or two */
#define MAX_NET_CLIENTS 256

static int is_vhost_user(Object *obj, void *opaque)
{
    const char **found = opaque;
    const char *type = object_get_typename(obj);

    if (!g_str_has_prefix(type, "vhost-user")) {
        return 0;
    }
    *found = type;
    return 1;
}

static const char *find_vhost_user(void)
{
    NetClientState *clients[MAX_NET_CLIENTS];
    const char *found = NULL;
    int nb;

    object_child_foreach_recursive(object_get_root(), is_vhost_user, &found);
    if (found) {
        return found;
    }
    nb = qemu_find_net_clients_except(NULL, clients, NET_CLIENT_DRIVER_NIC,
                                      MAX_NET_CLIENTS);
    for (int i = 0; i < MIN(nb, MAX_NET_CLIENTS); i++) {
        if (clients[i]->info->type == NET_CLIENT_DRIVER_VHOST_USER) {
            return "netdev vhost-user";
        }
    }
    return NULL;
}

bool rwp_foreign_check(const char *id, Error **errp)
{
    const char *found = find_vhost_user();

    if (found) {
        error_setg(errp, "memory-backend-rwp '%s' cannot evict: %s lets "
                   "another process access guest memory", id, found);
        return false;
    }
    return true;
}
