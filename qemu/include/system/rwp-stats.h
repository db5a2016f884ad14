/*
 * Working set tracking and eviction: statistics for query-stats
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * In a header of its own because, unlike the rest, it is used on hosts
 * that have no memory-backend-rwp, too.
 */
#ifndef SYSTEM_RWP_STATS_H
#define SYSTEM_RWP_STATS_H

#include "qapi/qapi-types-stats.h"

/**
 * rwp_stats_unasked: whether @provider may answer a query-stats that names
 * no provider.
 *
 * libvirt up to 11.3 drops all statistics of target vm as soon as there is
 * more than one result.  With KVM there is one of the provider kvm
 * already, so the provider rwp then answers only if it is named.
 * Context: main loop.
 */
#ifdef CONFIG_LINUX
bool rwp_stats_unasked(StatsProvider provider);
#else
static inline bool rwp_stats_unasked(StatsProvider provider)
{
    return true;
}
#endif

#endif
