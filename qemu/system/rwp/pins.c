/*
 * Memory that is mapped for DMA
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See pins.h.  Invariant: each counter is the number of remembered mappings
 * that reach into its chunk.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "pins.h"

struct RwpPins {
    uint64_t size;
    uint64_t chunk_bytes;
    uint64_t nb_chunks;
    unsigned *counters;         /* atomic; changed with the lock */

    QemuMutex lock;
    GHashTable *mappings;       /* offset -> GArray of lengths */
};

RwpPins *rwp_pins_new(uint64_t size, uint64_t chunk_bytes)
{
    RwpPins *pins = g_new0(RwpPins, 1);

    pins->size = size;
    pins->chunk_bytes = chunk_bytes;
    pins->nb_chunks = DIV_ROUND_UP(size, chunk_bytes);
    pins->counters = g_new0(unsigned, pins->nb_chunks);
    qemu_mutex_init(&pins->lock);
    pins->mappings = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free,
                                           (GDestroyNotify)g_array_unref);
    return pins;
}

void rwp_pins_free(RwpPins *pins)
{
    if (pins) {
        g_hash_table_destroy(pins->mappings);
        qemu_mutex_destroy(&pins->lock);
        g_free(pins->counters);
        g_free(pins);
    }
}

uint64_t rwp_pins_bytes(RwpPins *pins)
{
    return pins->nb_chunks * sizeof(pins->counters[0]);
}

/* Add @change to the counters of [@offset, @offset + @length) */
static void count(RwpPins *pins, uint64_t offset, uint64_t length, int change)
{
    uint64_t last;

    if (offset >= pins->size) {
        return;
    }
    length = MIN(MAX(length, 1), pins->size - offset);
    last = (offset + length - 1) / pins->chunk_bytes;
    for (uint64_t chunk = offset / pins->chunk_bytes; chunk <= last; chunk++) {
        qatomic_add(&pins->counters[chunk], change);
    }
}

void rwp_pins_add(RwpPins *pins, uint64_t offset, uint64_t length)
{
    GArray *lengths;

    QEMU_LOCK_GUARD(&pins->lock);
    lengths = g_hash_table_lookup(pins->mappings, &offset);
    if (!lengths) {
        lengths = g_array_new(false, false, sizeof(uint64_t));
        g_hash_table_insert(pins->mappings,
                            g_memdup2(&offset, sizeof(offset)), lengths);
    }
    g_array_append_val(lengths, length);
    count(pins, offset, length, 1);
}

void rwp_pins_remove(RwpPins *pins, uint64_t offset, uint64_t length)
{
    GArray *lengths;
    guint i;

    QEMU_LOCK_GUARD(&pins->lock);
    lengths = g_hash_table_lookup(pins->mappings, &offset);
    if (!lengths) {
        return;
    }
    for (i = lengths->len - 1; i > 0; i--) {
        if (g_array_index(lengths, uint64_t, i) == length) {
            break;
        }
    }
    length = g_array_index(lengths, uint64_t, i);
    g_array_remove_index_fast(lengths, i);
    if (!lengths->len) {
        g_hash_table_remove(pins->mappings, &offset);
    }
    count(pins, offset, length, -1);
}

bool rwp_pins_any(RwpPins *pins, uint64_t chunk)
{
    return qatomic_read(&pins->counters[chunk]) > 0;
}
