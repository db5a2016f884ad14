/*
 * Stubs for programs without guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/rwp-nodes.h"

bool rwp_allow_reopen(BlockDriverState *bs, Error **errp)
{
    return true;
}

bool rwp_allow_set_active(const char *node_name, Error **errp)
{
    return true;
}

bool rwp_allow_snapshot(bool has_devices, strList *devices, Error **errp)
{
    return true;
}
