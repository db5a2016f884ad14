# SPDX-License-Identifier: GPL-2.0-or-later
"""The processes of the demo and how to talk to them.

Channel    lines over a Unix socket, each wait with a limit
Qmp        QEMU's monitor
Agent      the agent in the guest (agent.c has its commands)
Machine    the QEMU process, with both of the above
Nbdkit     an NBD server over a Unix socket
HostMemory what a process takes from the host

All processes end with the demo, whatever ends it: close() in the normal case,
the parent-death signal otherwise. No wait is without a limit; what it waited
for is in the text of the Failure.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time

from image import Failure

MIB = 1 << 20

# QEMU run from its build directory does not look where the distribution keeps
# the firmware.
FIRMWARE = ['/usr/share/seabios', '/usr/share/qemu']


def die_with_parent():
    """For preexec_fn: prctl(PR_SET_PDEATHSIG, SIGKILL), see prctl(2)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def last_lines(path, number=15):
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            lines = file.read().replace('\r', '').splitlines()
    except OSError:
        return ''
    return ''.join(f'\n  | {line}' for line in lines[-number:])


# Longest wait for QEMU to quit, in seconds.
QUIT_LIMIT = 60

# Longest line of a log; a map may have megabytes.
LOG_LINE = 8192


class Channel:
    """Lines over a Unix socket. alive() raises if the peer is gone."""

    def __init__(self, path, alive, limit, what):
        self.alive = alive
        self.buffer = b''
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + limit
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                alive()
                if time.monotonic() > deadline:
                    raise Failure(f'{what} does not answer within '
                                  f'{limit:.0f} s') from None
                time.sleep(0.05)
        self.socket.settimeout(0.5)

    def lost(self, why):
        """The end of the peer says more than the end of the connection."""
        time.sleep(0.5)
        self.alive()
        raise Failure(f'connection lost: {why}')

    def write(self, line):
        try:
            self.socket.sendall(line.encode() + b'\n')
        except OSError as error:
            self.lost(error)

    def read(self, deadline, what):
        """One line; what is waited for is named when the time is over."""
        while b'\n' not in self.buffer:
            try:
                data = self.socket.recv(65536)
                if not data:
                    self.lost(f'closed while waiting for {what}')
                self.buffer += data
            except TimeoutError:
                self.alive()
                if time.monotonic() > deadline:
                    raise Failure(f'gave up waiting for {what}') from None
            except OSError as error:
                self.lost(error)
        line, self.buffer = self.buffer.split(b'\n', 1)
        return line.decode(errors='replace').strip()

    def close(self):
        self.socket.close()


class QmpError(Failure):
    """A command was answered with an error."""


class Qmp:
    """QEMU's monitor; all traffic goes to a log. Events are kept."""

    LIMIT = 120

    def __init__(self, path, alive, log):
        self.log = log
        self.events = []
        self.channel = Channel(path, alive, 30, "QEMU's monitor")
        self.receive('greeting', time.monotonic() + 30)
        self('qmp_capabilities')

    def receive(self, what, deadline):
        line = self.channel.read(deadline, f'the answer to {what}')
        self.log.write(f'<- {line[:LOG_LINE]}\n')
        return json.loads(line)

    def __call__(self, command, **arguments):
        """Execute; '_' in argument names stands for '-'."""
        arguments = {name.replace('_', '-'): value
                     for name, value in arguments.items()}
        line = json.dumps({'execute': command, 'arguments': arguments})
        self.log.write(f'-> {line}\n')
        self.channel.write(line)
        deadline = time.monotonic() + self.LIMIT
        while True:
            message = self.receive(command, deadline)
            if 'event' in message:
                self.events.append(message)
            elif 'error' in message:
                raise QmpError(f'{command}: {message["error"]["desc"]}')
            else:
                return message['return']

    def run_job(self, job, limit, progress):
        """Wait until a job has concluded; Failure with its error."""
        deadline = time.monotonic() + limit
        while True:
            info = next((entry for entry in self('query-jobs')
                         if entry['id'] == job), None)
            if info is None:
                raise Failure(f'job {job} has vanished')
            progress(info['current-progress'], info['total-progress'])
            if info['status'] == 'concluded':
                self('job-dismiss', id=job)
                if 'error' in info:
                    raise Failure(f'job {job}: {info["error"]}')
                return
            if time.monotonic() > deadline:
                raise Failure(f'job {job} did not end within {limit:.0f} s '
                              f'(status {info["status"]})')
            time.sleep(0.2)


class Agent:
    """The agent in the guest."""

    def __init__(self, path, alive):
        self.channel = Channel(path, alive, 30, "the guest's port")

    def answer(self, what, limit, progress=None):
        """The numbers of an "ok" line, by name.

        The limit counts from the last sign of life.
        """
        deadline = time.monotonic() + limit
        while True:
            line = self.channel.read(deadline, what)
            kind, _, rest = line.partition(' ')
            if kind == 'ok':
                return {name: int(value) for name, value in
                        (part.split('=') for part in rest.split())}
            if kind != 'progress':
                raise Failure(f'{what}: the agent in the guest says: {line}')
            deadline = time.monotonic() + limit
            if progress:
                progress(int(rest))

    def __call__(self, command, limit, progress=None):
        self.channel.write(command)
        return self.answer(f'"{command}" in the guest', limit, progress)


class HostMemory:
    """What a process takes from the host's memory, in bytes.

    Pages of a memfd count whether or not they are mapped at this moment: the
    resident set alone would fall as soon as page table entries are dropped,
    with nothing freed.

    anon, file, shmem   the parts of the resident set (proc(5), status)
    memfd               pages allocated in its memfds
    """

    def __init__(self, pid):
        fields = {}
        with open(f'/proc/{pid}/status', encoding='ascii') as file:
            for line in file:
                name, _, value = line.partition(':')
                if value.endswith(' kB\n'):
                    fields[name] = int(value.split()[0]) * 1024
        self.rss = fields['VmRSS']
        self.anon = fields['RssAnon']
        self.file = fields['RssFile']
        self.shmem = fields['RssShmem']
        self.memfd = self.allocated(pid)

    @staticmethod
    def allocated(pid):
        files = {}
        directory = f'/proc/{pid}/fd'
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            try:
                if os.readlink(path).startswith('/memfd:'):
                    status = os.stat(path)
                    files[status.st_ino] = status.st_blocks * 512
            except FileNotFoundError:
                pass
        return sum(files.values())

    @property
    def total(self):
        return self.anon + self.file + max(self.shmem, self.memfd)

    def __str__(self):
        return (f'{self.total / MIB:.0f} MiB (VmRSS {self.rss / MIB:.0f}: '
                f'anonymous {self.anon / MIB:.0f}, '
                f'file {self.file / MIB:.0f}, '
                f'mapped memfd {self.shmem / MIB:.0f}; '
                f'memfd in all {self.memfd / MIB:.0f})')


class Process:
    """A child that ends with us; its output goes to a log."""

    def __init__(self, name, command, log):
        self.name = name
        self.log = log
        with open(log, 'w', encoding='utf-8') as output:
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=output, preexec_fn=die_with_parent)
            except OSError as error:
                raise Failure(f'cannot start {command[0]}: '
                              f'{error.strerror}') from None
        self.pid = self.process.pid

    def alive(self):
        status = self.process.poll()
        if status is not None:
            how = f'signal {-status}' if status < 0 else f'status {status}'
            raise Failure(f'{self.name} ended with {how}'
                          + last_lines(self.log))

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Nbdkit(Process):
    """nbdkit, serving one file over a Unix socket."""

    def __init__(self, path, socket_path, log):
        super().__init__('nbdkit', ['nbdkit', '--foreground', '--unix',
                                    socket_path, 'file', path], log)
        deadline = time.monotonic() + 30
        while not os.path.exists(socket_path):
            self.alive()
            if time.monotonic() > deadline:
                raise Failure('nbdkit opens no socket')
            time.sleep(0.05)


class Machine(Process):
    """QEMU with a guest.

    directory   for the sockets; its path must be short
    results     for the logs: qemu.log, console.log, qmp.log
    """

    def __init__(self, qemu, arguments, directory, results):
        self.console = os.path.join(results, 'console.log')
        for path in self.console, os.path.join(results, 'qmp.log'):
            with open(path, 'wb'):
                pass
        monitor = os.path.join(directory, 'qmp')
        port = os.path.join(directory, 'agent')
        for path in monitor, port:
            if os.path.exists(path):
                os.unlink(path)
        firmware = [part for path in FIRMWARE if os.path.isdir(path)
                    for part in ('-L', path)]
        super().__init__('QEMU', [
            qemu, *firmware, '-nodefaults', '-no-user-config',
            '-display', 'none', '-no-reboot', *arguments,
            '-qmp', f'unix:{monitor},server=on,wait=off',
            '-chardev', f'file,id=console,path={self.console}',
            '-serial', 'chardev:console',
            '-device', 'virtio-serial-pci',
            '-chardev', f'socket,id=agent,path={port},server=on,wait=off',
            '-device', 'virtserialport,chardev=agent,name=qemu-rwp.demo',
        ], os.path.join(results, 'qemu.log'))
        self.qmp_log = None
        try:
            self.qmp_log = open(os.path.join(results, 'qmp.log'), 'w',
                                encoding='utf-8', buffering=1)
            self.qmp = Qmp(monitor, self.alive, self.qmp_log)
            self.agent = Agent(port, self.alive)
        except BaseException:
            self.close()
            raise

    def alive(self):
        try:
            super().alive()
        except Failure as failure:
            raise Failure(f'{failure}\nlast lines of the guest\'s console:'
                          + last_lines(self.console)) from None

    def memory(self):
        return HostMemory(self.pid)

    def quit(self):
        """End QEMU as a user would; not being able to is a Failure."""
        self.qmp('quit')
        try:
            status = self.process.wait(QUIT_LIMIT)
        except subprocess.TimeoutExpired:
            raise Failure(f'QEMU did not quit within {QUIT_LIMIT} s') from None
        if status:
            self.alive()

    def close(self):
        super().close()
        if self.qmp_log:
            self.qmp_log.close()
