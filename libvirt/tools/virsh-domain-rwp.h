/*
 * virsh-domain-rwp.h: commands for guest memory of <source type='rwp'/>
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#pragma once

#include "virsh.h"

extern const vshCmdDef rwpCmds[];
