/*
 * What the tests of memory-backend-rwp have in common
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A VM here has one memory-backend-rwp object "mem0" of RWP_TEST_RAM bytes
 * as its memory, and a file node "store0" of the same size.  Its scratch
 * directory holds the file of that name, and another, "store1", that
 * nobody uses.  All functions assert that what they do succeeds, unless they
 * say otherwise.
 */
#ifndef RWP_HELPERS_H
#define RWP_HELPERS_H

#include "qemu/units.h"
#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define RWP_TEST_RAM (32 * MiB)

/*
 * The part that tests write to: nothing else uses it, and it is a multiple
 * of huge pages.
 */
#define RWP_TEST_START (8 * MiB)
#define RWP_TEST_SIZE (8 * MiB)
#define RWP_TEST_END (RWP_TEST_START + RWP_TEST_SIZE)

/* For functions that take JSON, with the conversions of qtest_qmp() */
#define RWP_EVICT(arguments) \
    "{ 'execute': 'rwp-evict', 'arguments': { 'job-id': 'job0', " \
    "'id': 'mem0', " arguments " } }"
#define RWP_FETCH(arguments) \
    "{ 'execute': 'rwp-fetch', 'arguments': { 'job-id': 'job0', " \
    "'id': 'mem0' " arguments " } }"
#define RWP_RANGE "{ 'offset': %" PRIu64 ", 'length': %" PRIu64 " }"
#define RWP_EVICT_TO(node) \
    RWP_EVICT("'target': '" node "', 'ranges': [ " RWP_RANGE " ]")

/* Kinds of backend, as -object options */
typedef struct RwpVariant {
    const char *name;           /* part of the test's path */
    const char *options;
    uint64_t page_size;
    bool has_ages;              /* can be tracked */
    bool sees_untouched;        /* the host can tell what was never used */
} RwpVariant;

extern const RwpVariant rwp_variants[];

/* The one that always exists, if any does */
#define RWP_DEFAULT_VARIANT (&rwp_variants[0])

/* Anonymous memory without a tracker: of what it needs Linux has all */
#define RWP_MOVE_VARIANT (&rwp_variants[2])

typedef struct RwpVM {
    QTestState *qts;
    char *dir;
    const RwpVariant *variant;
} RwpVM;

/**
 * rwp_skip: skip the present test if @variant cannot be had on this host.
 *
 * Returns true if the test was marked as skipped.
 */
bool rwp_skip(const RwpVariant *variant);

/** rwp_add_tests: @program/VARIANT/@name for all of rwp_variants[]. */
void rwp_add_tests(const char *program, const char *name,
                   void (*fn)(const void *variant));

/** rwp_add_age_tests: the same for those that can be tracked. */
void rwp_add_age_tests(const char *program, const char *name,
                       void (*fn)(const void *variant));

/** rwp_scratch_dir: a new directory; rwp_remove_dir() removes it. */
char *rwp_scratch_dir(void);
void rwp_remove_dir(char *dir);

/** rwp_make_file: a sparse file @dir/@name of @size bytes; its path. */
char *rwp_make_file(const char *dir, const char *name, uint64_t size);

/**
 * rwp_vm_new: start a VM.
 *
 * @options: of the -object, in addition to those of @variant, or ""
 * @arguments: more options of QEMU, or ""; "%s" stands for the scratch
 *     directory, at most twice
 */
RwpVM *rwp_vm_new(const RwpVariant *variant, const char *options,
                  const char *arguments);

/*
 * Declares vm, and starts it; returns from the test if @variant cannot be had
 * on this host.
 */
#define RWP_VM_TEST(variant, options, arguments)                    \
    RwpVM *vm;                                                      \
                                                                    \
    if (rwp_skip(variant)) {                                        \
        return;                                                     \
    }                                                               \
    vm = rwp_vm_new(variant, options, arguments)

/** rwp_vm_oob: the same, with out-of-band commands enabled. */
RwpVM *rwp_vm_oob(const RwpVariant *variant, const char *options,
                  const char *arguments);

/**
 * rwp_vm_guest: the same, with two CPUs that run the memory-touching guest
 * (guest-abi.h), with TCG and out-of-band commands.  Timers run as they do
 * in real life here; without it, some wait for the test to let time pass.
 */
RwpVM *rwp_vm_guest(const RwpVariant *variant, const char *arguments);

/** rwp_vm_free: end QEMU, which must exit with status 0, and clean up. */
void rwp_vm_free(RwpVM *vm);

/** rwp_guest_get, rwp_guest_set: the mailbox; @field is RWP_GUEST_*. */
uint32_t rwp_guest_get(RwpVM *vm, int cpu, int field);
void rwp_guest_set(RwpVM *vm, int cpu, int field, uint32_t value);

/** rwp_guest_run: let a CPU go through all pages of a region. */
void rwp_guest_run(RwpVM *vm, int cpu, int mode, uint64_t start,
                   uint64_t size);

/**
 * rwp_get: a number of query-rwp for mem0.
 *
 * @path: member, or "member.member"
 */
uint64_t rwp_get(RwpVM *vm, const char *path);

/*
 * Who touched a page goes on before the figures and the state of the page
 * have followed.  This asserts that they do, with a limit that is only
 * there to end a test that fails.  What was so need not be so any more: a
 * page that waits to be read again is read now and then.
 */
#define rwp_assert_soon(expr)                                       \
    do {                                                            \
        for (int i_ = 0; !(expr); i_++) {                           \
            if (i_ == RWP_SOON_POLLS) {                             \
                g_error("waited in vain for: %s", #expr);           \
            }                                                       \
            g_usleep(RWP_POLL_US);                                  \
        }                                                           \
    } while (0)
#define RWP_POLL_US 1000
#define RWP_SOON_POLLS 20000

/** rwp_accepts: whether a QMP command, as of qtest_qmp(), is a success. */
bool rwp_accepts(RwpVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/** rwp_info: all of query-rwp for mem0. */
QDict *rwp_info(RwpVM *vm);

/** rwp_runs: the runs of query-rwp-map, as QDicts. */
QList *rwp_runs(RwpVM *vm, uint64_t offset, uint64_t length);

/** rwp_bytes_in: how much of the range is in @state, as the map has it. */
uint64_t rwp_bytes_in(RwpVM *vm, uint64_t offset, uint64_t length,
                      const char *state);

/** rwp_expect_state: assert that all of the range has one state, soon. */
void rwp_expect_state(RwpVM *vm, uint64_t offset, uint64_t length,
                      const char *state);

/**
 * rwp_expect_error: a command must fail and change nothing.
 *
 * @error_class: its error class
 * @text: what its message must contain
 *
 * That nothing changed is told by what the queries of backends, jobs,
 * objects and block nodes return.
 */
void rwp_expect_error(RwpVM *vm, const char *error_class, const char *text,
                      const char *fmt, ...) G_GNUC_PRINTF(4, 5);

/* A command as JSON, and a part of the message with which it must fail */
typedef struct RwpRefused {
    const char *command;
    const char *text;
} RwpRefused;

/** rwp_expect_refused: rwp_expect_error() of a table, all GenericError. */
void rwp_expect_refused(RwpVM *vm, const RwpRefused *refused, size_t count);

/** rwp_job_status: of query-jobs; NULL if there is no such job. */
char *rwp_job_status(RwpVM *vm, const char *id);

/** rwp_job_await: wait until a job has the status. */
void rwp_job_await(RwpVM *vm, const char *id, const char *status);

/**
 * rwp_job_finish: wait until a job has concluded, and dismiss it.
 *
 * Returns its error, or NULL.
 */
char *rwp_job_finish(RwpVM *vm, const char *id);

/** rwp_job: run the job job0 that @fmt starts; it must not fail. */
void rwp_job(RwpVM *vm, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/** rwp_evict: evict the range to store0; all populated pages must go. */
void rwp_evict(RwpVM *vm, uint64_t offset, uint64_t length);

/** rwp_fill, rwp_check: write the pattern @seed, or compare. */
void rwp_fill(RwpVM *vm, uint64_t offset, uint64_t length, uint64_t seed);
void rwp_check(RwpVM *vm, uint64_t offset, uint64_t length, uint64_t seed);

/** rwp_pattern: the pattern that rwp_fill() writes. */
void rwp_pattern(void *buf, uint64_t offset, uint64_t length, uint64_t seed);

/** rwp_touch: read a byte of each page. */
void rwp_touch(RwpVM *vm, uint64_t offset, uint64_t length);

/** rwp_await_cycles: wait for @n more completed cycles. */
void rwp_await_cycles(RwpVM *vm, uint64_t n);

#endif
