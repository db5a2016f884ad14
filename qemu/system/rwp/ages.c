/*
 * Ages of guest pages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * There is one byte for each page.  It holds the age plus one, so that a
 * byte nobody has written yet, and for which the host kernel has not
 * allocated memory yet, says "never seen":
 *
 *     byte          0       1   2   ...   254   255
 *     age          none     0   1   ...   253   254 (or more)
 *
 * Two summaries answer questions without reading the bytes:
 *
 * - counts[b] is the number of bytes with value b, over all pages.  It is
 *   the histogram of the ages, and counts[0] are the pages never seen.
 * - seen[i] is the number of bytes other than 0 in block i, that is, in
 *   the BLOCK_PAGES bytes from i * BLOCK_PAGES.  Where it is 0, a walk
 *   steps over the block without reading it.  Reading would make the
 *   host kernel populate page tables for all of an unused guest, and
 *   writing would make it allocate all the bytes.
 *
 * Invariants, whenever the mutex is free:
 *
 * - the sum of counts[] is nb_pages
 * - counts[0] is nb_pages minus the sum of seen[]
 *
 * A change of n pages reads each of its bytes once, to keep counts[]
 * exact, and writes each of them once.  That is far less than what the
 * kernel spends on arming and scanning the same pages.
 *
 * Locking: changes hold the mutex, for one block at a time, and so do
 * readers of counts[].  Bytes and seen[] are also read without it.  The
 * loops that write bytes use plain stores, as they must be vectorized;
 * a byte is never half written, so whoever reads it without the mutex
 * sees it before or after the change.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "qapi/error.h"
#include "ages.h"

#define BLOCK_PAGES 16384

/* Values of a byte; from BYTE_YOUNGEST to BYTE_OLDEST it is an age + 1 */
#define BYTE_NONE     0
#define BYTE_YOUNGEST 1
#define BYTE_OLDEST   (RWP_AGE_MAX + 1)
#define NB_BYTES      (BYTE_OLDEST + 1)

QEMU_BUILD_BUG_ON(BYTE_OLDEST != UINT8_MAX);

struct RwpAges {
    /* Set once */
    uint64_t nb_pages;
    size_t mapped;              /* of the mapping, in bytes */
    uint8_t *bytes;
    uint32_t *seen;

    QemuMutex lock;

    /* Protected by lock */
    uint64_t counts[NB_BYTES];
};

/*
 * A change of the n > 0 bytes at @bytes, which are in one block.  Keeps
 * ages->counts.  Called with the mutex.
 */
typedef void RwpAgesChange(RwpAges *ages, uint8_t *bytes, size_t n);

static uint64_t nb_blocks(RwpAges *ages)
{
    return DIV_ROUND_UP(ages->nb_pages, BLOCK_PAGES);
}

RwpAges *rwp_ages_new(uint64_t nb_pages, Error **errp)
{
    RwpAges *ages;
    size_t mapped;
    void *map;

    /* Far from what can be mapped, and far from overflow below */
    if (nb_pages > SIZE_MAX / 4) {
        error_setg(errp, "Cannot keep ages of %" PRIu64 " pages", nb_pages);
        return NULL;
    }

    mapped = ROUND_UP(nb_pages, qemu_real_host_page_size());
    map = mmap(NULL, mapped, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        error_setg_errno(errp, errno, "Cannot map %zu bytes for page ages",
                         mapped);
        return NULL;
    }

    ages = g_new0(RwpAges, 1);
    ages->nb_pages = nb_pages;
    ages->mapped = mapped;
    ages->bytes = map;
    ages->seen = g_new0(uint32_t, nb_blocks(ages));
    ages->counts[BYTE_NONE] = nb_pages;
    qemu_mutex_init(&ages->lock);
    return ages;
}

void rwp_ages_free(RwpAges *ages)
{
    if (!ages) {
        return;
    }
    qemu_mutex_destroy(&ages->lock);
    munmap(ages->bytes, ages->mapped);
    g_free(ages->seen);
    g_free(ages);
}

void rwp_ages_reset(RwpAges *ages)
{
    QEMU_LOCK_GUARD(&ages->lock);

    /* Memory that is locked (-overcommit mem-lock=on) cannot be given back */
    if (madvise(ages->bytes, ages->mapped, MADV_DONTNEED) < 0) {
        memset(ages->bytes, 0, ages->mapped);
    }
    for (uint64_t i = 0; i < nb_blocks(ages); i++) {
        qatomic_set(&ages->seen[i], 0);
    }
    memset(ages->counts, 0, sizeof(ages->counts));
    ages->counts[BYTE_NONE] = ages->nb_pages;
}

static void assert_range(RwpAges *ages, uint64_t first, uint64_t count)
{
    g_assert(first <= ages->nb_pages && count <= ages->nb_pages - first);
}

/* The first page after @page that is in another block, but at most @end */
static uint64_t block_end(uint64_t page, uint64_t end)
{
    return MIN(end, QEMU_ALIGN_DOWN(page, BLOCK_PAGES) + BLOCK_PAGES);
}

static bool block_unseen(RwpAges *ages, uint64_t page)
{
    return !qatomic_read(&ages->seen[page / BLOCK_PAGES]);
}

/*
 * Apply @change to [@first, @first + @count) block by block.
 *
 * @skip_unseen: blocks in which no page was ever seen stay as they are
 */
static void change_range(RwpAges *ages, uint64_t first, uint64_t count,
                         bool skip_unseen, RwpAgesChange *change)
{
    uint64_t end = first + count;
    uint64_t page, next;

    assert_range(ages, first, count);

    for (page = first; page < end; page = next) {
        uint32_t *seen = &ages->seen[page / BLOCK_PAGES];
        uint64_t unseen;

        next = block_end(page, end);
        if (skip_unseen && block_unseen(ages, page)) {
            continue;
        }

        QEMU_LOCK_GUARD(&ages->lock);
        unseen = ages->counts[BYTE_NONE];
        change(ages, ages->bytes + page, next - page);
        qatomic_set(seen, *seen + unseen - ages->counts[BYTE_NONE]);
    }
}

/*
 * Add to @counts how often each value occurs.  Neighbours are mostly of
 * the same age, so it is worth looking for eight equal bytes at a time.
 */
static void count_bytes(const uint8_t *bytes, size_t n,
                        uint32_t counts[NB_BYTES])
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        uint64_t word = ldq_he_p(bytes + i);

        if (word == (word & 0xff) * 0x0101010101010101ull) {
            counts[word & 0xff] += 8;
        } else {
            for (int k = 0; k < 8; k++) {
                counts[bytes[i + k]]++;
            }
        }
    }
    for (; i < n; i++) {
        counts[bytes[i]]++;
    }
}

static inline uint8_t byte_older(uint8_t byte)
{
    bool ageing = (uint8_t)(byte - BYTE_YOUNGEST) < RWP_AGE_MAX;

    return byte + ageing;
}

static void change_tick(RwpAges *ages, uint8_t *bytes, size_t n)
{
    uint32_t was[NB_BYTES] = { 0 };
    size_t i = 0;

    count_bytes(bytes, n, was);
    for (int b = BYTE_YOUNGEST; b < BYTE_OLDEST; b++) {
        ages->counts[b] -= was[b];
        ages->counts[b + 1] += was[b];
    }

    /* The constant length lets compilers vectorize at -O2, too */
    for (; i + 64 <= n; i += 64) {
        for (int k = 0; k < 64; k++) {
            bytes[i + k] = byte_older(bytes[i + k]);
        }
    }
    for (; i < n; i++) {
        bytes[i] = byte_older(bytes[i]);
    }
}

/* All @bytes get the value @byte */
static void set_bytes(RwpAges *ages, uint8_t *bytes, size_t n, uint8_t byte)
{
    for (size_t i = 0; i < n; i++) {
        ages->counts[bytes[i]]--;
    }
    ages->counts[byte] += n;
    memset(bytes, byte, n);
}

static void change_touch(RwpAges *ages, uint8_t *bytes, size_t n)
{
    set_bytes(ages, bytes, n, BYTE_YOUNGEST);
}

static void change_forget(RwpAges *ages, uint8_t *bytes, size_t n)
{
    set_bytes(ages, bytes, n, BYTE_NONE);
}

static void change_see(RwpAges *ages, uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] == BYTE_NONE) {
            bytes[i] = BYTE_YOUNGEST;
            ages->counts[BYTE_NONE]--;
            ages->counts[BYTE_YOUNGEST]++;
        }
    }
}

void rwp_ages_tick(RwpAges *ages, uint64_t first, uint64_t count)
{
    change_range(ages, first, count, true, change_tick);
}

void rwp_ages_touch(RwpAges *ages, uint64_t first, uint64_t count)
{
    change_range(ages, first, count, false, change_touch);
}

void rwp_ages_see(RwpAges *ages, uint64_t first, uint64_t count)
{
    change_range(ages, first, count, false, change_see);
}

void rwp_ages_forget(RwpAges *ages, uint64_t first, uint64_t count)
{
    change_range(ages, first, count, true, change_forget);
}

uint8_t rwp_ages_get(RwpAges *ages, uint64_t page)
{
    uint8_t byte;

    assert_range(ages, page, 1);
    byte = qatomic_read(&ages->bytes[page]);
    return byte == BYTE_NONE ? RWP_AGE_NONE : byte - BYTE_YOUNGEST;
}

void rwp_ages_histogram(RwpAges *ages, uint64_t counts[RWP_AGE_MAX + 1])
{
    QEMU_LOCK_GUARD(&ages->lock);

    memcpy(counts, &ages->counts[BYTE_YOUNGEST],
           (RWP_AGE_MAX + 1) * sizeof(counts[0]));
}

uint64_t rwp_ages_younger(RwpAges *ages, unsigned window)
{
    uint64_t sum = 0;

    QEMU_LOCK_GUARD(&ages->lock);
    for (unsigned age = 0; age < window && age <= RWP_AGE_MAX; age++) {
        sum += ages->counts[BYTE_YOUNGEST + age];
    }
    return sum;
}

uint64_t rwp_ages_at_least(RwpAges *ages, unsigned min_age)
{
    uint64_t sum = 0;

    QEMU_LOCK_GUARD(&ages->lock);
    for (unsigned age = min_age; age <= RWP_AGE_MAX; age++) {
        sum += ages->counts[BYTE_YOUNGEST + age];
    }
    return sum;
}

uint8_t rwp_ages_threshold(RwpAges *ages, uint64_t wanted, uint8_t min_age)
{
    uint64_t sum = 0;

    QEMU_LOCK_GUARD(&ages->lock);
    for (int age = RWP_AGE_MAX; age > min_age; age--) {
        sum += ages->counts[BYTE_YOUNGEST + age];
        if (sum >= wanted) {
            return age;
        }
    }
    return min_age;
}

/*
 * The first page in [@page, @end) whose byte is between @lo and @hi, or,
 * if not @inside, is not; @end if there is none.  @lo is not BYTE_NONE.
 */
static uint64_t find_page(RwpAges *ages, uint64_t page, uint64_t end,
                          uint8_t lo, uint8_t hi, bool inside)
{
    while (page < end) {
        uint64_t next = block_end(page, end);

        if (block_unseen(ages, page)) {
            if (!inside) {
                return page;
            }
            page = next;
            continue;
        }
        for (; page < next; page++) {
            uint8_t byte = qatomic_read(&ages->bytes[page]);

            if ((byte >= lo && byte <= hi) == inside) {
                return page;
            }
        }
    }
    return end;
}

bool rwp_ages_next_run(RwpAges *ages, uint64_t first, uint64_t end,
                       uint8_t min_age, uint8_t max_age,
                       uint64_t *start, uint64_t *count)
{
    uint8_t lo, hi;
    uint64_t run;

    g_assert(first <= end && end <= ages->nb_pages);

    if (min_age > MIN(max_age, RWP_AGE_MAX)) {
        return false;
    }
    lo = BYTE_YOUNGEST + min_age;
    hi = BYTE_YOUNGEST + MIN(max_age, RWP_AGE_MAX);

    run = find_page(ages, first, end, lo, hi, true);
    if (run == end) {
        return false;
    }
    /*
     * The page just found is not looked at again: it can change at any
     * time, and a run is not empty.
     */
    *start = run;
    *count = find_page(ages, run + 1, end, lo, hi, false) - run;
    return true;
}

uint64_t rwp_ages_bytes(RwpAges *ages)
{
    return ages->mapped + sizeof(*ages) +
           nb_blocks(ages) * sizeof(ages->seen[0]);
}
