/*
 * Stub for programs without guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/rwp-reopen.h"

bool rwp_allow_reopen(BlockDriverState *bs, Error **errp)
{
    return true;
}
