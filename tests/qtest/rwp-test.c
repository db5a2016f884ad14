/*
 * QTest of memory-backend-rwp: properties, commands and what they refuse
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * test-timeout: 1200
 *
 * What is evicted here is not looked at; see rwp-evict-test.c for that, and
 * rwp-io-test.c for stores that are slow or fail.
 *
 * Each refusal is checked for its class, for a part of its message, and for
 * that it changed nothing (rwp_expect_error()).
 */

#include "qemu/osdep.h"
#include "qobject/qbool.h"
#include "qobject/qjson.h"
#include "qobject/qstring.h"
#include "rwp/rwp-helpers.h"

#define OBJECT_ADD(properties) \
    "{ 'execute': 'object-add', 'arguments': { 'id': 'mem1', " \
    "'qom-type': 'memory-backend-rwp' " properties " } }"
#define WITH_SIZE(properties) OBJECT_ADD(", 'size': 1048576 " properties)

#define GENERIC "GenericError"
#define NOT_FOUND "DeviceNotFound"

/* No machine is so busy that touches take longer */
#define LONG_INTERVAL_MS 5000

static bool kernel_has(RwpVM *vm, const char *feature)
{
    QDict *info = rwp_info(vm);
    QListEntry *entry;
    bool found = false;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "kernel-features"), entry) {
        QString *name = qobject_to(QString, qlist_entry_obj(entry));

        found |= g_str_equal(qstring_get_str(name), feature);
    }
    qobject_unref(info);
    return found;
}

/* No backend at all, and backends that do not exist */
static void test_absent(void)
{
    static const char *const commands[] = {
        "query-rwp", "query-rwp-map", "rwp-track-start", "rwp-track-stop",
        "rwp-retry",
    };
    RwpVM vm = {
        .qts = qtest_init("-machine none -nodefaults "
                          "-object memory-backend-ram,id=ram0,size=1M"),
    };
    QDict *response = qtest_qmp(vm.qts, "{ 'execute': 'query-rwp' }");
    g_autofree char *output = NULL;

    g_assert_true(qlist_empty(qdict_get_qlist(response, "return")));
    qobject_unref(response);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        /* The second is a memory backend, but of another type */
        rwp_expect_error(&vm, NOT_FOUND, "no memory-backend-rwp object 'no'",
                         "{ 'execute': %s, 'arguments': { 'id': 'no' } }",
                         commands[i]);
        rwp_expect_error(&vm, NOT_FOUND, "no memory-backend-rwp object 'ram",
                         "{ 'execute': %s, 'arguments': { 'id': 'ram0' } }",
                         commands[i]);
    }
    rwp_expect_error(&vm, NOT_FOUND, "no memory-backend-rwp object 'mem0'",
                     RWP_EVICT("'min-age': 1"));
    rwp_expect_error(&vm, NOT_FOUND, "no memory-backend-rwp object 'mem0'",
                     RWP_FETCH());
    qtest_qmp_assert_success(vm.qts, "{ 'execute': 'rwp-retry' }");
    output = qtest_hmp(vm.qts, "info rwp");
    g_assert_nonnull(strstr(output, "No memory-backend-rwp"));
    qtest_quit(vm.qts);
}

static void test_properties(void)
{
    static const char *const names[] = {
        "tracker", "backing", "hugetlb", "hugetlbsize", "interval",
        "readahead", "store", "checksum", "max-fetches",
    };
    RwpVM *vm;
    QDict *response;
    QDict *info;

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    vm = rwp_vm_new(RWP_DEFAULT_VARIANT,
                    "interval=1234,readahead=64k,store=store0", "");
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        QObject *value;

        response = qtest_qmp(vm->qts, "{ 'execute': 'qom-get', "
                             "'arguments': { 'path': '/objects/mem0', "
                             "'property': %s } }", names[i]);
        value = qdict_get(response, "return");
        g_assert_nonnull(value);
        /* The value that it has already */
        rwp_expect_error(vm, GENERIC, "cannot change property",
                         "{ 'execute': 'qom-set', 'arguments': { "
                         "'path': '/objects/mem0', 'property': %s, "
                         "'value': %p } }", names[i], qobject_ref(value));
        qobject_unref(response);
    }

    info = rwp_info(vm);
    g_assert_cmpstr(qdict_get_str(info, "id"), ==, "mem0");
    g_assert_cmpuint(qdict_get_int(info, "size"), ==, RWP_TEST_RAM);
    g_assert_cmpuint(qdict_get_int(info, "page-size"), ==, 4096);
    g_assert_cmpuint(qdict_get_int(info, "interval"), ==, 1234);
    g_assert_cmpstr(qdict_get_str(info, "store"), ==, "store0");
    g_assert_cmpstr(qdict_get_str(info, "tracker"), !=, "none");
    g_assert_false(qdict_get_bool(info, "tracking"));
    g_assert_false(qdict_haskey(info, "job"));
    g_assert_true(qlist_empty(qdict_get_qlist(info, "ages")));
    g_assert_cmpuint(qdict_get_int(info, "metadata"), <=,
                     2 * (RWP_TEST_RAM / 4096));
    qobject_unref(info);
    rwp_vm_free(vm);
}

/* Properties that cannot be, when the object is made at run time */
static void test_property_errors(void)
{
    static const RwpRefused refused[] = {
        { OBJECT_ADD(""), "size" },
        { OBJECT_ADD(", 'size': 0"), "size" },
        { OBJECT_ADD(", 'size': 4095"), "multiple of the page size" },
        { OBJECT_ADD(", 'size': 1048577"), "multiple of the page size" },
        { WITH_SIZE(", 'interval': 0"), "from 10 to 86400000" },
        { WITH_SIZE(", 'interval': 9"), "from 10 to 86400000" },
        { WITH_SIZE(", 'interval': 86400001"), "from 10 to 86400000" },
        { WITH_SIZE(", 'interval': -1"), "interval" },
        { WITH_SIZE(", 'readahead': 2097152"), "readahead" },
        { WITH_SIZE(", 'max-fetches': 0"), "from 1 to 256" },
        { WITH_SIZE(", 'max-fetches': 257"), "from 1 to 256" },
        { WITH_SIZE(", 'tracker': 'guess'"), "guess" },
        { WITH_SIZE(", 'backing': 'disk'"), "disk" },
        { WITH_SIZE(", 'tracker': 'zap', 'backing': 'anonymous'"),
          "tracker=zap needs backing=memfd" },
        { WITH_SIZE(", 'tracker': 'none', 'backing': 'memfd'"),
          "tracker=none needs anonymous memory" },
        { WITH_SIZE(", 'tracker': 'none', 'share': true"),
          "tracker=none needs anonymous memory" },
        { WITH_SIZE(", 'tracker': 'none', 'hugetlb': true"),
          "tracker=none needs anonymous memory" },
        { WITH_SIZE(", 'backing': 'anonymous', 'share': true"),
          "backing=anonymous cannot be combined with share=on" },
        { WITH_SIZE(", 'backing': 'anonymous', 'hugetlb': true"),
          "backing=anonymous cannot be combined with hugetlb=on" },
        { WITH_SIZE(", 'merge': true"), "merge=on" },
        { WITH_SIZE(", 'hugetlbsize': 2097152"), "needs hugetlb=on" },
        { WITH_SIZE(", 'hugetlb': true, 'hugetlbsize': 12345"),
          "hugetlbsize" },
        { WITH_SIZE(", 'store': 'none'"), "no block node 'none'" },
        { WITH_SIZE(", 'store': 'small'"), "too small" },
        { WITH_SIZE(", 'store': 'readonly'"), "read-only" },
        { WITH_SIZE(", 'store': 'store0'"), "store0" },
    };
    static const RwpRefused no_rwp[] = {
        { WITH_SIZE(", 'tracker': 'rwp'"),
          "tracker=rwp: the host kernel has no userfaultfd read-write" },
        { WITH_SIZE(", 'backing': 'anonymous'"),
          "backing=anonymous cannot be tracked: the host kernel has no" },
    };
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "store=store0",
                "-blockdev driver=null-co,node-name=small,size=524288 "
                "-blockdev driver=null-co,node-name=readonly,size=1048576,"
                "read-only=on");

    rwp_expect_refused(vm, refused, ARRAY_SIZE(refused));
    if (!kernel_has(vm, "RWP")) {
        rwp_expect_refused(vm, no_rwp, ARRAY_SIZE(no_rwp));
    }

    /* None of them left something behind */
    qtest_qmp_assert_success(vm->qts, WITH_SIZE(""));
    rwp_expect_error(vm, GENERIC, "mem1", WITH_SIZE(""));
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'object-del', "
                             "'arguments': { 'id': 'mem1' } }");
    rwp_vm_free(vm);
}

/* The same at start: QEMU says it and ends with status 1 */
static void test_start_errors(void)
{
    static const RwpRefused refused[] = {
        { "size=0", "size" },
        { "size=1M,interval=0", "from 10 to 86400000" },
        { "size=1M,store=none", "no block node 'none'" },
        { "size=1M,tracker=zap,backing=anonymous", "backing=memfd" },
        { "size=1M -overcommit mem-lock=on", "mem-lock" },
    };

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        g_autofree char *command = g_strdup_printf(
            "%s -machine none -nodefaults -display none "
            "-object memory-backend-rwp,id=mem0,%s",
            getenv("QTEST_QEMU_BINARY"), refused[i].command);
        g_autofree char *text = NULL;
        int status;

        g_assert_true(g_spawn_command_line_sync(command, NULL, &text,
                                                &status, NULL));
        if (!strstr(text, refused[i].text)) {
            g_test_message("expected \"%s\" in: %s", refused[i].text, text);
            g_test_fail();
        }
        g_assert_true(WIFEXITED(status));
        g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    }
}

static void test_track(void)
{
    RwpVM *vm;
    QDict *event, *data;

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    vm = rwp_vm_new(RWP_DEFAULT_VARIANT, "interval=20", "");
    rwp_expect_error(vm, GENERIC, "not being tracked",
                     "{ 'execute': 'rwp-track-stop', "
                     "'arguments': { 'id': 'mem0' } }");
    for (int i = 0; i < 2; i++) {
        static const uint64_t intervals[] = { 0, 9, 86400001 };

        /* Whether it runs or not */
        for (size_t j = 0; j < ARRAY_SIZE(intervals); j++) {
            rwp_expect_error(vm, GENERIC, "from 10 to 86400000",
                             "{ 'execute': 'rwp-track-start', "
                             "'arguments': { 'id': 'mem0', 'interval': %"
                             PRIu64 " } }", intervals[j]);
        }
        if (i == 0) {
            /* Long enough that nothing changes between two queries */
            qtest_qmp_assert_success(vm->qts,
                "{ 'execute': 'rwp-track-start', 'arguments': { "
                "'id': 'mem0', 'interval': 3600000 } }");
        }
    }
    g_assert_cmpuint(rwp_get(vm, "interval"), ==, 3600000);
    rwp_expect_error(vm, GENERIC, "tracked already",
                     "{ 'execute': 'rwp-track-start', "
                     "'arguments': { 'id': 'mem0' } }");
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-stop', "
                             "'arguments': { 'id': 'mem0' } }");

    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-start', "
                             "'arguments': { 'id': 'mem0' } }");
    g_assert_cmpuint(rwp_get(vm, "interval"), ==, 20);
    for (int i = 0; i < 2; i++) {
        event = qtest_qmp_eventwait_ref(vm->qts, "RWP_CYCLE");
        data = qdict_get_qdict(event, "data");
        g_assert_cmpstr(qdict_get_str(data, "id"), ==, "mem0");
        g_assert_cmpint(qdict_get_int(data, "cycle"), >=, 1);
        g_assert_cmpuint(qdict_get_int(data, "resident"), >=, 1 * MiB);
        g_assert_cmpuint(qdict_get_int(data, "evicted"), ==, 0);
        qobject_unref(event);
    }
    g_assert_cmpuint(rwp_get(vm, "cycle.scan-ns"), >, 0);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-stop', "
                             "'arguments': { 'id': 'mem0' } }");
    rwp_vm_free(vm);
}

/*
 * Touch a part of what is populated within one cycle, and return the
 * figures right after that cycle.
 *
 * @interval: made longer until there is time for that.  A cycle that was
 *     under way can have gone past a page before it was touched; a tracker
 *     that does not see a touch does so with any interval.
 */
static QDict *touch_in_one_cycle(RwpVM *vm, uint64_t *interval)
{
    for (;; *interval *= 2) {
        uint64_t before, hot;
        QDict *info;

        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-start', "
                                 "'arguments': { 'id': 'mem0', "
                                 "'interval': %" PRIu64 " } }", *interval);
        rwp_await_cycles(vm, 2);
        before = rwp_get(vm, "cycle.completed");
        rwp_touch(vm, RWP_TEST_START, RWP_TEST_SIZE / 4);
        rwp_await_cycles(vm, 1);
        info = rwp_info(vm);
        hot = qdict_get_int(info, "hot");
        if (qdict_get_int(qdict_get_qdict(info, "cycle"), "completed") ==
            before + 1 &&
            (hot >= RWP_TEST_SIZE / 4 || *interval > LONG_INTERVAL_MS)) {
            return info;
        }
        qobject_unref(info);
        qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-stop', "
                                 "'arguments': { 'id': 'mem0' } }");
    }
}

/* Ages, histogram and working set follow what is touched from outside */
static void test_ages(const void *opaque)
{
    const RwpVariant *variant = opaque;
    uint64_t interval = 200;
    uint64_t hot = 0, older = 0, all;
    QListEntry *entry;
    QDict *info;
    RWP_VM_TEST(variant, "", "");

    rwp_fill(vm, RWP_TEST_START, RWP_TEST_SIZE, 1);
    info = touch_in_one_cycle(vm, &interval);
    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "ages"), entry) {
        QDict *row = qobject_to(QDict, qlist_entry_obj(entry));
        uint64_t bytes = qdict_get_int(row, "bytes");

        if (qdict_get_int(row, "age") == 0) {
            hot += bytes;
        } else {
            older += bytes;
        }
    }
    all = hot + older;
    g_assert_cmpuint(hot, ==, RWP_TEST_SIZE / 4);
    g_assert_cmpuint(older, >=, RWP_TEST_SIZE - RWP_TEST_SIZE / 4);
    g_assert_cmpuint(qdict_get_int(info, "hot"), ==, hot);
    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "working-set"), entry) {
        QDict *row = qobject_to(QDict, qlist_entry_obj(entry));
        uint64_t cycles = qdict_get_int(row, "cycles");

        g_assert_cmpuint(qdict_get_int(row, "milliseconds"), ==,
                         cycles * interval);
        if (cycles == 1) {
            g_assert_cmpuint(qdict_get_int(row, "bytes"), ==, hot);
        }
        g_assert_cmpuint(qdict_get_int(row, "bytes"), <=, all);
    }
    qobject_unref(info);
    rwp_vm_free(vm);
}

/* Assert that cutting off and going on gives the same map */
static void check_paging(RwpVM *vm)
{
    QList *all = rwp_runs(vm, 0, RWP_TEST_RAM);
    QList *pieces = qlist_new();
    uint64_t offset = 0;
    bool more = true;

    while (more) {
        QDict *map = qtest_qmp_assert_success_ref(vm->qts,
            "{ 'execute': 'query-rwp-map', 'arguments': { 'id': 'mem0', "
            "'offset': %" PRIu64 ", 'max-runs': 3 } }", offset);
        QList *runs = qdict_get_qlist(map, "runs");

        g_assert_cmpint(qlist_size(runs), <=, 3);
        more = qdict_haskey(map, "next");
        if (more) {
            g_assert_cmpint(qlist_size(runs), ==, 3);
            offset = qdict_get_int(map, "next");
        }
        while (!qlist_empty(runs)) {
            qlist_append_obj(pieces, qlist_pop(runs));
        }
        qobject_unref(map);
    }
    g_assert_true(qobject_is_equal(QOBJECT(all), QOBJECT(pieces)));
    g_assert_cmpint(qlist_size(all), >, 10);
    qobject_unref(all);
    qobject_unref(pieces);
}

static void test_map(void)
{
#define MAP(arguments) "{ 'execute': 'query-rwp-map', 'arguments': { " \
                       "'id': 'mem0', " arguments " } }"
    static const RwpRefused refused[] = {
        { MAP("'granularity': 0"), "granularity" },
        { MAP("'granularity': 2048"), "granularity" },
        { MAP("'granularity': 12288"), "granularity" },
        { MAP("'granularity': 2147483648"), "at most 1 GiB" },
        { MAP("'offset': 1"), "offset" },
        { MAP("'offset': 4096, 'granularity': 8192"), "offset" },
        { MAP("'offset': 33554432"), "beyond the end" },
        { MAP("'length': 33558528"), "beyond the end" },
        { MAP("'offset': 4096, 'length': 18446744073709547520"),
          "beyond the end" },
        { MAP("'length': 1"), "length" },
        { MAP("'max-runs': 0"), "max-runs" },
        { MAP("'max-runs': 65537"), "max-runs" },
        { MAP("'min-age': 255"), "min-age" },
        { MAP("'min-age': 256"), "min-age" },
    };
    g_autofree char *dump = NULL;
    RwpVM *vm;
    QDict *map;
    QDict *run;

    if (rwp_skip(RWP_DEFAULT_VARIANT)) {
        return;
    }
    vm = rwp_vm_new(RWP_DEFAULT_VARIANT, "", "");
    rwp_expect_refused(vm, refused, ARRAY_SIZE(refused));

    for (uint64_t i = 0; i < 16; i++) {
        rwp_fill(vm, RWP_TEST_START + i * 64 * KiB, 8 * KiB, i);
    }
    rwp_expect_state(vm, RWP_TEST_START, 8 * KiB, "resident");
    rwp_expect_state(vm, RWP_TEST_START + 8 * KiB, 56 * KiB, "untouched");
    rwp_evict(vm, RWP_TEST_START, 4 * KiB);
    rwp_expect_state(vm, RWP_TEST_START, 4 * KiB, "evicted");
    rwp_expect_state(vm, RWP_TEST_START + 4 * KiB, 4 * KiB, "resident");
    check_paging(vm);

    /* One granule is evicted and resident and untouched, one untouched */
    map = qtest_qmp_assert_success_ref(vm->qts, MAP("'offset': %" PRIu64 ", "
        "'length': 65536, 'granularity': 32768"), (uint64_t)RWP_TEST_START);
    g_assert_cmpint(qlist_size(qdict_get_qlist(map, "runs")), ==, 2);
    run = qobject_to(QDict, qlist_peek(qdict_get_qlist(map, "runs")));
    g_assert_cmpstr(qdict_get_str(run, "state"), ==, "mixed");
    g_assert_cmpuint(qdict_get_int(run, "length"), ==, 32 * KiB);
    qobject_unref(map);

    /* Without ages, no page has at least a certain one */
    map = qtest_qmp_assert_success_ref(vm->qts, MAP("'min-age': 0"));
    g_assert_true(qlist_empty(qdict_get_qlist(map, "runs")));
    qobject_unref(map);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'rwp-track-start', "
                             "'arguments': { 'id': 'mem0', 'interval': 20 "
                             "} }");
    rwp_await_cycles(vm, 3);
    map = qtest_qmp_assert_success_ref(vm->qts, MAP("'min-age': 2, "
        "'offset': %" PRIu64 ", 'length': 65536"), (uint64_t)RWP_TEST_START);
    /* Both the evicted page and the one that stayed, and nothing else */
    g_assert_cmpint(qlist_size(qdict_get_qlist(map, "runs")), ==, 2);
    qobject_unref(map);
    rwp_vm_free(vm);
#undef MAP
}

static void test_hmp(void)
{
    static const RwpRefused refused[] = {
        { "rwp_track_start none", "no memory-backend-rwp object 'none'" },
        { "rwp_track_start mem0 5", "from 10 to 86400000" },
        { "rwp_track_stop mem0", "not being tracked" },
        { "rwp_evict job0 mem0 0", "min-age" },
        { "rwp_evict job0 mem0 300", "min-age" },
        { "rwp_evict job0 mem0 1", "rwp-track-start" },
        { "rwp_fetch job0 none", "no memory-backend-rwp object 'none'" },
        { "rwp_retry none", "no memory-backend-rwp object 'none'" },
        { "info rwp none", "no memory-backend-rwp object 'none'" },
        { "info rwp-map none", "no memory-backend-rwp object 'none'" },
        { "info rwp-map", "ID" },
        { "info rwp-map mem0 1", "offset" },
    };
    RWP_VM_TEST(RWP_DEFAULT_VARIANT, "", "");

    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        g_autofree char *output = qtest_hmp(vm->qts, "%s",
                                            refused[i].command);

        if (!strstr(output, refused[i].text)) {
            g_test_message("expected \"%s\" in: %s", refused[i].text, output);
            g_test_fail();
        }
    }

    rwp_fill(vm, RWP_TEST_START, 1 * MiB, 1);
    g_free(qtest_hmp(vm->qts, "rwp_track_start mem0 20"));
    rwp_await_cycles(vm, 3);
    g_free(qtest_hmp(vm->qts, "rwp_evict job0 mem0 2 store0"));
    while (rwp_get(vm, "evicted") < 1 * MiB) {
        g_usleep(1000);
    }
    g_free(qtest_hmp(vm->qts, "rwp_track_stop mem0"));
    {
        g_autofree char *info = qtest_hmp(vm->qts, "info rwp");
        g_autofree char *map = qtest_hmp(vm->qts, "info rwp-map mem0");
        g_autofree char *rest = qtest_hmp(vm->qts, "info rwp-map mem0 %"
                                          PRIu64, (uint64_t)RWP_TEST_END);

        g_assert_nonnull(strstr(info, "mem0: tracker "));
        g_assert_nonnull(strstr(info, "not tracking"));
        g_assert_nonnull(strstr(info, "evicted      1 MiB"));
        g_assert_nonnull(strstr(map, "evicted"));
        g_assert_nonnull(strstr(map, "age "));
        g_assert_null(strstr(rest, "evicted"));
    }
    g_free(qtest_hmp(vm->qts, "rwp_fetch job1 mem0"));
    while (rwp_get(vm, "evicted")) {
        g_usleep(1000);
    }
    g_free(qtest_hmp(vm->qts, "rwp_retry mem0"));
    rwp_check(vm, RWP_TEST_START, 1 * MiB, 1);
    rwp_vm_free(vm);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/rwp/absent", test_absent);
    qtest_add_func("/rwp/properties", test_properties);
    qtest_add_func("/rwp/property-errors", test_property_errors);
    qtest_add_func("/rwp/start-errors", test_start_errors);
    qtest_add_func("/rwp/track", test_track);
    rwp_add_age_tests("rwp", "ages", test_ages);
    qtest_add_func("/rwp/map", test_map);
    qtest_add_func("/rwp/hmp", test_hmp);

    return g_test_run();
}
