/*
 * The bare limits of large requests; see bare.c for the command line
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/userfaultfd.h>
#include "bare.h"
#include "order.h"

struct writer {
    int store;
    uint64_t end;
    size_t request;
    uint8_t *buffers;           /* one request for each thread */
    _Atomic unsigned threads;
    _Atomic uint64_t next;
};

static uint8_t *random_buffer(size_t size)
{
    uint8_t *buf = aligned_alloc(BENCH_PAGE, size);

    for (size_t i = 0; i < size; i++) {
        buf[i] = random();
    }
    return buf;
}

static void *write_requests(void *opaque)
{
    struct writer *writer = opaque;
    uint8_t *buf = writer->buffers +
                   atomic_fetch_add(&writer->threads, 1) * writer->request;
    uint64_t offset;

    while ((offset = atomic_fetch_add(&writer->next, writer->request)) <
           writer->end) {
        if (pwrite(writer->store, buf, writer->request, offset) !=
            (ssize_t)writer->request) {
            err(1, "write to the store");
        }
    }
    return NULL;
}

static void run_threads(unsigned depth, void *(*function)(void *),
                        void *opaque)
{
    pthread_t threads[MAX_DEPTH];

    for (unsigned i = 0; i < depth; i++) {
        if (pthread_create(&threads[i], NULL, function, opaque)) {
            errx(1, "cannot create a thread");
        }
    }
    for (unsigned i = 0; i < depth; i++) {
        pthread_join(threads[i], NULL);
    }
}

void sequential_write(const char *store, uint64_t offset, uint64_t bytes,
                      size_t request, unsigned depth)
{
    struct writer writer = {
        .store = open_store(store, O_WRONLY),
        .end = offset + bytes,
        .request = request,
        .next = offset,
    };
    uint64_t start;

    writer.buffers = random_buffer(depth * request);
    start = now_ns();
    run_threads(depth, write_requests, &writer);
    printf("write-ns %lu\n", now_ns() - start);
}

struct evictor {
    int store, memfd, uffd;
    uint8_t *memory;
    uint64_t offset;            /* of the memory in the store */
    uint64_t bytes;
    size_t request;
    _Atomic uint64_t next;
    pthread_mutex_t commit;
};

/* Nobody touches the memory, so what was written is what is removed */
static void remove_written(struct evictor *evictor, uint64_t pos)
{
    size_t size = evictor->request;
    uint8_t *memory = evictor->memory + pos;
    struct uffdio_range range = { (uintptr_t)memory, size };

    if (fallocate(evictor->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  pos, size) < 0) {
        err(1, "fallocate");
    }
    if (ioctl(evictor->uffd, UFFDIO_WAKE, &range) < 0) {
        err(1, "UFFDIO_WAKE");
    }
}

static void *evict_requests(void *opaque)
{
    struct evictor *evictor = opaque;
    size_t size = evictor->request;
    uint64_t pos;

    while ((pos = atomic_fetch_add(&evictor->next, size)) < evictor->bytes) {
        uint8_t *view = mmap(NULL, size, PROT_READ, MAP_SHARED,
                             evictor->memfd, pos);

        if (view == MAP_FAILED) {
            err(1, "mmap");
        }
        if (madvise(evictor->memory + pos, size, MADV_DONTNEED) < 0 ||
            madvise(view, size, MADV_SEQUENTIAL) < 0) {
            err(1, "madvise");
        }
        for (size_t i = 0; i < size; i += BENCH_PAGE) {
            (void)*(volatile uint8_t *)(view + i);
        }
        if (pwrite(evictor->store, view, size, evictor->offset + pos) !=
            (ssize_t)size) {
            err(1, "write to the store");
        }
        munmap(view, size);
        pthread_mutex_lock(&evictor->commit);
        remove_written(evictor, pos);
        pthread_mutex_unlock(&evictor->commit);
    }
    return NULL;
}

/* What an eviction with tracker=zap and pager=punch asks of the kernel */
void evict(const char *store, uint64_t offset, uint64_t bytes,
           size_t request, unsigned depth)
{
    struct evictor evictor = {
        .store = open_store(store, O_WRONLY),
        .memfd = guest_file(bytes),
        .uffd = open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                          UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                          UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_MISSING_SHMEM |
                          UFFD_FEATURE_MINOR_SHMEM),
        .offset = offset,
        .bytes = bytes,
        .request = request,
        .commit = PTHREAD_MUTEX_INITIALIZER,
    };
    uint64_t start;

    evictor.memory = guest_memory(evictor.memfd, bytes);
    for (size_t i = 0; i < bytes; i += sizeof(long)) {
        *(long *)(evictor.memory + i) = random();
    }
    register_memory(evictor.uffd, evictor.memory, bytes,
                    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
    start = now_ns();
    register_memory(evictor.uffd, evictor.memory, bytes,
                    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
    run_threads(depth, evict_requests, &evictor);
    register_memory(evictor.uffd, evictor.memory, bytes,
                    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
    printf("evict-ns %lu\n", now_ns() - start);
}

struct fetcher {
    int store, uffd;
    uint8_t *memory;
    uint64_t offset;            /* of the memory in the store */
    uint64_t bytes;
    size_t request;
    _Atomic uint64_t next;
};

static void *fetch_requests(void *opaque)
{
    struct fetcher *fetcher = opaque;
    size_t size = fetcher->request;
    uint8_t *buf = aligned_alloc(BENCH_PAGE, size);
    uint64_t pos;

    while ((pos = atomic_fetch_add(&fetcher->next, size)) < fetcher->bytes) {
        struct uffdio_copy copy = {
            .dst = (uintptr_t)fetcher->memory + pos,
            .src = (uintptr_t)buf,
            .len = size,
        };

        if (pread(fetcher->store, buf, size, fetcher->offset + pos) !=
            (ssize_t)size) {
            err(1, "read of the store");
        }
        if (ioctl(fetcher->uffd, UFFDIO_COPY, &copy) < 0) {
            err(1, "UFFDIO_COPY");
        }
    }
    free(buf);
    return NULL;
}

/* What a fetch with pager=punch asks of the kernel, if nobody waits for it */
void fetch(const char *store, uint64_t offset, uint64_t bytes,
           size_t request, unsigned depth)
{
    struct fetcher fetcher = {
        .store = open_store(store, O_RDONLY),
        .uffd = open_uffd(UFFD_FEATURE_MISSING_SHMEM),
        .memory = guest_memory(guest_file(bytes), bytes),
        .offset = offset,
        .bytes = bytes,
        .request = request,
    };
    uint64_t start;

    register_memory(fetcher.uffd, fetcher.memory, bytes,
                    UFFDIO_REGISTER_MODE_MISSING);
    start = now_ns();
    run_threads(depth, fetch_requests, &fetcher);
    printf("fetch-ns %lu\n", now_ns() - start);
}

void sequential_read(const char *store, uint64_t offset, uint64_t bytes,
                     size_t request)
{
    int fd = open_store(store, O_RDONLY);
    uint8_t *buf = random_buffer(request);
    uint64_t start = now_ns();

    for (uint64_t done = 0; done < bytes; done += request) {
        if (pread(fd, buf, request, offset + done) != (ssize_t)request) {
            err(1, "read of the store");
        }
    }
    printf("read-ns %lu\n", now_ns() - start);
}
