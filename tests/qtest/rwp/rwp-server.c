/*
 * NBD servers for tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * See rwp-server.h.
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include <sys/prctl.h>
#include <sys/un.h>
#include "rwp-server.h"

#define POLL_US 10000

/* The program, or NULL */
static char *find_program(RwpServerType type)
{
    const char *qemu_img = getenv("QTEST_QEMU_IMG");
    g_autofree char *dir = NULL;
    g_autofree char *path = NULL;

    if (type == RWP_SERVER_NBDKIT) {
        return g_find_program_in_path("nbdkit");
    }
    if (!qemu_img) {
        return NULL;
    }
    dir = g_path_get_dirname(qemu_img);
    path = g_build_filename(dir, "qemu-nbd", NULL);
    return g_file_test(path, G_FILE_TEST_IS_EXECUTABLE) ?
           g_steal_pointer(&path) : NULL;
}

bool rwp_server_skip(RwpServerType type)
{
    g_autofree char *program = find_program(type);

    if (!program) {
        g_test_skip(type == RWP_SERVER_NBDKIT ? "nbdkit is not installed" :
                    "qemu-nbd was not built (see QTEST_QEMU_IMG)");
    }
    return program == NULL;
}

static void end_with_parent(gpointer opaque)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void await_socket(RwpServer *server)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    pstrcpy(address.sun_path, sizeof(address.sun_path), server->socket);
    for (;;) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        int ret = connect(fd, (struct sockaddr *)&address, sizeof(address));

        close(fd);
        if (ret == 0) {
            return;
        }
        g_assert_cmpint(waitpid(server->pid, NULL, WNOHANG), ==, 0);
        g_usleep(POLL_US);
    }
}

RwpServer *rwp_server_start(RwpServerType type, const char *dir,
                            const char *name)
{
    RwpServer *server = g_new0(RwpServer, 1);
    g_autofree char *program = find_program(type);
    g_autofree char *file = g_build_filename(dir, name, NULL);
    g_autofree char *fail = g_strdup_printf("error-pread-file=%s/fail", dir);
    const char *nbdkit[] = {
        program, "-f", "-U", NULL, "--filter=error", "file", file,
        "error-pread=EIO", "error-pread-rate=100%", fail, NULL,
    };
    const char *qemu_nbd[] = {
        program, "-t", "-e", "0", "-f", "raw", "-k", NULL, file, NULL,
    };
    GSpawnFlags flags = G_SPAWN_DO_NOT_REAP_CHILD |
                        /* It says of each error that it makes one */
                        (getenv("QTEST_LOG") ? 0 :
                         G_SPAWN_STDERR_TO_DEV_NULL);
    GError *err = NULL;

    server->socket = g_build_filename(dir, "nbd.sock", NULL);
    nbdkit[3] = server->socket;
    qemu_nbd[7] = server->socket;
    g_spawn_async(NULL,
                  (char **)(type == RWP_SERVER_NBDKIT ? nbdkit : qemu_nbd),
                  NULL, flags, end_with_parent, NULL,
                  &server->pid, &err);
    g_assert_no_error(err);
    await_socket(server);
    return server;
}

void rwp_server_stop(RwpServer *server)
{
    kill(server->pid, SIGKILL);
    g_assert_cmpint(waitpid(server->pid, NULL, 0), ==, server->pid);
    g_spawn_close_pid(server->pid);
    unlink(server->socket);
    g_free(server->socket);
    g_free(server);
}

void rwp_server_freeze(RwpServer *server)
{
    g_assert_cmpint(kill(server->pid, SIGSTOP), ==, 0);
}

void rwp_server_fail(const char *dir, bool fail)
{
    g_autofree char *path = g_build_filename(dir, "fail", NULL);

    if (fail) {
        g_assert(g_file_set_contents(path, "", 0, NULL));
    } else {
        g_assert_cmpint(unlink(path), ==, 0);
    }
}
