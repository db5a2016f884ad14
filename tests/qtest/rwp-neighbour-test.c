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
#include "rwp/rwp-helpers.h"

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

/* With memory evicted, the newcomers are refused, and do no harm */
static void refuse(RwpVM *vm, const RwpRefused *refused, size_t nb)
{
    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, SIZE);
    rwp_expect_refused(vm, refused, nb);
    rwp_check(vm, START, SIZE, 1);
}

/* Buffers that the host kernel makes of the memfd; needs no udmabuf to fail */
static void test_blob(const void *variant)
{
    static const RwpRefused refused[] = {
        { "{ 'execute': 'device_add', 'arguments': { "
          "'driver': 'virtio-gpu-pci', 'blob': true } }",
          "virtio-gpu-pci with blob=on shares guest memory" },
    };
    RWP_VM_TEST(variant, "", "");

    refuse(vm, refused, is_shared(vm) ? ARRAY_SIZE(refused) : 0);
    rwp_vm_free(vm);
}

/* A processor that is there from the start; that it can do it does not matter */
static void test_nested(const void *variant)
{
    RWP_VM_TEST(variant, "", "-cpu qemu64,vmx=on");

    rwp_fill(vm, START, SIZE, 1);
    rwp_expect_error(vm, GENERIC, "vmx=off", EVICT_START);
    rwp_expect_state(vm, START, SIZE, "resident");
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* One that is plugged in, with a property of its own */
static void test_nested_comes(const void *variant)
{
    static const RwpRefused refused[] = {
        { "{ 'execute': 'device_add', 'arguments': { "
          "'driver': 'qemu64-x86_64-cpu', 'socket-id': 1, 'core-id': 0, "
          "'thread-id': 0, 'vmx': true } }", "lets nested guests" },
    };
    RWP_VM_TEST(variant, "", "-cpu qemu64 -smp 1,maxcpus=2");

    refuse(vm, refused, ARRAY_SIZE(refused));
    rwp_vm_free(vm);
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
        { "{ 'execute': 'device_add', 'arguments': { "
          "'driver': 'vhost-scsi-pci', 'wwpn': 'naa.0' } }",
          "vhost-scsi-pci lets the host write to guest memory by DMA" },
        { "{ 'execute': 'netdev_add', 'arguments': { 'type': 'vhost-vdpa', "
          "'id': 'new', 'vhostdev': '/dev/null' } }",
          "vhost-vdpa pins guest memory" },
    };
    RWP_VM_TEST(variant, "", "");

    refuse(vm, refused, ARRAY_SIZE(refused));

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
    RWP_VM_TEST(variant, "", "");

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
    RWP_VM_TEST(variant, "", "");

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
    RWP_VM_TEST(variant, "", "");

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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    rwp_add_tests("rwp-neighbour", "vhost-user", test_vhost_user);
    rwp_add_tests("rwp-neighbour", "blob", test_blob);
    rwp_add_tests("rwp-neighbour", "nested", test_nested);
    rwp_add_tests("rwp-neighbour", "nested-comes", test_nested_comes);
    rwp_add_tests("rwp-neighbour", "pinning-comes", test_pinning_comes);
    rwp_add_tests("rwp-neighbour", "dump", test_dump);
    rwp_add_tests("rwp-neighbour", "memsave", test_memsave);
    rwp_add_tests("rwp-neighbour", "gdb", test_gdb);
    qtest_add_data_func("/rwp-neighbour/default/dirty-rate",
                        RWP_DEFAULT_VARIANT, test_dirty_rate);

    return g_test_run();
}
