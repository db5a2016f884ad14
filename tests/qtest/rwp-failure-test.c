/*
 * QTest of memory-backend-rwp: stores that fail
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * test-timeout: 1200
 *
 * A failed write cancels the eviction of the pages and fails the job.  A
 * failed read makes whoever touched the page wait, be it a CPU or the main
 * loop, until the store answers again.
 */

#include "qemu/osdep.h"
#include "rwp/rwp-helpers.h"
#include "rwp/rwp-server.h"
#include "rwp/guest-abi.h"

#define START RWP_TEST_START
#define SIZE RWP_TEST_SIZE

/* A node "bad" over store1 that fails @what, once after each set-up */
#define BAD_NODE(what) \
    "-blockdev blkdebug,node-name=bad,image.driver=file," \
    "image.filename=%s/store1,inject-error.0.event=none," \
    "inject-error.0.iotype=" what ",inject-error.0.errno=5," \
    "inject-error.0.once=on "


/* Assert that an event says what failed */
static void check_event(RwpVM *vm, const char *operation, const char *node,
                        uint64_t offset, uint64_t length)
{
    QDict *event = qtest_qmp_eventwait_ref(vm->qts, "RWP_STORE_ERROR");
    QDict *data = qdict_get_qdict(event, "data");
    uint64_t first = qdict_get_int(data, "offset");

    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "mem0");
    g_assert_cmpstr(qdict_get_str(data, "node-name"), ==, node);
    g_assert_cmpstr(qdict_get_str(data, "operation"), ==, operation);
    g_assert_cmpstr(qdict_get_str(data, "reason"), ==, strerror(EIO));
    g_assert_cmpuint(first, >=, offset);
    g_assert_cmpuint(first + qdict_get_int(data, "length"), <=,
                     ROUND_UP(offset + length, vm->variant->page_size));
    qobject_unref(event);
}

/* The main loop waits for a page, and the read is tried again by itself */
static void test_read_once(const void *opaque)
{
    const RwpVariant *variant = opaque;
    RWP_VM_TEST(variant, "", BAD_NODE("read"));

    rwp_fill(vm, START, SIZE, 1);
    rwp_job(vm, RWP_EVICT_TO("bad"), (uint64_t)START, (uint64_t)SIZE);

    rwp_check(vm, START, 4 * KiB, 1);
    check_event(vm, "fetch", "bad", START, variant->page_size);
    rwp_assert_soon(rwp_get(vm, "fetch.errors") == 1);
    rwp_assert_soon(rwp_get(vm, "fetch.waiting") == 0);
    rwp_check(vm, START, SIZE, 1);
    rwp_assert_soon(rwp_get(vm, "fetch.errors") == 1);
    rwp_vm_free(vm);
}

/* A fetch job fails, and its pages stay where they are */
static void test_fetch_job(const void *opaque)
{
    const RwpVariant *variant = opaque;
    g_autofree char *error = NULL;
    RWP_VM_TEST(variant, "", BAD_NODE("read"));

    rwp_fill(vm, START, SIZE, 1);
    rwp_job(vm, RWP_EVICT_TO("bad"), (uint64_t)START, (uint64_t)SIZE);
    qtest_qmp_assert_success(vm->qts, RWP_FETCH());
    error = rwp_job_finish(vm, "job0");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, "'bad'"));
    g_assert_nonnull(strstr(error, strerror(EIO)));
    g_assert_cmpuint(rwp_get(vm, "evicted"), >, 0);
    rwp_assert_soon(rwp_get(vm, "fetch.errors") == 1);
    rwp_check(vm, START, SIZE / 2, 1);
    rwp_job(vm, RWP_FETCH());
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* An evict job fails, and the pages are in memory as before */
static void test_write(const void *opaque)
{
    const RwpVariant *variant = opaque;
    g_autofree char *error = NULL;
    RWP_VM_TEST(variant, "", BAD_NODE("write"));

    rwp_fill(vm, START, SIZE, 1);
    qtest_qmp_assert_success(vm->qts, RWP_EVICT_TO("bad"), (uint64_t)START,
                             (uint64_t)SIZE);
    error = rwp_job_finish(vm, "job0");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, "'bad'"));
    g_assert_nonnull(strstr(error, strerror(EIO)));
    check_event(vm, "evict", "bad", START, SIZE);
    g_assert_cmpuint(rwp_get(vm, "evict.failed"), >, 0);
    /* Others may have been written at the same time */
    g_assert_cmpuint(rwp_get(vm, "evicted") / variant->page_size, ==,
                     rwp_get(vm, "evict.pages"));
    g_assert_cmpuint(rwp_get(vm, "evict.failed") +
                     rwp_get(vm, "evict.pages"), <=,
                     SIZE / variant->page_size);
    g_assert_cmpuint(rwp_bytes_in(vm, START, SIZE, "resident"), >, 0);
    rwp_check(vm, START, SIZE, 1);

    rwp_job(vm, RWP_EVICT_TO("bad"), (uint64_t)START, (uint64_t)SIZE);
    rwp_expect_state(vm, START, SIZE, "evicted");
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* A guest with its pages in a store that a server has */
typedef struct Guest {
    RwpVM *vm;
    RwpServer *server;
    RwpServerType type;
    char *dir;
} Guest;

#define NBD_NODE \
    "-blockdev nbd,node-name=bad,server.type=unix," \
    "server.path=%s/nbd.sock "

static Guest guest_new(const RwpVariant *variant, RwpServerType type)
{
    Guest g = { .dir = rwp_scratch_dir(), .type = type };
    g_autofree char *arguments = g_strdup_printf(NBD_NODE, g.dir);

    g_free(rwp_make_file(g.dir, "store1", RWP_TEST_RAM));
    g.server = rwp_server_start(type, g.dir, "store1");
    g.vm = rwp_vm_guest(variant, arguments);

    /* The guest writes all pages, so that it can tell later what is wrong */
    rwp_guest_run(g.vm, 0, RWP_GUEST_COUNT, START, SIZE);
    while (rwp_guest_get(g.vm, 0, RWP_GUEST_ROUNDS) < 2) {
        g_usleep(1000);
    }
    rwp_guest_set(g.vm, 0, RWP_GUEST_MODE, RWP_GUEST_IDLE);
    while (rwp_guest_get(g.vm, 0, RWP_GUEST_ACK) != RWP_GUEST_IDLE) {
        g_usleep(1000);
    }
    rwp_job(g.vm, RWP_EVICT_TO("bad"), (uint64_t)START, (uint64_t)SIZE);
    rwp_expect_state(g.vm, START, SIZE, "evicted");
    return g;
}

static void guest_free(Guest *g)
{
    rwp_vm_free(g->vm);
    if (g->server) {
        rwp_server_stop(g->server);
    }
    rwp_remove_dir(g->dir);
}

static void break_store(Guest *g)
{
    if (g->type == RWP_SERVER_NBDKIT) {
        rwp_server_fail(g->dir, true);
    } else {
        rwp_server_stop(g_steal_pointer(&g->server));
    }
}

static void repair_store(Guest *g)
{
    if (g->type == RWP_SERVER_NBDKIT) {
        rwp_server_fail(g->dir, false);
    } else {
        g->server = rwp_server_start(g->type, g->dir, "store1");
    }
}

/* Let a CPU touch the first evicted page, and wait until it waits */
static void touch_broken_store(Guest *g)
{
    QDict *event;

    rwp_guest_run(g->vm, 0, RWP_GUEST_VERIFY, START, SIZE);
    event = qtest_qmp_eventwait_ref(g->vm->qts, "RWP_STORE_ERROR");
    qobject_unref(event);
    while (rwp_get(g->vm, "fetch.waiting") == 0) {
        g_usleep(1000);
    }
}

static void retry(RwpVM *vm)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-retry', "
                             "'arguments': { 'id': 'mem0' } }");
}

static void await_verified(Guest *g)
{
    while (rwp_guest_get(g->vm, 0, RWP_GUEST_VERIFIED) == 0) {
        g_assert_cmpint(rwp_guest_get(g->vm, 0, RWP_GUEST_BAD), ==, 0);
        /* There may be more pages whose time for a new try is far off */
        retry(g->vm);
        g_usleep(10000);
    }
    g_assert_cmpint(rwp_guest_get(g->vm, 0, RWP_GUEST_BAD), ==, 0);
}

/* A CPU waits while the store is away, and all is well when it is back */
static void guest_waits(const RwpVariant *variant, RwpServerType type)
{
    uint64_t errors;
    Guest g;

    if (rwp_skip(variant) || rwp_server_skip(type)) {
        return;
    }
    g = guest_new(variant, type);
    break_store(&g);
    touch_broken_store(&g);

    /* Everything else goes on: the monitor and the other CPU */
    rwp_guest_run(g.vm, 1, RWP_GUEST_WRITE, RWP_TEST_END, 1 * MiB);
    while (rwp_guest_get(g.vm, 1, RWP_GUEST_ROUNDS) < 10) {
        g_usleep(1000);
    }
    errors = rwp_get(g.vm, "fetch.errors");
    retry(g.vm);
    while (rwp_get(g.vm, "fetch.errors") == errors) {
        g_usleep(1000);
    }
    g_assert_cmpint(rwp_guest_get(g.vm, 0, RWP_GUEST_VERIFIED), ==, 0);
    g_assert_cmpint(rwp_guest_get(g.vm, 0, RWP_GUEST_BAD), ==, 0);

    repair_store(&g);
    await_verified(&g);
    rwp_assert_soon(rwp_get(g.vm, "fetch.waiting") == 0);
    rwp_assert_soon(rwp_get(g.vm, "evicted") == 0);
    guest_free(&g);
}

static void test_server_fails(const void *variant)
{
    guest_waits(variant, RWP_SERVER_NBDKIT);
}

static void test_server_dies(const void *variant)
{
    guest_waits(variant, RWP_SERVER_QEMU_NBD);
}

/* Every page of the store becomes another one, or what it was */
static void invert_store(Guest *g)
{
    g_autofree char *path = g_build_filename(g->dir, "store1", NULL);
    int fd = open(path, O_RDWR);

    g_assert_cmpint(fd, >=, 0);
    for (uint64_t offset = START; offset < RWP_TEST_END; offset += 4 * KiB) {
        uint8_t byte;

        g_assert_cmpint(pread(fd, &byte, 1, offset + 100), ==, 1);
        byte ^= 0xff;
        g_assert_cmpint(pwrite(fd, &byte, 1, offset + 100), ==, 1);
    }
    close(fd);
}

/* The store returns something else: nobody gets to see it */
static void test_wrong_bytes(const void *variant)
{
    g_autofree char *error = NULL;
    QDict *info, *event;
    bool checks;
    Guest g;

    if (rwp_skip(variant) || rwp_server_skip(RWP_SERVER_NBDKIT)) {
        return;
    }
    g = guest_new(variant, RWP_SERVER_NBDKIT);
    info = rwp_info(g.vm);
    checks = qdict_get_bool(info, "checksum");
    qobject_unref(info);
    if (!checks) {
        g_test_skip("QEMU was built without libxxhash");
        guest_free(&g);
        return;
    }
    g_assert_cmpuint(rwp_get(g.vm, "resources.checksums"), >, 0);
    invert_store(&g);
    rwp_guest_run(g.vm, 0, RWP_GUEST_VERIFY, START, SIZE);
    event = qtest_qmp_eventwait_ref(g.vm->qts, "RWP_STORE_ERROR");
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(event, "data"),
                                          "reason"), "checksum"));
    qobject_unref(event);
    rwp_assert_soon(rwp_get(g.vm, "fetch.waiting") > 0);
    g_assert_cmpuint(rwp_get(g.vm, "fetch.corrupt"), >, 0);
    qtest_qmp_assert_success(g.vm->qts, RWP_FETCH());
    error = rwp_job_finish(g.vm, "job0");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, "checksum"));

    invert_store(&g);
    await_verified(&g);
    rwp_assert_soon(rwp_get(g.vm, "evicted") == 0);
    rwp_assert_soon(rwp_get(g.vm, "resources.checksums") == 0);
    guest_free(&g);
}

/* The main loop itself waits: only out-of-band commands are answered */
static void test_out_of_band(const void *variant)
{
    g_autofree char *path = NULL;
    g_autofree char *found = NULL;
    g_autofree void *wanted = g_malloc(64 * KiB);
    QDict *response;
    gsize length;
    Guest g;

    if (rwp_skip(variant) || rwp_server_skip(RWP_SERVER_NBDKIT)) {
        return;
    }
    g = guest_new(variant, RWP_SERVER_NBDKIT);
    rwp_fill(g.vm, START, SIZE, 1);
    rwp_job(g.vm, RWP_EVICT_TO("bad"), (uint64_t)START, (uint64_t)SIZE);
    break_store(&g);
    path = g_build_filename(g.dir, "saved", NULL);
    qtest_qmp_send(g.vm->qts, "{ 'execute': 'pmemsave', 'id': 'save', "
                   "'arguments': { 'val': %" PRIu64 ", 'size': 65536, "
                   "'filename': %s } }", (uint64_t)START, path);
    for (int i = 0; i < 20; i++) {
        /* The main loop would have answered the other command first */
        response = qtest_qmp(g.vm->qts, "{ 'exec-oob': 'rwp-retry', "
                             "'id': 'retry' }");
        g_assert_cmpstr(qdict_get_try_str(response, "id"), ==, "retry");
        g_assert_true(qdict_haskey(response, "return"));
        qobject_unref(response);
        g_usleep(10000);
    }

    repair_store(&g);
    for (;;) {
        response = qtest_qmp(g.vm->qts, "{ 'exec-oob': 'rwp-retry', "
                             "'id': 'retry' }");
        if (g_str_equal(qdict_get_str(response, "id"), "save")) {
            break;
        }
        qobject_unref(response);
        g_usleep(10000);
    }
    g_assert_true(qdict_haskey(response, "return"));
    qobject_unref(response);
    response = qtest_qmp_receive(g.vm->qts);
    g_assert_cmpstr(qdict_get_str(response, "id"), ==, "retry");
    qobject_unref(response);

    check_event(g.vm, "fetch", "bad", START, 64 * KiB);
    g_assert_true(g_file_get_contents(path, &found, &length, NULL));
    rwp_pattern(wanted, START, 64 * KiB, 1);
    g_assert_cmpmem(found, length, wanted, 64 * KiB);
    guest_free(&g);
}

/* QEMU ends though a CPU waits, and properly so */
static void test_quit(const void *variant)
{
    for (int by_signal = 0; by_signal < 2; by_signal++) {
        Guest g;

        if (rwp_skip(variant) || rwp_server_skip(RWP_SERVER_NBDKIT)) {
            return;
        }
        g = guest_new(variant, RWP_SERVER_NBDKIT);
        break_store(&g);
        touch_broken_store(&g);
        if (by_signal) {
            kill(qtest_pid(g.vm->qts), SIGTERM);
        } else {
            qtest_qmp_send(g.vm->qts, "{ 'execute': 'quit' }");
        }
        qtest_wait_qemu(g.vm->qts);
        guest_free(&g);
    }
}

/* Let the main loop touch the first evicted page */
static void touch_by_main_loop(Guest *g)
{
    g_autofree char *path = g_build_filename(g->dir, "saved", NULL);

    qtest_qmp_send(g->vm->qts, "{ 'execute': 'pmemsave', 'id': 'save', "
                   "'arguments': { 'val': %" PRIu64 ", 'size': 65536, "
                   "'filename': %s } }", (uint64_t)START, path);
    /* From here on, there is no way but into the page */
    while (!g_file_test(path, G_FILE_TEST_EXISTS)) {
        g_usleep(RWP_POLL_US);
    }
}

/*
 * QEMU ends though its main loop waits for a page: at once, because there
 * is nothing right that the main loop could go on with.
 */
static void quit_main_loop(const RwpVariant *variant, bool by_signal)
{
    Guest g;

    if (rwp_skip(variant) || rwp_server_skip(RWP_SERVER_NBDKIT)) {
        return;
    }
    g = guest_new(variant, RWP_SERVER_NBDKIT);
    break_store(&g);
    touch_by_main_loop(&g);
    if (by_signal) {
        kill(qtest_pid(g.vm->qts), SIGTERM);
    } else {
        qtest_qmp_send(g.vm->qts, "{ 'exec-oob': 'rwp-quit', 'id': 'q' }");
    }
    qtest_set_expected_status(g.vm->qts, EXIT_FAILURE);
    qtest_wait_qemu(g.vm->qts);
    guest_free(&g);
}

static void test_quit_signal(const void *variant)
{
    quit_main_loop(variant, true);
}

static void test_quit_out_of_band(const void *variant)
{
    quit_main_loop(variant, false);
}

/*
 * The same some ten seconds later, if the store says nothing at all; and it
 * is a job that asked it
 */
static void test_quit_silent(void)
{
    const RwpVariant *variant = RWP_DEFAULT_VARIANT;
    uint64_t progress;
    Guest g;

    if (rwp_skip(variant) || rwp_server_skip(RWP_SERVER_NBDKIT)) {
        return;
    }
    g = guest_new(variant, RWP_SERVER_NBDKIT);
    rwp_server_freeze(g.server);
    qtest_qmp_assert_success(g.vm->qts, RWP_FETCH());
    do {
        QDict *response = qtest_qmp(g.vm->qts, "{ 'execute': 'query-jobs' }");
        QList *jobs = qdict_get_qlist(response, "return");

        progress = qdict_get_int(qobject_to(QDict, qlist_peek(jobs)),
                                 "current-progress");
        qobject_unref(response);
    } while (!progress);
    touch_by_main_loop(&g);
    qtest_qmp_send(g.vm->qts, "{ 'exec-oob': 'rwp-quit', 'id': 'q' }");
    qtest_set_expected_status(g.vm->qts, EXIT_FAILURE);
    qtest_wait_qemu(g.vm->qts);
    guest_free(&g);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    rwp_add_tests("rwp-failure", "read-once", test_read_once);
    rwp_add_tests("rwp-failure", "fetch-job", test_fetch_job);
    rwp_add_tests("rwp-failure", "write", test_write);
    rwp_add_tests("rwp-failure", "server-fails", test_server_fails);
    rwp_add_tests("rwp-failure", "server-dies", test_server_dies);
    rwp_add_tests("rwp-failure", "wrong-bytes", test_wrong_bytes);
    rwp_add_tests("rwp-failure", "out-of-band", test_out_of_band);
    rwp_add_tests("rwp-failure", "quit", test_quit);
    rwp_add_tests("rwp-failure", "quit-signal", test_quit_signal);
    rwp_add_tests("rwp-failure", "quit-out-of-band", test_quit_out_of_band);
    qtest_add_func("/rwp-failure/default/quit-silent", test_quit_silent);

    return g_test_run();
}
