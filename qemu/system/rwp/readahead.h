/*
 * How many pages to read when one is touched
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Follows a few sequential access patterns at a time: a touch that goes on
 * where an earlier read ended makes the next one twice as long.  Where the
 * longest is reached, some more are read ahead of the one that is waited
 * for, so that one can be read while another is put in place.  Pure data.
 *
 * Locking: none; one user at a time.
 */
#ifndef RWP_READAHEAD_H
#define RWP_READAHEAD_H

/* Access patterns that are followed at a time */
#define RWP_READAHEAD_STREAMS 8

/* Reads of the longest kind that are ahead of a touch */
#define RWP_READAHEAD_DEPTH 4

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

/**
 * rwp_readahead_more: whether to read more, now that @page is waited for.
 *
 * @max: as above
 * @first: set to the page to begin with
 *
 * Returns the number of pages, or 0.  May be called until it returns 0, for
 * a page that is touched and for one that is being read.
 */
static inline uint64_t rwp_readahead_more(RwpReadahead *r, uint64_t page,
                                          uint64_t max, uint64_t *first)
{
    for (int i = 0; i < RWP_READAHEAD_STREAMS; i++) {
        RwpStream *stream = &r->streams[i];

        if (stream->window == max && max > 1 && page < stream->next &&
            stream->next - page < RWP_READAHEAD_DEPTH * max) {
            *first = stream->next;
            stream->next += max;
            stream->used = ++r->clock;
            return max;
        }
    }
    return 0;
}

#endif
