/*
 * QTest of memory-backend-rwp: eviction and fetching
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * test-timeout: 1200
 *
 * Memory is filled with a pattern, evicted, and compared when it was
 * fetched, by a touch or by a job; on the way the map, the figures and the
 * store are looked at.  There is no guest: memory is touched by the main
 * loop, which holds the BQL.
 *
 * Each test is run for each kind of backend that the host can do.
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_balloon.h"
#include "standard-headers/linux/virtio_ids.h"
#include "rwp/rwp-helpers.h"

#define START RWP_TEST_START
#define SIZE RWP_TEST_SIZE
#define HALF (RWP_TEST_SIZE / 2)

#define TRACK(interval) \
    "{ 'execute': 'rwp-track-start', 'arguments': { 'id': 'mem0', " \
    "'interval': " interval " } }"

/* Bytes that are not in memory */
static uint64_t away(RwpVM *vm)
{
    return rwp_get(vm, "evicted") + rwp_get(vm, "zero");
}

static uint64_t pages(RwpVM *vm, uint64_t bytes)
{
    return bytes / vm->variant->page_size;
}

/* Assert that the store holds the pattern */
static void check_store(RwpVM *vm, uint64_t offset, uint64_t length,
                        uint64_t seed)
{
    g_autofree char *path = g_build_filename(vm->dir, "store0", NULL);
    g_autofree void *wanted = g_malloc(length);
    g_autofree void *found = g_malloc(length);
    int fd = open(path, O_RDONLY);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pread(fd, found, length, offset), ==, length);
    close(fd);
    rwp_pattern(wanted, offset, length, seed);
    g_assert_cmpmem(found, length, wanted, length);
}

static void test_ranges(const void *variant)
{
    uint64_t resident;
    RWP_VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    resident = rwp_get(vm, "resident");

    rwp_evict(vm, START, HALF);
    rwp_expect_state(vm, START, HALF, "evicted");
    rwp_expect_state(vm, START + HALF, HALF, "resident");
    g_assert_cmpuint(rwp_get(vm, "evicted"), ==, HALF);
    g_assert_cmpuint(rwp_get(vm, "resident"), ==, resident - HALF);
    g_assert_cmpuint(rwp_get(vm, "evict.pages"), ==, pages(vm, HALF));
    g_assert_cmpuint(rwp_get(vm, "evict.bytes-written"), ==, HALF);
    g_assert_cmpuint(rwp_get(vm, "evict.failed"), ==, 0);
    check_store(vm, START, HALF, 1);

    /* Again, with what is evicted or was never used already in between */
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'ranges': [ " RWP_RANGE ", "
                          RWP_RANGE ", " RWP_RANGE " ]"),
            (uint64_t)START, (uint64_t)SIZE,
            (uint64_t)START + HALF, (uint64_t)HALF,
            (uint64_t)RWP_TEST_END, (uint64_t)SIZE);
    rwp_expect_state(vm, START, SIZE, "evicted");
    if (vm->variant->sees_untouched) {
        rwp_expect_state(vm, RWP_TEST_END, SIZE, "untouched");
        g_assert_cmpuint(rwp_get(vm, "evict.pages"), ==, pages(vm, SIZE));
    }
    check_store(vm, START, SIZE, 1);

    rwp_check(vm, START, SIZE, 1);
    rwp_expect_state(vm, START, SIZE, "resident");
    rwp_assert_soon(rwp_get(vm, "evicted") == 0);
    rwp_assert_soon(rwp_get(vm, "fetch.fault") +
                    rwp_get(vm, "fetch.readahead") == pages(vm, SIZE));
    rwp_assert_soon(rwp_get(vm, "fetch.errors") == 0);
    rwp_assert_soon(rwp_get(vm, "fetch.waiting") == 0);
    rwp_vm_free(vm);
}

/* Pages come back as they were left, however often */
static void test_again(const void *variant)
{
    RWP_VM_TEST(variant, "", "");

    for (int i = 1; i <= 5; i++) {
        /* Every second time into memory that is evicted */
        rwp_fill(vm, START, HALF, i);
        rwp_evict(vm, START, SIZE);
        if (i % 2) {
            rwp_check(vm, START, HALF, i);
        }
    }
    /* A part of a page is written: the rest of it is fetched */
    rwp_fill(vm, START, HALF, 6);
    rwp_evict(vm, START, SIZE);
    for (uint64_t pos = START; pos < START + HALF; pos += 4 * KiB) {
        qtest_writeb(vm->qts, pos, 0x55);
    }
    for (uint64_t pos = START; pos < START + HALF; pos += 4 * KiB) {
        uint64_t word;

        rwp_pattern(&word, pos + 4 * KiB - 8, 8, 6);
        g_assert_cmphex(qtest_readb(vm->qts, pos), ==, 0x55);
        g_assert_cmphex(qtest_readq(vm->qts, pos + 4 * KiB - 8), ==, word);
    }
    rwp_vm_free(vm);
}

/* What the store has is not written again, if there is a hint that it has */
static void check_clean(const RwpVariant *variant, const char *properties)
{
    uint64_t written, clean;
    QDict *info;
    RWP_VM_TEST(variant, properties, "");

    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    rwp_check(vm, START, HALF, 1);
    written = rwp_get(vm, "evict.bytes-written");
    rwp_evict(vm, START, SIZE);
    info = rwp_info(vm);
    clean = qdict_get_bool(info, "checksum") ? HALF : 0;
    qobject_unref(info);
    g_assert_cmpuint(rwp_get(vm, "evict.clean-pages"), ==, pages(vm, clean));
    g_assert_cmpuint(rwp_get(vm, "evict.bytes-written"), ==,
                     written + HALF - clean);
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

static void test_clean(const void *variant)
{
    check_clean(variant, "readahead=0");
    check_clean(variant, "readahead=0,checksum=off");
}

static void test_zero(const void *variant)
{
    RWP_VM_TEST(variant, "", "");

    qtest_memset(vm->qts, START, 0, SIZE);
    rwp_expect_state(vm, START, SIZE, "resident");
    rwp_evict(vm, START, SIZE);
    rwp_expect_state(vm, START, SIZE, "zero");
    g_assert_cmpuint(rwp_get(vm, "zero"), ==, SIZE);
    rwp_assert_soon(rwp_get(vm, "evicted") == 0);
    g_assert_cmpuint(rwp_get(vm, "evict.pages"), ==, pages(vm, SIZE));
    g_assert_cmpuint(rwp_get(vm, "evict.zero-pages"), ==, pages(vm, SIZE));
    g_assert_cmpuint(rwp_get(vm, "evict.bytes-written"), ==, 0);

    for (uint64_t pos = START; pos < START + HALF;
         pos += vm->variant->page_size) {
        g_assert_cmphex(qtest_readq(vm->qts, pos + 64), ==, 0);
    }
    rwp_assert_soon(rwp_get(vm, "fetch.zero-filled") == pages(vm, HALF));
    rwp_assert_soon(rwp_get(vm, "fetch.fault") == 0);
    rwp_expect_state(vm, START + HALF, HALF, "zero");

    /* Pages that are not zero any more, in a store that has nothing there */
    rwp_fill(vm, START, SIZE, 7);
    rwp_evict(vm, START, SIZE);
    rwp_expect_state(vm, START, SIZE, "evicted");
    rwp_check(vm, START, SIZE, 7);

    /* And the other way: the store holds what is not wanted any more */
    qtest_memset(vm->qts, START, 0, HALF);
    rwp_evict(vm, START, SIZE);
    rwp_expect_state(vm, START, HALF, "zero");
    g_assert_cmphex(qtest_readq(vm->qts, START), ==, 0);
    rwp_job(vm, RWP_FETCH());
    g_assert_cmpuint(rwp_get(vm, "zero") + rwp_get(vm, "evicted"), ==, 0);
    g_assert_cmphex(qtest_readq(vm->qts, START + HALF - 8), ==, 0);
    rwp_check(vm, START + HALF, HALF, 7);
    rwp_vm_free(vm);
}

static void test_fetch(const void *variant)
{
    QDict *info;
    RWP_VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    info = rwp_info(vm);
    g_assert_cmpstr(qdict_get_str(info, "store"), ==, "store0");
    qobject_unref(info);

    rwp_job(vm, RWP_FETCH(", 'ranges': [ " RWP_RANGE " ]"),
            (uint64_t)START + HALF, (uint64_t)HALF);
    rwp_expect_state(vm, START, HALF, "evicted");
    rwp_expect_state(vm, START + HALF, HALF, "resident");
    rwp_assert_soon(rwp_get(vm, "fetch.requested") == pages(vm, HALF));

    rwp_job(vm, RWP_FETCH());
    rwp_expect_state(vm, START, SIZE, "resident");
    rwp_assert_soon(rwp_get(vm, "fetch.requested") == pages(vm, SIZE));
    rwp_assert_soon(rwp_get(vm, "fetch.fault") == 0);
    rwp_check(vm, START, SIZE, 1);
    rwp_assert_soon(rwp_get(vm, "fetch.fault") == 0);
    /* There is nothing left to do, which is fine */
    rwp_job(vm, RWP_FETCH());

    /* The store was borrowed for as long as there were pages in it */
    info = rwp_info(vm);
    g_assert_false(qdict_haskey(info, "store"));
    qobject_unref(info);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'blockdev-del', "
                             "'arguments': { 'node-name': 'store0' } }");
    rwp_vm_free(vm);
}

/* A job can be slow, paused, resumed and cancelled */
static void control_job(RwpVM *vm, const char *name)
{
    uint64_t before = rwp_get(vm, "evicted");
    uint64_t evicted;

    while (rwp_get(vm, "evicted") == before) {
        g_usleep(1000);
    }
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-pause', "
                             "'arguments': { 'id': 'job0' } }");
    rwp_job_await(vm, "job0", "paused");
    /* Batches under way may end after that, but no other begins */
    do {
        evicted = rwp_get(vm, "evicted");
        g_usleep(200000);
    } while (rwp_get(vm, "evicted") != evicted);
    g_assert_cmpuint(evicted, >, 0);
    g_assert_cmpuint(evicted, <, SIZE);

    rwp_expect_error(vm, "GenericError", "job0", RWP_FETCH());
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-resume', "
                             "'arguments': { 'id': 'job0' } }");
    rwp_job_await(vm, "job0", "running");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-cancel', "
                             "'arguments': { 'id': 'job0' } }");
    g_free(rwp_job_finish(vm, "job0"));
    evicted = rwp_get(vm, "evicted");
    g_assert_cmpuint(evicted, >, 0);
    g_assert_cmpuint(evicted, <, SIZE);
    g_test_message("%s: cancelled with %" PRIu64 " of %d evicted", name,
                   evicted, (int)SIZE);
}

static void test_control(const void *opaque)
{
    const RwpVariant *variant = opaque;
    /* A page of each kind takes part of a second, all take several */
    uint64_t speed = MAX(variant->page_size, 1 * MiB);
    RWP_VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    qtest_qmp_assert_success(vm->qts,
        RWP_EVICT("'target': 'store0', 'speed': %" PRIu64 ", 'ranges': [ "
                  RWP_RANGE " ]"), speed, (uint64_t)START, (uint64_t)SIZE);
    control_job(vm, "evict");
    rwp_check(vm, START, SIZE, 1);

    rwp_evict(vm, START, SIZE);
    qtest_qmp_assert_success(vm->qts, RWP_FETCH(", 'speed': %" PRIu64),
                             speed);
    control_job(vm, "fetch");
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/*
 * Track until the second half is at least 3 cycles old, and the first, which
 * is touched then, less; however slow the host is.
 */
static void touch_first_half(RwpVM *vm)
{
    uint64_t interval = 100, before, after;

    do {
        qtest_qmp_assert_success(vm->qts, TRACK("%" PRIu64), interval);
        rwp_await_cycles(vm, 3);
        before = rwp_get(vm, "cycle.completed");
        rwp_touch(vm, START, HALF);
        /* The next can have gone past a page before it was touched */
        rwp_await_cycles(vm, 2);
        /* With detection stopped, ages stay as they are */
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-stop', "
                                 "'arguments': { 'id': 'mem0' } }");
        after = rwp_get(vm, "cycle.completed");
        interval *= 2;
    } while (after - before > 3);
}

/* The oldest pages go, those in use stay */
static void test_age(const void *variant)
{
    RWP_VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    rwp_expect_error(vm, "GenericError", "rwp-track-start",
                     RWP_EVICT("'target': 'store0', 'min-age': 1"));
    rwp_expect_error(vm, "GenericError", "rwp-track-start",
                     RWP_EVICT("'target': 'store0', 'bytes': 1048576"));

    touch_first_half(vm);
    /* Too old for all */
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'min-age': 254"));
    rwp_expect_state(vm, START, SIZE, "resident");
    qobject_unref(qtest_qmp_assert_failure_ref(vm->qts,
        RWP_EVICT("'target': 'store0', 'bytes': 4095")));
    /* One half was touched in the last cycles, the other never was */
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'bytes': %" PRIu64),
            (uint64_t)HALF / 2);
    rwp_expect_state(vm, START, HALF, "resident");
    g_assert_cmpuint(away(vm), ==, HALF / 2);
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'min-age': 3, 'bytes': %"
                          PRIu64), MAX(HALF / 4, vm->variant->page_size));
    /* Amounts are rounded to pages */
    g_assert_cmpuint(away(vm), >=, HALF / 2);
    g_assert_cmpuint(away(vm), <=,
                     HALF / 2 + MAX(HALF / 4, vm->variant->page_size));
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'min-age': 3"));
    rwp_expect_state(vm, START, HALF, "resident");
    rwp_expect_state(vm, START + HALF, HALF, "evicted");
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* Kilobytes of transparent huge pages in the memory of the VM */
static uint64_t huge_kib(RwpVM *vm)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/smaps",
                                            qtest_pid(vm->qts));
    FILE *file = fopen(path, "r");
    uint64_t size = 0, kib, huge = 0;
    char line[512];

    g_assert_nonnull(file);
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "Size: %" SCNu64, &kib) == 1) {
            size = kib;
        } else if (sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1 &&
                   size >= SIZE / KiB && size <= RWP_TEST_RAM / KiB) {
            huge += kib;
        }
    }
    fclose(file);
    return huge;
}

/* A huge page of which a part is to be evicted stays, or is split */
static void test_huge(const void *opaque)
{
    static const RwpVariant variants[] = {
        { "whole", "tracker=none,backing=anonymous", 4 * KiB, false, true },
        { "split", "tracker=none,backing=anonymous,thp=split", 4 * KiB, false,
          true },
    };
    bool split = opaque != NULL;
    RwpVM *vm;

    if (rwp_skip(RWP_MOVE_VARIANT)) {
        return;
    }
    vm = rwp_vm_new(&variants[split], "", "");
    rwp_fill(vm, START, SIZE, 1);
    if (huge_kib(vm) < SIZE / KiB) {
        g_test_skip("the host gave no huge pages");
        rwp_vm_free(vm);
        return;
    }

    /* One and a half, and a page in another */
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'ranges': [ " RWP_RANGE ", "
                          RWP_RANGE " ]"),
            (uint64_t)START, (uint64_t)3 * MiB,
            (uint64_t)START + 5 * MiB, (uint64_t)4 * KiB);
    rwp_expect_state(vm, START, 2 * MiB, "evicted");
    rwp_expect_state(vm, START + 2 * MiB, 1 * MiB,
                     split ? "evicted" : "resident");
    rwp_expect_state(vm, START + 3 * MiB, 2 * MiB, "resident");
    rwp_expect_state(vm, START + 5 * MiB, 4 * KiB,
                     split ? "evicted" : "resident");
    g_assert_cmpuint(rwp_get(vm, "evict.huge"), ==, split ? 0 : 256 + 1);
    g_assert_cmpuint(huge_kib(vm), <=, (SIZE - (split ? 6 : 2) * MiB) / KiB);
    rwp_check(vm, START, SIZE, 1);

    /* What came back did so in small pages; all of it can go */
    rwp_evict(vm, START, SIZE);
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* Pages go on getting older while a slow job is at work */
static void test_slow_age(const void *opaque)
{
    const RwpVariant *variant = opaque;
    RWP_VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    qtest_qmp_assert_success(vm->qts, TRACK("20"));
    rwp_await_cycles(vm, 4);
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'min-age': 2, 'speed': %"
                          PRIu64), (uint64_t)SIZE);
    rwp_expect_state(vm, START, SIZE, "evicted");
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* Reads in ascending order are answered in larger and larger pieces */
static void test_readahead(const void *variant)
{
    static const char *const options[] = { "readahead=0", "readahead=1M" };

    for (int i = 0; i < ARRAY_SIZE(options); i++) {
        QListEntry *entry;
        uint64_t faults, sum = 0;
        QDict *info;
        RWP_VM_TEST(variant, options[i], "");

        rwp_fill(vm, START, SIZE, 1);
        rwp_evict(vm, START, SIZE);
        rwp_check(vm, START, SIZE, 1);
        rwp_assert_soon(rwp_get(vm, "fetch.fault") +
                        rwp_get(vm, "fetch.readahead") == pages(vm, SIZE));
        faults = rwp_get(vm, "fetch.fault");
        if (i == 0 || vm->variant->page_size >= 1 * MiB) {
            g_assert_cmpuint(faults, ==, pages(vm, SIZE));
        } else {
            g_assert_cmpuint(faults, <, pages(vm, SIZE) / 4);
        }

        info = rwp_info(vm);
        QLIST_FOREACH_ENTRY(qdict_get_qlist(qdict_get_qdict(info, "fetch"),
                                            "latency"), entry) {
            QDict *row = qobject_to(QDict, qlist_entry_obj(entry));

            g_assert_true(is_power_of_2(qdict_get_int(row, "up-to-ns")));
            sum += qdict_get_int(row, "count");
        }
        g_assert_cmpuint(sum, ==, faults);
        qobject_unref(info);
        rwp_vm_free(vm);
    }
}

/* What does not concern the content of memory does not change it */
static void test_reset(const void *variant)
{
    RWP_VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    qtest_system_reset(vm->qts);
    rwp_expect_state(vm, START, SIZE, "evicted");
    rwp_check(vm, START, HALF, 1);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'stop' }");
    rwp_check(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'cont' }");
    rwp_check(vm, START, SIZE, 1);
    /* QEMU can end while pages are away */
    rwp_evict(vm, START, SIZE);
    rwp_vm_free(vm);
}

/* Give pages to the balloon, as a driver in the guest would */
static void inflate(RwpVM *vm, uint64_t offset, uint64_t length)
{
    QGuestAllocator alloc;
    QPCIBus *bus = qpci_new_pc(vm->qts, NULL);
    QPCIAddress address = { .devfn = QPCI_DEVFN(4, 0) };
    QVirtioPCIDevice *dev;
    QVirtQueue *vq;
    uint64_t list;
    uint32_t head;

    alloc_init(&alloc, ALLOC_NO_FLAGS, 1 * MiB, 2 * MiB, 4 * KiB);
    dev = virtio_pci_new(bus, &address);
    g_assert_nonnull(dev);
    g_assert_cmpint(dev->vdev.device_type, ==, VIRTIO_ID_BALLOON);
    qvirtio_pci_device_enable(dev);
    qvirtio_start_device(&dev->vdev);
    qvirtio_set_features(&dev->vdev, qvirtio_get_features(&dev->vdev) &
                         ~(QVIRTIO_F_BAD_FEATURE |
                           (1ull << VIRTIO_RING_F_EVENT_IDX)));
    vq = qvirtqueue_setup(&dev->vdev, &alloc, 0);
    qvirtio_set_driver_ok(&dev->vdev);

    list = guest_alloc(&alloc, 4 * KiB);
    for (uint64_t i = 0; i < length / (4 * KiB); i += 1024) {
        for (uint64_t j = 0; j < 1024; j++) {
            qtest_writel(vm->qts, list + 4 * j,
                         offset / (4 * KiB) + i + j);
        }
        head = qvirtqueue_add(vm->qts, vq, list, 4 * KiB, false, false);
        qvirtqueue_kick(vm->qts, &dev->vdev, vq, head);
        qvirtio_wait_used_elem(vm->qts, &dev->vdev, vq, head, NULL,
                               120 * G_USEC_PER_SEC);
    }

    qvirtqueue_cleanup(dev->vdev.bus, vq, &alloc);
    qvirtio_pci_device_disable(dev);
    qos_object_destroy((QOSGraphObject *)dev);
    qpci_free_pc(bus);
    alloc_destroy(&alloc);
}

/* Memory that the guest gives back is not kept for it */
static void test_discard(const void *variant)
{
    RWP_VM_TEST(variant, "", "-device virtio-balloon-pci,addr=04.0");

    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, HALF);
    inflate(vm, START, SIZE);
    if (vm->variant->sees_untouched) {
        rwp_expect_state(vm, START, SIZE, "untouched");
    }
    rwp_assert_soon(rwp_get(vm, "evicted") == 0);
    rwp_assert_soon(rwp_get(vm, "fetch.dropped") == pages(vm, HALF));
    /* Nothing of it comes back */
    for (uint64_t pos = START; pos < RWP_TEST_END; pos += 4 * KiB) {
        g_assert_cmphex(qtest_readq(vm->qts, pos + 1024), ==, 0);
    }
    rwp_fill(vm, START, SIZE, 2);
    rwp_evict(vm, START, SIZE);
    rwp_check(vm, START, SIZE, 2);
    rwp_vm_free(vm);
}

/* The file that is the guest's memory, or -1 */
static int open_memfd(RwpVM *vm)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd",
                                            qtest_pid(vm->qts));
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;
    int fd = -1;

    g_assert_nonnull(dir);
    while (fd < 0 && (name = g_dir_read_name(dir))) {
        g_autofree char *link = g_build_filename(path, name, NULL);
        g_autofree char *target = g_file_read_link(link, NULL);

        if (target && strstr(target, "memfd:memory-backend-rwp")) {
            fd = open(link, O_RDWR);
        }
    }
    g_dir_close(dir);
    return fd;
}

/*
 * Set the kernel's policy for huge pages in files like memfds.  Returns what it
 * was, or NULL if it cannot be set.
 */
static char *set_shmem_huge(const char *policy)
{
    int fd = open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_RDWR);
    char policies[128] = "";
    char *old = NULL;

    /* All are listed, the one in effect in brackets */
    if (fd >= 0 && read(fd, policies, sizeof(policies) - 1) > 0 &&
        write(fd, policy, strlen(policy)) > 0) {
        const char *start = strchr(policies, '[') + 1;

        old = g_strndup(start, strcspn(start, "]"));
    }
    close(fd);
    return old;
}

/* Fill memory of the guest with huge pages; keep a reference to the first */
static void fill_huge(int memfd, int pipe_fd)
{
    struct iovec iov = { .iov_len = 4 * KiB };
    void *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd,
                        START);

    g_assert(memory != MAP_FAILED);
    madvise(memory, SIZE, MADV_HUGEPAGE);
    memset(memory, 1, SIZE);
    iov.iov_base = memory;
    g_assert_cmpint(vmsplice(pipe_fd, &iov, 1, 0), ==, iov.iov_len);
    munmap(memory, SIZE);
}

static uint64_t file_bytes(int fd)
{
    struct stat st;

    g_assert_cmpint(fstat(fd, &st), ==, 0);
    return st.st_blocks * 512;
}

/*
 * The kernel leaves a page of zeros in the file instead of a hole, if it is
 * part of a large folio that cannot be split for the references to it.
 */
static void test_left_behind(const void *variant)
{
    g_autofree char *policy = NULL;
    int fd, pipe_fds[2];
    uint64_t before;
    RWP_VM_TEST(variant, "", "");

    fd = open_memfd(vm);
    if (fd >= 0 && vm->variant->page_size == 4 * KiB) {
        policy = set_shmem_huge("advise");
    }
    if (!policy) {
        g_test_skip("no file that could have large folios");
        close(fd);
        rwp_vm_free(vm);
        return;
    }
    g_assert_cmpint(pipe(pipe_fds), ==, 0);
    fill_huge(fd, pipe_fds[1]);
    g_free(set_shmem_huge(policy));

    rwp_fill(vm, START, SIZE, 1);
    before = file_bytes(fd);
    rwp_job(vm, RWP_EVICT_TO("store0"),
            (uint64_t)START + 64 * KiB, (uint64_t)HALF);
    g_assert_cmpuint(away(vm), ==, HALF);
    /* That is what this is about: not all of them are gone */
    g_assert_cmpuint(file_bytes(fd), >, before - HALF);
    rwp_check(vm, START, SIZE, 1);
    close(fd);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    rwp_vm_free(vm);
}

/*
 * To look at a page that is not there takes a page, or a large folio, which
 * reaches over neighbours that are evicted.
 */
static void test_large_hole(const void *variant)
{
    g_autofree char *policy = NULL;
    uint64_t before;
    int fd;
    RWP_VM_TEST(variant, "", "");

    fd = open_memfd(vm);
    if (fd < 0 || vm->variant->page_size > 4 * KiB) {
        g_test_skip("no file that could have large folios");
        close(fd);
        rwp_vm_free(vm);
        return;
    }
    rwp_fill(vm, START, SIZE, 1);
    qtest_memset(vm->qts, START, 0, 4 * KiB);
    qtest_qmp_assert_success(vm->qts, TRACK("100"));
    rwp_await_cycles(vm, 4);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-stop', "
                             "'arguments': { 'id': 'mem0' } }");
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'min-age': 1"));
    g_assert_cmpuint(away(vm), >=, SIZE);

    /* It has an age, but no memory */
    rwp_job(vm, RWP_FETCH(", 'ranges': [ " RWP_RANGE " ]"),
            (uint64_t)START, (uint64_t)4 * KiB);
    before = file_bytes(fd);
    policy = set_shmem_huge("always");
    if (policy) {
        rwp_job(vm, RWP_EVICT("'target': 'store0', 'min-age': 1"));
        g_free(set_shmem_huge(policy));
        g_assert_cmpuint(file_bytes(fd), <=, before);
    } else {
        g_test_skip("the policy for large folios cannot be set");
    }
    rwp_check(vm, START + 4 * KiB, SIZE - 4 * KiB, 1);
    close(fd);
    rwp_vm_free(vm);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    rwp_add_tests("rwp-evict", "ranges", test_ranges);
    rwp_add_tests("rwp-evict", "again", test_again);
    rwp_add_tests("rwp-evict", "clean", test_clean);
    rwp_add_tests("rwp-evict", "zero", test_zero);
    rwp_add_tests("rwp-evict", "fetch", test_fetch);
    rwp_add_tests("rwp-evict", "control", test_control);
    rwp_add_age_tests("rwp-evict", "age", test_age);
    qtest_add_data_func("/rwp-evict/huge/whole", NULL, test_huge);
    qtest_add_data_func("/rwp-evict/huge/split", &rwp_variants[0], test_huge);
    rwp_add_age_tests("rwp-evict", "slow-age", test_slow_age);
    rwp_add_tests("rwp-evict", "readahead", test_readahead);
    rwp_add_tests("rwp-evict", "reset", test_reset);
    rwp_add_tests("rwp-evict", "discard", test_discard);
    rwp_add_tests("rwp-evict", "left-behind", test_left_behind);
    rwp_add_age_tests("rwp-evict", "large-hole", test_large_hole);

    return g_test_run();
}
