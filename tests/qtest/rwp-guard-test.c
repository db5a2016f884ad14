/*
 * QTest of memory-backend-rwp: what keeps things apart
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * test-timeout: 1200
 *
 * Wrong arguments of eviction and fetching, jobs and stores that are in
 * each other's way, removal of what is in use; and the ways in which a
 * backend becomes memory of a machine.
 */

#include "qemu/osdep.h"
#include "qobject/qjson.h"
#include "rwp/rwp-helpers.h"

#define GENERIC "GenericError"

#define EVICT_ALL "'ranges': [ { 'offset': 0, 'length': 33554432 } ]"
#define OBJECT_DEL "{ 'execute': 'object-del', 'arguments': { 'id': %s } }"
#define NODE_DEL \
    "{ 'execute': 'blockdev-del', 'arguments': { 'node-name': %s } }"

static void cancel_job(RwpVM *vm)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-cancel', "
                             "'arguments': { 'id': 'job0' } }");
    g_free(rwp_job_finish(vm, "job0"));
}

static void test_arguments(void)
{
#define EVICT_RANGE(offset, length) \
    { RWP_EVICT("'target': 'store0', 'ranges': [ { 'offset': " offset \
                ", 'length': " length " } ]"), "ranges" }
#define FETCH_RANGE(offset, length) \
    { RWP_FETCH(", 'ranges': [ { 'offset': " offset \
                ", 'length': " length " } ]"), "ranges" }
    static const RwpRefused refused[] = {
        { RWP_EVICT("'target': 'store0'"), "min-age" },
        { RWP_EVICT("'target': 'store0', 'ranges': []"), "empty" },
        { RWP_EVICT("'target': 'store0', 'min-age': 1, " EVICT_ALL),
          "cannot be combined with 'min-age'" },
        { RWP_EVICT("'target': 'store0', 'bytes': 1, " EVICT_ALL),
          "cannot be combined with 'bytes'" },
        { RWP_EVICT("'target': 'store0', 'min-age': 0"), "from 1 to 254" },
        { RWP_EVICT("'target': 'store0', 'min-age': 255"), "from 1 to 254" },
        { RWP_EVICT("'target': 'store0', 'min-age': 256"), "min-age" },
        { RWP_EVICT("'target': 'store0', 'bytes': 'all'"), "bytes" },
        EVICT_RANGE("1", "4096"),
        EVICT_RANGE("0", "4095"),
        EVICT_RANGE("0", "0"),
        EVICT_RANGE("33554432", "4096"),
        EVICT_RANGE("33550336", "8192"),
        EVICT_RANGE("4096", "33554432"),
        EVICT_RANGE("4096", "18446744073709547520"),
        EVICT_RANGE("18446744073709547520", "8192"),
        FETCH_RANGE("1", "4096"),
        FETCH_RANGE("0", "0"),
        FETCH_RANGE("33554432", "4096"),
        FETCH_RANGE("4096", "18446744073709547520"),
        { RWP_FETCH(", 'ranges': []"), "empty" },
        /* One bad range among good ones */
        { RWP_EVICT("'target': 'store0', 'ranges': [ "
                    "{ 'offset': 0, 'length': 4096 }, "
                    "{ 'offset': 8192, 'length': 1 } ]"), "ranges" },
        { RWP_EVICT(EVICT_ALL), "no store" },
        { "{ 'execute': 'rwp-evict', 'arguments': { 'job-id': '1', "
          "'id': 'mem0', 'target': 'store0', " EVICT_ALL " } }", "job ID" },
        { "{ 'execute': 'rwp-fetch', 'arguments': { 'job-id': '', "
          "'id': 'mem0' } }", "job ID" },
    };
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "", "");

    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_expect_refused(vm, refused, ARRAY_SIZE(refused));
    rwp_expect_state(vm, RWP_TEST_START, 1 * MiB, "resident");

    /* A job that has concluded keeps its ID until it is dismissed */
    qtest_qmp_assert_success(vm->qts,
                             RWP_EVICT("'target': 'store0', " EVICT_ALL));
    rwp_job_await(vm, "job0", "concluded");
    rwp_expect_error(vm, GENERIC, "job0",
                     RWP_EVICT("'target': 'store0', " EVICT_ALL));
    rwp_expect_error(vm, GENERIC, "job0", RWP_FETCH());
    g_free(rwp_job_finish(vm, "job0"));
    rwp_vm_free(vm);
#undef EVICT_RANGE
#undef FETCH_RANGE
}

static void test_untracked(void)
{
    static const RwpVariant *const move = &rwp_variants[2];
    RwpVM *vm;

    g_assert_false(move->has_ages);
    if (rwp_skip(move)) {
        return;
    }
    vm = rwp_vm_new(move, "", "");
    rwp_expect_error(vm, GENERIC, "tracker=none",
                     "{ 'execute': 'rwp-track-start', "
                     "'arguments': { 'id': 'mem0' } }");
    rwp_expect_error(vm, GENERIC, "no ages",
                     RWP_EVICT("'target': 'store0', 'min-age': 1"));
    rwp_vm_free(vm);
}

/* Nodes that cannot be the store */
static void test_bad_stores(void)
{
    static const RwpRefused refused[] = {
        { RWP_EVICT("'target': 'none', " EVICT_ALL), "no block node 'none'" },
        { RWP_EVICT("'target': '', " EVICT_ALL), "no block node ''" },
        { RWP_EVICT("'target': 'small', " EVICT_ALL), "too small" },
        { RWP_EVICT("'target': 'readonly', " EVICT_ALL), "read-only" },
        /* By a device, as the file of another node, as another's store */
        { RWP_EVICT("'target': 'disk', " EVICT_ALL), "'disk' cannot be the "
          "store, it is in use" },
        { RWP_EVICT("'target': 'lower', " EVICT_ALL), "'lower' cannot be the "
          "store, it is in use" },
        { RWP_EVICT("'target': 'taken', " EVICT_ALL), "'taken' cannot be the "
          "store, it is in use" },
    };
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "",
        "-blockdev null-co,node-name=small,size=33550336 "
        "-blockdev null-co,node-name=readonly,size=33554432,read-only=on "
        "-blockdev null-co,node-name=disk,size=33554432 "
        "-device virtio-blk-pci,drive=disk "
        "-blockdev null-co,node-name=lower,size=33554432 "
        "-blockdev raw,node-name=upper,file=lower "
        "-device virtio-blk-pci,drive=upper "
        "-blockdev null-co,node-name=taken,size=33554432 "
        "-object memory-backend-rwp,id=mem1,size=1M,store=taken");

    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_expect_refused(vm, refused, ARRAY_SIZE(refused));
    rwp_expect_state(vm, RWP_TEST_START, 1 * MiB, "resident");

    /*
     * The other way round: nobody else can write to the store.  The message
     * is QEMU's own.
     */
    rwp_evict(vm, RWP_TEST_START, 1 * MiB);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'blockdev-add', "
                             "'arguments': { 'driver': 'raw', "
                             "'node-name': 'over', 'file': 'store0' } }");
    rwp_expect_error(vm, GENERIC, "",
                     "{ 'execute': 'device_add', 'arguments': { "
                     "'driver': 'virtio-blk-pci', 'drive': 'over' } }");
    rwp_expect_error(vm, GENERIC, "",
                     "{ 'execute': 'device_add', 'arguments': { "
                     "'driver': 'virtio-blk-pci', 'drive': 'store0' } }");
    rwp_expect_error(vm, GENERIC, "store0",
                     "{ 'execute': 'block_resize', 'arguments': { "
                     "'node-name': 'store0', 'size': 4096 } }");
    rwp_check(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_vm_free(vm);
}

static void expect_store(RwpVM *vm, const char *node)
{
    QDict *info = rwp_info(vm);

    g_assert_cmpstr(qdict_get_str(info, "store"), ==, node);
    qobject_unref(info);
}

/* A store stays as long as there are pages in it */
static void test_store_in_use(void)
{
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "store=own",
        "-blockdev file,node-name=own,filename=%s/store1 "
        "-blockdev null-co,node-name=other,size=33554432,read-zeroes=on");

    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);

    /* The property's node is held always, a target only for a time */
    rwp_expect_error(vm, GENERIC, "own", NODE_DEL, "own");
    rwp_job(vm, RWP_EVICT(EVICT_ALL));
    expect_store(vm, "own");
    rwp_expect_error(vm, GENERIC, "rwp-fetch",
                     RWP_EVICT("'target': 'other', " EVICT_ALL));
    rwp_expect_error(vm, GENERIC, "own", NODE_DEL, "own");
    /* By its name it is the same */
    rwp_job(vm, RWP_EVICT("'target': 'own', " EVICT_ALL));

    rwp_job(vm, RWP_FETCH());
    rwp_evict(vm, RWP_TEST_START, 1 * MiB);
    expect_store(vm, "store0");
    rwp_expect_error(vm, GENERIC, "store0", NODE_DEL, "store0");
    rwp_expect_error(vm, GENERIC, "own", NODE_DEL, "own");
    rwp_check(vm, RWP_TEST_START, 1 * MiB, 1);

    rwp_job(vm, RWP_FETCH());
    expect_store(vm, "own");
    qtest_qmp_assert_success(vm->qts, NODE_DEL, "store0");
    /* A command that is refused changes nothing */
    rwp_expect_error(vm, GENERIC, "job ID",
        "{ 'execute': 'rwp-evict', 'arguments': { 'job-id': '1', "
        "'id': 'mem0', 'target': 'other', " EVICT_ALL " } }");
    expect_store(vm, "own");
    qtest_qmp_assert_success(vm->qts, NODE_DEL, "other");
    rwp_job(vm, RWP_EVICT(EVICT_ALL));
    rwp_check(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_vm_free(vm);
}

/* From an inactive node, pages are read; nobody may write to it */
static void test_inactive(void)
{
    static const char set_active[] =
        "{ 'execute': 'blockdev-set-active', 'arguments': { "
        "'node-name': 'own', 'active': %i } }";
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "store=own",
                "-blockdev file,node-name=own,filename=%s/store1");

    rwp_fill(vm, RWP_TEST_START, 2 * MiB, 1);
    qtest_qmp_assert_success(vm->qts, set_active, false);
    rwp_expect_error(vm, GENERIC, "'own' is inactive", RWP_EVICT(EVICT_ALL));
    rwp_expect_error(vm, GENERIC, "'own' is inactive",
                     RWP_EVICT("'target': 'own', " EVICT_ALL));
    qtest_qmp_assert_success(vm->qts, set_active, true);
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'blockdev-add', 'arguments': { 'driver': 'null-co', "
        "'node-name': 'off', 'size': 33554432, 'active': false } }");
    rwp_expect_error(vm, GENERIC, "'off' is inactive",
                     RWP_EVICT("'target': 'off', " EVICT_ALL));

    qtest_qmp_assert_success(vm->qts, RWP_EVICT("'speed': 65536, " EVICT_ALL));
    rwp_job_await(vm, "job0", "running");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-pause', "
                             "'arguments': { 'id': 'job0' } }");
    rwp_job_await(vm, "job0", "paused");
    rwp_expect_error(vm, GENERIC, "inactivate", set_active, false);
    cancel_job(vm);

    rwp_job(vm, RWP_EVICT("'ranges': [ " RWP_RANGE " ]"),
            (uint64_t)RWP_TEST_START, (uint64_t)MiB);
    qtest_qmp_assert_success(vm->qts, set_active, false);
    rwp_check(vm, RWP_TEST_START, 64 * KiB, 1);
    rwp_expect_error(vm, GENERIC, "'own' is inactive", RWP_EVICT(EVICT_ALL));
    rwp_check(vm, RWP_TEST_START, 2 * MiB, 1);
    qtest_qmp_assert_success(vm->qts, set_active, true);
    rwp_job(vm, RWP_EVICT(EVICT_ALL));
    rwp_check(vm, RWP_TEST_START, 2 * MiB, 1);
    rwp_vm_free(vm);
}

/* Nobody changes a node that is read in a drained section */
static void test_reopen(void)
{
    static const char reopen[] =
        "{ 'execute': 'blockdev-reopen', 'arguments': { 'options': [ { "
        "'driver': 'file', 'node-name': 'file1', 'filename': %s } ] } }";
    g_autofree char *path = NULL;
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "store=own",
                "-blockdev file,node-name=file1,filename=%s/store1 "
                "-blockdev raw,node-name=own,file=file1 "
                "-blockdev null-co,node-name=copy,size=33554432");

    path = g_build_filename(vm->dir, "store1", NULL);
    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);
    qtest_qmp_assert_success(vm->qts, reopen, path);
    rwp_job(vm, RWP_EVICT(EVICT_ALL));
    rwp_expect_error(vm, GENERIC, "'mem0' are in it; bring them back with "
                     "rwp-fetch", reopen, path);
    rwp_expect_error(vm, GENERIC, "it is the store of a memory-backend-rwp",
        "{ 'execute': 'blockdev-mirror', 'arguments': { 'job-id': 'job1', "
        "'device': 'own', 'target': 'copy', 'sync': 'full' } }");
    rwp_check(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_job(vm, RWP_FETCH());
    qtest_qmp_assert_success(vm->qts, reopen, path);
    rwp_vm_free(vm);
}

/* A job that uses the node may replace it at its end */
static void test_job_first(void)
{
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "",
                "-blockdev file,node-name=file1,filename=%s/store1 "
                "-blockdev raw,node-name=own,file=file1 "
                "-blockdev null-co,node-name=copy,size=33554432");

    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'blockdev-mirror', 'arguments': { 'job-id': 'job1', "
        "'device': 'own', 'target': 'copy', 'sync': 'full', "
        "'auto-dismiss': false } }");
    rwp_job_await(vm, "job1", "ready");
    rwp_expect_error(vm, GENERIC, "'own' cannot be the store, it is in use",
                     RWP_EVICT("'target': 'own', " EVICT_ALL));
    rwp_check(vm, RWP_TEST_START, 1 * MiB, 1);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-cancel', "
                             "'arguments': { 'id': 'job1' } }");
    rwp_job_await(vm, "job1", "concluded");
    rwp_job(vm, RWP_EVICT("'target': 'own', " EVICT_ALL));
    rwp_check(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_vm_free(vm);
}

/* One job at a time, and nothing is removed under it */
static void test_busy(void)
{
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "",
        "-blockdev null-co,node-name=node1,size=33554432 "
        "-object memory-backend-rwp,id=mem1,size=32M,prealloc=on");

    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'rwp-evict', 'arguments': { 'job-id': 'job0', "
        "'id': 'mem1', 'target': 'node1', 'speed': 4096, "
        EVICT_ALL " } }");
    rwp_job_await(vm, "job0", "running");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-pause', "
                             "'arguments': { 'id': 'job0' } }");
    rwp_job_await(vm, "job0", "paused");
    rwp_expect_error(vm, GENERIC, "job0",
        "{ 'execute': 'rwp-evict', 'arguments': { 'job-id': 'job1', "
        "'id': 'mem1', 'target': 'node1', " EVICT_ALL " } }");
    rwp_expect_error(vm, GENERIC, "job0",
        "{ 'execute': 'rwp-fetch', 'arguments': { 'job-id': 'job1', "
        "'id': 'mem1' } }");
    rwp_expect_error(vm, GENERIC, "mem1", OBJECT_DEL, "mem1");
    rwp_expect_error(vm, GENERIC, "node1", NODE_DEL, "node1");
    rwp_expect_error(vm, GENERIC, "mem0", OBJECT_DEL, "mem0");
    cancel_job(vm);

    /* Another backend is not concerned; a backend goes with its pages */
    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_evict(vm, RWP_TEST_START, 1 * MiB);
    qtest_qmp_assert_success(vm->qts, OBJECT_DEL, "mem1");
    qtest_qmp_assert_success(vm->qts, NODE_DEL, "node1");
    rwp_expect_error(vm, GENERIC, "mem0", OBJECT_DEL, "mem0");
    rwp_check(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_vm_free(vm);
}

/* QEMU can end in the middle of a job and of a cycle */
static void test_quit(void)
{
    static const char *const last[] = {
        RWP_EVICT("'target': 'store0', 'speed': 65536, " EVICT_ALL),
        RWP_FETCH(", 'speed': 65536"),
    };
    RwpVM *vm;

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(last); i++) {
        vm = rwp_vm_new(RWP_DEFAULT_VARIANT, "", "");
        rwp_fill(vm, RWP_TEST_START, RWP_TEST_SIZE, 1);
        if (i) {
            rwp_evict(vm, RWP_TEST_START, RWP_TEST_SIZE);
        }
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-start', "
                                 "'arguments': { 'id': 'mem0', 'interval': "
                                 "10 } }");
        qtest_qmp_send_raw(vm->qts, "%s\n", last[i]);
        qobject_unref(qtest_qmp_receive(vm->qts));
        rwp_job_await(vm, "job0", "running");
        qtest_qmp_send(vm->qts, "{ 'execute': 'quit' }");
        qtest_wait_qemu(vm->qts);
        rwp_vm_free(vm);
    }
}

/* Evict all of a backend, and look at its memory at @address */
static void check_memory(QTestState *qts, const char *id, uint64_t address)
{
    RwpVM vm = { .qts = qts, .variant = RWP_DEFAULT_VARIANT };

    rwp_fill(&vm, address, 2 * MiB, 3);
    qtest_qmp_assert_success(qts, "{ 'execute': 'rwp-evict', 'arguments': { "
                             "'job-id': 'job0', 'id': %s, 'target': %s, "
                             EVICT_ALL " } }", id, id);
    g_free(rwp_job_finish(&vm, "job0"));
    {
        QDict *response = qtest_qmp(qts, "{ 'execute': 'query-rwp', "
                                    "'arguments': { 'id': %s } }", id);
        QList *list = qdict_get_qlist(response, "return");
        QDict *info = qobject_to(QDict, qlist_peek(list));

        g_assert_cmpuint(qdict_get_int(info, "evicted"), ==, 2 * MiB);
        qobject_unref(response);
    }
    rwp_check(&vm, address, 2 * MiB, 3);
}

#define FILE_NODE(id) "-blockdev file,node-name=" id ",filename=%s/" id " "

static void test_numa(void)
{
    g_autofree char *dir = NULL;
    g_autofree char *a = NULL;
    g_autofree char *b = NULL;
    QTestState *qts;

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    dir = rwp_scratch_dir();
    a = rwp_make_file(dir, "a", RWP_TEST_RAM);
    b = rwp_make_file(dir, "b", RWP_TEST_RAM);
    qts = qtest_initf("-nodefaults -machine pc -m 64M "
                      "-object memory-backend-rwp,id=a,size=32M "
                      "-object memory-backend-rwp,id=b,size=32M "
                      "-numa node,memdev=a -numa node,memdev=b "
                      FILE_NODE("a") FILE_NODE("b"), dir, dir);
    check_memory(qts, "a", 16 * MiB);
    check_memory(qts, "b", 48 * MiB);
    qtest_quit(qts);
    rwp_remove_dir(g_steal_pointer(&dir));
}

static void test_dimm(void)
{
    /* pc: hotplugged memory starts above 4 GiB, at a multiple of 1 GiB */
    const uint64_t address = 4 * GiB;
    g_autofree char *dir = NULL;
    g_autofree char *file = NULL;
    QTestState *qts;
    RwpVM vm;

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    dir = rwp_scratch_dir();
    file = rwp_make_file(dir, "dimm", RWP_TEST_RAM);
    qts = qtest_initf("-nodefaults -machine pc -m 16M,slots=1,maxmem=2G "
                      FILE_NODE("dimm"), dir);
    vm = (RwpVM) { .qts = qts };
    qtest_qmp_assert_success(qts,
        "{ 'execute': 'object-add', 'arguments': { 'id': 'dimm', "
        "'qom-type': 'memory-backend-rwp', 'size': 33554432 } }");
    qtest_qmp_assert_success(qts,
        "{ 'execute': 'device_add', 'arguments': { 'id': 'dimm0', "
        "'driver': 'pc-dimm', 'memdev': 'dimm' } }");
    check_memory(qts, "dimm", address);
    rwp_expect_error(&vm, GENERIC, "dimm", OBJECT_DEL, "dimm");
    qtest_quit(qts);
    rwp_remove_dir(g_steal_pointer(&dir));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/rwp-guard/arguments", test_arguments);
    qtest_add_func("/rwp-guard/untracked", test_untracked);
    qtest_add_func("/rwp-guard/bad-stores", test_bad_stores);
    qtest_add_func("/rwp-guard/store-in-use", test_store_in_use);
    qtest_add_func("/rwp-guard/inactive", test_inactive);
    qtest_add_func("/rwp-guard/reopen", test_reopen);
    qtest_add_func("/rwp-guard/job-first", test_job_first);
    qtest_add_func("/rwp-guard/busy", test_busy);
    qtest_add_func("/rwp-guard/quit", test_quit);
    qtest_add_func("/rwp-guard/numa", test_numa);
    qtest_add_func("/rwp-guard/dimm", test_dimm);

    return g_test_run();
}
