/*
 * What the tests of memory-backend-rwp have in common
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See rwp-helpers.h.  Nothing here waits with a limit of its own: a test
 * that hangs is ended by whoever runs it.
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/host-utils.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "rwp-helpers.h"
#include "guest-abi.h"
#include "guest-image.h"

/* See admin-guide/mm/hugetlbpage.rst of Linux */
#define HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB"

const RwpVariant rwp_variants[] = {
    { "default", "", 4 * KiB, true, true },
    { "zap", "tracker=zap", 4 * KiB, true, true },
    { "move", "tracker=none,backing=anonymous,thp=off", 4 * KiB, false, true },
    { "rwp-move", "tracker=rwp,backing=anonymous,thp=off", 4 * KiB, true, true },
    { "rwp-punch", "tracker=rwp,backing=memfd", 4 * KiB, true, true },
    { "hugetlb", "hugetlb=on,hugetlbsize=2M", 2 * MiB, true, false },
};

static int huge_pages(const char *which)
{
    g_autofree char *path = g_build_filename(HUGEPAGES, which, NULL);
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, NULL) ? atoi(text) : 0;
}

static void set_huge_pages(int n)
{
    FILE *file = fopen(HUGEPAGES "/nr_hugepages", "w");

    /* Without the privilege, those that are there have to do */
    if (file) {
        fprintf(file, "%d", n);
        fclose(file);
    }
}

/* How many were added to what the host had */
static int added_huge_pages;

static void remove_huge_pages(void)
{
    set_huge_pages(huge_pages("nr_hugepages") - added_huge_pages);
}

/*
 * Have enough free ones for a VM.  If an earlier test did not get to the
 * point of removing its own, they are used.
 */
static void add_huge_pages(void)
{
    int before = huge_pages("nr_hugepages");
    int lacking = RWP_TEST_RAM / (2 * MiB) - huge_pages("free_hugepages");

    if (lacking > 0) {
        set_huge_pages(before + lacking);
        added_huge_pages = huge_pages("nr_hugepages") - before;
        atexit(remove_huge_pages);
    }
}

/* Why an object with @options cannot be had, or NULL */
static char *probe(const char *options)
{
    /* Memory is populated, because huge pages may be lacking */
    g_autofree char *command = g_strdup_printf(
        "object_add memory-backend-rwp,id=probe,size=%" PRIu64
        ",prealloc=on%s%s", (uint64_t)RWP_TEST_RAM, *options ? "," : "",
        options);
    QTestState *qts = qtest_init("-machine none -nodefaults");
    g_autofree char *output = qtest_hmp(qts, "%s", command);
    QDict *response = qtest_qmp(qts, "{ 'execute': 'query-rwp' }");
    bool works = !qlist_empty(qdict_get_qlist(response, "return"));
    char *last_line;

    qobject_unref(response);
    qtest_quit(qts);
    g_strstrip(output);
    last_line = strrchr(output, '\n');
    return works ? NULL : g_strdup(last_line ? last_line + 1 : output);
}

/* The environment can pick some variants; unknown names pick nothing */
static bool asked_for(const RwpVariant *variant)
{
    const char *list = g_getenv("RWP_TEST_VARIANTS");
    g_auto(GStrv) names = g_strsplit(list ?: "", ",", -1);

    return !list || g_strv_contains((const char *const *)names,
                                    variant->name);
}

bool rwp_skip(const RwpVariant *variant)
{
    static char *reasons[ARRAY_SIZE(rwp_variants)];
    static bool known[ARRAY_SIZE(rwp_variants)];
    size_t i = variant - rwp_variants;

    if (!known[i] && !asked_for(variant)) {
        reasons[i] = g_strdup("not in RWP_TEST_VARIANTS");
        known[i] = true;
    }
    if (!known[i]) {
        if (strstr(variant->options, "hugetlb=on")) {
            add_huge_pages();
        }
        reasons[i] = probe(variant->options);
        known[i] = true;
    }
    if (reasons[i]) {
        g_test_skip(reasons[i]);
    }
    return reasons[i] != NULL;
}

static void add_tests(const char *program, const char *name,
                      void (*fn)(const void *variant), bool need_ages)
{
    for (size_t i = 0; i < ARRAY_SIZE(rwp_variants); i++) {
        if (rwp_variants[i].has_ages || !need_ages) {
            g_autofree char *path = g_strdup_printf("/%s/%s/%s", program,
                                                    rwp_variants[i].name,
                                                    name);

            qtest_add_data_func(path, &rwp_variants[i], fn);
        }
    }
}

void rwp_add_tests(const char *program, const char *name,
                   void (*fn)(const void *variant))
{
    add_tests(program, name, fn, false);
}

void rwp_add_age_tests(const char *program, const char *name,
                       void (*fn)(const void *variant))
{
    add_tests(program, name, fn, true);
}

char *rwp_scratch_dir(void)
{
    GError *err = NULL;
    char *dir = g_dir_make_tmp("rwp-test-XXXXXX", &err);

    g_assert_no_error(err);
    return dir;
}

void rwp_remove_dir(char *dir)
{
    GDir *entries = g_dir_open(dir, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(entries))) {
        g_autofree char *path = g_build_filename(dir, name, NULL);

        unlink(path);
    }
    g_dir_close(entries);
    g_assert_cmpint(rmdir(dir), ==, 0);
    g_free(dir);
}

char *rwp_make_file(const char *dir, const char *name, uint64_t size)
{
    char *path = g_build_filename(dir, name, NULL);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    close(fd);
    return path;
}

static RwpVM *vm_start(const RwpVariant *variant, const char *options,
                       const char *arguments, bool oob)
{
    RwpVM *vm = g_new0(RwpVM, 1);
    g_autofree char *store = NULL;
    g_autofree char *other = NULL;
    g_autofree char *all = NULL;
    g_auto(GStrv) parts = g_strsplit(arguments, "%s", -1);
    g_autofree char *more = NULL;
    QList *capabilities = qlist_new();

    vm->variant = variant;
    vm->dir = rwp_scratch_dir();
    store = rwp_make_file(vm->dir, "store0", RWP_TEST_RAM);
    other = rwp_make_file(vm->dir, "store1", RWP_TEST_RAM);
    more = g_strjoinv(vm->dir, parts);
    all = g_strdup_printf(
        "-nodefaults -machine pc,memory-backend=mem0 -m %" PRIu64 "M "
        "-blockdev driver=file,node-name=store0,filename=%s "
        "-object memory-backend-rwp,id=mem0,size=%" PRIu64 "%s%s%s%s %s",
        (uint64_t)RWP_TEST_RAM / MiB, store, (uint64_t)RWP_TEST_RAM,
        *variant->options ? "," : "", variant->options,
        *options ? "," : "", options, more);

    if (oob) {
        qlist_append_str(capabilities, "oob");
    }
    vm->qts = qtest_init_without_qmp_handshake(all);
    qtest_qmp_handshake(vm->qts, oob ? capabilities : NULL);
    qobject_unref(capabilities);
    return vm;
}

RwpVM *rwp_vm_new(const RwpVariant *variant, const char *options,
                  const char *arguments)
{
    return vm_start(variant, options, arguments, false);
}

RwpVM *rwp_vm_oob(const RwpVariant *variant, const char *options,
                  const char *arguments)
{
    return vm_start(variant, options, arguments, true);
}

static void write_firmware(const char *path)
{
    g_autofree uint8_t *rom = g_malloc0(RWP_GUEST_ROM_SIZE);
    uint8_t *reset = rom + RWP_GUEST_RESET_OFFSET;
    uint16_t distance = RWP_GUEST_ROM_SIZE - (RWP_GUEST_RESET_OFFSET + 3);

    memcpy(rom, rwp_guest_image, sizeof(rwp_guest_image));
    /* Real mode: jmp rel16, 3 bytes long, to offset 0 */
    reset[0] = 0xe9;
    stw_le_p(reset + 1, distance);
    g_assert(g_file_set_contents(path, (char *)rom, RWP_GUEST_ROM_SIZE,
                                 NULL));
}

RwpVM *rwp_vm_guest(const RwpVariant *variant, const char *arguments)
{
    const char *accel = g_getenv("RWP_TEST_ACCEL");
    g_autofree char *dir = rwp_scratch_dir();
    g_autofree char *rom = g_build_filename(dir, "rom", NULL);
    g_autofree char *all = g_strdup_printf(
        "-bios %s -smp 2 -global apic-common.vapic=off "
        "-accel %s %s", rom, accel && !g_str_equal(accel, "tcg") ? accel :
        "tcg,thread=multi", arguments);
    RwpVM *vm;

    write_firmware(rom);
    vm = vm_start(variant, "", all, true);
    for (int cpu = 0; cpu < 2; cpu++) {
        while (!rwp_guest_get(vm, cpu, RWP_GUEST_ALIVE)) {
            g_usleep(RWP_POLL_US);
        }
    }
    rwp_remove_dir(g_steal_pointer(&dir));
    return vm;
}

void rwp_vm_free(RwpVM *vm)
{
    qtest_quit(vm->qts);
    rwp_remove_dir(vm->dir);
    g_free(vm);
}

static uint64_t guest_address(int cpu, int field)
{
    return RWP_GUEST_MAILBOX + cpu * RWP_GUEST_BLOCK + field;
}

uint32_t rwp_guest_get(RwpVM *vm, int cpu, int field)
{
    return qtest_readl(vm->qts, guest_address(cpu, field));
}

void rwp_guest_set(RwpVM *vm, int cpu, int field, uint32_t value)
{
    qtest_writel(vm->qts, guest_address(cpu, field), value);
}

void rwp_guest_run(RwpVM *vm, int cpu, int mode, uint64_t start,
                   uint64_t size)
{
    uint64_t pages = size / RWP_GUEST_PAGE;

    rwp_guest_set(vm, cpu, RWP_GUEST_START, start);
    rwp_guest_set(vm, cpu, RWP_GUEST_PAGES, pages);
    rwp_guest_set(vm, cpu, RWP_GUEST_MASK, pow2ceil(pages) - 1);
    rwp_guest_set(vm, cpu, RWP_GUEST_DENSITY, 256);
    rwp_guest_set(vm, cpu, RWP_GUEST_MODE, mode);
}

bool rwp_accepts(RwpVM *vm, const char *fmt, ...)
{
    QDict *response;
    bool accepted;
    va_list ap;

    va_start(ap, fmt);
    response = qtest_vqmp(vm->qts, fmt, ap);
    va_end(ap);
    accepted = qdict_haskey(response, "return");
    qobject_unref(response);
    return accepted;
}

QDict *rwp_info(RwpVM *vm)
{
    QDict *response = qtest_qmp(vm->qts, "{ 'execute': 'query-rwp', "
                                "'arguments': { 'id': 'mem0' } }");
    QList *list = qdict_get_qlist(response, "return");
    QDict *info;

    g_assert_nonnull(list);
    g_assert_cmpint(qlist_size(list), ==, 1);
    info = qobject_to(QDict, qlist_pop(list));
    qobject_unref(response);
    return info;
}

uint64_t rwp_get(RwpVM *vm, const char *path)
{
    QDict *info = rwp_info(vm);
    g_auto(GStrv) names = g_strsplit(path, ".", 2);
    QDict *dict = names[1] ? qdict_get_qdict(info, names[0]) : info;
    QNum *num = qobject_to(QNum, qdict_get(dict, names[1] ?: names[0]));
    uint64_t value = qnum_get_uint(num);

    qobject_unref(info);
    return value;
}

QList *rwp_runs(RwpVM *vm, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;
    QList *all = qlist_new();
    bool more;

    do {
        QDict *map = qtest_qmp_assert_success_ref(vm->qts,
            "{ 'execute': 'query-rwp-map', 'arguments': { 'id': 'mem0', "
            "'offset': %" PRIu64 ", 'length': %" PRIu64 " } }", offset,
            end - offset);
        QList *runs = qdict_get_qlist(map, "runs");

        while (!qlist_empty(runs)) {
            qlist_append_obj(all, qlist_pop(runs));
        }
        /* Not all was gone through, on a machine that is slow */
        more = qdict_haskey(map, "next");
        if (more) {
            offset = qdict_get_int(map, "next");
        }
        qobject_unref(map);
    } while (more);
    return all;
}

uint64_t rwp_bytes_in(RwpVM *vm, uint64_t offset, uint64_t length,
                      const char *state)
{
    QList *runs = rwp_runs(vm, offset, length);
    QListEntry *entry;
    uint64_t bytes = 0;

    QLIST_FOREACH_ENTRY(runs, entry) {
        QDict *run = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(run, "state"), state)) {
            bytes += qdict_get_int(run, "length");
        }
    }
    qobject_unref(runs);
    return bytes;
}

void rwp_expect_state(RwpVM *vm, uint64_t offset, uint64_t length,
                      const char *state)
{
    rwp_assert_soon(rwp_bytes_in(vm, offset, length, "moving") == 0);
    g_assert_cmpuint(rwp_bytes_in(vm, offset, length, state), ==, length);
}

/* What a command could have changed */
static QList *look_around(RwpVM *vm)
{
    static const char *const queries[] = {
        "{ 'execute': 'query-rwp' }",
        "{ 'execute': 'query-jobs' }",
        "{ 'execute': 'query-named-block-nodes' }",
        "{ 'execute': 'qom-list', 'arguments': { 'path': '/objects' } }",
        "{ 'execute': 'query-memdev' }",
    };
    QList *all = qlist_new();

    for (size_t i = 0; i < ARRAY_SIZE(queries); i++) {
        qtest_qmp_send_raw(vm->qts, "%s\n", queries[i]);
        qlist_append(all, qtest_qmp_receive(vm->qts));
    }
    return all;
}

/* The same when nothing is changing any more */
static QList *look_around_in_peace(RwpVM *vm)
{
    QList *before = NULL, *after = look_around(vm);

    do {
        qobject_unref(before);
        before = after;
        g_usleep(RWP_POLL_US);
        after = look_around(vm);
    } while (!qobject_is_equal(QOBJECT(before), QOBJECT(after)));
    qobject_unref(before);
    return after;
}

static void expect_error(RwpVM *vm, const char *error_class,
                         const char *text, QDict *command)
{
    QList *before = look_around_in_peace(vm);
    QDict *error = qtest_qmp_assert_failure_ref(vm->qts, "%p", command);
    QList *after = look_around(vm);
    const char *desc = qdict_get_str(error, "desc");

    if (!strstr(desc, text)) {
        g_test_message("expected \"%s\" in: %s", text, desc);
        g_test_fail();
    }
    if (!g_str_equal(qdict_get_str(error, "class"), error_class)) {
        g_test_message("expected %s, not %s: %s", error_class,
                       qdict_get_str(error, "class"), desc);
        g_test_fail();
    }
    if (!qobject_is_equal(QOBJECT(before), QOBJECT(after))) {
        g_autoptr(GString) old = qobject_to_json(QOBJECT(before));
        g_autoptr(GString) new = qobject_to_json(QOBJECT(after));

        g_test_message("\"%s\" changed %s to %s", text, old->str, new->str);
        g_test_fail();
    }
    qobject_unref(error);
    qobject_unref(before);
    qobject_unref(after);
}

void rwp_expect_error(RwpVM *vm, const char *error_class, const char *text,
                      const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    expect_error(vm, error_class, text, qdict_from_vjsonf_nofail(fmt, ap));
    va_end(ap);
}

void rwp_expect_refused(RwpVM *vm, const RwpRefused *refused, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        QObject *command = qobject_from_json(refused[i].command,
                                             &error_abort);

        expect_error(vm, "GenericError", refused[i].text,
                     qobject_to(QDict, command));
    }
}

/* The job's member of query-jobs, or NULL */
static QDict *find_job(RwpVM *vm, const char *id)
{
    QDict *response = qtest_qmp(vm->qts, "{ 'execute': 'query-jobs' }");
    QDict *found = NULL;
    QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(response, "return"), entry) {
        QDict *job = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(job, "id"), id)) {
            found = qobject_ref(job);
        }
    }
    qobject_unref(response);
    return found;
}

char *rwp_job_status(RwpVM *vm, const char *id)
{
    QDict *job = find_job(vm, id);
    char *status = job ? g_strdup(qdict_get_str(job, "status")) : NULL;

    qobject_unref(job);
    return status;
}

void rwp_job_await(RwpVM *vm, const char *id, const char *status)
{
    for (;;) {
        g_autofree char *now = rwp_job_status(vm, id);

        if (g_strcmp0(now, status) == 0) {
            return;
        }
        g_assert_nonnull(now);
        g_assert_cmpstr(now, !=, "concluded");
        g_usleep(RWP_POLL_US);
    }
}

char *rwp_job_finish(RwpVM *vm, const char *id)
{
    QDict *job;
    char *error;

    rwp_job_await(vm, id, "concluded");
    job = find_job(vm, id);
    error = g_strdup(qdict_get_try_str(job, "error"));
    qobject_unref(job);
    qtest_qmp_assert_success(vm->qts, "{ 'execute': 'job-dismiss', "
                             "'arguments': { 'id': %s } }", id);
    return error;
}

void rwp_job(RwpVM *vm, const char *fmt, ...)
{
    g_autofree char *error = NULL;
    va_list ap;

    va_start(ap, fmt);
    qtest_vqmp_assert_success(vm->qts, fmt, ap);
    va_end(ap);
    error = rwp_job_finish(vm, "job0");
    g_assert_cmpstr(error, ==, NULL);
}

void rwp_evict(RwpVM *vm, uint64_t offset, uint64_t length)
{
    /* Who waited for a page goes on before its fetch has ended */
    rwp_assert_soon(rwp_bytes_in(vm, offset, length, "moving") == 0);
    rwp_job(vm, RWP_EVICT("'target': 'store0', 'ranges': [ " RWP_RANGE
                          " ]"), offset, length);
    if (rwp_bytes_in(vm, offset, length, "resident")) {
        g_test_message("busy %" PRIu64 ", huge %" PRIu64 ", cancelled %"
                       PRIu64 ", failed %" PRIu64 ", fetched %" PRIu64
                       " by fault, %" PRIu64 " ahead",
                       rwp_get(vm, "evict.busy"),
                       rwp_get(vm, "evict.huge"),
                       rwp_get(vm, "evict.cancelled"),
                       rwp_get(vm, "evict.failed"),
                       rwp_get(vm, "fetch.fault"),
                       rwp_get(vm, "fetch.readahead"));
    }
    g_assert_cmpuint(rwp_bytes_in(vm, offset, length, "resident"), ==, 0);
    g_assert_cmpuint(rwp_bytes_in(vm, offset, length, "moving"), ==, 0);
}

void rwp_pattern(void *buf, uint64_t offset, uint64_t length, uint64_t seed)
{
    uint64_t *words = buf;

    for (uint64_t i = 0; i < length / sizeof(*words); i++) {
        /* Any odd number does: no two words are the same */
        words[i] = (offset / sizeof(*words) + i + (seed << 40)) *
                   0x9e3779b97f4a7c15;
    }
}

/* The qtest server takes time that grows with the square of the length */
#define TRANSFER (64 * KiB)

void rwp_fill(RwpVM *vm, uint64_t offset, uint64_t length, uint64_t seed)
{
    g_autofree char *buf = g_malloc(length);

    rwp_pattern(buf, offset, length, seed);
    for (uint64_t pos = 0; pos < length; pos += TRANSFER) {
        qtest_bufwrite(vm->qts, offset + pos, buf + pos,
                       MIN(length - pos, TRANSFER));
    }
}

void rwp_check(RwpVM *vm, uint64_t offset, uint64_t length, uint64_t seed)
{
    g_autofree void *wanted = g_malloc(length);
    g_autofree char *found = g_malloc(length);

    rwp_pattern(wanted, offset, length, seed);
    for (uint64_t pos = 0; pos < length; pos += TRANSFER) {
        qtest_bufread(vm->qts, offset + pos, found + pos,
                      MIN(length - pos, TRANSFER));
    }
    g_assert_cmpmem(found, length, wanted, length);
}

void rwp_touch(RwpVM *vm, uint64_t offset, uint64_t length)
{
    for (uint64_t pos = offset; pos < offset + length;
         pos += vm->variant->page_size) {
        qtest_readb(vm->qts, pos);
    }
}

void rwp_await_cycles(RwpVM *vm, uint64_t n)
{
    uint64_t wanted = rwp_get(vm, "cycle.completed") + n;

    while (rwp_get(vm, "cycle.completed") < wanted) {
        g_usleep(RWP_POLL_US);
    }
}
