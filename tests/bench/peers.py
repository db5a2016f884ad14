# SPDX-License-Identifier: GPL-2.0-or-later
"""What else moves guest memory away: swap, zram, page cache.

Skip         why a peer cannot be measured on this machine
MemoryGroup  a memory cgroup, version 1 or 2
SwapFile     swap on a file of some filesystem
Zram         swap on a compressed RAM disk
pageout      have the kernel reclaim a part of a process

All of it needs root. MemoryGroup, SwapFile and Zram are context managers:
whatever happens, they leave the machine as it was. While one of the swaps is
on it has the highest priority, so that nothing goes elsewhere.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import time

# mman-common.h, asm-generic/unistd.h: the C library may be too old for them
MADV_PAGEOUT = 21
NR_PROCESS_MADVISE = 440

SWAP_PRIORITY = 32767

LIBC = ctypes.CDLL(None, use_errno=True)

# Without transparent huge pages (prctl(2), PR_SET_THP_DISABLE): of a huge
# page that is used now and then, no part can be swapped out
ENTER_GROUP = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
with open(os.path.join(sys.argv[1], 'cgroup.procs'), 'w') as file:
    file.write(str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Skip(Exception):
    """A peer that cannot be measured; the text says why."""


def need_root():
    if os.geteuid() != 0:
        raise Skip('needs root')


def write(path, text):
    with open(path, 'w', encoding='ascii') as file:
        file.write(str(text))


def read(path):
    with open(path, encoding='ascii') as file:
        return file.read()


def run(*command):
    """Its output, or Skip with what it complains of"""
    try:
        return subprocess.run(command, check=True, text=True, timeout=120,
                              capture_output=True).stdout
    except FileNotFoundError as error:
        raise Skip(f'there is no {command[0]}') from error
    except subprocess.CalledProcessError as error:
        raise Skip(f'{command[0]}: {error.stderr.strip()}') from error


class MemoryGroup:
    """Processes that start with @wrapper in front are in it."""

    def __init__(self):
        need_root()
        name = f'rwp-bench-{os.getpid()}'
        if os.path.isdir('/sys/fs/cgroup/memory'):
            root, self.limit_file, self.usage_file = (
                '/sys/fs/cgroup/memory', 'memory.limit_in_bytes',
                'memory.usage_in_bytes')
        elif os.path.exists('/sys/fs/cgroup/cgroup.subtree_control'):
            root, self.limit_file, self.usage_file = (
                '/sys/fs/cgroup', 'memory.max', 'memory.current')
        else:
            raise Skip('there is no memory cgroup')
        self.path = os.path.join(root, name)
        try:
            os.mkdir(self.path)
        except OSError as error:
            raise Skip(f'memory cgroup: {error.strerror}') from error
        if not os.path.exists(os.path.join(self.path, self.limit_file)):
            self.close()
            raise Skip('the memory controller is not enabled in '
                       + os.path.join(root, 'cgroup.subtree_control'))
        self.wrapper = [sys.executable, '-c', ENTER_GROUP, self.path]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        for _ in range(50):
            try:
                os.rmdir(self.path)
                return
            except OSError:
                time.sleep(0.1)
        print(f'cannot remove {self.path}')

    def usage(self):
        return int(read(os.path.join(self.path, self.usage_file)))

    def limit(self, size):
        """The kernel reclaims until it fits, which can take several calls"""
        for _ in range(50):
            with contextlib.suppress(OSError):
                write(os.path.join(self.path, self.limit_file), size)
            if self.usage() <= size * 1.01:
                return
            time.sleep(0.1)
        raise Skip(f'the memory cgroup does not shrink to {size} bytes')


class SwapFile:
    """Swap on a new file in @directory"""

    def __init__(self, directory, size):
        need_root()
        self.path = os.path.join(directory, 'swap')
        self.size = size

    def __enter__(self):
        try:
            # Without holes, or swapon refuses it
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.size)
            finally:
                os.close(fd)
            run('mkswap', self.path)
            run('swapon', '-p', str(SWAP_PRIORITY), self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        if self.path in read('/proc/swaps'):
            subprocess.run(['swapoff', self.path], check=False, timeout=600)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class Zram:
    """Swap on a device of our own"""

    def __init__(self, size):
        need_root()
        self.size = size
        self.number = None

    def __enter__(self):
        try:
            try:
                self.number = int(read('/sys/class/zram-control/hot_add'))
            except OSError as error:
                raise Skip('the kernel has no zram') from error
            write(f'/sys/block/zram{self.number}/disksize', self.size)
            run('mkswap', self.device)
            run('swapon', '-p', str(SWAP_PRIORITY), self.device)
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def device(self):
        return f'/dev/zram{self.number}'

    def __exit__(self, *exc):
        if self.number is None:
            return
        if self.device + ' ' in read('/proc/swaps'):
            subprocess.run(['swapoff', self.device], check=False, timeout=600)
        with contextlib.suppress(OSError):
            write(f'/sys/block/zram{self.number}/reset', 1)
            write('/sys/class/zram-control/hot_remove', self.number)


def pageout(pid, address, size):
    """process_madvise(2); what cannot be reclaimed stays"""

    class Vector(ctypes.Structure):
        _fields_ = [('base', ctypes.c_uint64), ('length', ctypes.c_uint64)]

    fd = os.pidfd_open(pid)
    try:
        while size:
            vector = Vector(address, size)
            done = LIBC.syscall(NR_PROCESS_MADVISE, fd, ctypes.byref(vector),
                                ctypes.c_ulong(1), MADV_PAGEOUT,
                                ctypes.c_ulong(0))
            if done <= 0:
                raise Skip('process_madvise: ' +
                           os.strerror(ctypes.get_errno()))
            address += done
            size -= done
    finally:
        os.close(fd)


def swapped(pid):
    """Bytes of the process that are in swap: proc(5), VmSwap"""
    for line in read(f'/proc/{pid}/status').splitlines():
        if line.startswith('VmSwap:'):
            return int(line.split()[1]) * 1024
    return 0
