/*
 * QTest of memory-backend-rwp: statistics by query-stats
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * libvirt reads these, and is particular about their form: see
 * system/rwp/stats.c.  The figures are compared with those of query-rwp.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "rwp/rwp-helpers.h"

#define PROVIDER "'providers': [ { 'provider': 'rwp' } ]"

/* A failure of the first write only */
#define BAD_WRITES \
    "-blockdev blkdebug,node-name=bad,image.driver=file," \
    "image.filename=%s/store1,inject-error.0.event=none," \
    "inject-error.0.iotype=write,inject-error.0.errno=5," \
    "inject-error.0.once=on "

/*
 * The results of query-stats as { PROVIDER: { NAME: VALUE } }; asserts that
 * a provider has one result for the target.
 */
static QDict *query(QTestState *qts, const char *arguments)
{
    g_autofree char *command = g_strdup_printf(
        "{ 'execute': 'query-stats', 'arguments': { %s } }", arguments);
    QDict *response = qtest_qmp(qts, "%p",
                                qobject_from_json(command, &error_abort));
    QDict *providers = qdict_new();
    QListEntry *entry, *stat;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(response, "return"), entry) {
        QDict *result = qobject_to(QDict, qlist_entry_obj(entry));
        const char *provider = qdict_get_str(result, "provider");
        QDict *stats = qdict_new();

        g_assert_false(qdict_haskey(result, "qom-path"));
        g_assert_false(qdict_haskey(providers, provider));
        QLIST_FOREACH_ENTRY(qdict_get_qlist(result, "stats"), stat) {
            QDict *pair = qobject_to(QDict, qlist_entry_obj(stat));
            const char *name = qdict_get_str(pair, "name");

            g_assert_false(qdict_haskey(stats, name));
            qdict_put_obj(stats, name,
                          qobject_ref(qdict_get(pair, "value")));
        }
        qdict_put(providers, provider, stats);
    }
    qobject_unref(response);
    return providers;
}

static uint64_t get(RwpVM *vm, const char *name)
{
    QDict *providers = query(vm->qts, "'target': 'vm'");
    uint64_t value = qdict_get_int(qdict_get_qdict(providers, "rwp"), name);

    qobject_unref(providers);
    return value;
}

static uint64_t count_providers(QTestState *qts, const char *arguments,
                                const char *needed)
{
    QDict *providers = query(qts, arguments);
    uint64_t n = qdict_size(providers);

    g_assert_true(!needed || qdict_haskey(providers, needed));
    qobject_unref(providers);
    return n;
}

static void check_schema_value(QDict *value)
{
    const char *name = qdict_get_str(value, "name");
    const char *type = qdict_get_str(value, "type");

    g_assert_true(g_str_has_prefix(name, "rwp-"));
    g_assert_true(g_str_equal(type, "instant") ||
                  g_str_equal(type, "cumulative") ||
                  g_str_equal(type, "peak"));
    g_assert_true(qdict_haskey(value, "base") ==
                  (qdict_get_int(value, "exponent") != 0));
}

/* Without a backend there is no result, but the same schema as with one */
static void test_schema(void)
{
    QTestState *qts = qtest_init("-machine none -nodefaults");
    g_autoptr(GHashTable) names = g_hash_table_new_full(g_str_hash,
                                                        g_str_equal, g_free,
                                                        NULL);
    QDict *response = qtest_qmp(qts, "{ 'execute': 'query-stats-schemas' }");
    QListEntry *entry, *value;
    int found = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(response, "return"), entry) {
        QDict *schema = qobject_to(QDict, qlist_entry_obj(entry));
        bool ours = g_str_equal(qdict_get_str(schema, "provider"), "rwp");

        if (ours) {
            g_assert_cmpstr(qdict_get_str(schema, "target"), ==, "vm");
            found++;
        }
        QLIST_FOREACH_ENTRY(qdict_get_qlist(schema, "stats"), value) {
            QDict *stat = qobject_to(QDict, qlist_entry_obj(value));

            /* Over all providers and targets */
            g_assert_true(g_hash_table_add(names,
                g_strdup(qdict_get_str(stat, "name"))));
            if (ours) {
                check_schema_value(stat);
            }
        }
    }
    g_assert_cmpint(found, ==, 1);
    qobject_unref(response);

    g_assert_cmpuint(count_providers(qts, "'target': 'vm'", NULL), ==, 0);
    g_assert_cmpuint(count_providers(qts, "'target': 'vm', " PROVIDER, NULL),
                     ==, 0);
    qtest_quit(qts);
}

static void check_same(RwpVM *vm)
{
    static const char *const same[][2] = {
        { "rwp-size", "size" },
        { "rwp-resident", "resident" },
        { "rwp-evicted", "evicted" },
        { "rwp-zero", "zero" },
        { "rwp-untouched", "untouched" },
        { "rwp-hot", "hot" },
        { "rwp-metadata", "metadata" },
        { "rwp-evict-pages", "evict.pages" },
        { "rwp-evict-zero-pages", "evict.zero-pages" },
        { "rwp-evict-clean-pages", "evict.clean-pages" },
        { "rwp-evict-cancelled", "evict.cancelled" },
        { "rwp-evict-busy", "evict.busy" },
        { "rwp-evict-huge", "evict.huge" },
        { "rwp-evict-failed", "evict.failed" },
        { "rwp-evict-bytes", "evict.bytes-written" },
        { "rwp-evict-commits", "evict.commits" },
        { "rwp-evict-commit-max", "evict.commit-max-ns" },
        { "rwp-fetch-fault", "fetch.fault" },
        { "rwp-fetch-readahead", "fetch.readahead" },
        { "rwp-fetch-requested", "fetch.requested" },
        { "rwp-fetch-zero-filled", "fetch.zero-filled" },
        { "rwp-fetch-dropped", "fetch.dropped" },
        { "rwp-fetch-waiting", "fetch.waiting" },
        { "rwp-store-read-errors", "fetch.errors" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(same); i++) {
        uint64_t stat = get(vm, same[i][0]);
        uint64_t info = rwp_get(vm, same[i][1]);

        if (stat != info) {
            g_test_message("%s %" PRIu64 ", %s %" PRIu64, same[i][0], stat,
                           same[i][1], info);
            g_test_fail();
        }
    }
}

/* Which statistics are reported, and that they are right */
static void test_figures(void)
{
    QDict *providers;
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "readahead=0,store=store0", "");

    rwp_fill(vm, RWP_TEST_START, RWP_TEST_SIZE, 1);
    g_assert_cmpuint(get(vm, "rwp-backends"), ==, 1);
    g_assert_cmpuint(get(vm, "rwp-tracking"), ==, 0);
    g_assert_cmpuint(get(vm, "rwp-working-set"), ==, 0);
    check_same(vm);

    rwp_evict(vm, RWP_TEST_START, RWP_TEST_SIZE);
    rwp_touch(vm, RWP_TEST_START, 1 * MiB);
    rwp_assert_soon(rwp_get(vm, "fetch.fault") == MiB / 4096);
    rwp_job(vm, RWP_FETCH(", 'ranges': [ " RWP_RANGE " ]"),
            (uint64_t)RWP_TEST_START, (uint64_t)2 * MiB);
    g_assert_cmpuint(get(vm, "rwp-evict-commit-time"), >=,
                     get(vm, "rwp-evict-commit-max"));
    g_assert_cmpuint(get(vm, "rwp-evicted"), ==, RWP_TEST_SIZE - 2 * MiB);
    check_same(vm);

    /* Filters */
    g_assert_cmpuint(count_providers(vm->qts, "'target': 'vcpu'", NULL),
                     ==, 0);
    g_assert_cmpuint(count_providers(vm->qts, "'target': 'vm', 'providers': "
                                     "[ { 'provider': 'kvm' } ]", NULL),
                     ==, 0);
    g_assert_cmpuint(count_providers(vm->qts, "'target': 'vm', 'providers': "
                                     "[ { 'provider': 'rwp', "
                                     "'names': [ 'no-such' ] } ]", NULL),
                     ==, 0);
    providers = query(vm->qts, "'target': 'vm', 'providers': [ "
                      "{ 'provider': 'rwp', 'names': [ 'rwp-size' ] } ]");
    g_assert_cmpuint(qdict_size(qdict_get_qdict(providers, "rwp")), ==, 1);
    g_assert_cmpuint(qdict_get_int(qdict_get_qdict(providers, "rwp"),
                                   "rwp-size"), ==, RWP_TEST_RAM);
    qobject_unref(providers);

    {
        g_autofree char *text = qtest_hmp(vm->qts, "info stats vm");

        g_assert_nonnull(strstr(text, "rwp-evicted (instant, B): 6291456"));
        g_assert_null(strstr(text, "failed to find"));
    }
    rwp_vm_free(vm);
}

/*
 * The window is 60 s, here one cycle.  No cycle is completed yet: nothing
 * is known to be used.  With short cycles, all is within the window.
 */
static void test_working_set(void)
{
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "", "");

    rwp_fill(vm, RWP_TEST_START, RWP_TEST_SIZE, 1);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-start', "
                             "'arguments': { 'id': 'mem0', "
                             "'interval': 60000 } }");
    g_assert_cmpuint(get(vm, "rwp-working-set"), ==, 0);
    g_assert_cmpuint(get(vm, "rwp-tracking"), ==, 1);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-stop', "
                             "'arguments': { 'id': 'mem0' } }");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-start', "
                             "'arguments': { 'id': 'mem0', "
                             "'interval': 500 } }");
    /* Reported: 120 cycles; completed: 3.  Not touched since: all but hot */
    rwp_await_cycles(vm, 3);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-stop', "
                             "'arguments': { 'id': 'mem0' } }");
    g_assert_cmpuint(get(vm, "rwp-working-set"), <, RWP_TEST_SIZE);
    g_assert_cmpuint(get(vm, "rwp-working-set"), >=, get(vm, "rwp-hot"));
    rwp_vm_free(vm);
}

/* Sums over two backends; counters stay when one goes */
static void test_sums(void)
{
    uint64_t pages, zero;
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "store=store0",
                "-blockdev file,node-name=spare,filename=%s/store1 "
                "-object memory-backend-rwp,id=mem1,size=1M,prealloc=on,"
                "store=spare");

    g_assert_cmpuint(get(vm, "rwp-backends"), ==, 2);
    g_assert_cmpuint(get(vm, "rwp-size"), ==, RWP_TEST_RAM + MiB);
    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_evict(vm, RWP_TEST_START, 1 * MiB);
    g_assert_cmpuint(get(vm, "rwp-evict-pages"), ==, MiB / 4096);

    rwp_job(vm, "{ 'execute': 'rwp-evict', 'arguments': { 'job-id': 'job0', "
            "'id': 'mem1', 'ranges': [ " RWP_RANGE " ] } }",
            (uint64_t)0, (uint64_t)MiB);
    pages = get(vm, "rwp-evict-pages");
    zero = get(vm, "rwp-evict-zero-pages");
    g_assert_cmpuint(pages, ==, 2 * MiB / 4096);
    g_assert_cmpuint(zero, ==, MiB / 4096);
    g_assert_cmpuint(get(vm, "rwp-evicted") + get(vm, "rwp-zero"), ==,
                     2 * MiB);

    rwp_job(vm, "{ 'execute': 'rwp-fetch', 'arguments': { 'job-id': 'job0', "
            "'id': 'mem1' } }");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'object-del', "
                             "'arguments': { 'id': 'mem1' } }");
    g_assert_cmpuint(get(vm, "rwp-backends"), ==, 1);
    g_assert_cmpuint(get(vm, "rwp-size"), ==, RWP_TEST_RAM);
    g_assert_cmpuint(get(vm, "rwp-evicted"), ==, 1 * MiB);
    g_assert_cmpuint(get(vm, "rwp-evict-pages"), ==, pages);
    g_assert_cmpuint(get(vm, "rwp-evict-zero-pages"), ==, zero);
    rwp_vm_free(vm);
}

static void test_write_errors(void)
{
    g_autofree char *error = NULL;
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "", BAD_WRITES);

    rwp_fill(vm, RWP_TEST_START, 64 * KiB, 1);
    g_assert_cmpuint(get(vm, "rwp-store-write-errors"), ==, 0);
    qtest_qmp_assert_success(vm->qts, RWP_EVICT("'target': 'bad', "
        "'auto-dismiss': false, 'ranges': [ " RWP_RANGE " ]"),
        (uint64_t)RWP_TEST_START, (uint64_t)64 * KiB);
    error = rwp_job_finish(vm, "job0");
    g_assert_nonnull(error);
    g_assert_cmpuint(get(vm, "rwp-store-write-errors"), ==, 1);
    g_assert_cmpuint(get(vm, "rwp-store-read-errors"), ==, 0);
    g_assert_cmpuint(get(vm, "rwp-evict-failed"), ==, 16);
    rwp_vm_free(vm);
}

/*
 * The provider kvm has a result for target vm, too.  Whoever names no
 * provider gets no more than one.
 */
static void test_kvm(void)
{
    QTestState *qts;

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    if (!qtest_has_accel("kvm") || access("/dev/kvm", R_OK | W_OK)) {
        g_test_skip("needs KVM");
        return;
    }
    qts = qtest_init("-machine none -nodefaults -accel kvm -accel qtest "
                     "-object memory-backend-rwp,id=mem0,size=1M");
    if (count_providers(qts, "'target': 'vm'", NULL)) {
        g_assert_cmpuint(count_providers(qts, "'target': 'vm'", "kvm"),
                         ==, 1);
        g_assert_cmpuint(count_providers(qts, "'target': 'vm', " PROVIDER,
                                         "rwp"), ==, 1);
        g_assert_cmpuint(count_providers(qts, "'target': 'vm', 'providers': "
                                         "[ { 'provider': 'kvm' }, "
                                         "{ 'provider': 'rwp' } ]", "rwp"),
                         ==, 2);
    } else {
        g_test_skip("KVM has no statistics here");
    }
    qtest_quit(qts);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/rwp-stats/schema", test_schema);
    qtest_add_func("/rwp-stats/figures", test_figures);
    qtest_add_func("/rwp-stats/working-set", test_working_set);
    qtest_add_func("/rwp-stats/sums", test_sums);
    qtest_add_func("/rwp-stats/write-errors", test_write_errors);
    qtest_add_func("/rwp-stats/kvm", test_kvm);

    return g_test_run();
}
