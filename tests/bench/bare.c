/*
 * The bare limits: the system calls that the backend makes, without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 *   bare ticks                           ticks of the counter per second
 *   bare cycle BYTES                     arm and scan memory, touch it
 *   bare touch STORE OFFSET PAGES SEED RAW
 *                                        a handler fetches touched pages
 *   bare write STORE OFFSET BYTES REQUEST DEPTH
 *   bare read  STORE OFFSET BYTES REQUEST
 *                                        sequential requests
 *   bare evict STORE OFFSET BYTES REQUEST DEPTH
 *                                        arm memory, write it, remove it
 *
 * With "-d" before all of these, the store is opened with O_DIRECT.  For
 * "touch", the store may be "nbd:" and the path of an NBD server's socket.
 *
 * Prints lines of a name and a number; "touch" also writes the ticks of each
 * touch to the file RAW, as 32-bit numbers: of pages that are away first,
 * then of the same pages again.
 *
 * It ends at the first error, with exit status 1.
 */

#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <linux/userfaultfd.h>
#ifdef BARE_LIBNBD
#include <libnbd.h>
#endif
#include "order.h"

/* include/uapi/linux/userfaultfd.h and fs.h of Linux 6.7 */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#define BARE_PAGE_IS_PRESENT (1 << 3)

struct bare_region {
    uint64_t start, end, categories;
};

struct bare_scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask;
    uint64_t return_mask;
};

#define BARE_PAGEMAP_SCAN _IOWR('f', 16, struct bare_scan)

#define MAX_DEPTH 64

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static int guest_file(size_t size)
{
    int fd = memfd_create("bare", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, size) < 0) {
        err(1, "memfd");
    }
    return fd;
}

static void *guest_memory(int fd, size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory == MAP_FAILED) {
        err(1, "mmap");
    }
    return memory;
}

static int open_uffd(uint64_t features)
{
    struct uffdio_api api = { .api = UFFD_API, .features = features };
    int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0) {
        err(1, "userfaultfd");
    }
    return uffd;
}

static void register_memory(int uffd, void *memory, size_t size,
                            uint64_t modes)
{
    struct uffdio_register reg = {
        .range = { (uintptr_t)memory, size },
        .mode = modes,
    };

    if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0) {
        err(1, "UFFDIO_REGISTER");
    }
}

static void write_each(uint8_t *memory, size_t size)
{
    for (size_t i = 0; i < size; i += BENCH_PAGE) {
        *(volatile uint8_t *)(memory + i) = 1;
    }
}

/* Not one after the other, as a guest does; the time in nanoseconds */
static uint64_t write_scattered(uint8_t *memory, size_t size)
{
    uint64_t start = now_ns();
    uint32_t pages = size / BENCH_PAGE, page = 0;

    for (uint32_t i = 0; i < pages; i++) {
        *(volatile uint8_t *)(memory + (size_t)page * BENCH_PAGE) = 1;
        page = bench_next(page, pages, 1);
    }
    return now_ns() - start;
}

/* Returns the number of pages that were found */
static uint64_t scan(int pagemap, uint8_t *memory, size_t size)
{
    struct bare_region regions[512];
    uint64_t found = 0;
    struct bare_scan arg = {
        .size = sizeof(arg),
        .start = (uintptr_t)memory,
        .end = (uintptr_t)memory + size,
        .vec = (uintptr_t)regions,
        .vec_len = 512,
        .category_anyof_mask = BARE_PAGE_IS_PRESENT,
        .return_mask = BARE_PAGE_IS_PRESENT,
    };

    while (arg.start < arg.end) {
        int nb = ioctl(pagemap, BARE_PAGEMAP_SCAN, &arg);

        if (nb < 0) {
            err(1, "PAGEMAP_SCAN");
        }
        for (int i = 0; i < nb; i++) {
            found += (regions[i].end - regions[i].start) / BENCH_PAGE;
        }
        arg.start = arg.walk_end;
    }
    return found;
}

static void cycle(size_t size)
{
    int uffd = open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                         UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                         UFFD_FEATURE_WP_ASYNC);
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint8_t *memory = guest_memory(guest_file(size), size);
    uint64_t start, scanned, armed, again, touch;

    if (pagemap < 0) {
        err(1, "/proc/self/pagemap");
    }
    write_each(memory, size);
    register_memory(uffd, memory, size, UFFDIO_REGISTER_MODE_WP);

    start = now_ns();
    if (scan(pagemap, memory, size) != size / BENCH_PAGE) {
        errx(1, "PAGEMAP_SCAN does not see the pages that were written");
    }
    scanned = now_ns();
    if (madvise(memory, size, MADV_DONTNEED) < 0) {
        err(1, "MADV_DONTNEED");
    }
    armed = now_ns();
    if (scan(pagemap, memory, size) != 0) {
        errx(1, "PAGEMAP_SCAN sees pages that were not touched");
    }
    again = now_ns();
    touch = write_scattered(memory, size);
    touch -= write_scattered(memory, size);
    printf("scan-touched-ns %lu\narm-ns %lu\nscan-untouched-ns %lu\n"
           "touch-armed-ns %lu\n",
           scanned - start, armed - scanned, again - armed, touch);
}

struct handler {
    int uffd;
    int store;                  /* -1 if it is behind NBD */
    struct nbd_handle *nbd;
    uint64_t offset;
    uint8_t *memory;
};

#ifdef BARE_LIBNBD

static struct nbd_handle *connect_nbd(const char *socket)
{
    struct nbd_handle *nbd = nbd_create();

    if (!nbd || nbd_connect_unix(nbd, socket) < 0) {
        errx(1, "%s: %s", socket, nbd_get_error());
    }
    return nbd;
}

static void read_page(struct handler *handler, uint8_t *page, uint64_t offset)
{
    if (handler->nbd) {
        if (nbd_pread(handler->nbd, page, BENCH_PAGE, offset, 0) < 0) {
            errx(1, "read of the store: %s", nbd_get_error());
        }
    } else if (pread(handler->store, page, BENCH_PAGE, offset) != BENCH_PAGE) {
        err(1, "read of the store");
    }
}

#else

static struct nbd_handle *connect_nbd(const char *socket)
{
    errx(1, "%s: built without libnbd", socket);
}

static void read_page(struct handler *handler, uint8_t *page, uint64_t offset)
{
    if (pread(handler->store, page, BENCH_PAGE, offset) != BENCH_PAGE) {
        err(1, "read of the store");
    }
}

#endif

/* Ends with the process */
static void *handle_faults(void *opaque)
{
    struct handler *handler = opaque;
    uint8_t *page = aligned_alloc(BENCH_PAGE, BENCH_PAGE);

    for (;;) {
        struct uffd_msg msg;
        struct uffdio_copy copy = {
            .src = (uintptr_t)page, .len = BENCH_PAGE,
        };
        uint64_t offset;

        if (read(handler->uffd, &msg, sizeof(msg)) != sizeof(msg)) {
            err(1, "read of the userfaultfd");
        }
        copy.dst = msg.arg.pagefault.address & -(uint64_t)BENCH_PAGE;
        offset = handler->offset + copy.dst - (uintptr_t)handler->memory;
        read_page(handler, page, offset);
        if (ioctl(handler->uffd, UFFDIO_COPY, &copy) < 0) {
            err(1, "UFFDIO_COPY");
        }
    }
    return NULL;
}

static void touch_each(uint8_t *memory, uint32_t pages, uint32_t seed,
                       FILE *raw)
{
    uint32_t *ticks = calloc(pages, sizeof(*ticks));
    uint32_t page = seed & (pages - 1);

    for (uint32_t i = 0; i < pages; i++) {
        volatile uint8_t *address = memory + (size_t)page * BENCH_PAGE;
        uint64_t start = bench_ticks();

        (void)*address;
        ticks[i] = bench_ticks() - start;
        page = bench_next(page, pages, seed);
    }
    if (fwrite(ticks, sizeof(*ticks), pages, raw) != pages) {
        err(1, "write of the results");
    }
    free(ticks);
}

static int direct;              /* O_DIRECT or 0, set by main() */

static int open_store(const char *name, int flags)
{
    int fd = open(name, flags | direct | O_CLOEXEC);

    if (fd < 0) {
        err(1, "%s", name);
    }
    return fd;
}

static void touch(const char *store, uint64_t offset, uint32_t pages,
                  uint32_t seed, const char *raw_name)
{
    size_t size = (size_t)pages * BENCH_PAGE;
    bool nbd = !strncmp(store, "nbd:", 4);
    struct handler handler = {
        .uffd = open_uffd(UFFD_FEATURE_MISSING_SHMEM),
        .store = nbd ? -1 : open_store(store, O_RDONLY),
        .nbd = nbd ? connect_nbd(store + 4) : NULL,
        .offset = offset,
        .memory = guest_memory(guest_file(size), size),
    };
    FILE *raw = fopen(raw_name, "w");
    pthread_t thread;
    uint64_t start;

    if (!raw) {
        err(1, "%s", raw_name);
    }
    register_memory(handler.uffd, handler.memory, size,
                    UFFDIO_REGISTER_MODE_MISSING);
    if (pthread_create(&thread, NULL, handle_faults, &handler)) {
        errx(1, "cannot create a thread");
    }
    start = now_ns();
    touch_each(handler.memory, pages, seed, raw);
    printf("touch-ns %lu\n", now_ns() - start);
    touch_each(handler.memory, pages, seed, raw);
    if (fclose(raw)) {
        err(1, "%s", raw_name);
    }
}

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

static void sequential_write(const char *store, uint64_t offset,
                             uint64_t bytes, size_t request, unsigned depth)
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
    int store, memfd, uffd, pagemap;
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

    register_memory(evictor->uffd, memory, size,
                    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
    if (scan(evictor->pagemap, memory, size) != 0) {
        errx(1, "PAGEMAP_SCAN sees pages that were not touched");
    }
    if (fallocate(evictor->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  pos, size) < 0) {
        err(1, "fallocate");
    }
    register_memory(evictor->uffd, memory, size,
                    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
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
static void evict(const char *store, uint64_t offset, uint64_t bytes,
                  size_t request, unsigned depth)
{
    struct evictor evictor = {
        .store = open_store(store, O_WRONLY),
        .memfd = guest_file(bytes),
        .uffd = open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                          UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                          UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_MISSING_SHMEM |
                          UFFD_FEATURE_MINOR_SHMEM),
        .pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
        .offset = offset,
        .bytes = bytes,
        .request = request,
        .commit = PTHREAD_MUTEX_INITIALIZER,
    };
    uint64_t start;

    if (evictor.pagemap < 0) {
        err(1, "/proc/self/pagemap");
    }
    evictor.memory = guest_memory(evictor.memfd, bytes);
    for (size_t i = 0; i < bytes; i += sizeof(long)) {
        *(long *)(evictor.memory + i) = random();
    }
    register_memory(evictor.uffd, evictor.memory, bytes,
                    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
    start = now_ns();
    run_threads(depth, evict_requests, &evictor);
    printf("evict-ns %lu\n", now_ns() - start);
}

static void sequential_read(const char *store, uint64_t offset,
                            uint64_t bytes, size_t request)
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

static void ticks_per_second(void)
{
    uint64_t start = now_ns(), ticks = bench_ticks(), end;

    do {
        end = now_ns();
    } while (end - start < 200000000);
    ticks = bench_ticks() - ticks;
    printf("ticks-per-second %.0f\n", ticks * 1e9 / (end - start));
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);

    if (*end || !*text) {
        errx(1, "'%s' is not a number", text);
    }
    return value;
}

static unsigned number_of_threads(const char *text)
{
    uint64_t value = number(text);

    if (value < 1 || value > MAX_DEPTH) {
        errx(1, "DEPTH must be from 1 to %d", MAX_DEPTH);
    }
    return value;
}

int main(int argc, char **argv)
{
    const char *what;

    if (argc > 1 && !strcmp(argv[1], "-d")) {
        direct = O_DIRECT;
        argc--;
        argv++;
    }
    what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "ticks") && argc == 2) {
        ticks_per_second();
    } else if (!strcmp(what, "cycle") && argc == 3) {
        cycle(number(argv[2]));
    } else if (!strcmp(what, "touch") && argc == 7) {
        touch(argv[2], number(argv[3]), number(argv[4]), number(argv[5]),
              argv[6]);
    } else if (!strcmp(what, "write") && argc == 7) {
        sequential_write(argv[2], number(argv[3]), number(argv[4]),
                         number(argv[5]), number_of_threads(argv[6]));
    } else if (!strcmp(what, "evict") && argc == 7) {
        evict(argv[2], number(argv[3]), number(argv[4]), number(argv[5]),
              number_of_threads(argv[6]));
    } else if (!strcmp(what, "read") && argc == 6) {
        sequential_read(argv[2], number(argv[3]), number(argv[4]),
                        number(argv[5]));
    } else {
        errx(1, "see the head of tests/bench/bare.c for the arguments");
    }
    return 0;
}
