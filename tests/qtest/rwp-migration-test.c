/*
 * QTest of memory-backend-rwp: migration and snapshots
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * test-timeout: 1200
 *
 * A guest with evicted pages is migrated, in each way that sends memory.
 * The destination must have all of it, and at the source nothing may have
 * become resident by that.  What does not work is refused.
 *
 * There is no guest that runs, so all that the migration sends is there
 * when it begins; tests/integration/migration.py is for the rest.
 *
 * Each test is run for each kind of backend that the host can do.
 */

#include "qemu/osdep.h"
#include "rwp/rwp-helpers.h"

#define GENERIC "GenericError"
#define START RWP_TEST_START
#define SIZE RWP_TEST_SIZE
#define QUARTER (RWP_TEST_SIZE / 4)

#define CAPABILITY(name) \
    "{ 'execute': 'migrate-set-capabilities', 'arguments': { " \
    "'capabilities': [ { 'capability': " name ", 'state': true } ] } }"

/* Ways to migrate */
typedef struct Way {
    const char *name;
    const char *capabilities[3];
    const char *parameters;     /* of migrate-set-parameters, or NULL */
    bool file;                  /* to a file, from which it is read later */
    bool always;                /* not only for the default variant */
} Way;

static const Way ways[] = {
    { "precopy", {}, NULL, false, true },
    { "no-zero-pages", {}, "'zero-page-detection': 'none'" },
    { "xbzrle", { "xbzrle" } },
    { "multifd", { "multifd" }, "'multifd-channels': 2", false, true },
    { "multifd-zlib", { "multifd" }, "'multifd-compression': 'zlib'" },
    { "multifd-legacy", { "multifd" }, "'zero-page-detection': 'legacy'" },
    { "file", {}, NULL, true },
    { "mapped-ram", { "mapped-ram" }, NULL, true },
    { "mapped-ram-multifd", { "mapped-ram", "multifd" },
      "'multifd-channels': 3", true, true },
};

static void set_way(RwpVM *vm, const Way *way)
{
    for (int i = 0; way->capabilities[i]; i++) {
        qtest_qmp_assert_success(vm->qts, CAPABILITY("%s"),
                                 way->capabilities[i]);
    }
    if (way->parameters) {
        QDict *response;

        qtest_qmp_send_raw(vm->qts, "{ 'execute': 'migrate-set-parameters', "
                           "'arguments': { %s } }\n", way->parameters);
        response = qtest_qmp_receive(vm->qts);
        g_assert_true(qdict_haskey(response, "return"));
        qobject_unref(response);
    }
}

static char *migration_status(RwpVM *vm)
{
    QDict *response = qtest_qmp_assert_success_ref(vm->qts,
        "{ 'execute': 'query-migrate' }");
    char *status = g_strdup(qdict_get_try_str(response, "status"));

    qobject_unref(response);
    return status;
}

static void await_migration(RwpVM *vm, const char *wanted)
{
    for (;;) {
        g_autofree char *status = migration_status(vm);

        if (g_strcmp0(status, wanted) == 0) {
            return;
        }
        /* It will not become anything else */
        g_assert_cmpstr(status, !=, "failed");
        g_assert_cmpstr(status, !=, "completed");
        g_usleep(RWP_POLL_US);
    }
}

static void migrate(RwpVM *vm, const char *uri)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate', 'arguments': "
                             "{ 'uri': %s } }", uri);
}

static void migrate_incoming(RwpVM *vm, const char *uri)
{
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate-incoming', "
                             "'arguments': { 'uri': %s } }", uri);
}

/*
 * The quarters of the tested memory: content that is evicted, zeros that
 * are, content in memory, and every other page of a quarter evicted.
 */
static void prepare(RwpVM *vm)
{
    uint64_t page = vm->variant->page_size;

    rwp_fill(vm, START, SIZE, 1);
    qtest_memset(vm->qts, START + QUARTER, 0, QUARTER);
    rwp_evict(vm, START, 2 * QUARTER);
    for (uint64_t pos = 0; pos < QUARTER; pos += MAX(2 * page, 128 * KiB)) {
        rwp_evict(vm, START + 3 * QUARTER + pos, page);
    }
}

static void check_content(RwpVM *vm)
{
    rwp_check(vm, START, QUARTER, 1);
    for (uint64_t pos = START + QUARTER; pos < START + 2 * QUARTER;
         pos += 4 * KiB) {
        g_assert_cmphex(qtest_readq(vm->qts, pos + 8), ==, 0);
    }
    rwp_check(vm, START + 2 * QUARTER, 2 * QUARTER, 1);
}

/* What must not change at the source */
typedef struct Figures {
    uint64_t evicted;
    uint64_t zero;
    uint64_t resident;          /* of the tested memory */
    uint64_t fetched;
} Figures;

static void get_figures(RwpVM *vm, Figures *figures)
{
    *figures = (Figures) {
        .evicted = rwp_get(vm, "evicted"),
        .zero = rwp_get(vm, "zero"),
        .resident = rwp_bytes_in(vm, START, SIZE, "resident"),
        .fetched = rwp_get(vm, "fetch.fault") +
                   rwp_get(vm, "fetch.readahead"),
    };
}

static void expect_figures(RwpVM *vm, const Figures *wanted)
{
    Figures found;

    get_figures(vm, &found);
    g_assert_cmpuint(found.evicted, ==, wanted->evicted);
    g_assert_cmpuint(found.zero, ==, wanted->zero);
    g_assert_cmpuint(found.resident, ==, wanted->resident);
    g_assert_cmpuint(found.fetched, ==, wanted->fetched);
}

static void go_one_way(const RwpVariant *variant, const Way *way)
{
    /* Huge pages are there for one VM; nothing needs both to be alike */
    const RwpVariant *other = variant->sees_untouched ? variant :
                              RWP_DEFAULT_VARIANT;
    RwpVM *from = rwp_vm_new(variant, "", "");
    RwpVM *to = rwp_vm_new(other, "", "-incoming defer");
    g_autofree char *uri = g_strdup_printf("%s:%s/migration",
                                           way->file ? "file" : "unix",
                                           from->dir);
    Figures figures;

    set_way(from, way);
    set_way(to, way);
    prepare(from);
    if (variant->has_ages) {
        qtest_qmp_assert_success(from->qts, "{ 'execute': 'rwp-track-start', "
                                 "'arguments': { 'id': 'mem0', 'interval': "
                                 "10 } }");
    }
    get_figures(from, &figures);
    g_assert_cmpuint(figures.evicted, >, QUARTER);
    g_assert_cmpuint(figures.zero, >=, QUARTER);

    if (!way->file) {
        migrate_incoming(to, uri);
    }
    migrate(from, uri);
    await_migration(from, "completed");
    if (way->file) {
        migrate_incoming(to, uri);
    }
    await_migration(to, "completed");
    expect_figures(from, &figures);
    check_content(to);
    if (variant->has_ages) {
        qtest_qmp_assert_success(from->qts, "{ 'execute': 'rwp-track-stop', "
                                 "'arguments': { 'id': 'mem0' } }");
    }

    /* All works at the destination, and at the source if that goes on */
    rwp_evict(to, START, SIZE);
    check_content(to);
    rwp_expect_error(from, GENERIC, "has been migrated",
                     RWP_EVICT("'target': 'store0', 'ranges': "
                               "[ { 'offset': 0, 'length': 4194304 } ]"));
    qtest_qmp_assert_success(from->qts, "{ 'execute': 'cont' }");
    check_content(from);
    rwp_evict(from, START, SIZE);
    check_content(from);
    rwp_vm_free(from);
    rwp_vm_free(to);
}

static void test_ways(const void *variant)
{
    if (rwp_skip(variant)) {
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
        if (variant == RWP_DEFAULT_VARIANT || ways[i].always) {
            g_test_message("%s", ways[i].name);
            go_one_way(variant, &ways[i]);
        }
    }
}

/* Start a migration, which must end with this as a part of its error */
static void expect_failure(RwpVM *vm, const char *text)
{
    g_autofree char *uri = g_strdup_printf("file:%s/migration", vm->dir);
    QDict *response;

    migrate(vm, uri);
    await_migration(vm, "failed");
    response = qtest_qmp_assert_success_ref(vm->qts,
        "{ 'execute': 'query-migrate' }");
    if (!strstr(qdict_get_str(response, "error-desc"), text)) {
        g_error("expected \"%s\" in: %s", text,
                qdict_get_str(response, "error-desc"));
    }
    qobject_unref(response);
}

/* Returns false if this host or this machine cannot do it at all */
static bool try_capability(RwpVM *vm, const char *name, bool on)
{
    return rwp_accepts(vm,
        "{ 'execute': 'migrate-set-capabilities', 'arguments': { "
        "'capabilities': [ { 'capability': %s, 'state': %i } ] } }", name,
        on);
}

static void try_failing_capability(RwpVM *vm, const char *name)
{
    if (!try_capability(vm, name, true)) {
        g_test_message("no %s here", name);
        return;
    }
    expect_failure(vm, name);
    expect_failure(vm, "mem0");
    g_assert_true(try_capability(vm, name, false));
}

/* Capabilities that do not fit */
static void test_capabilities(const void *variant)
{
    RWP_VM_TEST(variant, "", "");

    rwp_fill(vm, START, SIZE, 1);
    rwp_evict(vm, START, QUARTER);
    try_failing_capability(vm, "postcopy-ram");
    try_failing_capability(vm, "x-colo");
    rwp_check(vm, START, SIZE, 1);
    rwp_job(vm, RWP_FETCH());

    /* Is set first; with tracking on, it cannot be set any more */
    if (vm->variant->has_ages &&
        try_capability(vm, "background-snapshot", true)) {
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-start', "
                                 "'arguments': { 'id': 'mem0' } }");
        expect_failure(vm, "rwp-track-stop");
        g_assert_true(try_capability(vm, "background-snapshot", false));
        g_assert_false(try_capability(vm, "background-snapshot", true));
    }
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

#define CHANNEL(type) \
    "{ 'channel-type': '" type "', 'addr': { 'transport': 'socket', " \
    "'type': 'unix', 'path': '/nonexistent' } }"

/* In the mode that is set; refused before it begins */
#define MIGRATE_CPR(channels) \
    "{ 'execute': 'migrate', 'arguments': { 'channels': [ " channels " ] } }"

static void test_cpr(const void *variant)
{
    static const struct {
        const char *name;
        const char *migrate;
    } modes[] = {
        { "cpr-reboot", MIGRATE_CPR(CHANNEL("main")) },
        { "cpr-transfer",
          MIGRATE_CPR(CHANNEL("main") ", " CHANNEL("cpr")) },
    };
    RWP_VM_TEST(variant, "", "-machine aux-ram-share=on");

    rwp_fill(vm, START, SIZE, 1);
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        const RwpRefused refused = { modes[i].migrate, "mem0" };

        rwp_evict(vm, START, SIZE);
        qtest_qmp_assert_success(vm->qts,
            "{ 'execute': 'migrate-set-parameters', 'arguments': { "
            "'mode': %s } }", modes[i].name);
        rwp_expect_refused(vm, &refused, 1);
        rwp_check(vm, START, SIZE, 1);
        rwp_job(vm, RWP_FETCH());
    }
    /* Memory of this backend is never handed over */
    rwp_expect_refused(vm, &(RwpRefused) { modes[1].migrate, "mem0" }, 1);
    rwp_vm_free(vm);
}

/* A job that takes pages away, and a migration: whichever comes second */
static void test_job(const void *variant)
{
    g_autofree char *uri = NULL;
    RWP_VM_TEST(variant, "", "");

    uri = g_strdup_printf("file:%s/migration", vm->dir);
    rwp_fill(vm, START, SIZE, 1);
    qtest_qmp_assert_success(vm->qts,
        RWP_EVICT("'target': 'store0', 'speed': 4096, 'ranges': [ "
                  RWP_RANGE " ]"), START, SIZE);
    rwp_job_await(vm, "job0", "running");
    expect_failure(vm, "job0");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-cancel', "
                             "'arguments': { 'id': 'job0' } }");
    g_free(rwp_job_finish(vm, "job0"));

    rwp_evict(vm, START, QUARTER);
    qtest_qmp_assert_success(vm->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': { "
        "'max-bandwidth': 65536 } }");
    migrate(vm, uri);
    await_migration(vm, "active");
    {
        QDict *error = qtest_qmp_assert_failure_ref(vm->qts,
            RWP_EVICT_TO("store0"),
            START, SIZE);

        g_assert_nonnull(strstr(qdict_get_str(error, "desc"),
                                "a migration is under way"));
        qobject_unref(error);
    }
    /* Bringing pages back is no problem */
    rwp_job(vm, RWP_FETCH());
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'migrate_cancel' }");
    await_migration(vm, "cancelled");
    rwp_evict(vm, START, SIZE);
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* The store fails: so does the migration, and nothing else */
static void test_store_fails(const void *variant)
{
    QDict *event;
    RWP_VM_TEST(variant, "",
                "-blockdev driver=blkdebug,node-name=bad,image.driver=file,"
                "image.filename=%s/store1,inject-error.0.event=none,"
                "inject-error.0.iotype=read,inject-error.0.once=on");

    rwp_fill(vm, START, SIZE, 1);
    rwp_job(vm, RWP_EVICT_TO("bad"),
            START, SIZE);
    expect_failure(vm, "nput/output error");
    event = qtest_qmp_eventwait_ref(vm->qts, "RWP_STORE_ERROR");
    g_assert_cmpstr(qdict_get_str(qdict_get_qdict(event, "data"),
                                  "operation"), ==, "migrate");
    qobject_unref(event);
    rwp_expect_state(vm, START, SIZE, "evicted");
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* While a migration comes in, memory belongs to that */
static void test_incoming(const void *variant)
{
    static const RwpRefused refused[] = {
        { "{ 'execute': 'rwp-track-start', 'arguments': { 'id': 'mem0' } }",
          "incoming migration" },
        { RWP_EVICT("'target': 'store0', 'ranges': [ { 'offset': 0, "
                    "'length': 4194304 } ]"), "incoming migration" },
        { RWP_FETCH(), "incoming migration" },
    };

    RWP_VM_TEST(variant, "", "-incoming defer");

    rwp_expect_refused(vm, refused, ARRAY_SIZE(refused));
    rwp_vm_free(vm);
}

/* The destination of a postcopy migration needs userfaultfd for that */
static void test_postcopy(const void *variant)
{
    g_autofree char *uri = NULL;
    RwpVM *from, *to;
    QDict *error;

    if (rwp_skip(variant)) {
        return;
    }
    from = rwp_vm_new(variant, "", "");
    to = rwp_vm_new(variant, "", "-incoming defer");
    uri = g_strdup_printf("unix:%s/migration", from->dir);
    rwp_fill(from, START, SIZE, 1);
    g_assert_true(try_capability(from, "postcopy-ram", true));
    g_assert_true(try_capability(to, "postcopy-ram", true));
    qtest_qmp_assert_success(from->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': { "
        "'max-bandwidth': 65536, 'max-postcopy-bandwidth': 65536 } }");
    migrate_incoming(to, uri);
    migrate(from, uri);
    await_migration(from, "active");
    qtest_qmp_assert_success(from->qts,
                             "{ 'execute': 'migrate-start-postcopy' }");
    await_migration(to, "postcopy-active");
    /* Pages arrive, so the figures change meanwhile */
    error = qtest_qmp_assert_failure_ref(to->qts, "{ 'execute': "
        "'rwp-track-start', 'arguments': { 'id': 'mem0' } }");
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), "postcopy"));
    qobject_unref(error);
    qtest_qmp_assert_success(from->qts,
        "{ 'execute': 'migrate-set-parameters', 'arguments': { "
        "'max-postcopy-bandwidth': 0 } }");
    await_migration(to, "completed");
    /* The thread that took the pages is about to end */
    rwp_assert_soon(rwp_accepts(to, "{ 'execute': 'rwp-track-start', "
                                "'arguments': { 'id': 'mem0' } }"));
    rwp_evict(to, START, SIZE);
    rwp_check(to, START, SIZE, 1);
    rwp_vm_free(from);
    rwp_vm_free(to);
}

/* Run a job of QEMU's.  Returns its error, or NULL; to be freed. */
static char *try_job(RwpVM *vm, const char *command)
{
    QDict *response;

    qtest_qmp_send_raw(vm->qts, "%s\n", command);
    response = qtest_qmp_receive(vm->qts);
    g_assert_true(qdict_haskey(response, "return"));
    qobject_unref(response);
    return rwp_job_finish(vm, "job1");
}

static void run_job(RwpVM *vm, const char *command)
{
    g_autofree char *error = try_job(vm, command);

    g_assert_cmpstr(error, ==, NULL);
}

#define SNAPSHOT(command) \
    "{ 'execute': '" command "', 'arguments': { 'job-id': 'job1', " \
    "'tag': 'one', 'vmstate': 'disk', 'devices': [ 'disk' ] } }"

/* A node of the format qcow2, as large as the memory */
static void add_disk(RwpVM *vm)
{
    run_job(vm, "{ 'execute': 'blockdev-create', 'arguments': { "
            "'job-id': 'job1', 'options': { 'driver': 'qcow2', "
            "'file': 'file', 'size': 33554432 } } }");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'blockdev-add', "
                             "'arguments': { 'driver': 'qcow2', "
                             "'node-name': 'disk', 'file': 'file' } }");
}

static void test_snapshot(const void *variant)
{
    Figures figures;
    RWP_VM_TEST(variant, "",
                "-blockdev file,node-name=file,filename=%s/store1");

    add_disk(vm);
    prepare(vm);
    get_figures(vm, &figures);
    run_job(vm, SNAPSHOT("snapshot-save"));
    expect_figures(vm, &figures);
    check_content(vm);

    /* Other content, of which some is evicted when the old comes back */
    rwp_fill(vm, START, SIZE, 2);
    rwp_evict(vm, START, 2 * QUARTER);
    run_job(vm, SNAPSHOT("snapshot-load"));
    check_content(vm);
    rwp_evict(vm, START, SIZE);
    check_content(vm);
    rwp_vm_free(vm);
}

/*
 * A store that keeps metadata in memory does not change below evicted pages:
 * neither goes it back to what was stored before, nor changes or forgets its
 * metadata while it is read.  A node above reaches it, too.
 */
static void test_store_changes(const void *variant)
{
    static const char set_active[] =
        "{ 'execute': 'blockdev-set-active', 'arguments': { "
        "'node-name': %s, 'active': %i } }";
    static const char *const commands[] = {
        SNAPSHOT("snapshot-load"),
        SNAPSHOT("snapshot-save"),
        "{ 'execute': 'snapshot-delete', 'arguments': { 'job-id': 'job1', "
        "'tag': 'one', 'devices': [ 'disk' ] } }",
        "{ 'execute': 'snapshot-delete', 'arguments': { 'job-id': 'job1', "
        "'tag': 'one', 'devices': [ 'top' ] } }",
    };
    RWP_VM_TEST(variant, "",
                "-blockdev file,node-name=file,filename=%s/store1");

    add_disk(vm);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'blockdev-add', "
                             "'arguments': { 'driver': 'raw', "
                             "'node-name': 'top', 'file': 'disk' } }");
    rwp_fill(vm, START, SIZE, 1);
    run_job(vm, SNAPSHOT("snapshot-save"));
    rwp_fill(vm, START, SIZE, 2);
    rwp_job(vm, RWP_EVICT_TO("disk"), (uint64_t)START, (uint64_t)SIZE);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        g_autofree char *error = try_job(vm, commands[i]);

        g_assert_nonnull(error);
        g_assert_nonnull(strstr(error, "rwp-fetch first"));
    }
    rwp_expect_error(vm, GENERIC, "rwp-fetch first", set_active, "disk", false);
    rwp_expect_error(vm, GENERIC, "rwp-fetch first", set_active, "top", false);
    rwp_expect_error(vm, GENERIC, "rwp-fetch first",
                     "{ 'execute': 'blockdev-set-active', 'arguments': { "
                     "'active': false } }");
    rwp_check(vm, START, SIZE, 2);

    rwp_job(vm, RWP_FETCH());
    qtest_qmp_assert_success(vm->qts, set_active, "top", false);
    qtest_qmp_assert_success(vm->qts, set_active, "top", true);
    run_job(vm, SNAPSHOT("snapshot-load"));
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

/* The same if such a format comes below the store later */
static void test_store_overlay(const void *variant)
{
    RWP_VM_TEST(variant, "",
                "-blockdev file,node-name=file,filename=%s/store1 "
                "-blockdev raw,node-name=own,file=store0");

    add_disk(vm);
    rwp_fill(vm, START, SIZE, 1);
    rwp_job(vm, RWP_EVICT_TO("own"), (uint64_t)START, (uint64_t)SIZE);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'blockdev-snapshot', "
                             "'arguments': { 'node': 'store0', "
                             "'overlay': 'disk' } }");
    rwp_expect_error(vm, GENERIC, "rwp-fetch first",
                     "{ 'execute': 'blockdev-set-active', 'arguments': { "
                     "'node-name': 'own', 'active': false } }");
    rwp_check(vm, START, SIZE, 1);
    rwp_vm_free(vm);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    rwp_add_tests("rwp-migration", "ways", test_ways);
    rwp_add_tests("rwp-migration", "snapshot", test_snapshot);
    rwp_add_tests("rwp-migration", "store-changes", test_store_changes);
    rwp_add_tests("rwp-migration", "store-overlay", test_store_overlay);
    rwp_add_tests("rwp-migration", "capabilities", test_capabilities);
    rwp_add_tests("rwp-migration", "cpr", test_cpr);
    rwp_add_tests("rwp-migration", "job", test_job);
    rwp_add_tests("rwp-migration", "store-fails", test_store_fails);
    qtest_add_data_func("/rwp-migration/default/incoming",
                        RWP_DEFAULT_VARIANT, test_incoming);
    qtest_add_data_func("/rwp-migration/default/postcopy",
                        RWP_DEFAULT_VARIANT, test_postcopy);

    return g_test_run();
}
