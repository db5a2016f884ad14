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
#include "rwp/rwp-helpers.h"

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

    return g_test_run();
}
