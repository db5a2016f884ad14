/*
 * QTest of memory-backend-rwp: kinds of stores, and deadlocks
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * test-timeout: 1200
 *
 * Evicted memory is touched by the main loop, which holds the BQL, and in
 * drained sections of the block layer, which do not end before the touch
 * has got its page.  A test that fails here may do so by hanging.
 */

#include "qemu/osdep.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_ids.h"
#include "rwp/rwp-helpers.h"
#include "rwp/rwp-server.h"

#define START RWP_TEST_START
#define SIZE RWP_TEST_SIZE

/* A store, made of the file store1 in the scratch directory */
typedef struct Store {
    const char *name;
    const char *image_options;      /* of qemu-img create, or NULL */
    const char *arguments;          /* define a node "store" */
    bool served;
    RwpServerType server;
} Store;

#define FILE_ARGS "file.driver=file,file.filename=%s/store1 "
#define NBD_ARGS "-blockdev nbd,node-name=store,server.type=unix," \
                 "server.path=%s/nbd.sock "

static const Store stores[] = {
    { "raw", NULL, "-blockdev raw,node-name=store," FILE_ARGS },
    { "qcow2", "-f qcow2", "-blockdev qcow2,node-name=store," FILE_ARGS },
    { "luks", "--object secret,id=key,data=abc -f luks "
      "-o key-secret=key,iter-time=10",
      "-object secret,id=key,data=abc "
      "-blockdev luks,node-name=store,key-secret=key," FILE_ARGS },
    /* A part of the pages has to wait for the throttling timer */
    { "throttle", NULL, "-object throttle-group,id=slow,x-iops-total=100 "
      "-blockdev throttle,node-name=store,throttle-group=slow," FILE_ARGS },
    { "qemu-nbd", NULL, NBD_ARGS, true, RWP_SERVER_QEMU_NBD },
    { "nbdkit", NULL, NBD_ARGS, true, RWP_SERVER_NBDKIT },
};

typedef struct StoreCase {
    const Store *store;
    const RwpVariant *variant;
} StoreCase;


/*
 * A VM with a node "store".  The scratch directory of a VM exists only when
 * the VM does, and the server and the image before it: they have their own.
 */
typedef struct StoreVM {
    RwpVM *vm;
    RwpServer *server;
    char *dir;
} StoreVM;

static void make_image(const char *dir, const char *options)
{
    g_autofree char *file = rwp_make_file(dir, "store1", RWP_TEST_RAM);
    g_autofree char *command = NULL;
    int status;

    if (!options) {
        return;
    }
    command = g_strdup_printf("%s create -q %s %s %" PRIu64,
                              getenv("QTEST_QEMU_IMG"), options, file,
                              (uint64_t)RWP_TEST_RAM);
    g_assert_true(g_spawn_command_line_sync(command, NULL, NULL, &status,
                                            NULL));
    g_assert_cmpint(status, ==, 0);
}

static StoreVM store_vm_new(const StoreCase *c)
{
    StoreVM s = { .dir = rwp_scratch_dir() };
    g_auto(GStrv) parts = g_strsplit(c->store->arguments, "%s", -1);
    g_autofree char *arguments = g_strjoinv(s.dir, parts);

    make_image(s.dir, c->store->image_options);
    if (c->store->served) {
        s.server = rwp_server_start(c->store->server, s.dir, "store1");
    }
    s.vm = rwp_vm_guest(c->variant, arguments);
    return s;
}

static void store_vm_free(StoreVM *s)
{
    rwp_vm_free(s->vm);
    if (s->server) {
        rwp_server_stop(s->server);
    }
    rwp_remove_dir(s->dir);
}

static bool skip_case(const StoreCase *c)
{
    if (c->store->image_options && !have_qemu_img()) {
        g_test_skip("qemu-img was not built");
        return true;
    }
    return rwp_skip(c->variant) ||
           (c->store->served && rwp_server_skip(c->store->server));
}

/* The main loop fetches page after page, and jobs do */
static void test_store(const void *opaque)
{
    const StoreCase *c = opaque;
    /* Little is enough where each access takes a time of its own */
    uint64_t size = g_str_equal(c->store->name, "throttle") ? 512 * KiB :
                                                              SIZE;
    StoreVM s;

    if (skip_case(c)) {
        return;
    }
    s = store_vm_new(c);
    for (int i = 0; i < 3; i++) {
        rwp_fill(s.vm, START, size, i);
        rwp_job(s.vm, RWP_EVICT_TO("store"), (uint64_t)START, size);
        rwp_expect_state(s.vm, START, size, "evicted");
        if (i == 2) {
            rwp_job(s.vm, RWP_FETCH());
        }
        rwp_check(s.vm, START, size, i);
    }
    g_assert_cmpuint(rwp_get(s.vm, "fetch.errors"), ==, 0);
    store_vm_free(&s);
}

/* A disk whose requests wait, for ever without a guest, or for a drain */
typedef struct Disk {
    QGuestAllocator alloc;
    QPCIBus *bus;
    QVirtioPCIDevice *dev;
    QVirtQueue *vq;
    uint32_t last;              /* head of the last request */
} Disk;

#define SLOW_DISK \
    "-object throttle-group,id=slow,x-iops-total=1 " \
    "-device virtio-blk-pci,drive=disk,addr=04.0,ioeventfd=off "

static Disk *disk_new(RwpVM *vm)
{
    Disk *disk = g_new0(Disk, 1);
    QPCIAddress address = { .devfn = QPCI_DEVFN(4, 0) };

    alloc_init(&disk->alloc, ALLOC_NO_FLAGS, 1 * MiB, 2 * MiB, 4 * KiB);
    disk->bus = qpci_new_pc(vm->qts, NULL);
    disk->dev = virtio_pci_new(disk->bus, &address);
    g_assert_nonnull(disk->dev);
    qvirtio_pci_device_enable(disk->dev);
    qvirtio_start_device(&disk->dev->vdev);
    qvirtio_set_features(&disk->dev->vdev,
                         qvirtio_get_features(&disk->dev->vdev) &
                         ~(QVIRTIO_F_BAD_FEATURE |
                           (1ull << VIRTIO_RING_F_EVENT_IDX) |
                           (1ull << VIRTIO_RING_F_INDIRECT_DESC)));
    disk->vq = qvirtqueue_setup(&disk->dev->vdev, &disk->alloc, 0);
    qvirtio_set_driver_ok(&disk->dev->vdev);
    return disk;
}

/* Give the queue back; the device is gone with its machine */
static void disk_free(Disk *disk)
{
    qvirtqueue_cleanup(disk->dev->vdev.bus, disk->vq, &disk->alloc);
    qos_object_destroy((QOSGraphObject *)disk->dev);
    qpci_free_pc(disk->bus);
    alloc_destroy(&disk->alloc);
    g_free(disk);
}

/* Request to read one sector to @address */
static void disk_read(RwpVM *vm, Disk *disk, uint64_t address)
{
    uint64_t request = guest_alloc(&disk->alloc, 4 * KiB);

    qtest_memset(vm->qts, request, 0, 4 * KiB);
    qtest_writel(vm->qts, request, VIRTIO_BLK_T_IN);
    qtest_writeb(vm->qts, request + 512, 0xff);
    disk->last = qvirtqueue_add(vm->qts, disk->vq, request, 16, false, true);
    qvirtqueue_add(vm->qts, disk->vq, address, 512, true, true);
    qvirtqueue_add(vm->qts, disk->vq, request + 512, 1, true, false);
    qvirtqueue_kick(vm->qts, &disk->dev->vdev, disk->vq, disk->last);
}

/* How many requests are done */
static int disk_done(RwpVM *vm, Disk *disk)
{
    return qtest_readw(vm->qts, disk->vq->used +
                       offsetof(struct vring_used, idx));
}

#define REQUESTS 8
#define REQUEST_ADDRESS(i) (START + (i) * 64 * KiB)

/*
 * Requests of a disk wait, and their buffers are evicted.  A drained
 * section makes them go on, and waits for them; who reads from the disk
 * waits for the evicted buffer; so the read of the store may not wait for
 * the end of the drained section.
 */
static void drain_with_evicted_buffers(const char *disk_arguments,
                                       bool quit)
{
    uint64_t fetched;
    RwpVM *vm;
    Disk *disk;

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    vm = rwp_vm_new(RWP_DEFAULT_VARIANT, "", disk_arguments);
    disk = disk_new(vm);
    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    for (int i = 0; i < REQUESTS; i++) {
        disk_read(vm, disk, REQUEST_ADDRESS(i));
    }
    g_assert_cmpint(disk_done(vm, disk), <, REQUESTS);
    rwp_expect_state(vm, REQUEST_ADDRESS(REQUESTS - 1), 4 * KiB, "evicted");

    if (quit) {
        qtest_qmp_send(vm->qts, "{ 'execute': 'quit' }");
        qtest_wait_qemu(vm->qts);
        alloc_destroy(&disk->alloc);
        qos_object_destroy((QOSGraphObject *)disk->dev);
        qpci_free_pc(disk->bus);
        g_free(disk->vq);
        g_free(disk);
        rwp_vm_free(vm);
        return;
    }
    fetched = rwp_get(vm, "fetch.fault");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'stop' }");
    g_assert_cmpint(disk_done(vm, disk), ==, REQUESTS);
    g_assert_cmpuint(rwp_get(vm, "fetch.fault"), >, fetched);
    for (int i = 0; i < REQUESTS; i++) {
        uint64_t address = REQUEST_ADDRESS(i);

        /* The sector is zero, and what surrounds it is as it was */
        for (int j = 0; j < 512; j += 8) {
            g_assert_cmphex(qtest_readq(vm->qts, address + j), ==, 0);
        }
        rwp_check(vm, address + 512, 64 * KiB - 512, 1);
    }
    rwp_check(vm, REQUEST_ADDRESS(REQUESTS), SIZE - REQUESTS * 64 * KiB, 1);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'cont' }");
    disk_free(disk);
    rwp_vm_free(vm);
}

/* The main loop writes to the buffer */
#define MAIN_LOOP_DISK \
    "-blockdev throttle,node-name=disk,throttle-group=slow," \
    "file.driver=null-co,file.size=1048576,file.read-zeroes=on " SLOW_DISK

/* A thread of the thread pool does, inside a system call */
#define WORKER_DISK \
    "-blockdev throttle,node-name=disk,throttle-group=slow," \
    "file.driver=file,file.filename=%s/store1 " SLOW_DISK

static void test_drain_main_loop(void)
{
    drain_with_evicted_buffers(MAIN_LOOP_DISK, false);
}

static void test_drain_worker(void)
{
    drain_with_evicted_buffers(WORKER_DISK, false);
}

static void test_quit_main_loop(void)
{
    drain_with_evicted_buffers(MAIN_LOOP_DISK, true);
}

static void test_quit_worker(void)
{
    drain_with_evicted_buffers(WORKER_DISK, true);
}

/*
 * Buffers of requests that wait are not evicted: a device writes to them
 * without a fault that would be noticed.
 */
static void test_mapped(const void *opaque)
{
    const RwpVariant *variant = opaque;
    RwpVM *vm;
    Disk *disk;

    if (rwp_skip(variant)) {
        return;
    }
    /* To attach a store would drain the disk, so it is attached before */
    vm = rwp_vm_new(variant, "store=store0", WORKER_DISK);
    disk = disk_new(vm);
    rwp_fill(vm, START, SIZE, 1);
    for (int i = 0; i < REQUESTS; i++) {
        disk_read(vm, disk, REQUEST_ADDRESS(i));
    }
    rwp_job(vm, RWP_EVICT("'ranges': [ " RWP_RANGE " ]"),
            (uint64_t)START, (uint64_t)SIZE);
    g_assert_cmpint(disk_done(vm, disk), <, REQUESTS);
    rwp_expect_state(vm, ROUND_DOWN(REQUEST_ADDRESS(REQUESTS - 1),
                                    variant->page_size),
                     variant->page_size, "resident");
    g_assert_cmpuint(rwp_get(vm, "evict.busy"), >, 0);

    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'stop' }");
    g_assert_cmpint(disk_done(vm, disk), ==, REQUESTS);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'cont' }");
    rwp_evict(vm, START, SIZE);
    for (int i = 0; i < REQUESTS; i++) {
        g_assert_cmphex(qtest_readq(vm->qts, REQUEST_ADDRESS(i) + 504), ==,
                        0);
        rwp_check(vm, REQUEST_ADDRESS(i) + 512, 64 * KiB - 512, 1);
    }
    disk_free(disk);
    rwp_vm_free(vm);
}

int main(int argc, char **argv)
{
    static StoreCase cases[2 * ARRAY_SIZE(stores)];
    size_t nb_cases = 0;

    g_test_init(&argc, &argv, NULL);

    for (size_t i = 0; i < ARRAY_SIZE(stores); i++) {
        /* One whose pages are copied, and one whose pages are moved */
        for (int move = 0; move < 2; move++) {
            StoreCase *c = &cases[nb_cases++];
            g_autofree char *path = NULL;

            c->store = &stores[i];
            c->variant = &rwp_variants[move ? 2 : 0];
            path = g_strdup_printf("/rwp-store/%s/%s", c->store->name,
                                   c->variant->name);
            qtest_add_data_func(path, c, test_store);
        }
    }
    qtest_add_func("/rwp-store/drain/main-loop", test_drain_main_loop);
    qtest_add_func("/rwp-store/drain/worker", test_drain_worker);
    qtest_add_func("/rwp-store/quit/main-loop", test_quit_main_loop);
    qtest_add_func("/rwp-store/quit/worker", test_quit_worker);
    rwp_add_tests("rwp-store", "mapped", test_mapped);

    return g_test_run();
}
