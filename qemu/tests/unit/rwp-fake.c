/*
 * Fakes for tests of memory-backend-rwp: the memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See rwp-fake.h.  What is imitated is what ioctl_userfaultfd(2) and
 * tracker.h promise, with one more difficulty: nobody is woken but by a
 * wake, and messages are delivered even if the waiter is gone.
 *
 * Pages that are not present are full of garbage, and so are buffers that
 * were reset, so that a use of them is noticed by the next read.
 */

#include "qemu/osdep.h"
#include <sys/eventfd.h>
#include "qemu/queue.h"
#include "qemu/thread.h"
#include "qapi/error.h"
#include "system/rwp/memory.h"
#include "system/rwp/pager.h"
#include "system/rwp/tracker.h"
#include "rwp-fake.h"

#define GARBAGE 0xee

typedef struct Call {
    FakeHook *before, *after;
    void *before_opaque, *after_opaque;
    uint64_t page;
    uint64_t times;
    int err;
    uint64_t calls;
} Call;

typedef struct Waiter {
    uint64_t page;
    bool woken;
    QLIST_ENTRY(Waiter) next;
} Waiter;

struct FakeTouch {
    QemuThread thread;
    uint64_t page;
    uint64_t value;
    bool blocked;
    bool done;
};

typedef struct Page {
    bool present;
    bool armed;
} Page;

static struct {
    QemuMutex lock;             /* for everything here */
    QemuCond cond;              /* something happened */
    RwpMemory *mem;
    Page pages[FAKE_NB_PAGES];
    bool trap[DIV_ROUND_UP(FAKE_NB_PAGES, FAKE_CHUNK_PAGES)];
    int held[DIV_ROUND_UP(FAKE_NB_PAGES, FAKE_CHUNK_PAGES)];
    GArray *messages;
    QLIST_HEAD(, Waiter) waiters;
    uint64_t max_take;
    Call calls[FAKE__MAX];
} fake;

static void __attribute__((constructor)) fake_init(void)
{
    qemu_mutex_init(&fake.lock);
    qemu_cond_init(&fake.cond);
    fake.max_take = FAKE_ANY;
}

void fake_reset(void)
{
    QEMU_LOCK_GUARD(&fake.lock);
    memset(fake.calls, 0, sizeof(fake.calls));
    fake.max_take = FAKE_ANY;
}

void fake_before(FakeCall call, FakeHook *fn, void *opaque)
{
    QEMU_LOCK_GUARD(&fake.lock);
    fake.calls[call].before = fn;
    fake.calls[call].before_opaque = opaque;
}

void fake_after(FakeCall call, FakeHook *fn, void *opaque)
{
    QEMU_LOCK_GUARD(&fake.lock);
    fake.calls[call].after = fn;
    fake.calls[call].after_opaque = opaque;
}

void fake_fail(FakeCall call, uint64_t page, uint64_t times, int err)
{
    QEMU_LOCK_GUARD(&fake.lock);
    fake.calls[call].page = page;
    fake.calls[call].times = times;
    fake.calls[call].err = err;
}

void fake_take_at_most(uint64_t pages)
{
    QEMU_LOCK_GUARD(&fake.lock);
    fake.max_take = pages;
}

uint64_t fake_calls(FakeCall call)
{
    QEMU_LOCK_GUARD(&fake.lock);
    return fake.calls[call].calls;
}

/*
 * Returns the error that the call is to return; @count becomes the number
 * of pages that it is to deal with before.
 */
static int call_begin(FakeCall call, uint64_t first, uint64_t *count)
{
    Call *c = &fake.calls[call];
    FakeHook *before;
    void *opaque;

    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        c->calls++;
        before = c->before;
        opaque = c->before_opaque;
    }
    if (before) {
        before(opaque, first, *count);
    }

    QEMU_LOCK_GUARD(&fake.lock);
    if (!c->times || (c->page != FAKE_ANY && c->page - first >= *count)) {
        return 0;
    }
    c->times -= c->times != FAKE_ALWAYS;
    *count = c->page == FAKE_ANY ? 0 : c->page - first;
    return c->err;
}

static void call_end(FakeCall call, uint64_t first, uint64_t count)
{
    Call *c = &fake.calls[call];
    FakeHook *after;
    void *opaque;

    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        after = c->after;
        opaque = c->after_opaque;
    }
    if (after) {
        after(opaque, first, count);
    }
}

static uint64_t *page_words(uint64_t page)
{
    return (uint64_t *)(uintptr_t)rwp_memory_host(fake.mem, page);
}

static void fill_page(uint64_t *words, uint64_t value)
{
    for (size_t i = 0; i < FAKE_PAGE_SIZE / sizeof(*words); i++) {
        words[i] = value ? value ^ (i * 0x9e3779b97f4a7c15ULL) : 0;
    }
}

static uint64_t check_page(uint64_t page, const uint64_t *words)
{
    uint64_t expected[FAKE_PAGE_SIZE / sizeof(*words)];

    fill_page(expected, words[0]);
    if (memcmp(words, expected, FAKE_PAGE_SIZE)) {
        g_error("page %" PRIu64 " has parts of different contents", page);
    }
    return words[0];
}

/* The following have the lock */

static void set_present(uint64_t page, bool present)
{
    fake.pages[page].present = present;
    fake.pages[page].armed = false;
    if (!present) {
        memset(page_words(page), GARBAGE, FAKE_PAGE_SIZE);
    }
}

static void wake_range(uint64_t first, uint64_t count)
{
    Waiter *waiter;

    QLIST_FOREACH(waiter, &fake.waiters, next) {
        if (waiter->page - first < count) {
            waiter->woken = true;
        }
    }
    qemu_cond_broadcast(&fake.cond);
}

static void post_locked(uint64_t page, uint64_t flags)
{
    struct uffd_msg msg = {
        .event = UFFD_EVENT_PAGEFAULT,
        .arg.pagefault.flags = flags,
        .arg.pagefault.address = rwp_memory_host(fake.mem, page),
    };
    uint64_t one = 1;

    g_array_append_val(fake.messages, msg);
    g_assert_cmpint(write(fake.mem->uffd, &one, sizeof(one)), ==,
                    sizeof(one));
}

static bool try_access(uint64_t page)
{
    Page *p = &fake.pages[page];
    uint64_t chunk = page / FAKE_CHUNK_PAGES;

    if (!p->present) {
        if (fake.trap[chunk]) {
            post_locked(page, 0);
            return false;
        }
        set_present(page, true);
        fill_page(page_words(page), 0);
    } else if (p->armed && fake.held[chunk]) {
        post_locked(page, UFFD_PAGEFAULT_FLAG_MINOR);
        return false;
    }
    p->armed = false;
    return true;
}

/* Writes @value, or reads if that is 0 and @write is not set */
static uint64_t access_page(uint64_t page, uint64_t value, bool write,
                            FakeTouch *touch)
{
    int64_t end = g_get_monotonic_time() + FAKE_TIMEOUT_MS * 1000LL;
    Waiter waiter = { .page = page };

    QEMU_LOCK_GUARD(&fake.lock);
    while (!try_access(page)) {
        waiter.woken = false;
        QLIST_INSERT_HEAD(&fake.waiters, &waiter, next);
        if (touch) {
            touch->blocked = true;
            qemu_cond_broadcast(&fake.cond);
        }
        while (!waiter.woken) {
            qemu_cond_timedwait(&fake.cond, &fake.lock, 1000);
            if (g_get_monotonic_time() > end) {
                g_error("page %" PRIu64 ": who touched it was not woken",
                        page);
            }
        }
        QLIST_REMOVE(&waiter, next);
    }
    if (write) {
        fill_page(page_words(page), value);
    } else {
        value = check_page(page, page_words(page));
    }
    if (touch) {
        touch->value = value;
        touch->done = true;
        qemu_cond_broadcast(&fake.cond);
    }
    return value;
}

void fake_write(uint64_t page, uint64_t value)
{
    access_page(page, value, true, NULL);
}

uint64_t fake_read(uint64_t page)
{
    return access_page(page, 0, false, NULL);
}

static void *touch_thread(void *opaque)
{
    FakeTouch *touch = opaque;

    access_page(touch->page, touch->value, touch->value != 0, touch);
    return NULL;
}

FakeTouch *fake_touch_start(uint64_t page, uint64_t value)
{
    FakeTouch *touch = g_new0(FakeTouch, 1);

    touch->page = page;
    touch->value = value;
    qemu_thread_create(&touch->thread, "touch", touch_thread, touch,
                       QEMU_THREAD_JOINABLE);

    QEMU_LOCK_GUARD(&fake.lock);
    while (!touch->blocked && !touch->done) {
        qemu_cond_wait(&fake.cond, &fake.lock);
    }
    return touch;
}

bool fake_touch_done(FakeTouch *touch)
{
    QEMU_LOCK_GUARD(&fake.lock);
    return touch->done;
}

uint64_t fake_touch_end(FakeTouch *touch)
{
    uint64_t value;

    qemu_thread_join(&touch->thread);
    value = touch->value;
    g_free(touch);
    return value;
}

void fake_post(uint64_t page, uint64_t flags)
{
    QEMU_LOCK_GUARD(&fake.lock);
    post_locked(page, flags);
}

bool fake_idle(void)
{
    QEMU_LOCK_GUARD(&fake.lock);
    return !fake.messages->len;
}

void fake_drop(uint64_t first, uint64_t count)
{
    QEMU_LOCK_GUARD(&fake.lock);
    for (uint64_t page = first; page < first + count; page++) {
        set_present(page, false);
    }
}

bool fake_present(uint64_t page)
{
    QEMU_LOCK_GUARD(&fake.lock);
    return fake.pages[page].present;
}

bool fake_armed(uint64_t page)
{
    QEMU_LOCK_GUARD(&fake.lock);
    return fake.pages[page].present && fake.pages[page].armed;
}

/* memory.h */

bool rwp_memory_features(uint64_t *features, Error **errp)
{
    *features = UINT64_MAX;
    return true;
}

RwpMemory *rwp_memory_open(const RwpTrackerOps *tracker,
                           const RwpPagerOps *pager, void *host,
                           uint64_t size, uint64_t page_size, int fd,
                           Error **errp)
{
    RwpMemory *mem = g_new0(RwpMemory, 1);

    g_assert_cmpuint(size, ==, FAKE_NB_PAGES * FAKE_PAGE_SIZE);
    g_assert_cmpuint(page_size, ==, FAKE_PAGE_SIZE);
    mem->tracker = tracker;
    mem->pager = pager;
    mem->host = host;
    mem->size = size;
    mem->page_size = page_size;
    mem->nb_pages = FAKE_NB_PAGES;
    mem->chunk_pages = FAKE_CHUNK_PAGES;
    mem->fd = mem->pagemap = -1;
    mem->uffd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    g_assert_cmpint(mem->uffd, >=, 0);

    QEMU_LOCK_GUARD(&fake.lock);
    fake.mem = mem;
    fake.messages = g_array_new(false, false, sizeof(struct uffd_msg));
    for (uint64_t page = 0; page < FAKE_NB_PAGES; page++) {
        set_present(page, false);
    }
    memset(fake.held, 0, sizeof(fake.held));
    return mem;
}

void rwp_memory_close(RwpMemory *mem)
{
    rwp_memory_unregister_all(mem);
    g_assert(QLIST_EMPTY(&fake.waiters));
    g_array_free(fake.messages, true);
    close(mem->uffd);
    g_free(mem);
    fake.mem = NULL;
}

int rwp_memory_register_all(RwpMemory *mem, uint64_t modes)
{
    uint64_t count = mem->nb_pages;

    return call_begin(FAKE_REGISTER, 0, &count);
}

void rwp_memory_unregister_all(RwpMemory *mem)
{
    QEMU_LOCK_GUARD(&fake.lock);
    memset(fake.trap, 0, sizeof(fake.trap));
    wake_range(0, FAKE_NB_PAGES);
}

int rwp_memory_wake(RwpMemory *mem, uint64_t first, uint64_t count)
{
    int ret = call_begin(FAKE_WAKE, first, &count);

    QEMU_LOCK_GUARD(&fake.lock);
    wake_range(first, count);
    return ret;
}

static int place_pages(FakeCall call, uint64_t first, uint64_t count,
                       const uint8_t *buf)
{
    int ret = call_begin(call, first, &count);

    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        for (uint64_t i = 0; i < count; i++) {
            if (fake.pages[first + i].present) {
                count = i;
                ret = -EEXIST;
                wake_range(first + i, 1);
                break;
            }
            set_present(first + i, true);
            if (buf) {
                memcpy(page_words(first + i), buf + i * FAKE_PAGE_SIZE,
                       FAKE_PAGE_SIZE);
            } else {
                fill_page(page_words(first + i), 0);
            }
        }
        wake_range(first, count);
    }
    call_end(call, first, count);
    return ret;
}

int rwp_memory_copy(RwpMemory *mem, uint64_t first, uint64_t count,
                    const void *buf)
{
    return place_pages(FAKE_COPY, first, count, buf);
}

int rwp_memory_zero(RwpMemory *mem, uint64_t first, uint64_t count)
{
    return place_pages(FAKE_ZERO, first, count, NULL);
}

int rwp_memory_read_faults(RwpMemory *mem, struct uffd_msg *msgs, int nb)
{
    uint64_t unused = 0;
    int ret = call_begin(FAKE_READ_FAULTS, 0, &unused);

    if (ret < 0) {
        return ret;
    }
    QEMU_LOCK_GUARD(&fake.lock);
    nb = MIN(nb, fake.messages->len);
    if (nb) {
        memcpy(msgs, fake.messages->data, nb * sizeof(*msgs));
        g_array_remove_range(fake.messages, 0, nb);
    }
    if (!fake.messages->len) {
        ret = read(mem->uffd, &unused, sizeof(unused));
        g_assert(ret == sizeof(unused) || errno == EAGAIN);
    }
    return nb;
}

/* Pagers */

static void *buffer_new(RwpMemory *mem, uint64_t count, Error **errp)
{
    uint64_t pages = count;

    if (call_begin(FAKE_BUFFER_NEW, 0, &pages) < 0) {
        error_setg(errp, "no memory for a buffer");
        return NULL;
    }
    return g_malloc(count * FAKE_PAGE_SIZE);
}

static void buffer_free(RwpMemory *mem, void *buf, uint64_t count)
{
    g_free(buf);
}

static void buffer_reset(RwpMemory *mem, void *buf, uint64_t count)
{
    memset(buf, GARBAGE, count * FAKE_PAGE_SIZE);
}

static int64_t take_pages(RwpMemory *mem, uint64_t first, uint64_t count,
                          uint8_t *buf)
{
    int64_t ret = call_begin(FAKE_TAKE, first, &count);
    uint64_t i;

    if (ret < 0 && !count) {
        return ret;
    }
    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        if (ret < 0) {
            fake.calls[FAKE_TAKE].times += 1;
        }
        ret = -ENOENT;
        for (i = 0; i < MIN(count, fake.max_take); i++) {
            uint8_t *content = buf + i * FAKE_PAGE_SIZE;

            if (fake.pages[first + i].present) {
                memcpy(content, page_words(first + i), FAKE_PAGE_SIZE);
            } else if (mem->pager->stays) {
                memset(content, 0, FAKE_PAGE_SIZE);
            } else {
                break;
            }
            if (!mem->pager->stays) {
                set_present(first + i, false);
            }
        }
    }
    call_end(FAKE_TAKE, first, i);
    return i ?: ret;
}

static int64_t pager_take(RwpMemory *mem, uint64_t first, uint64_t count,
                          void *buf)
{
    return take_pages(mem, first, count, buf);
}

static int punch_give_back(RwpMemory *mem, uint64_t page, void *buf)
{
    g_assert_not_reached();
}

static int move_give_back(RwpMemory *mem, uint64_t page, void *buf)
{
    return place_pages(FAKE_GIVE_BACK, page, 1, buf);
}

static int punch_remove(RwpMemory *mem, uint64_t first, uint64_t count)
{
    int ret = call_begin(FAKE_REMOVE, first, &count);

    if (ret == 0) {
        fake_drop(first, count);
        call_end(FAKE_REMOVE, first, count);
    }
    return ret;
}

static int move_remove(RwpMemory *mem, uint64_t first, uint64_t count)
{
    g_assert_not_reached();
}

typedef bool PageTest(uint64_t page);

static bool page_present(uint64_t page)
{
    return fake.pages[page].present;
}

static bool page_touched(uint64_t page)
{
    return fake.pages[page].present && !fake.pages[page].armed;
}

static int report_runs(FakeCall call, uint64_t first, uint64_t count,
                       PageTest *test, RwpRunFunc *fn, void *opaque)
{
    g_autofree bool *map = g_new0(bool, count + 1);
    uint64_t pages = count;
    int ret = call_begin(call, first, &pages);

    if (ret < 0) {
        return ret;
    }
    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        for (uint64_t i = 0; i < count; i++) {
            map[i] = test(first + i);
        }
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start = i;

        while (map[i]) {
            i++;
        }
        if (i > start) {
            fn(opaque, first + start, i - start);
        }
    }
    call_end(call, first, count);
    return 0;
}

static int pager_populated(RwpMemory *mem, uint64_t first, uint64_t count,
                           RwpRunFunc *fn, void *opaque)
{
    return report_runs(FAKE_POPULATED, first, count, page_present, fn, opaque);
}

const RwpPagerOps rwp_pager_punch = {
    .type = RWP_PAGER_TYPE_PUNCH,
    .stays = true,
    .buffer_new = buffer_new,
    .buffer_free = buffer_free,
    .buffer_reset = buffer_reset,
    .take = pager_take,
    .give_back = punch_give_back,
    .remove = punch_remove,
    .populated = pager_populated,
};

const RwpPagerOps rwp_pager_move = {
    .type = RWP_PAGER_TYPE_MOVE,
    .buffer_new = buffer_new,
    .buffer_free = buffer_free,
    .buffer_reset = buffer_reset,
    .take = pager_take,
    .give_back = move_give_back,
    .remove = move_remove,
    .populated = pager_populated,
};

/* Trackers */

static uint64_t tracker_modes(RwpMemory *mem)
{
    return UFFDIO_REGISTER_MODE_WP;
}

static int tracker_trap(RwpMemory *mem, uint64_t chunk)
{
    uint64_t count = FAKE_CHUNK_PAGES;
    int ret = call_begin(FAKE_TRAP, chunk * FAKE_CHUNK_PAGES, &count);

    if (ret == 0) {
        QEMU_LOCK_GUARD(&fake.lock);
        fake.trap[chunk] = true;
    }
    return ret;
}

static int tracker_arm(RwpMemory *mem, uint64_t first, uint64_t count)
{
    int ret = call_begin(FAKE_ARM, first, &count);

    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        for (uint64_t page = first; page < first + count; page++) {
            fake.pages[page].armed = true;
        }
    }
    call_end(FAKE_ARM, first, count);
    return ret;
}

static int tracker_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                        RwpRunFunc *fn, void *opaque)
{
    return report_runs(FAKE_SCAN, first, count, page_touched, fn, opaque);
}

static int change_hold(FakeCall call, uint64_t chunk, int change)
{
    uint64_t first = chunk * FAKE_CHUNK_PAGES, count = FAKE_CHUNK_PAGES;
    int ret = call_begin(call, first, &count);

    if (ret == 0) {
        WITH_QEMU_LOCK_GUARD(&fake.lock) {
            fake.held[chunk] += change;
            g_assert_cmpint(fake.held[chunk], >=, 0);
        }
        call_end(call, first, count);
    }
    return ret;
}

static int tracker_hold(RwpMemory *mem, uint64_t chunk)
{
    return change_hold(FAKE_HOLD, chunk, 1);
}

static int tracker_release(RwpMemory *mem, uint64_t chunk)
{
    return change_hold(FAKE_RELEASE, chunk, -1);
}

static int tracker_admit(RwpMemory *mem, uint64_t page)
{
    uint64_t count = 1;
    int ret = call_begin(FAKE_ADMIT, page, &count);

    QEMU_LOCK_GUARD(&fake.lock);
    if (ret == 0 && !fake.pages[page].present) {
        ret = -ENOENT;
    }
    if (ret == 0) {
        fake.pages[page].armed = false;
    }
    wake_range(page, 1);
    return ret;
}

#define FAKE_TRACKER(name, kind)        \
const RwpTrackerOps name = {            \
    .type = kind,                       \
    .modes = tracker_modes,             \
    .trap = tracker_trap,               \
    .arm = tracker_arm,                 \
    .scan = tracker_scan,               \
    .hold = tracker_hold,               \
    .release = tracker_release,         \
    .admit = tracker_admit,             \
}

FAKE_TRACKER(rwp_tracker_rwp, RWP_TRACKER_TYPE_RWP);
FAKE_TRACKER(rwp_tracker_zap, RWP_TRACKER_TYPE_ZAP);
FAKE_TRACKER(rwp_tracker_none, RWP_TRACKER_TYPE_NONE);
