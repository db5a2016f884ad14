/*
 * Ages of guest pages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The age of a page is the number of completed cycles since it was last
 * seen accessed.  It is kept in one byte and saturates.  A page that was
 * never seen has no age: such pages are neither hot nor cold.
 *
 * The data is pure: no I/O, no kernel interface, no other module.  A
 * histogram is kept up to date by every operation, so the size of the
 * working set over any window, or of everything older than some age, is
 * read off in constant time and is exact.
 *
 * Memory: one byte a page, allocated by the host kernel when a page is
 * first seen, so that a large and mostly unused guest costs little.
 *
 * Locking: every function may be called from any thread.  Changes take a
 * private mutex that is never held across anything that can block; a
 * change of many pages drops it between blocks of 16384 pages, so a reader
 * can observe a cycle that is half done.  rwp_ages_get() and
 * rwp_ages_next_run() read single bytes atomically, without the mutex.
 */
#ifndef RWP_AGES_H
#define RWP_AGES_H

/* The highest age; stands for itself and everything above */
#define RWP_AGE_MAX 254

/* Not an age: the page was never seen, or was given back by the guest */
#define RWP_AGE_NONE 255

typedef struct RwpAges RwpAges;

/**
 * rwp_ages_new: create ages for pages [0, @nb_pages), all RWP_AGE_NONE.
 *
 * Returns NULL with @errp set if the memory cannot be mapped.
 */
RwpAges *rwp_ages_new(uint64_t nb_pages, Error **errp);

/** rwp_ages_free: free @ages, which may be NULL. */
void rwp_ages_free(RwpAges *ages);

/** rwp_ages_reset: forget all pages and give the memory back.  O(1). */
void rwp_ages_reset(RwpAges *ages);

/**
 * rwp_ages_tick: pages [@first, @first + @count) get one cycle older.
 *
 * Pages never seen stay so; RWP_AGE_MAX stays.  O(@count), but blocks in
 * which no page was ever seen are skipped.
 */
void rwp_ages_tick(RwpAges *ages, uint64_t first, uint64_t count);

/** rwp_ages_touch: [@first, @first + @count) get age 0.  O(@count). */
void rwp_ages_touch(RwpAges *ages, uint64_t first, uint64_t count);

/**
 * rwp_ages_see: those pages of [@first, @first + @count) that have no age
 * get age 0, the others keep theirs.  O(@count).
 */
void rwp_ages_see(RwpAges *ages, uint64_t first, uint64_t count);

/**
 * rwp_ages_forget: [@first, @first + @count) get RWP_AGE_NONE.
 *
 * O(@count), but blocks in which no page was ever seen are skipped.
 */
void rwp_ages_forget(RwpAges *ages, uint64_t first, uint64_t count);

/** rwp_ages_get: age of @page, or RWP_AGE_NONE. */
uint8_t rwp_ages_get(RwpAges *ages, uint64_t page);

/**
 * rwp_ages_histogram: copy the number of pages of each age to @counts.
 */
void rwp_ages_histogram(RwpAges *ages, uint64_t counts[RWP_AGE_MAX + 1]);

/** rwp_ages_younger: number of pages with an age below @window. */
uint64_t rwp_ages_younger(RwpAges *ages, unsigned window);

/** rwp_ages_at_least: number of pages with age @min_age or above. */
uint64_t rwp_ages_at_least(RwpAges *ages, unsigned min_age);

/**
 * rwp_ages_threshold: the highest age, not below @min_age, such that at
 * least @wanted pages are that old or older; @min_age if there are not
 * that many.
 */
uint8_t rwp_ages_threshold(RwpAges *ages, uint64_t wanted, uint8_t min_age);

/**
 * rwp_ages_next_run: find the first run of pages within [@first, @end)
 * that all have an age between @min_age and @max_age.
 *
 * @start, @count: set to the run if there is one.  The run is maximal
 *     within [@first, @end).
 *
 * Blocks in which no page was ever seen are skipped in constant time.
 *
 * Returns false if there is none.
 */
bool rwp_ages_next_run(RwpAges *ages, uint64_t first, uint64_t end,
                       uint8_t min_age, uint8_t max_age,
                       uint64_t *start, uint64_t *count);

/** rwp_ages_bytes: memory mapped for @ages, touched or not. */
uint64_t rwp_ages_bytes(RwpAges *ages);

#endif
