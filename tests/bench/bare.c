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
 *   bare fetch STORE OFFSET BYTES REQUEST DEPTH
 *                                        read it, put it in place
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
#include <semaphore.h>
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
#include "bare.h"
#include "order.h"

/* include/uapi/linux/fs.h of Linux 6.7 */
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

/* From touches to the end of a cycle; in "run" it is as long */
#define INTERVAL_US 500000

uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

int guest_file(size_t size)
{
    int fd = memfd_create("bare", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, size) < 0) {
        err(1, "memfd");
    }
    return fd;
}

void *guest_memory(int fd, size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory == MAP_FAILED) {
        err(1, "mmap");
    }
    return memory;
}

int open_uffd(uint64_t features)
{
    struct uffdio_api api = { .api = UFFD_API, .features = features };
    int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0) {
        err(1, "userfaultfd");
    }
    return uffd;
}

void register_memory(int uffd, void *memory, size_t size,
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
uint64_t scan(int pagemap, uint8_t *memory, size_t size)
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

struct toucher {
    uint8_t *memory;
    size_t size;
    sem_t done;
};

/* As a vCPU: it ends with the process */
static void *touch_and_stay(void *opaque)
{
    struct toucher *toucher = opaque;

    write_each(toucher->memory, toucher->size);
    sem_post(&toucher->done);
    pause();
    return NULL;
}

/*
 * Write memory in a thread that stays, and let some time pass.  What another
 * thread has touched, maybe on another processor, and not just now costs more
 * to arm: its struct pages are not in this processor's cache, and the other one
 * may have to flush its TLB.
 */
static void write_elsewhere(uint8_t *memory, size_t size)
{
    static struct toucher toucher;
    pthread_t thread;

    toucher.memory = memory;
    toucher.size = size;
    sem_init(&toucher.done, 0, 0);
    if (pthread_create(&thread, NULL, touch_and_stay, &toucher)) {
        errx(1, "cannot create a thread");
    }
    sem_wait(&toucher.done);
    usleep(INTERVAL_US);
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
    write_elsewhere(memory, size);
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

int open_store(const char *name, int flags)
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
    } else if (!strcmp(what, "fetch") && argc == 7) {
        fetch(argv[2], number(argv[3]), number(argv[4]), number(argv[5]),
              number_of_threads(argv[6]));
    } else if (!strcmp(what, "read") && argc == 6) {
        sequential_read(argv[2], number(argv[3]), number(argv[4]),
                        number(argv[5]));
    } else {
        errx(1, "see the head of tests/bench/bare.c for the arguments");
    }
    return 0;
}
