/*
 * States of pages that many threads change: unit tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What must hold whatever the order: a page has one owner at most, and no
 * counter is ever too low.  RWP_TEST_SEED=n repeats the random steps.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/thread.h"
#include "qapi/error.h"
#include "system/rwp/pages.h"
#include "rwp-random.h"

#define CHUNK_PAGES 256
#define NB_THREADS 8
#define NB_SHARED  (2 * CHUNK_PAGES)
#define NB_STEPS   200000

typedef struct Arena {
    RwpPages *pages;
    uint64_t nb_shared;         /* pages that all threads move */
    /*
     * How often each page had an owner.  Not atomic: only the owner
     * counts, so if two own a page, a count gets lost.
     */
    uint32_t owned[NB_SHARED];
    /* Whether it has one now; by the owner, who must be alone */
    uint32_t busy[NB_SHARED];
    /* Of the threads that stage: one has begun, all have to end; atomic */
    bool staging;
    bool stop;
} Arena;

typedef struct Worker {
    Arena *arena;
    GRand *rand;
    uint64_t owned;             /* result: sum over its pages */
} Worker;

/* This thread has just moved @page to a state with an owner */
static void own_page(Worker *w, uint64_t page, RwpPage to)
{
    Arena *arena = w->arena;
    RwpPage next;

    g_assert_cmpuint(qatomic_fetch_inc(&arena->busy[page]), ==, 0);
    arena->owned[page]++;
    w->owned++;
    g_assert_cmpuint(qatomic_fetch_dec(&arena->busy[page]), ==, 1);

    next = rwp_pages_finish(arena->pages, page, to);
    g_assert(next == to || next == RWP_PAGE_LIVE);
}

static void *evict_and_fetch(void *opaque)
{
    Worker *w = opaque;
    RwpPages *pages = w->arena->pages;

    for (int step = 0; step < NB_STEPS; step++) {
        uint64_t page = g_rand_int_range(w->rand, 0, w->arena->nb_shared);
        bool odd = g_rand_boolean(w->rand);

        switch (g_rand_int_range(w->rand, 0, 8)) {
        case 0:
        case 1:
        case 2:
            /* Another thread may cancel it, and may discard it */
            if (rwp_pages_move(pages, page, RWP_PAGE_LIVE, RWP_PAGE_STAGED) &&
                rwp_pages_move(pages, page, RWP_PAGE_STAGED,
                               RWP_PAGE_LEAVING)) {
                own_page(w, page, odd ? RWP_PAGE_EVICTED : RWP_PAGE_ZERO);
            }
            break;
        case 3:
            rwp_pages_move(pages, page, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
            break;
        case 4:
        case 5:
            if (rwp_pages_move(pages, page, RWP_PAGE_EVICTED,
                               RWP_PAGE_FETCHING)) {
                own_page(w, page, odd ? RWP_PAGE_LIVE : RWP_PAGE_EVICTED);
            }
            break;
        case 6:
            if (rwp_pages_move(pages, page, RWP_PAGE_ZERO,
                               RWP_PAGE_FETCHING)) {
                own_page(w, page, odd ? RWP_PAGE_LIVE : RWP_PAGE_ZERO);
            }
            break;
        default:
            rwp_pages_discard(pages, page,
                              MIN(3, w->arena->nb_shared - page));
            break;
        }
    }
    return NULL;
}

/* Stages the only shared page again and again, until told to stop */
static void *stage(void *opaque)
{
    Worker *w = opaque;

    qatomic_set(&w->arena->staging, true);
    while (!qatomic_read(&w->arena->stop)) {
        rwp_pages_move(w->arena->pages, 0, RWP_PAGE_LIVE, RWP_PAGE_STAGED);
    }
    return NULL;
}

/*
 * A page of this thread's own goes away and is discarded, while it cancels
 * what the other threads stage in the same chunk, in the moment they do.
 * That must not make the chunk look as if nothing of it was away.
 */
static void *cancel_and_discard(void *opaque)
{
    Worker *w = opaque;
    RwpPages *pages = w->arena->pages;
    uint64_t own = 1;

    while (!qatomic_read(&w->arena->staging)) {
        sched_yield();
    }
    for (int step = 0; step < 5 * NB_STEPS; step++) {
        uint64_t start, count;

        g_assert_true(rwp_pages_move(pages, own, RWP_PAGE_LIVE,
                                     RWP_PAGE_LEAVING));
        g_assert_true(rwp_pages_move(pages, own, RWP_PAGE_LEAVING,
                                     RWP_PAGE_EVICTED));

        /* Each of these can be wrong only right after a cancel */
        rwp_pages_move(pages, 0, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
        g_assert_cmpuint(rwp_pages_chunk_away(pages, own), >, 0);
        rwp_pages_move(pages, 0, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
        g_assert_cmpuint(rwp_pages_away(pages), >, 0);
        rwp_pages_move(pages, 0, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
        g_assert_true(rwp_pages_next_run(pages, own, own + 1,
                                         RWP_PAGE_EVICTED, &start, &count));
        rwp_pages_move(pages, 0, RWP_PAGE_STAGED, RWP_PAGE_LIVE);
        g_assert_cmpuint(rwp_pages_discard(pages, own, 1), ==, 1);
        g_assert_cmpint(rwp_pages_get(pages, own), ==, RWP_PAGE_LIVE);
    }
    qatomic_set(&w->arena->stop, true);
    return NULL;
}

/* After all threads ended: no page has an owner, and counters are exact */
static void check_arena(Arena *arena, uint64_t nb_pages)
{
    uint64_t counts[RWP_PAGE__MAX] = { 0 };

    for (uint64_t first = 0; first < nb_pages; first += CHUNK_PAGES) {
        uint64_t away = 0;

        for (uint64_t page = first; page < first + CHUNK_PAGES; page++) {
            RwpPage state = rwp_pages_get(arena->pages, page);

            counts[state]++;
            away += state != RWP_PAGE_LIVE;
        }
        g_assert_cmpuint(rwp_pages_chunk_away(arena->pages, first), ==, away);
    }
    for (int state = 0; state < RWP_PAGE__MAX; state++) {
        g_assert_cmpuint(rwp_pages_count(arena->pages, state), ==,
                         counts[state]);
    }
    g_assert_cmpuint(counts[RWP_PAGE_LEAVING] + counts[RWP_PAGE_FETCHING], ==,
                     0);
    g_assert_cmpuint(rwp_pages_away(arena->pages), ==,
                     nb_pages - counts[RWP_PAGE_LIVE]);
}

/* Runs @first_body in one thread and @body in the others */
static void run_threads(void *(*first_body)(void *), void *(*body)(void *),
                        uint64_t nb_shared)
{
    uint64_t nb_pages = NB_SHARED;
    g_autofree Arena *arena = g_new0(Arena, 1);
    g_autoptr(GRand) rand = g_rand_new_with_seed(rwp_test_seed());
    Worker workers[NB_THREADS] = { 0 };
    QemuThread threads[NB_THREADS];
    uint64_t owned = 0;

    arena->pages = rwp_pages_new(nb_pages, CHUNK_PAGES, &error_abort);
    arena->nb_shared = nb_shared;
    for (int i = 0; i < NB_THREADS; i++) {
        workers[i].arena = arena;
        workers[i].rand = g_rand_new_with_seed(g_rand_int(rand));
        qemu_thread_create(&threads[i], "pages", i ? body : first_body,
                           &workers[i], QEMU_THREAD_JOINABLE);
    }
    for (int i = 0; i < NB_THREADS; i++) {
        qemu_thread_join(&threads[i]);
        g_rand_free(workers[i].rand);
        owned += workers[i].owned;
    }
    for (int i = 0; i < NB_SHARED; i++) {
        owned -= arena->owned[i];
    }
    g_assert_cmpuint(owned, ==, 0);
    check_arena(arena, nb_pages);
    rwp_pages_free(arena->pages);
}

static void test_threads_owner(void)
{
    /* Few pages, so that threads meet, then many */
    run_threads(evict_and_fetch, evict_and_fetch, 3);
    run_threads(evict_and_fetch, evict_and_fetch, NB_SHARED);
}

static void test_threads_discard(void)
{
    run_threads(cancel_and_discard, stage, 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/rwp/threads/owner", test_threads_owner);
    g_test_add_func("/rwp/threads/discard", test_threads_discard);
    return g_test_run();
}
