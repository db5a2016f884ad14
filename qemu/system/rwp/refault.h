/*
 * Reads of the store for pages that somebody touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The part of the fault service that takes time.  See refault.c for how.
 */
#ifndef RWP_REFAULT_H
#define RWP_REFAULT_H

#include "quit.h"
#include "state.h"

typedef struct RwpRefaults RwpRefaults;

/** rwp_refaults_new: nothing is read yet.  Context: main loop. */
RwpRefaults *rwp_refaults_new(RwpState *s);

/**
 * rwp_refaults_free: wait for reads under way; nothing is read again.
 *
 * rwp_refaults_stuck() must be false, and nothing may come any more.
 * Context: main loop.
 */
void rwp_refaults_free(RwpRefaults *refaults);

/**
 * rwp_refaults_fetch: bring back @page, which was EVICTED and is touched.
 *
 * @start_ns: get_clock() when that was noticed
 *
 * The caller has it in FETCHING, and gives it away.  Context: fault thread.
 */
void rwp_refaults_fetch(RwpRefaults *refaults, uint64_t page,
                        int64_t start_ns);

/**
 * rwp_refaults_wait: the thread @tid touched @page, which is FETCHING by
 * somebody.
 *
 * @start_ns: get_clock() when that was noticed
 *
 * Context: fault thread.
 */
void rwp_refaults_wait(RwpRefaults *refaults, uint64_t page, uint32_t tid,
                       int64_t start_ns);

/** rwp_refaults_reader: as rwp_faults_reader(). */
void rwp_refaults_reader(RwpRefaults *refaults, int64_t since_ns);

/** rwp_refaults_retry: try failed reads again now.  Context: any thread. */
void rwp_refaults_retry(RwpRefaults *refaults);

/** rwp_refaults_quit: as rwp_faults_quit(). */
void rwp_refaults_quit(RwpRefaults *refaults, RwpQuitPhase phase);

/** rwp_refaults_stuck: as rwp_faults_stuck(). */
bool rwp_refaults_stuck(RwpRefaults *refaults);

#endif
