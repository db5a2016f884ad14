/*
 * How many pages to read when one is touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Follows a few sequential access patterns at a time: a touch that goes on
 * where an earlier read ended makes the next one twice as long.  Pure data.
 *
 * Locking: none; one user at a time.
 */
#ifndef RWP_READAHEAD_H
#define RWP_READAHEAD_H

/* Access patterns that are followed at a time */
#define RWP_READAHEAD_STREAMS 8

/* One sequential access pattern */
typedef struct RwpStream {
    uint64_t next;          /* the page that would continue it */
    uint64_t window;        /* pages to read when it is continued */
    uint64_t used;          /* when it was continued last, for replacement */
} RwpStream;

typedef struct RwpReadahead {
    RwpStream streams[RWP_READAHEAD_STREAMS];
    uint64_t clock;
} RwpReadahead;

/**
 * rwp_readahead_window: the number of pages to read from @page on, which
 * is touched.
 *
 * @max: no more than that, at least 1
 */
static inline uint64_t rwp_readahead_window(RwpReadahead *r, uint64_t page,
                                            uint64_t max)
{
    RwpStream *oldest = &r->streams[0];

    for (int i = 0; i < RWP_READAHEAD_STREAMS; i++) {
        RwpStream *stream = &r->streams[i];

        if (stream->next == page && stream->window) {
            stream->window = MIN(stream->window * 2, max);
            stream->next = page + stream->window;
            stream->used = ++r->clock;
            return stream->window;
        }
        if (stream->used < oldest->used) {
            oldest = stream;
        }
    }
    *oldest = (RwpStream) {
        .next = page + 1,
        .window = 1,
        .used = ++r->clock,
    };
    return 1;
}

#endif
