/*
 * NBD servers for tests
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * They serve a raw file over a Unix socket, and end with the test, whatever
 * ends it.
 */
#ifndef RWP_SERVER_H
#define RWP_SERVER_H

typedef struct RwpServer {
    GPid pid;
    char *socket;
} RwpServer;

typedef enum RwpServerType {
    RWP_SERVER_QEMU_NBD,
    RWP_SERVER_NBDKIT,
} RwpServerType;

/**
 * rwp_server_skip: skip the present test if there is no such server.
 *
 * Returns true if the test was marked as skipped.
 */
bool rwp_server_skip(RwpServerType type);

/**
 * rwp_server_start: serve the file @name, which must exist, in @dir.
 *
 * The socket is @dir/nbd.sock.  nbdkit answers all reads with EIO for as
 * long as there is a file @dir/fail.
 */
RwpServer *rwp_server_start(RwpServerType type, const char *dir,
                            const char *name);

/** rwp_server_stop: kill the server and remove its socket. */
void rwp_server_stop(RwpServer *server);

/** rwp_server_freeze: let the server answer nothing, for good. */
void rwp_server_freeze(RwpServer *server);

/** rwp_server_fail: let nbdkit fail, or not. */
void rwp_server_fail(const char *dir, bool fail);

#endif
