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
#include "qapi/error.h"
#include "system/rwp/memory.h"
#include "rwp-fake-int.h"

struct FakeTouch {
    QemuThread thread;
    uint64_t page;
    uint64_t value;
    int tid;
    bool blocked;
    bool done;
};

FakeMemory fake;

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

int fake_call_begin(FakeCall call, uint64_t first, uint64_t *count)
{
    FakeCallState *c = &fake.calls[call];
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

void fake_call_end(FakeCall call, uint64_t first, uint64_t count)
{
    FakeCallState *c = &fake.calls[call];
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

uint64_t *fake_page_words(uint64_t page)
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

void fake_set_present(uint64_t page, bool present)
{
    fake.pages[page].present = present;
    fake.pages[page].armed = false;
    fake.pages[page].unmapped = false;
    fake.pages[page].poisoned = false;
    if (!present) {
        memset(fake_page_words(page), FAKE_GARBAGE, FAKE_PAGE_SIZE);
    }
}

void fake_wake_range(uint64_t first, uint64_t count)
{
    FakeWaiter *waiter;

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
        .arg.pagefault.feat.ptid = qemu_get_thread_id(),
    };
    uint64_t one = 1;

    g_array_append_val(fake.messages, msg);
    g_assert_cmpint(write(fake.mem->uffd, &one, sizeof(one)), ==,
                    sizeof(one));
}

static bool try_access(uint64_t page)
{
    FakePage *p = &fake.pages[page];
    uint64_t chunk = page / FAKE_CHUNK_PAGES;

    if (p->poisoned) {
        return true;
    }
    if (!p->present) {
        if (fake.trap[chunk]) {
            post_locked(page, 0);
            return false;
        }
        fake_set_present(page, true);
        fill_page(fake_page_words(page), 0);
    } else if (p->unmapped && fake.minor[chunk]) {
        post_locked(page, UFFD_PAGEFAULT_FLAG_MINOR);
        return false;
    }
    p->armed = false;
    p->unmapped = false;
    return true;
}

/* Writes @value, or reads if that is 0 and @write is not set */
static uint64_t access_page(uint64_t page, uint64_t value, bool write,
                            FakeTouch *touch)
{
    int64_t end = g_get_monotonic_time() + FAKE_TIMEOUT_MS * 1000LL;
    FakeWaiter waiter = { .page = page };

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
    if (fake.pages[page].poisoned) {
        value = FAKE_SIGBUS;
    } else if (write) {
        fill_page(fake_page_words(page), value);
    } else {
        value = check_page(page, fake_page_words(page));
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

    touch->tid = qemu_get_thread_id();
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

int fake_touch_thread(FakeTouch *touch)
{
    return touch->tid;
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
        fake_set_present(page, false);
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

void fake_write_by_dma(uint64_t page, uint64_t value)
{
    QEMU_LOCK_GUARD(&fake.lock);
    fill_page(fake_page_words(page), value);
}

void fake_unmap(uint64_t first, uint64_t count)
{
    QEMU_LOCK_GUARD(&fake.lock);
    for (uint64_t page = first; page < first + count; page++) {
        fake.pages[page].unmapped = fake.pages[page].present;
        fake.pages[page].armed = false;
    }
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
    mem->left = bitmap_new(rwp_memory_nb_chunks(mem));
    mem->uffd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    g_assert_cmpint(mem->uffd, >=, 0);

    QEMU_LOCK_GUARD(&fake.lock);
    fake.mem = mem;
    fake.messages = g_array_new(false, false, sizeof(struct uffd_msg));
    for (uint64_t page = 0; page < FAKE_NB_PAGES; page++) {
        fake_set_present(page, false);
    }
    memset(fake.minor, 0, sizeof(fake.minor));
    return mem;
}

void rwp_memory_close(RwpMemory *mem)
{
    rwp_memory_unregister(mem, INT64_MAX);
    g_assert(QLIST_EMPTY(&fake.waiters));
    g_array_free(fake.messages, true);
    close(mem->uffd);
    g_free(mem->left);
    /* Who uses it now shall notice */
    memset(mem, FAKE_GARBAGE, sizeof(*mem));
    g_free(mem);
    fake.mem = NULL;
}

int rwp_memory_register_all(RwpMemory *mem, uint64_t modes)
{
    uint64_t count = mem->nb_pages;

    return fake_call_begin(FAKE_REGISTER, 0, &count);
}

/* A call that fails is one whose time is over */
bool rwp_memory_unregister(RwpMemory *mem, int64_t until_ns)
{
    uint64_t count = mem->nb_pages;

    if (until_ns != INT64_MAX &&
        fake_call_begin(FAKE_UNREGISTER, 0, &count) < 0) {
        return false;
    }
    QEMU_LOCK_GUARD(&fake.lock);
    memset(fake.trap, 0, sizeof(fake.trap));
    memset(fake.minor, 0, sizeof(fake.minor));
    fake_wake_range(0, FAKE_NB_PAGES);
    return true;
}

int rwp_memory_untrap(RwpMemory *mem, uint64_t chunk)
{
    bool trapped;

    QEMU_LOCK_GUARD(&fake.lock);
    trapped = fake.trap[chunk];
    fake.trap[chunk] = false;
    fake.minor[chunk] = false;
    return trapped;
}

/* Only asked for huge pages, and there are none */
int rwp_memory_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                    uint64_t categories, RwpRunFunc *fn, void *opaque)
{
    return 0;
}

int rwp_memory_unmap(RwpMemory *mem, uint64_t first, uint64_t count)
{
    int ret = fake_call_begin(FAKE_UNMAP, first, &count);

    if (ret == 0) {
        fake_unmap(first, count);
        fake_call_end(FAKE_UNMAP, first, count);
    }
    return ret;
}

int rwp_memory_wake(RwpMemory *mem, uint64_t first, uint64_t count)
{
    int ret = fake_call_begin(FAKE_WAKE, first, &count);

    QEMU_LOCK_GUARD(&fake.lock);
    fake_wake_range(first, count);
    return ret;
}

int fake_place_pages(FakeCall call, uint64_t first, uint64_t count,
                     const uint8_t *buf, uint64_t *placed)
{
    int ret = fake_call_begin(call, first, &count);

    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        for (uint64_t i = 0; i < count; i++) {
            if (fake.pages[first + i].present) {
                count = i;
                ret = -EEXIST;
                fake_wake_range(first + i, 1);
                break;
            }
            fake_set_present(first + i, true);
            if (buf) {
                memcpy(fake_page_words(first + i), buf + i * FAKE_PAGE_SIZE,
                       FAKE_PAGE_SIZE);
            } else {
                fill_page(fake_page_words(first + i), 0);
            }
        }
        fake_wake_range(first, count);
    }
    fake_call_end(call, first, count);
    if (placed) {
        *placed = count;
    }
    return ret;
}

int rwp_memory_copy(RwpMemory *mem, uint64_t first, uint64_t count,
                    const void *buf, uint64_t *placed)
{
    return fake_place_pages(FAKE_COPY, first, count, buf, placed);
}

int rwp_memory_poison(RwpMemory *mem, uint64_t page)
{
    uint64_t count = 1;
    int ret = fake_call_begin(FAKE_POISON, page, &count);

    QEMU_LOCK_GUARD(&fake.lock);
    fake.pages[page].poisoned = ret == 0;
    fake_wake_range(page, 1);
    return ret;
}

int rwp_memory_overwrite(RwpMemory *mem, uint64_t page, const void *buf)
{
    QEMU_LOCK_GUARD(&fake.lock);
    memcpy(fake_page_words(page), buf, FAKE_PAGE_SIZE);
    return 0;
}

int rwp_memory_zero(RwpMemory *mem, uint64_t first, uint64_t count)
{
    return fake_place_pages(FAKE_ZERO, first, count, NULL, NULL);
}

int rwp_memory_read_faults(RwpMemory *mem, struct uffd_msg *msgs, int nb)
{
    uint64_t unused = 0;
    int ret = fake_call_begin(FAKE_READ_FAULTS, 0, &unused);

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

