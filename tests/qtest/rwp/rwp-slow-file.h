/*
 * A file whose reads can be held back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * It is in a FUSE file system of its own, with direct I/O: for a read(2),
 * the host kernel first pins the memory that is to be filled, and then asks
 * the server, which is a thread of the test.  So memory can be had in the
 * state in which storage hardware is just about to write to it.
 */
#ifndef RWP_SLOW_FILE_H
#define RWP_SLOW_FILE_H

#define RWP_SLOW_FILE_SIZE (4 * MiB)

typedef struct RwpSlowFile RwpSlowFile;

/**
 * rwp_slow_file_skip: skip the present test if there can be none.
 *
 * Returns true if the test was marked as skipped.  Otherwise the process has
 * a mount namespace of its own from now on.
 */
bool rwp_slow_file_skip(void);

/**
 * rwp_slow_file_new: serve the file @dir/slow.
 *
 * Its content is rwp_pattern() of @seed.  The directory must be empty.
 */
RwpSlowFile *rwp_slow_file_new(const char *dir, uint64_t seed);

/** rwp_slow_file_hold: hold reads back from now on, at offsets other than 0 */
void rwp_slow_file_hold(RwpSlowFile *file);

/** rwp_slow_file_await: wait until a read is held back. */
void rwp_slow_file_await(RwpSlowFile *file);

/** rwp_slow_file_release: answer the read that is held back. */
void rwp_slow_file_release(RwpSlowFile *file);

/** rwp_slow_file_free: nobody uses the file any more. */
void rwp_slow_file_free(RwpSlowFile *file);

#endif
