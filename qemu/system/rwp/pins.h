/*
 * Memory that is mapped for DMA
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A mapping is counted in each chunk that it reaches into, not in each page:
 * mappings are short, and one counter for 16384 pages costs nothing.
 *
 * Who unmaps memory says how much, and does not always say what was mapped:
 * address_space_unmap() never needed that, and guests have a say in it (the
 * stride of a ramfb, the size of a virtqueue).  So it is remembered here, by the
 * start of the mapping.
 *
 * Locking: all functions may be called from any thread, with any lock held; a
 * mutex is held for some instructions.  To look at a counter takes none.
 */
#ifndef RWP_PINS_H
#define RWP_PINS_H

typedef struct RwpPins RwpPins;

/**
 * rwp_pins_new: nothing is mapped.
 *
 * @size: of the memory, in bytes
 * @chunk_bytes: of a chunk
 */
RwpPins *rwp_pins_new(uint64_t size, uint64_t chunk_bytes);

/** rwp_pins_free: free @pins, which may be NULL, whatever is mapped. */
void rwp_pins_free(RwpPins *pins);

/** rwp_pins_bytes: host memory that the counters take. */
uint64_t rwp_pins_bytes(RwpPins *pins);

/** rwp_pins_add: [@offset, @offset + @length) is mapped from now on. */
void rwp_pins_add(RwpPins *pins, uint64_t offset, uint64_t length);

/**
 * rwp_pins_remove: a mapping that starts at @offset is gone.
 *
 * If there are several, one of length @length, otherwise any.  Does nothing if
 * there is none.
 */
void rwp_pins_remove(RwpPins *pins, uint64_t offset, uint64_t length);

/** rwp_pins_any: whether a part of @chunk is mapped. */
bool rwp_pins_any(RwpPins *pins, uint64_t chunk);

#endif
