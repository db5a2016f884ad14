/*
 * The fault service: whoever touches a page that is away gets it back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Runs in the fault thread of the backend.  See fault.c for how.
 */
#ifndef RWP_FAULT_H
#define RWP_FAULT_H

#include "state.h"

/**
 * rwp_faults_new: serve the faults of @s from now on.
 *
 * Context: main loop.  The fault thread exists.
 */
RwpFaults *rwp_faults_new(RwpState *s);

/**
 * rwp_faults_free: stop serving.  @faults may be NULL.
 *
 * Reads under way are waited for; nothing is read again.  Context: main
 * loop.
 */
void rwp_faults_free(RwpFaults *faults);

/**
 * rwp_faults_retry: try failed reads again now.  Context: any thread.
 */
void rwp_faults_retry(RwpFaults *faults);

/**
 * rwp_faults_give_up: the guest will never run again.
 *
 * From now on, a page whose read fails becomes zeros, so that the thread
 * that touched it can be stopped.  Context: any thread, after all vCPUs
 * were told to stop.
 */
void rwp_faults_give_up(RwpFaults *faults);

/**
 * rwp_faults_place: put pages in place that nobody is known to wait for.
 *
 * @first, @count: pages that the caller has in FETCHING
 * @buf: their content
 *
 * The pages count as not accessed.  They are not FETCHING any more: a page
 * that could not be put in place is EVICTED again.  Returns the number of
 * pages that are in place.  Context: fault thread or work thread.
 */
uint64_t rwp_faults_place(RwpState *s, uint64_t first, uint64_t count,
                          const void *buf);

#endif
