/*
 * The fault service: whoever touches a page that is away gets it back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Runs in the fault thread of the backend.  See fault.c for how.
 */
#ifndef RWP_FAULT_H
#define RWP_FAULT_H

#include "quit.h"
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
 * Reads under way are waited for; nothing is read again, and
 * rwp_faults_stuck() must be false.  Context: main loop.
 */
void rwp_faults_free(RwpFaults *faults);

/**
 * rwp_faults_retry: try failed reads again now.  Context: any thread.
 */
void rwp_faults_retry(RwpFaults *faults);

/**
 * rwp_faults_reader: a thread waits for a read of the store, not in a fault.
 *
 * @since_ns: get_clock() when it began to, or 0 if the read has ended
 *
 * One at a time.  QEMU can be told to end meanwhile, as it can while somebody
 * waits for a page.  Context: fault thread.
 */
void rwp_faults_reader(RwpFaults *faults, int64_t since_ns);

/**
 * rwp_faults_quit: QEMU ends, @phase begins.
 *
 * From now on, a page whose read fails is lost.  Context: any thread.
 */
void rwp_faults_quit(RwpFaults *faults, RwpQuitPhase phase);

/**
 * rwp_faults_stuck: whether a vCPU waits for a page that is lost.
 *
 * Then the memory must stay as it is until the process is gone.  @faults
 * may be NULL.  Context: any thread.
 */
bool rwp_faults_stuck(RwpFaults *faults);

#endif
