/*
 * Working set tracking and eviction of guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the memory backend needs of it.
 */
#ifndef SYSTEM_RWP_H
#define SYSTEM_RWP_H

#include "qapi/qapi-types-qom.h"
#include "exec/cpu-common.h"

typedef struct RwpState RwpState;

/* Bounds of the property and argument "interval", in milliseconds */
#define RWP_INTERVAL_MIN 10
#define RWP_INTERVAL_MAX (24 * 60 * 60 * 1000)

/* Bound of the property "readahead", in bytes */
#define RWP_READAHEAD_MAX (1024 * 1024)

/* Bound of the property "max-fetches" */
#define RWP_FETCHES_MAX 256

typedef struct RwpConfig {
    const char *id;             /* for messages, threads, QMP */
    RwpTracker tracker;         /* as resolved by rwp_select() */
    RwpBacking backing;         /* as resolved by rwp_select() */
    RwpThp thp;                 /* off unless the memory is anonymous */
    uint32_t interval;          /* default of rwp-track-start, in ms */
    uint32_t readahead;         /* at most, in bytes; 0 for none */
    const char *store;          /* node name, or NULL */
    bool checksum;              /* only if rwp_checksums_available() */
    uint32_t max_fetches;       /* from 1 to RWP_FETCHES_MAX */
} RwpConfig;

/** rwp_checksums_available: whether QEMU was built with what it takes. */
bool rwp_checksums_available(void);

/**
 * rwp_select: resolve "auto", and check what is asked for.
 *
 * @tracker, @backing: the choice of the user, replaced by the result,
 *     which is not auto
 * @share: the memory shall be shared with other processes
 * @hugetlb: the memory shall consist of huge pages
 *
 * Fails if the host kernel cannot do it; the error names both sides.
 */
bool rwp_select(RwpTracker *tracker, RwpBacking *backing, bool share,
                bool hugetlb, Error **errp);

/**
 * rwp_state_new: make the memory of @rb known to the working set tracker.
 *
 * @rb: the block, which must outlive the state
 * @config: copied
 *
 * Attaches the store if one is named.  Registers nothing with the
 * kernel.  Context: main loop, BQL held.
 */
RwpState *rwp_state_new(RAMBlock *rb, const RwpConfig *config, Error **errp);

/**
 * rwp_state_free: undo rwp_state_new().  @s may be NULL.
 *
 * Evicted pages are not fetched.  No job may be running.  Context: main
 * loop, BQL held.
 */
void rwp_state_free(RwpState *s);

/**
 * rwp_allow_foreigner: whether somebody who accesses guest memory behind
 * QEMU's back may come in now.
 *
 * @name: name of a device type, or of the driver of a network backend; a
 *     name that is not known to do so is always allowed
 *
 * Fails while pages are away, or a job may take some away.  Context: main
 * loop, BQL held.
 */
#ifdef CONFIG_LINUX
bool rwp_allow_foreigner(const char *name, Error **errp);
#else
static inline bool rwp_allow_foreigner(const char *name, Error **errp)
{
    return true;
}
#endif

/**
 * rwp_stats_retire: keep what @s counted for query-stats; it is about to be
 * freed.  @s may be NULL.  Context: main loop.
 */
void rwp_stats_retire(RwpState *s);

/** rwp_state_busy: whether a job is running.  Context: main loop. */
bool rwp_state_busy(RwpState *s);

#endif
