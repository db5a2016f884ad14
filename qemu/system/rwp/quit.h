/*
 * What becomes of those who wait for a page when QEMU ends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See quit.c for the rules.  A page is lost if it could not be read and
 * will not be read again, because QEMU ends.
 */
#ifndef RWP_QUIT_H
#define RWP_QUIT_H

#include "block/aio.h"

typedef struct RwpQuit RwpQuit;

/* Ascending: there is no way back */
typedef enum RwpQuitPhase {
    RWP_QUIT_NO,            /* pages are read for as long as it takes */
    RWP_QUIT_BEGUN,         /* a page that cannot be read is lost */
    RWP_QUIT_ANNOUNCED,     /* the same, and the main loop knows of it */
    RWP_QUIT_CLOSED,        /* nobody can write to a block node any more */
} RwpQuitPhase;

/** rwp_quit_new: for the backend @id. */
RwpQuit *rwp_quit_new(const char *id);

/** rwp_quit_free: nobody may wait for a lost page. */
void rwp_quit_free(RwpQuit *quit);

/** rwp_quit_set_phase: @phase begins, if it did not.  Any thread. */
void rwp_quit_set_phase(RwpQuit *quit, RwpQuitPhase phase);

/** rwp_quit_phase: the present phase.  Any thread. */
RwpQuitPhase rwp_quit_phase(RwpQuit *quit);

/**
 * rwp_quit_lose: @page is lost.
 *
 * The caller leaves it in FETCHING, and then wakes those who wait for it,
 * so that rwp_quit_waiter() gets to know them.  Context: fault thread.
 */
void rwp_quit_lose(RwpQuit *quit, uint64_t page);

/**
 * rwp_quit_waiter: a thread waits for a page that is FETCHING.
 *
 * @tid: its thread ID, as gettid(2) has it
 *
 * If the page is lost, this decides what becomes of the thread, and may
 * not return.  Returns true if it is to get zeros; the page is not lost any
 * more then.  Context: fault thread.
 */
bool rwp_quit_waiter(RwpQuit *quit, uint64_t page, uint32_t tid);

/** rwp_quit_any_stuck: whether a vCPU waits for a lost page.  Any thread. */
bool rwp_quit_any_stuck(RwpQuit *quit);

/**
 * rwp_quit_watch: see to it that QEMU ends, if it was told to.
 *
 * @wait_ns: how long somebody has been waiting for a page that is read
 *
 * Called from time to time while pages are read or lost.  Returns true if
 * the end has begun just now.  Context: fault thread.
 */
bool rwp_quit_watch(RwpQuit *quit, int64_t wait_ns);

/**
 * rwp_quit_stop_vcpus: tell all vCPUs to stop, and wait until none runs.
 *
 * A vCPU that waits for a lost page of one of the backends counts as
 * stopped.  Context: main loop; the BQL is released meanwhile.
 */
void rwp_quit_stop_vcpus(void);

#endif
