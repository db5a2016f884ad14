/*
 * Fakes for tests of memory-backend-rwp: trackers and pagers
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See rwp-fake.h, and tracker.h and pager.h for the contracts.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "system/rwp/inject.h"
#include "system/rwp/memory.h"
#include "system/rwp/pager.h"
#include "system/rwp/tracker.h"
#include "rwp-fake-int.h"

/* Pagers */

static void *buffer_new(RwpMemory *mem, uint64_t count, Error **errp)
{
    uint64_t pages = count;

    if (fake_call_begin(FAKE_BUFFER_NEW, 0, &pages) < 0) {
        error_setg(errp, "no memory for a buffer");
        return NULL;
    }
    return g_malloc(count * FAKE_PAGE_SIZE);
}

static void buffer_free(RwpMemory *mem, void *buf, uint64_t count)
{
    g_free(buf);
}

static uint64_t buffer_bytes(RwpMemory *mem, uint64_t count)
{
    return count * FAKE_PAGE_SIZE;
}

static void buffer_reset(RwpMemory *mem, void *buf, uint64_t count)
{
    memset(buf, FAKE_GARBAGE, count * FAKE_PAGE_SIZE);
}

static int64_t take_pages(RwpMemory *mem, uint64_t first, uint64_t count,
                          uint8_t *buf)
{
    int64_t ret = fake_call_begin(FAKE_TAKE, first, &count);
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
                memcpy(content, fake_page_words(first + i), FAKE_PAGE_SIZE);
            } else if (mem->pager->stays) {
                memset(content, 0, FAKE_PAGE_SIZE);
            } else {
                break;
            }
            if (!mem->pager->stays) {
                fake_set_present(first + i, false);
            }
        }
        fake.taken_first = first;
        fake.taken_count = i;
    }
    fake_call_end(FAKE_TAKE, first, i);
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
    return fake_place_pages(FAKE_GIVE_BACK, page, 1, buf, NULL);
}

static int64_t move_put_back(RwpMemory *mem, uint64_t first, uint64_t count,
                             void *buf)
{
    uint64_t placed;
    int ret;

    /* What was taken by one call may be one huge page */
    g_assert_cmpuint(first, ==, fake.taken_first);
    g_assert_cmpuint(count, ==, fake.taken_count);
    ret = fake_place_pages(FAKE_PUT_BACK, first, count, buf, &placed);
    return placed ?: ret;
}

static int64_t punch_remove(RwpMemory *mem, uint64_t first, uint64_t count)
{
    uint64_t done = count;
    int ret = fake_call_begin(FAKE_REMOVE, first, &done);

    if (ret == 0) {
        fake_drop(first, count);
        fake_call_end(FAKE_REMOVE, first, count);
    }
    return ret ?: count;
}

static int64_t move_remove(RwpMemory *mem, uint64_t first, uint64_t count)
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
    return fake.pages[page].present && !fake.pages[page].armed &&
           !fake.pages[page].unmapped;
}

/* @arm: those that are reported are armed in the same moment */
static int report_runs(FakeCall call, uint64_t first, uint64_t count,
                       PageTest *test, bool arm, RwpRunFunc *fn, void *opaque)
{
    g_autofree bool *map = g_new0(bool, count + 1);
    uint64_t pages = count;
    int ret = fake_call_begin(call, first, &pages);

    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        for (uint64_t i = 0; i < pages; i++) {
            map[i] = test(first + i);
            fake.pages[first + i].armed |= arm && map[i];
        }
    }
    if (ret < 0) {
        return ret;
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
    fake_call_end(call, first, count);
    return 0;
}

static int move_present(RwpMemory *mem, uint64_t first, uint64_t count,
                        RwpRunFunc *fn, void *opaque)
{
    return report_runs(FAKE_PRESENT, first, count, page_present, false, fn,
                       opaque);
}

static int pager_populated(RwpMemory *mem, uint64_t first, uint64_t count,
                           RwpRunFunc *fn, void *opaque)
{
    return report_runs(FAKE_POPULATED, first, count, page_present, false, fn,
                       opaque);
}

const RwpPagerOps rwp_pager_punch = {
    .type = RWP_PAGER_TYPE_PUNCH,
    .stays = true,
    .buffer_new = buffer_new,
    .buffer_free = buffer_free,
    .buffer_bytes = buffer_bytes,
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
    .buffer_bytes = buffer_bytes,
    .buffer_reset = buffer_reset,
    .take = pager_take,
    .give_back = move_give_back,
    .put_back = move_put_back,
    .remove = move_remove,
    .populated = pager_populated,
    .present = move_present,
};

/* Trackers */

static uint64_t tracker_modes(RwpMemory *mem)
{
    return UFFDIO_REGISTER_MODE_WP;
}

static int set_traps(FakeCall call, uint64_t chunk, bool missing, bool minor)
{
    uint64_t count = FAKE_CHUNK_PAGES;
    int ret = fake_call_begin(call, chunk * FAKE_CHUNK_PAGES, &count);

    if (ret == 0) {
        QEMU_LOCK_GUARD(&fake.lock);
        fake.trap[chunk] |= missing;
        fake.minor[chunk] = minor;
    }
    return ret;
}

static int tracker_trap(RwpMemory *mem, uint64_t chunk)
{
    return set_traps(FAKE_TRAP, chunk, true,
                     !rwp_inject(RWP_INJECT_SKIP_TRAP));
}

static int tracker_relax(RwpMemory *mem, uint64_t chunk)
{
    return set_traps(FAKE_RELAX, chunk, false, false);
}

static int tracker_arm(RwpMemory *mem, uint64_t first, uint64_t count)
{
    int ret = fake_call_begin(FAKE_ARM, first, &count);

    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        for (uint64_t page = first; page < first + count; page++) {
            fake.pages[page].armed = true;
        }
    }
    fake_call_end(FAKE_ARM, first, count);
    return ret;
}

static int tracker_scan(RwpMemory *mem, uint64_t first, uint64_t count,
                        RwpRunFunc *fn, void *opaque)
{
    return report_runs(FAKE_SCAN, first, count, page_touched, false, fn,
                       opaque);
}

static int tracker_rearm(RwpMemory *mem, uint64_t first, uint64_t count,
                         RwpRunFunc *fn, void *opaque)
{
    return mem->rearms ? report_runs(FAKE_REARM, first, count, page_touched,
                                     true, fn, opaque) : -ENOTSUP;
}

static int tracker_admit(RwpMemory *mem, uint64_t page)
{
    uint64_t count = 1;
    int ret = fake_call_begin(FAKE_ADMIT, page, &count);

    QEMU_LOCK_GUARD(&fake.lock);
    if (ret == 0 && !fake.pages[page].present) {
        ret = -ENOENT;
    }
    if (ret == 0) {
        fake.pages[page].armed = false;
        fake.pages[page].unmapped = false;
    }
    fake_wake_range(page, 1);
    return ret;
}

#define FAKE_TRACKER(name, kind)        \
const RwpTrackerOps name = {            \
    .type = kind,                       \
    .modes = tracker_modes,             \
    .trap = tracker_trap,               \
    .relax = tracker_relax,             \
    .arm = tracker_arm,                 \
    .scan = tracker_scan,               \
    .rearm = tracker_rearm,             \
    .admit = tracker_admit,             \
}

FAKE_TRACKER(rwp_tracker_rwp, RWP_TRACKER_TYPE_RWP);
FAKE_TRACKER(rwp_tracker_zap, RWP_TRACKER_TYPE_ZAP);
FAKE_TRACKER(rwp_tracker_none, RWP_TRACKER_TYPE_NONE);
