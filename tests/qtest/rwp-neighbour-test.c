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
#include "qemu/bswap.h"
#include <elf.h>
#include <sys/un.h>
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_mem.h"
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

/* -- who reads all of the memory ------------------------------------------ */

static void expect_file(const char *dir, const char *name, uint64_t offset,
                        uint64_t seed)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_autofree char *found = NULL;
    g_autofree void *wanted = g_malloc(SIZE);
    gsize length;

    g_assert_true(g_file_get_contents(path, &found, &length, NULL));
    g_assert_cmpuint(length, >=, offset + SIZE);
    rwp_pattern(wanted, START, SIZE, seed);
    g_assert_cmpint(memcmp(found + offset, wanted, SIZE), ==, 0);
}

/* Where the memory at START is in an ELF core file; elf(5) */
static uint64_t core_offset(const char *dir, const char *name)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_autofree char *core = NULL;
    Elf64_Ehdr *header;
    Elf64_Phdr *segments;

    g_assert_true(g_file_get_contents(path, &core, NULL, NULL));
    header = (Elf64_Ehdr *)core;
    g_assert_cmpint(header->e_ident[EI_CLASS], ==, ELFCLASS64);
    segments = (Elf64_Phdr *)(core + header->e_phoff);
    for (int i = 0; i < header->e_phnum; i++) {
        if (segments[i].p_type == PT_LOAD &&
            START - segments[i].p_paddr < segments[i].p_filesz) {
            return segments[i].p_offset + START - segments[i].p_paddr;
        }
    }
    g_assert_not_reached();
}

static void test_dump(const void *variant)
{
    g_autofree char *protocol = NULL;
    VM_TEST(variant, "", "");

    protocol = g_strdup_printf("file:%s/core", vm->dir);
    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'dump-guest-memory', "
                             "'arguments': { 'paging': false, "
                             "'protocol': %s } }", protocol);
    qtest_qmp_eventwait(vm->qts, "DUMP_COMPLETED");
    expect_file(vm->dir, "core", core_offset(vm->dir, "core"), 1);

    /* In a thread of its own */
    rwp_evict(vm, START, SIZE);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'dump-guest-memory', "
                             "'arguments': { 'paging': false, "
                             "'protocol': %s, 'detach': true } }", protocol);
    qtest_qmp_eventwait(vm->qts, "DUMP_COMPLETED");
    expect_file(vm->dir, "core", core_offset(vm->dir, "core"), 1);
    rwp_vm_free(vm);
}

static void test_memsave(const void *variant)
{
    static const char *const commands[] = { "memsave", "pmemsave" };
    g_autofree char *path = NULL;
    VM_TEST(variant, "", "");

    path = g_build_filename(vm->dir, "saved", NULL);
    rwp_fill(vm, START, SIZE, 1);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        rwp_evict(vm, START, SIZE);
        /* The CPU has not turned paging on */
        qtest_qmp_assert_success(vm->qts, "{ 'execute': %s, 'arguments': { "
                                 "'val': %" PRIu64 ", 'size': %" PRIu64 ", "
                                 "'filename': %s } }", commands[i],
                                 (uint64_t)START, (uint64_t)SIZE, path);
        expect_file(vm->dir, "saved", 0, 1);
    }
    rwp_vm_free(vm);
}

/* A packet to the stub, and the answer; GDB manual, "Remote Protocol" */
static char *gdb_ask(int fd, const char *packet)
{
    g_autofree char *out = NULL;
    GString *answer = g_string_new(NULL);
    uint8_t sum = 0;
    char c;

    for (const char *p = packet; *p; p++) {
        sum += *p;
    }
    out = g_strdup_printf("$%s#%02x", packet, sum);
    g_assert_cmpint(write(fd, out, strlen(out)), ==, strlen(out));
    while (read(fd, &c, 1) == 1 && c != '#') {
        g_string_append_c(answer, c);
    }
    g_assert_cmpint(read(fd, out, 2), ==, 2);
    g_assert_cmpint(write(fd, "+", 1), ==, 1);
    /* "+" for our packet, and "$" */
    g_string_erase(answer, 0, 2);
    return g_string_free(answer, false);
}

static void test_gdb(const void *variant)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    uint64_t word = 0;
    RwpVM *vm;
    int fd;

    if (rwp_skip(variant)) {
        return;
    }
    vm = rwp_vm_guest(variant, "-chardev socket,id=gdb,server=on,wait=off,"
                      "path=%s/gdb -gdb chardev:gdb");
    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/gdb", vm->dir);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    g_assert_cmpint(connect(fd, (void *)&address, sizeof(address)), ==, 0);
    for (uint64_t pos = START; pos < START + SIZE; pos += SIZE / 16) {
        g_autofree char *ask = g_strdup_printf("m%" PRIx64 ",8", pos);
        g_autofree char *wanted = NULL;
        g_autofree char *found = gdb_ask(fd, ask);

        rwp_pattern(&word, pos, sizeof(word), 1);
        wanted = g_strdup_printf("%016" PRIx64, bswap64(word));
        g_assert_cmpstr(found, ==, wanted);
    }
    close(fd);
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

static void test_dirty_rate(const void *variant)
{
    VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'calc-dirty-rate', "
                             "'arguments': { 'calc-time': 1, "
                             "'sample-pages': 4096 } }");
    for (;;) {
        QDict *response = qtest_qmp_assert_success_ref(vm->qts,
            "{ 'execute': 'query-dirty-rate' }");
        bool measured = g_str_equal(qdict_get_str(response, "status"),
                                    "measured");

        qobject_unref(response);
        if (measured) {
            break;
        }
        qtest_clock_step(vm->qts, 100 * 1000 * 1000);
        g_usleep(RWP_POLL_US);
    }
    rwp_check(vm, START, SIZE, 1);
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
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'device_add', "
            "'arguments': { 'driver': 'pc-dimm', 'id': 'dimm0', "
            "'memdev': 'dimm' } }");
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
    disk_wait(driver, head);
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
    VM_TEST(variant, "",
            "-device virtio-balloon-pci,free-page-reporting=on," SLOT_4);

    driver_start(&driver, vm, REPORTING_QUEUE);
    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    head = qvirtqueue_add(vm->qts, driver.vq, START, SIZE / 2, true, false);
    qvirtqueue_kick(vm->qts, &driver.dev->vdev, driver.vq, head);
    disk_wait(&driver, head);
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

/* DMA in an iothread, from and to memory that is away */
static void test_iothread(const void *variant)
{
    uint64_t from = START, to = START + SIZE / 2;
    Driver driver;
    VM_TEST(variant, "", "-object iothread,id=io "
            "-blockdev file,node-name=disk,filename=%s/store1 "
            "-device virtio-blk-pci,drive=disk,iothread=io," SLOT_4);

    driver_start(&driver, vm, 0);
    rwp_fill(vm, START, SIZE, 1);
    for (uint64_t pos = 0; pos < 4 * DISK_BYTES; pos += DISK_BYTES) {
        rwp_evict(vm, START, SIZE);
        disk_wait(&driver, disk_request(&driver, true, pos, from + pos));
        rwp_evict(vm, START, SIZE);
        disk_wait(&driver, disk_request(&driver, false, pos, to + pos));
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
    add_tests("dump", test_dump);
    add_tests("memsave", test_memsave);
    add_tests("gdb", test_gdb);
    qtest_add_data_func("/rwp-neighbour/default/dirty-rate",
                        RWP_DEFAULT_VARIANT, test_dirty_rate);
    add_tests("dimm", test_dimm);
    add_tests("virtio-mem", test_virtio_mem);
    add_tests("free-page-reporting", test_free_page_reporting);
    add_tests("iothread", test_iothread);
    add_tests("dma", test_dma);
    add_tests("dma-mutation", test_dma_mutation);

    return g_test_run();
}
