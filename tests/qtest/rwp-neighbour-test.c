/*
 * QTest of memory-backend-rwp: who else touches guest memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * test-timeout: 1200
 *
 * Each test is one party: it either works with evicted pages, or is refused
 * while there are any, and they are refused while it is there.
 *
 * Each test is run for each kind of backend that the host can do.
 */

#include "qemu/osdep.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_blk.h"
#include "rwp/rwp-helpers.h"
#include "rwp/rwp-slow-file.h"

#define VM_TEST(variant, options, arguments)                    \
    RwpVM *vm;                                                  \
                                                                \
    if (rwp_skip(variant)) {                                    \
        return;                                                 \
    }                                                           \
    vm = rwp_vm_new(variant, options, arguments)

#define GENERIC "GenericError"
#define START RWP_TEST_START
#define SIZE RWP_TEST_SIZE

#define EVICT_START \
    RWP_EVICT("'target': 'store0', 'ranges': [ { 'offset': 8388608, " \
              "'length': 2097152 } ]")

/* Whether other processes could map the memory */
static bool is_shared(RwpVM *vm)
{
    QDict *info = rwp_info(vm);
    bool shared = g_str_equal(qdict_get_str(info, "pager"), "punch");

    qobject_unref(info);
    return shared;
}

/* A vhost-user backend: a process that can map guest memory */
typedef struct Peer {
    QTestState *qts;
    char *dir;
    char *socket;
} Peer;

static void peer_start(Peer *peer)
{
    peer->dir = rwp_scratch_dir();
    peer->socket = g_build_filename(peer->dir, "peer", NULL);
    peer->qts = qtest_initf("-machine none -nodefaults "
        "-blockdev null-co,node-name=disk,size=1048576,read-zeroes=on");
    qtest_qmp_assert_success(peer->qts,
        "{ 'execute': 'block-export-add', 'arguments': { 'id': 'export', "
        "'type': 'vhost-user-blk', 'node-name': 'disk', 'addr': { "
        "'type': 'unix', 'path': %s } } }", peer->socket);
}

static void peer_stop(Peer *peer)
{
    qtest_quit(peer->qts);
    rwp_remove_dir(peer->dir);
    g_free(peer->socket);
}

#define ADD_VHOST_USER \
    "{ 'execute': 'device_add', 'arguments': { " \
    "'driver': 'vhost-user-blk-pci', 'chardev': 'peer', 'id': 'new' } }"

static void test_vhost_user(const void *variant)
{
    static const char *const newcomers[] = {
        ADD_VHOST_USER,
        "{ 'execute': 'netdev_add', 'arguments': { 'type': 'vhost-user', "
        "'chardev': 'peer', 'id': 'new' } }",
    };
    g_autofree char *arguments = NULL;
    RwpVM *vm;
    Peer peer;

    if (rwp_skip(variant)) {
        return;
    }
    peer_start(&peer);
    arguments = g_strdup_printf("-chardev socket,id=peer,path=%s",
                                peer.socket);
    vm = rwp_vm_new(variant, "", arguments);
    rwp_fill(vm, START, SIZE, 1);

    /* Comes: refused until all pages are back */
    rwp_evict(vm, START, SIZE);
    for (size_t i = 0; is_shared(vm) && i < ARRAY_SIZE(newcomers); i++) {
        const RwpRefused refused[] = {
            { newcomers[i], "vhost-user" },
            { newcomers[i], "another process" },
            { newcomers[i], "mem0" },
            { newcomers[i], "rwp-fetch" },
        };

        rwp_expect_refused(vm, refused, ARRAY_SIZE(refused));
    }
    rwp_check(vm, START, SIZE, 1);
    rwp_job(vm, RWP_FETCH());

    /* Is there: nothing is evicted.  It gets memory with a descriptor only */
    if (is_shared(vm)) {
        qtest_qmp_assert_success(vm->qts, ADD_VHOST_USER);
        rwp_expect_error(vm, GENERIC, "vhost-user-blk", EVICT_START);
        rwp_expect_state(vm, START, SIZE, "resident");
    }
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
    peer_stop(&peer);
}

/* The same for devices that pin memory.  That they exist does not matter. */
static void test_pinning_comes(const void *variant)
{
    static const RwpRefused refused[] = {
        { "{ 'execute': 'device_add', 'arguments': { 'driver': 'vfio-pci', "
          "'host': '0000:00:00.0' } }", "vfio-pci pins guest memory" },
        { "{ 'execute': 'device_add', 'arguments': { "
          "'driver': 'vhost-vdpa-device-pci', 'vhostdev': '/dev/null' } }",
          "vhost-vdpa-device-pci pins guest memory" },
        { "{ 'execute': 'netdev_add', 'arguments': { 'type': 'vhost-vdpa', "
          "'id': 'new', 'vhostdev': '/dev/null' } }",
          "vhost-vdpa pins guest memory" },
    };
    VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    rwp_expect_refused(vm, refused, ARRAY_SIZE(refused));
    rwp_check(vm, START, SIZE, 1);

    /* With all pages here, these fail by what they are */
    rwp_job(vm, RWP_FETCH());
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        QDict *response, *error;

        qtest_qmp_send_raw(vm->qts, "%s\n", refused[i].command);
        response = qtest_qmp_receive(vm->qts);
        error = qdict_get_qdict(response, "error");
        g_assert_nonnull(error);
        g_assert_null(strstr(qdict_get_str(error, "desc"), "mem0"));
        qobject_unref(response);
    }
    rwp_vm_free(vm);
}

/* A virtio device at slot 4, driven by the test, with one queue */
typedef struct Driver {
    RwpVM *vm;
    QGuestAllocator alloc;
    QPCIBus *bus;
    QVirtioPCIDevice *dev;
    QVirtQueue *vq;
} Driver;

#define SLOT_4 "addr=04.0"
#define WAIT_US (120 * G_USEC_PER_SEC)

static void driver_start(Driver *driver, RwpVM *vm, int queue)
{
    QPCIAddress address = { .devfn = QPCI_DEVFN(4, 0) };
    QVirtioDevice *vdev;

    driver->vm = vm;
    driver->bus = qpci_new_pc(vm->qts, NULL);
    alloc_init(&driver->alloc, ALLOC_NO_FLAGS, 1 * MiB, 2 * MiB, 4 * KiB);
    driver->dev = virtio_pci_new(driver->bus, &address);
    g_assert_nonnull(driver->dev);
    vdev = &driver->dev->vdev;
    qvirtio_pci_device_enable(driver->dev);
    qvirtio_start_device(vdev);
    qvirtio_set_features(vdev, qvirtio_get_features(vdev) &
                         ~(QVIRTIO_F_BAD_FEATURE |
                           (1ull << VIRTIO_RING_F_INDIRECT_DESC) |
                           (1ull << VIRTIO_RING_F_EVENT_IDX)));
    for (int i = 0; i <= queue; i++) {
        driver->vq = qvirtqueue_setup(vdev, &driver->alloc, i);
    }
    qvirtio_set_driver_ok(vdev);
}

static void driver_stop(Driver *driver)
{
    qvirtio_pci_device_disable(driver->dev);
    qos_object_destroy((QOSGraphObject *)driver->dev);
    qpci_free_pc(driver->bus);
    alloc_destroy(&driver->alloc);
    g_free(driver->vq);
}

#define DISK_BYTES (64 * KiB)

/* Have the disk transfer DISK_BYTES at @offset from or to @address */
static uint32_t disk_request(Driver *driver, bool write, uint64_t offset,
                             uint64_t address)
{
    QTestState *qts = driver->vm->qts;
    uint64_t header = guest_alloc(&driver->alloc, 32);
    uint32_t head;

    qtest_writel(qts, header, write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN);
    qtest_writel(qts, header + 4, 0);
    qtest_writeq(qts, header + 8, offset / 512);
    qtest_writeb(qts, header + 16, 0xff);
    head = qvirtqueue_add(qts, driver->vq, header, 16, false, true);
    qvirtqueue_add(qts, driver->vq, address, DISK_BYTES, !write, true);
    qvirtqueue_add(qts, driver->vq, header + 16, 1, true, false);
    qvirtqueue_kick(qts, &driver->dev->vdev, driver->vq, head);
    return head;
}

static void disk_wait(Driver *driver, uint32_t head)
{
    qvirtio_wait_used_elem(driver->vm->qts, &driver->dev->vdev, driver->vq,
                           head, NULL, WAIT_US);
}

/* Whether memory at @address is what is on the disk at @offset */
static bool disk_was_read(RwpVM *vm, uint64_t address, uint64_t offset,
                          uint64_t seed)
{
    g_autofree void *wanted = g_malloc(DISK_BYTES);
    g_autofree void *found = g_malloc(DISK_BYTES);

    rwp_pattern(wanted, offset, DISK_BYTES, seed);
    qtest_memread(vm->qts, address, found, DISK_BYTES);
    return memcmp(wanted, found, DISK_BYTES) == 0;
}

/*
 * Evict memory which a read of a disk is just about to fill.  Returns
 * whether the content of the disk has arrived.
 */
static bool evict_under_dma(const RwpVariant *variant, bool expect_busy)
{
    g_autofree char *dir = rwp_scratch_dir();
    RwpSlowFile *file = rwp_slow_file_new(dir, 7);
    g_autofree char *arguments = g_strdup_printf(
        "-blockdev file,node-name=slow,filename=%s/slow,read-only=on,"
        "locking=off -device virtio-blk-pci,drive=slow," SLOT_4, dir);
    /* To open a store later would wait for the end of all requests */
    RwpVM *vm = rwp_vm_new(variant, "store=store0", arguments);
    Driver driver;
    uint32_t head;
    uint64_t busy;
    bool arrived;

    driver_start(&driver, vm, 0);
    rwp_fill(vm, START, SIZE, 1);
    rwp_slow_file_hold(file);
    head = disk_request(&driver, false, 1 * MiB, START);
    rwp_slow_file_await(file);

    rwp_job(vm, RWP_EVICT("'target': 'store0', 'ranges': [ " RWP_RANGE " ]"),
            START, SIZE);
    busy = rwp_get(vm, "evict.busy");
    if (expect_busy) {
        g_assert_cmpuint(busy, ==, SIZE / variant->page_size);
        rwp_expect_state(vm, START, SIZE, "resident");
    }
    rwp_slow_file_release(file);
    disk_wait(&driver, head);
    arrived = disk_was_read(vm, START, 1 * MiB, 7);

    /* When it is over, all can go */
    rwp_evict(vm, START, SIZE);
    if (arrived) {
        g_assert_true(disk_was_read(vm, START, 1 * MiB, 7));
    }
    rwp_check(vm, START + DISK_BYTES, SIZE - DISK_BYTES, 1);
    driver_stop(&driver);
    rwp_vm_free(vm);
    rwp_slow_file_free(file);
    rwp_remove_dir(g_steal_pointer(&dir));
    return arrived;
}

static void test_dma(const void *variant)
{
    if (rwp_skip(variant) || rwp_slow_file_skip()) {
        return;
    }
    g_assert_true(evict_under_dma(variant, true));
}

/* The same with the look at mappings left out: the test must notice */
static void test_dma_mutation(const void *opaque)
{
    const RwpVariant *variant = opaque;

    if (rwp_skip(variant) || rwp_slow_file_skip()) {
        return;
    }
    if (strstr(variant->name, "move")) {
        /* The kernel refuses to move pages that it has pinned */
        g_test_skip("not needed with the pager move");
        return;
    }
    setenv("RWP_INJECT", "ignore-pins", 1);
    g_assert_false(evict_under_dma(variant, false));
    unsetenv("RWP_INJECT");
}

static void add_tests(const char *name, void (*fn)(const void *opaque))
{
    for (size_t i = 0; i < rwp_nb_variants; i++) {
        g_autofree char *path = g_strdup_printf("/rwp-neighbour/%s/%s",
                                                rwp_variants[i].name, name);

        qtest_add_data_func(path, &rwp_variants[i], fn);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    add_tests("vhost-user", test_vhost_user);
    add_tests("pinning-comes", test_pinning_comes);
    add_tests("dma", test_dma);
    add_tests("dma-mutation", test_dma_mutation);

    return g_test_run();
}
