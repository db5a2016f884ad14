/*
 * The map of a backend: runs of pages of one state and age
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Nothing is locked while the map is made: each page is reported as it is
 * when it is looked at.
 *
 * To go through a TiB takes seconds, and this is the main loop, with the BQL.
 * So the map ends after a while, wherever it is, and says where to go on.
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "map.h"

/* After that the map is cut off, but not within a granule */
#define MAP_NS (100 * SCALE_MS)
#define GRANULARITY_MAX GiB

/* What is said about a page, or about a granule of several */
typedef struct Cell {
    RwpPageState state;
    uint8_t age;
} Cell;

static bool check_options(RwpState *s, const RwpMapOptions *options,
                          Error **errp)
{
    uint64_t size = s->mem->size;
    uint64_t granularity = options->granularity;
    uint64_t end;

    if (!is_power_of_2(granularity) || granularity < s->mem->page_size ||
        granularity > GRANULARITY_MAX) {
        error_setg(errp, "Parameter 'granularity' must be a power of two, "
                   "at least the page size of '%s', %" PRIu64 ", and at most "
                   "1 GiB", s->id, s->mem->page_size);
        return false;
    }
    if (options->offset >= size || options->length > size - options->offset) {
        error_setg(errp, "Parameters 'offset' and 'length' reach beyond the "
                   "end of '%s', %" PRIu64, s->id, size);
        return false;
    }
    end = options->offset + options->length;
    if (!QEMU_IS_ALIGNED(options->offset, granularity) ||
        (!QEMU_IS_ALIGNED(end, granularity) && end != size)) {
        error_setg(errp, "Parameters 'offset' and 'length' must be multiples "
                   "of the granularity, %" PRIu64, granularity);
        return false;
    }
    if (options->max_runs < 1 || options->max_runs > RWP_MAP_MAX_RUNS) {
        error_setg(errp, "Parameter 'max-runs' must be from 1 to %d",
                   RWP_MAP_MAX_RUNS);
        return false;
    }
    return true;
}

/* Which pages of one chunk the host kernel has, asked in one go */
typedef struct Populated {
    uint64_t first;
    uint64_t count;
    unsigned long *map;
} Populated;

static void set_populated(void *opaque, uint64_t first, uint64_t count)
{
    Populated *populated = opaque;

    bitmap_set(populated->map, first - populated->first, count);
}

static bool is_loaded(const Populated *populated, uint64_t page)
{
    return page - populated->first < populated->count;
}

static bool load_populated(RwpState *s, Populated *populated, uint64_t page,
                           Error **errp)
{
    int ret;

    if (is_loaded(populated, page)) {
        return true;
    }
    populated->first = rwp_memory_chunk(s->mem, page / s->mem->chunk_pages,
                                        &populated->count);
    bitmap_zero(populated->map, s->mem->chunk_pages);
    ret = s->mem->pager->populated(s->mem, populated->first,
                                   populated->count, set_populated,
                                   populated);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "cannot find out which pages of '%s' "
                         "are populated", s->id);
    }
    return ret == 0;
}

/*
 * The number of pages from @page on, within its chunk, that nobody ever
 * used.  The chunk is loaded.  Large guests have large holes, and the map of
 * a hole shall cost next to nothing.
 */
static uint64_t count_untouched(RwpState *s, Populated *populated,
                                uint64_t page)
{
    uint64_t end = populated->first + populated->count;
    uint64_t start, count;

    if (rwp_pages_chunk_away(s->pages, page)) {
        return 0;
    }
    end = populated->first + find_next_bit(populated->map, populated->count,
                                           page - populated->first);
    if (rwp_ages_next_run(s->ages, page, end, 0, RWP_AGE_MAX, &start,
                          &count)) {
        end = start;
    }
    return end - page;
}

static RwpPageState page_state(RwpPage state, bool populated)
{
    switch (state) {
    case RWP_PAGE_EVICTED:
        return RWP_PAGE_STATE_EVICTED;
    case RWP_PAGE_ZERO:
        return RWP_PAGE_STATE_ZERO;
    case RWP_PAGE_STAGED:
    case RWP_PAGE_LEAVING:
    case RWP_PAGE_FETCHING:
        return RWP_PAGE_STATE_MOVING;
    default:
        return populated ? RWP_PAGE_STATE_RESIDENT :
                           RWP_PAGE_STATE_UNTOUCHED;
    }
}

/*
 * The granule of @count pages from @first on: the lowest age, because a
 * granule is as hot as its hottest page.
 */
static bool granule_cell(RwpState *s, Populated *populated, uint64_t first,
                         uint64_t count, Cell *cell, Error **errp)
{
    for (uint64_t page = first; page < first + count; page++) {
        RwpPageState state;
        uint8_t age;

        if (!load_populated(s, populated, page, errp)) {
            return false;
        }
        state = page_state(rwp_pages_get(s->pages, page),
                           test_bit(page - populated->first, populated->map));
        /* RWP_AGE_NONE is above all ages */
        age = rwp_ages_get(s->ages, page);
        if (page == first) {
            *cell = (Cell) { .state = state, .age = age };
        } else {
            cell->age = MIN(cell->age, age);
            if (cell->state != state) {
                cell->state = RWP_PAGE_STATE_MIXED;
            }
        }
    }
    return true;
}

static bool cell_wanted(const RwpMapOptions *options, const Cell *cell)
{
    return options->min_age == RWP_AGE_NONE ||
           (cell->age != RWP_AGE_NONE && cell->age >= options->min_age);
}

static RwpRun *new_run(uint64_t offset, const Cell *cell)
{
    RwpRun *run = g_new0(RwpRun, 1);

    run->offset = offset;
    run->state = cell->state;
    run->has_age = cell->age != RWP_AGE_NONE;
    run->age = run->has_age ? cell->age : 0;
    return run;
}

static bool run_continues(RwpRun *run, uint64_t offset, const Cell *cell)
{
    return run && run->offset + run->length == offset &&
           run->state == cell->state &&
           run->has_age == (cell->age != RWP_AGE_NONE) &&
           (!run->has_age || run->age == cell->age);
}

RwpMap *rwp_map(RwpState *s, const RwpMapOptions *options, Error **errp)
{
    g_autoptr(RwpMap) map = g_new0(RwpMap, 1);
    g_autofree unsigned long *bits = bitmap_new(s->mem->chunk_pages);
    Populated populated = { .map = bits };
    RwpRunList **tail = &map->runs;
    RwpRun *run = NULL;
    uint32_t nb_runs = 0;
    int64_t begun_ns = get_clock();
    uint64_t pos, end, bytes;

    if (!check_options(s, options, errp)) {
        return NULL;
    }
    end = options->offset + options->length;
    for (pos = options->offset; pos < end; pos += bytes) {
        uint64_t page = pos / s->mem->page_size;
        Cell cell = { .state = RWP_PAGE_STATE_UNTOUCHED,
                      .age = RWP_AGE_NONE };

        /* Looked at for each chunk, but not before there is something */
        if (pos > options->offset && !is_loaded(&populated, page) &&
            get_clock() - begun_ns > MAP_NS) {
            break;
        }
        if (!load_populated(s, &populated, page, errp)) {
            return NULL;
        }
        bytes = rwp_state_page_bytes(s, count_untouched(s, &populated, page));
        bytes = QEMU_ALIGN_DOWN(MIN(bytes, end - pos), options->granularity);
        if (!bytes) {
            bytes = MIN(options->granularity, end - pos);
            if (!granule_cell(s, &populated, page, bytes / s->mem->page_size,
                              &cell, errp)) {
                return NULL;
            }
        }
        if (!cell_wanted(options, &cell)) {
            continue;
        }
        if (!run_continues(run, pos, &cell)) {
            if (nb_runs == options->max_runs) {
                break;
            }
            run = new_run(pos, &cell);
            QAPI_LIST_APPEND(tail, run);
            nb_runs++;
        }
        run->length += bytes;
    }
    map->has_next = pos < end;
    map->next = map->has_next ? pos : 0;
    return g_steal_pointer(&map);
}
