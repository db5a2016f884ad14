/*
 * QTest of memory-backend-rwp: devices that access guest memory, or are memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * test-timeout: 1200
 *
 * The test is the driver of a virtio device. What the device reads or writes
 * is away, or is about to be evicted.
 *
 * Each test is run for each kind of backend that the host can do.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include <poll.h>
#include <linux/vm_sockets.h>
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_mem.h"
#include "standard-headers/linux/virtio_vsock.h"
#include "rwp/rwp-helpers.h"
#include "rwp/rwp-slow-file.h"

#define START RWP_TEST_START
#define SIZE RWP_TEST_SIZE
#define GENERIC "GenericError"

#define MAX_QUEUES 4

/* A virtio device at slot 4, driven by the test */
typedef struct Driver {
    RwpVM *vm;
    QGuestAllocator alloc;
    QPCIBus *bus;
    QVirtioPCIDevice *dev;
    QVirtQueue *vqs[MAX_QUEUES];
    QVirtQueue *vq;         /* the one that the test is about */
} Driver;

#define SLOT_4 "addr=04.0"
#define WAIT_US (120 * G_USEC_PER_SEC)

/* @queue: number of the one that the test is about; the last one */
static void driver_start(Driver *driver, RwpVM *vm, int queue)
{
    QPCIAddress address = { .devfn = QPCI_DEVFN(4, 0) };
    QVirtioDevice *vdev;

    *driver = (Driver) { .vm = vm };
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
        driver->vqs[i] = qvirtqueue_setup(vdev, &driver->alloc, i);
    }
    driver->vq = driver->vqs[queue];
    qvirtio_set_driver_ok(vdev);
}

static void driver_stop(Driver *driver)
{
    qvirtio_pci_device_disable(driver->dev);
    qos_object_destroy((QOSGraphObject *)driver->dev);
    qpci_free_pc(driver->bus);
    alloc_destroy(&driver->alloc);
    for (int i = 0; i < MAX_QUEUES; i++) {
        g_free(driver->vqs[i]);
    }
}

static void driver_wait(Driver *driver, uint32_t head)
{
    qvirtio_wait_used_elem(driver->vm->qts, &driver->dev->vdev, driver->vq,
                           head, NULL, WAIT_US);
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
 *
 * @late: the read begins when the eviction has begun; in time for a page to be
 *     taken meanwhile, if that is delayed
 */
static bool evict_under_dma(const RwpVariant *variant, bool late,
                            bool expect_busy)
{
    g_autofree char *dir = rwp_scratch_dir();
    RwpSlowFile *file = rwp_slow_file_new(dir, 7);
    g_autofree char *arguments = g_strdup_printf(
        "-blockdev file,node-name=slow,filename=%s/slow,read-only=on,"
        "locking=off -device virtio-blk-pci,drive=slow," SLOT_4, dir);
    /* To open a store later would wait for the end of all requests */
    RwpVM *vm = rwp_vm_new(variant, "store=store0", arguments);
    g_autofree char *error = NULL;
    Driver driver;
    uint32_t head;
    uint64_t busy;
    bool arrived;

    driver_start(&driver, vm, 0);
    rwp_fill(vm, START, SIZE, 1);
    rwp_slow_file_hold(file);
    if (late) {
        qtest_qmp_assert_success(vm->qts, RWP_EVICT_TO("store0"), START, SIZE);
    }
    head = disk_request(&driver, false, 1 * MiB, START);
    rwp_slow_file_await(file);
    if (!late) {
        qtest_qmp_assert_success(vm->qts, RWP_EVICT_TO("store0"), START, SIZE);
    }
    error = rwp_job_finish(vm, "job0");
    g_assert_cmpstr(error, ==, NULL);
    busy = rwp_get(vm, "evict.busy");
    g_test_message("%" PRIu64 " pages were busy", busy);
    if (expect_busy) {
        g_assert_cmpuint(busy, ==, SIZE / variant->page_size);
        rwp_expect_state(vm, START, SIZE, "resident");
    }
    rwp_slow_file_release(file);
    driver_wait(&driver, head);
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
    g_assert_true(evict_under_dma(variant, false, true));
}

static void test_dma_late(const void *variant)
{
    if (rwp_skip(variant) || rwp_slow_file_skip()) {
        return;
    }
    setenv("RWP_INJECT", "delay-claim", 1);
    g_assert_true(evict_under_dma(variant, true, false));
    unsetenv("RWP_INJECT");
}

/* Whether pages are moved aside: which pager is the default, the host decides */
static bool moves_pages(const RwpVariant *variant)
{
    RwpVM *vm = rwp_vm_new(variant, "", "");
    QDict *info = rwp_info(vm);
    bool moves = g_str_equal(qdict_get_str(info, "pager"), "move");

    qobject_unref(info);
    rwp_vm_free(vm);
    return moves;
}

/* The same with the look at mappings left out: the test must notice */
static void test_dma_mutation(const void *opaque)
{
    const RwpVariant *variant = opaque;

    if (rwp_skip(variant) || rwp_slow_file_skip()) {
        return;
    }
    if (moves_pages(variant)) {
        /* The kernel refuses to move pages that it has pinned */
        g_test_skip("not needed with the pager move");
        return;
    }
    setenv("RWP_INJECT", "ignore-pins", 1);
    g_assert_false(evict_under_dma(variant, false, false));
    unsetenv("RWP_INJECT");
}

/* DMA in an iothread, from and to memory that is away */
static void test_iothread(const void *variant)
{
    uint64_t from = START, to = START + SIZE / 2;
    Driver driver;
    RWP_VM_TEST(variant, "", "-object iothread,id=io "
                "-blockdev file,node-name=disk,filename=%s/store1 "
                "-device virtio-blk-pci,drive=disk,iothread=io," SLOT_4);

    driver_start(&driver, vm, 0);
    rwp_fill(vm, START, SIZE, 1);
    for (uint64_t pos = 0; pos < 4 * DISK_BYTES; pos += DISK_BYTES) {
        rwp_evict(vm, START, SIZE);
        driver_wait(&driver, disk_request(&driver, true, pos, from + pos));
        rwp_evict(vm, START, SIZE);
        driver_wait(&driver, disk_request(&driver, false, pos, to + pos));
    }
    rwp_evict(vm, START, SIZE);
    rwp_check(vm, from, SIZE / 2, 1);
    for (uint64_t pos = 0; pos < 4 * DISK_BYTES; pos += DISK_BYTES) {
        g_assert_true(disk_was_read(vm, to + pos, from + pos, 1));
    }
    rwp_check(vm, to + 4 * DISK_BYTES, SIZE / 2 - 4 * DISK_BYTES, 1);
    driver_stop(&driver);
    rwp_vm_free(vm);
}

/* -- memory that comes and goes -------------------------------------------- */

#define DIMM_BYTES (32 * MiB)

static void add_backend(RwpVM *vm, const char *id, uint64_t size)
{
    g_autofree char *output = qtest_hmp(vm->qts, "object_add "
        "memory-backend-rwp,id=%s,size=%" PRIu64 "%s%s", id, size,
        *vm->variant->options ? "," : "", vm->variant->options);

    if (strstr(output, "Error")) {
        g_error("%s", output);
    }
}

static void evict_from(RwpVM *vm, const char *id, uint64_t offset,
                       uint64_t length)
{
    g_autofree char *error = NULL;

    /* A deleted backend has the node as long as somebody may see its memory */
    rwp_assert_soon(rwp_accepts(vm,
        "{ 'execute': 'rwp-evict', 'arguments': { 'job-id': 'job0', "
        "'id': %s, 'target': 'other', 'ranges': [ " RWP_RANGE " ] } }", id,
        offset, length));
    error = rwp_job_finish(vm, "job0");
    g_assert_cmpstr(error, ==, NULL);
}

static uint64_t evicted_of(RwpVM *vm, const char *id)
{
    QDict *response = qtest_qmp(vm->qts, "{ 'execute': 'query-rwp', "
                                "'arguments': { 'id': %s } }", id);
    QList *list = qdict_get_qlist(response, "return");
    uint64_t evicted = qdict_get_int(qobject_to(QDict, qlist_peek(list)),
                                     "evicted");

    qobject_unref(response);
    return evicted;
}

#define MORE_MEMORY \
    "-m slots=1,maxmem=2G -blockdev file,node-name=other,filename=%s/store1 "

/* See docs/specs/acpi_mem_hotplug.rst of QEMU */
#define HOTPLUG_SELECT 0xa00
#define HOTPLUG_FLAGS 0xa14
#define HOTPLUG_EJECT (1 << 3)

/* Huge pages are there for one backend */
static bool skip_more_memory(const RwpVariant *variant)
{
    if (!variant->sees_untouched) {
        g_test_skip("not for huge pages");
        return true;
    }
    return rwp_skip(variant);
}

static void plug_dimm(RwpVM *vm)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'device_add', "
        "'arguments': { 'driver': 'pc-dimm', 'id': 'dimm0', "
        "'memdev': 'dimm' } }");
}

static void test_dimm(const void *variant)
{
    const uint64_t address = 4 * GiB;
    RwpVM *vm;

    if (skip_more_memory(variant)) {
        return;
    }
    vm = rwp_vm_new(variant, "", MORE_MEMORY);

    for (int round = 0; round < 2; round++) {
        add_backend(vm, "dimm", DIMM_BYTES);
        if (((const RwpVariant *)variant)->has_ages) {
            /* At once: the deleted one, with its threads, may be there still */
            qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-start',"
                                     " 'arguments': { 'id': 'dimm' } }");
        }
        plug_dimm(vm);
        rwp_fill(vm, address, SIZE, round);
        evict_from(vm, "dimm", 0, DIMM_BYTES);
        rwp_check(vm, address, SIZE / 2, round);
        rwp_expect_error(vm, GENERIC, "dimm", "{ 'execute': 'object-del', "
                         "'arguments': { 'id': 'dimm' } }");

        /* It goes with evicted pages; the guest agrees */
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'device_del', "
                                 "'arguments': { 'id': 'dimm0' } }");
        qtest_outl(vm->qts, HOTPLUG_SELECT, 0);
        qtest_outb(vm->qts, HOTPLUG_FLAGS, HOTPLUG_EJECT);
        qtest_qmp_eventwait(vm->qts, "DEVICE_DELETED");
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'object-del', "
                                 "'arguments': { 'id': 'dimm' } }");
    }
    rwp_vm_free(vm);
}

/* A request to virtio-mem; virtio specification, 5.15.6 */
static void mem_request(Driver *driver, uint16_t type, uint64_t address,
                        uint16_t blocks)
{
    QTestState *qts = driver->vm->qts;
    uint64_t buf = guest_alloc(&driver->alloc, 64);
    uint32_t head;

    qtest_memset(qts, buf, 0, 64);
    qtest_writew(qts, buf, type);
    qtest_writeq(qts, buf + 8, address);
    qtest_writew(qts, buf + 16, blocks);
    qtest_writew(qts, buf + 32, 0xffff);
    head = qvirtqueue_add(qts, driver->vq, buf, 24, false, true);
    qvirtqueue_add(qts, driver->vq, buf + 32, 10, true, false);
    qvirtqueue_kick(qts, &driver->dev->vdev, driver->vq, head);
    driver_wait(driver, head);
    g_assert_cmpint(qtest_readw(qts, buf + 32), ==, VIRTIO_MEM_RESP_ACK);
}

static void test_virtio_mem(const void *variant)
{
    Driver driver;
    uint64_t address, block;
    RwpVM *vm;

    if (skip_more_memory(variant)) {
        return;
    }
    vm = rwp_vm_new(variant, "", MORE_MEMORY);

    add_backend(vm, "vmem", DIMM_BYTES);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'device_add', "
        "'arguments': { 'driver': 'virtio-mem-pci', 'id': 'vmem0', "
        "'memdev': 'vmem', 'requested-size': %" PRIu64 ", 'addr': '04.0', "
        "'block-size': 2097152 } }", (uint64_t)SIZE);
    driver_start(&driver, vm, 0);
    block = qvirtio_config_readq(&driver.dev->vdev,
                offsetof(struct virtio_mem_config, block_size));
    address = qvirtio_config_readq(&driver.dev->vdev,
                offsetof(struct virtio_mem_config, addr));
    mem_request(&driver, VIRTIO_MEM_REQ_PLUG, address, SIZE / block);
    rwp_fill(vm, address, SIZE, 1);
    evict_from(vm, "vmem", 0, SIZE);
    g_assert_cmpuint(evicted_of(vm, "vmem"), ==, SIZE);

    /* What is unplugged is not kept, the rest is */
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'qom-set', 'arguments': "
        "{ 'path': '/machine/peripheral/vmem0', "
        "'property': 'requested-size', 'value': %" PRIu64 " } }",
        (uint64_t)SIZE / 2);
    mem_request(&driver, VIRTIO_MEM_REQ_UNPLUG, address, SIZE / 2 / block);
    g_assert_cmpuint(evicted_of(vm, "vmem"), ==, SIZE / 2);
    rwp_check(vm, address + SIZE / 2, SIZE / 2, 1);

    /* Plugged again, it is empty */
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'qom-set', 'arguments': "
        "{ 'path': '/machine/peripheral/vmem0', "
        "'property': 'requested-size', 'value': %" PRIu64 " } }",
        (uint64_t)SIZE);
    mem_request(&driver, VIRTIO_MEM_REQ_PLUG, address, SIZE / 2 / block);
    for (uint64_t pos = 0; pos < SIZE / 2; pos += 64 * KiB) {
        g_assert_cmphex(qtest_readq(vm->qts, address + pos), ==, 0);
    }
    driver_stop(&driver);
    rwp_vm_free(vm);
}

/* Queues of the balloon; virtio specification, 5.5.2 */
#define REPORTING_QUEUE 3

static void test_free_page_reporting(const void *variant)
{
    Driver driver;
    uint32_t head;
    RWP_VM_TEST(variant, "",
                "-device virtio-balloon-pci,free-page-reporting=on," SLOT_4);

    driver_start(&driver, vm, REPORTING_QUEUE);
    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    head = qvirtqueue_add(vm->qts, driver.vq, START, SIZE / 2, true, false);
    qvirtqueue_kick(vm->qts, &driver.dev->vdev, driver.vq, head);
    driver_wait(&driver, head);
    g_assert_cmpuint(rwp_get(vm, "evicted"), ==, SIZE / 2);
    g_assert_cmpuint(rwp_get(vm, "fetch.dropped"), ==,
                     SIZE / 2 / vm->variant->page_size);
    rwp_check(vm, START + SIZE / 2, SIZE / 2, 1);
    rwp_fill(vm, START, SIZE / 2, 2);
    rwp_evict(vm, START, SIZE);
    rwp_check(vm, START, SIZE / 2, 2);
    rwp_check(vm, START + SIZE / 2, SIZE / 2, 1);
    driver_stop(&driver);
    rwp_vm_free(vm);
}

/* -- a device that the host kernel emulates -------------------------------- */

/* Queues of vsock; virtio specification, 5.10.2.  The last is the events' */
#define VSOCK_RX 0
#define VSOCK_TX 1
#define VSOCK_NB_QUEUES 3

#define VSOCK_PORT 4321
#define VSOCK_BYTES 4096
#define VSOCK_PACKET_BYTES (sizeof(struct virtio_vsock_hdr) + VSOCK_BYTES)

/* A connection from the host to the guest, and what the guest answers with */
typedef struct Vsock {
    Driver driver;
    struct virtio_vsock_hdr answer;
    int fd;
} Vsock;

/* An address for the guest: the same on all of the host */
static uint32_t vsock_cid(void)
{
    return 0x10000 + getpid();
}

static bool skip_vhost(void)
{
    int fd = open("/dev/vhost-vsock", O_RDWR);

    if (fd < 0) {
        g_test_skip("the host has no /dev/vhost-vsock");
        return true;
    }
    close(fd);
    return false;
}

/* Fill @address with a packet that the device is going to read */
static void vsock_answer(Vsock *vsock, uint64_t address, uint16_t op,
                         uint32_t length)
{
    vsock->answer.op = cpu_to_le16(op);
    vsock->answer.len = cpu_to_le32(length);
    qtest_memwrite(vsock->driver.vm->qts, address, &vsock->answer,
                   sizeof(vsock->answer));
}

static uint32_t vsock_queue(Vsock *vsock, int queue, uint64_t address,
                            uint64_t length)
{
    Driver *driver = &vsock->driver;
    QVirtQueue *vq = driver->vqs[queue];
    uint32_t head = qvirtqueue_add(driver->vm->qts, vq, address, length,
                                   queue == VSOCK_RX, false);

    qvirtqueue_kick(driver->vm->qts, &driver->dev->vdev, vq, head);
    return head;
}

/* The queues share an interrupt, so this looks at the ring */
static void vsock_await(Vsock *vsock, int queue, uint32_t head)
{
    Driver *driver = &vsock->driver;
    uint32_t used;

    rwp_assert_soon(qvirtqueue_get_buf(driver->vm->qts, driver->vqs[queue],
                                       &used, NULL));
    g_assert_cmpuint(used, ==, head);
}

static void vsock_connect(Vsock *vsock)
{
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK,
        .svm_port = VSOCK_PORT,
        .svm_cid = VMADDR_CID_ANY,
    };

    vsock->fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK, 0);
    g_assert_cmpint(vsock->fd, >=, 0);
    g_assert_cmpint(bind(vsock->fd, (void *)&address, sizeof(address)), ==, 0);
    address.svm_cid = vsock_cid();
    g_assert_cmpint(connect(vsock->fd, (void *)&address, sizeof(address)),
                    ==, -1);
    g_assert_cmpint(errno, ==, EINPROGRESS);
}

static void vsock_poll(Vsock *vsock, short events)
{
    struct pollfd fd = { .fd = vsock->fd, .events = events };

    g_assert_cmpint(poll(&fd, 1, WAIT_US / 1000), ==, 1);
    g_assert_cmpint(fd.revents, ==, events);
}

/* The memory of the DIMM, and where in it the packets are */
#define VSOCK_MEMORY (4 * GiB)
#define VSOCK_REQUEST VSOCK_MEMORY
#define VSOCK_RECEIVED (VSOCK_MEMORY + SIZE / 4)
#define VSOCK_RESPONSE (VSOCK_MEMORY + SIZE / 2)
#define VSOCK_SENT (VSOCK_MEMORY + SIZE / 4 * 3)

/* The host connects to the guest, which takes the call */
static void vsock_call(Vsock *vsock)
{
    QTestState *qts = vsock->driver.vm->qts;
    struct virtio_vsock_hdr header;
    uint32_t head;

    head = vsock_queue(vsock, VSOCK_RX, VSOCK_REQUEST, sizeof(header));
    vsock_connect(vsock);
    vsock_await(vsock, VSOCK_RX, head);
    qtest_memread(qts, VSOCK_REQUEST, &header, sizeof(header));
    g_assert_cmpuint(le16_to_cpu(header.op), ==, VIRTIO_VSOCK_OP_REQUEST);
    g_assert_cmpuint(le32_to_cpu(header.dst_port), ==, VSOCK_PORT);

    head = vsock_queue(vsock, VSOCK_TX, VSOCK_RESPONSE, sizeof(header));
    vsock_poll(vsock, POLLOUT);
    vsock_await(vsock, VSOCK_TX, head);
}

/* @data goes to the guest, and comes from it, where it is already */
static void vsock_transfer(Vsock *vsock, const uint8_t *data)
{
    g_autofree uint8_t *found = g_malloc(VSOCK_BYTES);
    uint32_t head;

    head = vsock_queue(vsock, VSOCK_RX, VSOCK_RECEIVED, VSOCK_PACKET_BYTES);
    g_assert_cmpint(send(vsock->fd, data, VSOCK_BYTES, 0), ==, VSOCK_BYTES);
    vsock_await(vsock, VSOCK_RX, head);
    qtest_memread(vsock->driver.vm->qts,
                  VSOCK_RECEIVED + sizeof(struct virtio_vsock_hdr), found,
                  VSOCK_BYTES);
    g_assert_cmpint(memcmp(found, data, VSOCK_BYTES), ==, 0);

    memset(found, 0, VSOCK_BYTES);
    vsock_queue(vsock, VSOCK_TX, VSOCK_SENT, VSOCK_PACKET_BYTES);
    vsock_poll(vsock, POLLIN);
    g_assert_cmpint(recv(vsock->fd, found, VSOCK_BYTES, 0), ==, VSOCK_BYTES);
    g_assert_cmpint(memcmp(found, data, VSOCK_BYTES), ==, 0);
}

/* vhost: faults of a thread of the host kernel, in its copies to and fro */
static void test_vhost(const void *variant)
{
    g_autofree char *device = g_strdup_printf(
        "-device vhost-vsock-pci,guest-cid=%u," SLOT_4, vsock_cid());
    g_autofree char *arguments = g_strconcat(MORE_MEMORY, device, NULL);
    g_autofree uint8_t *data = g_malloc(VSOCK_BYTES);
    Vsock vsock = {
        .answer = {
            .src_cid = cpu_to_le64(vsock_cid()),
            .dst_cid = cpu_to_le64(VMADDR_CID_HOST),
            .src_port = cpu_to_le32(VSOCK_PORT),
            .dst_port = cpu_to_le32(VSOCK_PORT),
            .type = cpu_to_le16(VIRTIO_VSOCK_TYPE_STREAM),
            .buf_alloc = cpu_to_le32(64 * KiB),
        },
    };
    uint64_t used = ROUND_UP(VSOCK_PACKET_BYTES, 8);
    RwpVM *vm;

    if (skip_more_memory(variant) || skip_vhost()) {
        return;
    }
    vm = rwp_vm_new(variant, "", arguments);
    add_backend(vm, "dimm", DIMM_BYTES);
    plug_dimm(vm);
    driver_start(&vsock.driver, vm, VSOCK_NB_QUEUES - 1);

    /* Its rings are mapped for DMA as long as it runs, so they stay */
    rwp_job(vm, RWP_EVICT_TO("store0"),
            (uint64_t)START, (uint64_t)SIZE);
    g_assert_cmpuint(rwp_get(vm, "evict.pages"), ==, 0);

    rwp_fill(vm, VSOCK_MEMORY, SIZE, 1);
    vsock_answer(&vsock, VSOCK_SENT, VIRTIO_VSOCK_OP_RW, VSOCK_BYTES);
    vsock_answer(&vsock, VSOCK_RESPONSE, VIRTIO_VSOCK_OP_RESPONSE, 0);
    qtest_memread(vm->qts, VSOCK_SENT + sizeof(vsock.answer), data,
                  VSOCK_BYTES);
    evict_from(vm, "dimm", 0, SIZE);
    g_assert_cmpuint(evicted_of(vm, "dimm"), ==, SIZE);

    vsock_call(&vsock);
    g_assert_cmpuint(evicted_of(vm, "dimm"), >, SIZE / 2);
    vsock_transfer(&vsock, data);

    /* The rest of the pages it wrote to, and all others */
    rwp_check(vm, VSOCK_REQUEST + 64, SIZE / 4 - 64, 1);
    rwp_check(vm, VSOCK_RECEIVED + used, SIZE / 4 - used, 1);
    close(vsock.fd);
    driver_stop(&vsock.driver);
    rwp_vm_free(vm);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    rwp_add_tests("rwp-device", "dma", test_dma);
    rwp_add_tests("rwp-device", "dma-late", test_dma_late);
    rwp_add_tests("rwp-device", "dma-mutation", test_dma_mutation);
    rwp_add_tests("rwp-device", "iothread", test_iothread);
    rwp_add_tests("rwp-device", "dimm", test_dimm);
    rwp_add_tests("rwp-device", "virtio-mem", test_virtio_mem);
    rwp_add_tests("rwp-device", "free-page-reporting",
                  test_free_page_reporting);
    rwp_add_tests("rwp-device", "vhost", test_vhost);

    return g_test_run();
}
