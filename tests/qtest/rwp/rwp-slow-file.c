/*
 * A file whose reads can be held back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See rwp-slow-file.h.  The protocol is that of fuse(4) and linux/fuse.h,
 * and no more of it than is needed for one file that is only read.
 *
 * Locking: @lock guards all that is below it; the rest is set once.
 */

#include "qemu/osdep.h"
#include <linux/fuse.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include "rwp-helpers.h"
#include "rwp-slow-file.h"

#define NODE 2                  /* FUSE_ROOT_ID is 1 */
#define NAME "slow"

/* A request has at most that much, since nothing is written */
#define REQUEST_BYTES (128 * KiB)

struct RwpSlowFile {
    char *dir;
    int fd;
    uint8_t *content;
    GThread *thread;

    GMutex lock;
    GCond changed;
    bool hold;
    bool held;                  /* there is a request */
    uint64_t held_unique;
    struct fuse_read_in held_read;
};

bool rwp_slow_file_skip(void)
{
    static const char *reason;
    static bool known;

    if (!known) {
        known = true;
        if (access("/dev/fuse", R_OK | W_OK) < 0) {
            reason = "no access to /dev/fuse";
        } else if (unshare(CLONE_NEWNS) < 0 ||
                   mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
            reason = "no privilege to mount a file system";
        }
    }
    if (reason) {
        g_test_skip(reason);
    }
    return reason != NULL;
}

static void answer(RwpSlowFile *file, uint64_t unique, int err,
                   const void *data, size_t size)
{
    struct fuse_out_header header = {
        .len = sizeof(header) + size,
        .error = -err,
        .unique = unique,
    };
    struct iovec iov[] = {
        { .iov_base = &header, .iov_len = sizeof(header) },
        { .iov_base = (void *)data, .iov_len = size },
    };

    /* ENOENT: who asked was interrupted, and does not wait any more */
    if (writev(file->fd, iov, size ? 2 : 1) < 0) {
        g_assert_cmpint(errno, ==, ENOENT);
    }
}

static void answer_read(RwpSlowFile *file, uint64_t unique,
                        const struct fuse_read_in *read)
{
    uint64_t offset = MIN(read->offset, RWP_SLOW_FILE_SIZE);

    answer(file, unique, 0, file->content + offset,
           MIN(read->size, RWP_SLOW_FILE_SIZE - offset));
}

static struct fuse_attr attributes(uint64_t node)
{
    return (struct fuse_attr) {
        .ino = node,
        .mode = node == NODE ? S_IFREG | 0600 : S_IFDIR | 0700,
        .nlink = 1,
        .size = node == NODE ? RWP_SLOW_FILE_SIZE : 0,
        .blocks = RWP_SLOW_FILE_SIZE / 512,
        .blksize = 4096,
    };
}

static void handle_read(RwpSlowFile *file, uint64_t unique,
                        const struct fuse_read_in *read)
{
    bool hold;

    g_mutex_lock(&file->lock);
    hold = file->hold && read->offset;
    if (hold) {
        g_assert_false(file->held);
        file->held = true;
        file->held_unique = unique;
        file->held_read = *read;
        g_cond_broadcast(&file->changed);
    }
    g_mutex_unlock(&file->lock);
    if (!hold) {
        answer_read(file, unique, read);
    }
}

static void handle(RwpSlowFile *file, const struct fuse_in_header *in,
                   const void *arg)
{
    switch (in->opcode) {
    case FUSE_INIT: {
        struct fuse_init_out out = {
            .major = FUSE_KERNEL_VERSION,
            .minor = FUSE_KERNEL_MINOR_VERSION,
            .max_write = REQUEST_BYTES / 2,
        };

        answer(file, in->unique, 0, &out, sizeof(out));
        break;
    }
    case FUSE_LOOKUP: {
        struct fuse_entry_out out = {
            .nodeid = NODE,
            .attr = attributes(NODE),
        };

        if (g_str_equal(arg, NAME)) {
            answer(file, in->unique, 0, &out, sizeof(out));
        } else {
            answer(file, in->unique, ENOENT, NULL, 0);
        }
        break;
    }
    case FUSE_GETATTR: {
        struct fuse_attr_out out = { .attr = attributes(in->nodeid) };

        answer(file, in->unique, 0, &out, sizeof(out));
        break;
    }
    case FUSE_OPEN: {
        struct fuse_open_out out = { .open_flags = FOPEN_DIRECT_IO };

        answer(file, in->unique, 0, &out, sizeof(out));
        break;
    }
    case FUSE_READ:
        handle_read(file, in->unique, arg);
        break;
    case FUSE_FLUSH:
    case FUSE_FSYNC:
    case FUSE_RELEASE:
        answer(file, in->unique, 0, NULL, 0);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        /* Have no answer */
        break;
    default:
        answer(file, in->unique, ENOSYS, NULL, 0);
    }
}

static void *serve(void *opaque)
{
    RwpSlowFile *file = opaque;
    g_autofree uint8_t *request = g_malloc(REQUEST_BYTES);

    for (;;) {
        ssize_t len = read(file->fd, request, REQUEST_BYTES);

        if (len < 0 && errno == ENODEV) {
            /* Unmounted */
            return NULL;
        }
        if (len >= (ssize_t)sizeof(struct fuse_in_header)) {
            handle(file, (void *)request,
                   request + sizeof(struct fuse_in_header));
        }
    }
}

RwpSlowFile *rwp_slow_file_new(const char *dir, uint64_t seed)
{
    RwpSlowFile *file = g_new0(RwpSlowFile, 1);
    g_autofree char *options = NULL;

    file->dir = g_strdup(dir);
    file->fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    g_assert_cmpint(file->fd, >=, 0);
    file->content = g_malloc(RWP_SLOW_FILE_SIZE);
    rwp_pattern(file->content, 0, RWP_SLOW_FILE_SIZE, seed);
    g_mutex_init(&file->lock);
    g_cond_init(&file->changed);
    options = g_strdup_printf("fd=%d,rootmode=40000,user_id=%d,group_id=%d",
                              file->fd, getuid(), getgid());
    g_assert_cmpint(mount("rwp", dir, "fuse", MS_NOSUID | MS_NODEV, options),
                    ==, 0);
    file->thread = g_thread_new("slow-file", serve, file);
    return file;
}

void rwp_slow_file_hold(RwpSlowFile *file)
{
    g_mutex_lock(&file->lock);
    file->hold = true;
    g_mutex_unlock(&file->lock);
}

void rwp_slow_file_await(RwpSlowFile *file)
{
    g_mutex_lock(&file->lock);
    while (!file->held) {
        g_cond_wait(&file->changed, &file->lock);
    }
    g_mutex_unlock(&file->lock);
}

void rwp_slow_file_release(RwpSlowFile *file)
{
    g_mutex_lock(&file->lock);
    g_assert_true(file->held);
    file->hold = file->held = false;
    answer_read(file, file->held_unique, &file->held_read);
    g_mutex_unlock(&file->lock);
}

void rwp_slow_file_free(RwpSlowFile *file)
{
    g_assert_cmpint(umount2(file->dir, 0), ==, 0);
    g_thread_join(file->thread);
    close(file->fd);
    g_mutex_clear(&file->lock);
    g_cond_clear(&file->changed);
    g_free(file->content);
    g_free(file->dir);
    g_free(file);
}
