/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The demo's agent in the guest: loads values of known content into redis,
 * re-reads a part of them to keep it hot, and verifies them all.
 *
 * usage: agent CONTROL-DEVICE REDIS-SOCKET
 *
 * The host writes commands to the control device (a virtio-serial port), one
 * a line, and reads one line of answer each:
 *
 *   load COUNT SIZE SEED   store COUNT values of SIZE bytes
 *   verify                 read every value and compare all of it
 *   touch STEP             read some bytes of each page of each STEPth value,
 *                          and compare them
 *   hot STEP               do that in the background, again and again;
 *                          0 stops it
 *   status                 what the background reader did since "hot"
 *
 * Answers are "ok NAME=NUMBER..." or "error TEXT"; lines "progress NUMBER"
 * may come before.
 *
 * The content of a value follows from the seed and its number alone: nothing
 * but redis holds it, so what comes back is what redis's memory says.  A
 * value that is missing, has another length or differs anywhere counts as
 * bad; an error of the protocol ends the command.
 *
 * One thread; the only allocation is static, so that the agent itself stays
 * a few pages.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Requests that are sent before the answers are read. */
#define BATCH 16
/* Values per "progress" line. */
#define PROGRESS 2048
/* Longest value; a value is a whole number of words. */
#define VALUE_MAX (64 * 1024)
/* What "touch" and "hot" read of each page of a value. */
#define PAGE 4096
#define SAMPLE 64

typedef struct {
    uint64_t passes, good, bad;
} Tally;

static int control = -1;
static int redis = -1;

static uint64_t count, size, seed;

static uint64_t hot_step, hot_next;
static Tally hot;

static uint64_t value[VALUE_MAX / sizeof(uint64_t)];

/* Requests that are to be sent. */
static char out[BATCH * (VALUE_MAX + 4096)];
static size_t out_used;

/* What was read from redis and not used yet: in[in_start, in_end). */
static char in[2 * VALUE_MAX];
static size_t in_start, in_end;

static void write_all(int fd, const void *data, size_t length)
{
    const char *next = data;

    while (length) {
        ssize_t done = write(fd, next, length);

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            perror("agent: write");
            exit(1);
        }
        next += done;
        length -= done;
    }
}

static void __attribute__((format(printf, 1, 2))) answer(const char *format,
                                                         ...)
{
    char line[256];
    va_list ap;
    int length;

    va_start(ap, format);
    length = vsnprintf(line, sizeof(line) - 1, format, ap);
    va_end(ap);
    line[length++] = '\n';
    write_all(control, line, length);
}

/*
 * Content: each word is a mix of the seed, the number of the value and the
 * place of the word, so that any part of a value can be checked alone.
 */
static inline uint64_t word_at(uint64_t number, uint64_t place)
{
    uint64_t word = seed + number * 0x9e3779b97f4a7c15u +
                    place * 0xd1b54a32d192ed03u;

    word = (word ^ word >> 32) * 0xff51afd7ed558ccdu;
    return word ^ word >> 29;
}

/* Compares length bytes at data with a value, from offset on. */
static bool is_part(const uint64_t *data, uint64_t number, size_t offset,
                    size_t length)
{
    uint64_t first = offset / sizeof(uint64_t);

    for (size_t i = 0; i < length / sizeof(uint64_t); i++) {
        if (data[i] != word_at(number, first + i)) {
            return false;
        }
    }
    return true;
}

/* redis's protocol (RESP2) */

static int redis_connect(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    if (fd >= 0 &&
        connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static void redis_fill(void)
{
    ssize_t done;

    if (in_start == in_end) {
        in_start = in_end = 0;
    }
    do {
        done = read(redis, in + in_end, sizeof(in) - in_end);
    } while (done < 0 && errno == EINTR);
    if (done <= 0) {
        answer("error redis closed the connection");
        exit(1);
    }
    in_end += done;
}

/* Reads a line of at most capacity - 1 bytes, without its CR LF. */
static void redis_line(char *line, size_t capacity)
{
    size_t used = 0;

    for (;;) {
        char c;

        if (in_start == in_end) {
            redis_fill();
        }
        c = in[in_start++];
        if (c == '\n') {
            break;
        }
        if (c != '\r' && used < capacity - 1) {
            line[used++] = c;
        }
    }
    line[used] = '\0';
}

static void redis_bytes(void *to, size_t length)
{
    char *next = to;

    while (length) {
        size_t part = in_end - in_start;

        if (!part) {
            redis_fill();
            continue;
        }
        if (part > length) {
            part = length;
        }
        memcpy(next, in + in_start, part);
        in_start += part;
        next += part;
        length -= part;
    }
}

static size_t format_key(char *key, uint64_t number)
{
    return sprintf(key, "value:%08llu", (unsigned long long)number);
}

/* Appends a SET to the requests. */
static void add_set(uint64_t number)
{
    char key[32];
    size_t key_length = format_key(key, number);

    out_used += sprintf(out + out_used,
                        "*3\r\n$3\r\nSET\r\n$%zu\r\n%s\r\n$%llu\r\n",
                        key_length, key, (unsigned long long)size);
    for (uint64_t place = 0; place < size / sizeof(uint64_t); place++) {
        uint64_t word = word_at(number, place);

        memcpy(out + out_used, &word, sizeof(word));
        out_used += sizeof(word);
    }
    memcpy(out + out_used, "\r\n", 2);
    out_used += 2;
}

/* Appends a GETRANGE for length bytes from offset on. */
static void add_get(uint64_t number, size_t offset, size_t length)
{
    char key[32], from[32], to[32];
    size_t key_length = format_key(key, number);
    int from_length = sprintf(from, "%zu", offset);
    int to_length = sprintf(to, "%zu", offset + length - 1);

    out_used += sprintf(out + out_used,
                        "*4\r\n$8\r\nGETRANGE\r\n$%zu\r\n%s\r\n"
                        "$%d\r\n%s\r\n$%d\r\n%s\r\n",
                        key_length, key, from_length, from, to_length, to);
}

static void send_requests(void)
{
    write_all(redis, out, out_used);
    out_used = 0;
}

/* Reads the answer to a GETRANGE; false if it is not what was stored. */
static bool receive_part(uint64_t number, size_t offset, size_t length)
{
    char line[128];
    long long got;

    redis_line(line, sizeof(line));
    got = line[0] == '$' ? atoll(line + 1) : -1;
    if (got < 0) {
        fprintf(stderr, "agent: redis says %s\n", line);
        return false;
    }
    if (got != length) {
        while (got--) {
            redis_bytes(line, 1);
        }
        redis_bytes(line, 2);
        return false;
    }
    redis_bytes(value, length);
    redis_bytes(line, 2);
    return is_part(value, number, offset, length);
}

/*
 * Reads and compares values first, first + step, ...: at most BATCH. Either
 * all of each value, or SAMPLE bytes of each of its pages.
 */
static uint64_t read_batch(uint64_t first, uint64_t step, bool whole,
                           Tally *tally)
{
    size_t stride = whole ? size : PAGE;
    uint64_t end = first;

    for (int i = 0; i < BATCH && end < count; i++, end += step) {
        for (size_t at = 0; at < size; at += stride) {
            add_get(end, at, whole ? size : SAMPLE);
        }
    }
    send_requests();
    for (uint64_t number = first; number < end; number += step) {
        bool good = true;

        for (size_t at = 0; at < size; at += stride) {
            good &= receive_part(number, at, whole ? size : SAMPLE);
        }
        if (good) {
            tally->good++;
        } else {
            tally->bad++;
            fprintf(stderr, "agent: value %llu is not what was stored\n",
                    (unsigned long long)number);
        }
    }
    return end;
}

/* commands */

static void load(uint64_t new_count, uint64_t new_size, uint64_t new_seed)
{
    char line[128];

    count = 0;
    size = new_size;
    seed = new_seed;
    for (uint64_t first = 0; first < new_count; first += BATCH) {
        uint64_t end = first + BATCH < new_count ? first + BATCH : new_count;

        for (uint64_t number = first; number < end; number++) {
            add_set(number);
        }
        send_requests();
        for (uint64_t number = first; number < end; number++) {
            redis_line(line, sizeof(line));
            if (strcmp(line, "+OK")) {
                answer("error redis says %s", line);
                exit(1);
            }
        }
        if (end % PROGRESS == 0) {
            answer("progress %llu", (unsigned long long)end);
        }
    }
    count = new_count;
    answer("ok values=%llu bytes=%llu", (unsigned long long)count,
           (unsigned long long)(count * size));
}

/* One pass over each step-th value. */
static void pass(uint64_t step, bool whole)
{
    Tally tally = { 0 };
    uint64_t next = 0, said = 0;

    while (next < count) {
        next = read_batch(next, step, whole, &tally);
        if (tally.good + tally.bad - said >= PROGRESS) {
            said = tally.good + tally.bad;
            answer("progress %llu", (unsigned long long)said);
        }
    }
    answer("ok good=%llu bad=%llu", (unsigned long long)tally.good,
           (unsigned long long)tally.bad);
}

static void hot_batch(void)
{
    hot_next = read_batch(hot_next, hot_step, false, &hot);
    if (hot_next >= count) {
        hot_next = 0;
        hot.passes++;
    }
}

static void execute(const char *line)
{
    unsigned long long a, b, c;

    if (sscanf(line, "load %llu %llu %llu", &a, &b, &c) == 3 &&
        b && b <= VALUE_MAX && b % sizeof(uint64_t) == 0 &&
        (b % PAGE == 0 || b % PAGE >= SAMPLE)) {
        load(a, b, c);
    } else if (!strcmp(line, "verify") && count) {
        pass(1, true);
    } else if (sscanf(line, "touch %llu", &a) == 1 && a && count) {
        pass(a, false);
    } else if (sscanf(line, "hot %llu", &a) == 1 && count) {
        hot_step = a;
        hot_next = 0;
        hot = (Tally) { 0 };
        answer("ok");
    } else if (!strcmp(line, "status")) {
        answer("ok passes=%llu good=%llu bad=%llu",
               (unsigned long long)hot.passes, (unsigned long long)hot.good,
               (unsigned long long)hot.bad);
    } else {
        answer("error cannot do: %.100s", line);
    }
}

/* Waits for a command; meanwhile re-reads if asked to. */
static void next_command(char *line, size_t capacity)
{
    size_t used = 0;

    for (;;) {
        struct pollfd ready = { .fd = control, .events = POLLIN };
        char c;

        if (poll(&ready, 1, hot_step ? 0 : 1000) <= 0 ||
            read(control, &c, 1) != 1) {
            if (hot_step) {
                hot_batch();
            } else {
                usleep(10 * 1000); /* the port says "ready" without a host */
            }
            continue;
        }
        if (c == '\n') {
            line[used] = '\0';
            return;
        }
        if (used < capacity - 1) {
            line[used++] = c;
        }
    }
}

int main(int argc, char **argv)
{
    char line[256];

    if (argc != 3) {
        fprintf(stderr, "usage: agent CONTROL-DEVICE REDIS-SOCKET\n");
        return 2;
    }
    control = open(argv[1], O_RDWR);
    if (control < 0) {
        perror(argv[1]);
        return 1;
    }
    /* redis needs a moment to start; init starts us right after it. */
    for (int tries = 0; tries < 600; tries++) {
        redis = redis_connect(argv[2]);
        if (redis >= 0) {
            break;
        }
        usleep(100 * 1000);
    }
    if (redis < 0) {
        answer("error redis does not answer");
        return 1;
    }
    answer("ok ready=1");
    for (;;) {
        next_command(line, sizeof(line));
        execute(line);
    }
}
