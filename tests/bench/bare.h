/*
 * What the parts of bare.c share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * All of it ends the program if something fails.
 */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <stddef.h>
#include <stdint.h>

/* include/uapi/linux/userfaultfd.h of Linux 6.7 */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

/* Threads of one command at most */
#define MAX_DEPTH 64

uint64_t now_ns(void);

/* A file of @size bytes in memory, and a mapping of all of it */
int guest_file(size_t size);
void *guest_memory(int fd, size_t size);

int open_uffd(uint64_t features);
void register_memory(int uffd, void *memory, size_t size, uint64_t modes);

/* The number of pages that are mapped; @pagemap is /proc/self/pagemap */
uint64_t scan(int pagemap, uint8_t *memory, size_t size);

/* With O_DIRECT if the command line says so */
int open_store(const char *name, int flags);

/*
 * The commands about sequential requests, of @request bytes each, for the
 * @bytes from @offset on; @depth threads take them by turns.
 */
void sequential_write(const char *store, uint64_t offset, uint64_t bytes,
                      size_t request, unsigned depth);
void sequential_read(const char *store, uint64_t offset, uint64_t bytes,
                     size_t request);
void evict(const char *store, uint64_t offset, uint64_t bytes,
           size_t request, unsigned depth);
void fetch(const char *store, uint64_t offset, uint64_t bytes,
           size_t request, unsigned depth);

#endif
