# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that needs more memory than it gets, on each of the peers.

System       one way to run a guest: it can evict the guest's memory, and
             keep the guest within a limit while it runs
accesses     which pages a pattern accesses

All of them run the same guest with the same lists of accesses.
"""

import array
import contextlib
import ctypes
import itertools
import json
import mmap
import os
import random
import time

import peers
from machine import BASE, FILL, LIST_WRITE, PAGE, Machine

PATTERNS = ('uniform', 'sequential', 'zipf')

# Exponent of the Zipf distribution; 1 is the classical one
ZIPF = 1.0

# Evict somewhat more than must be, so as not to be at it all the time
SLACK = 1 / 16


def accesses(pattern, pages, length, write, rng):
    """An array for Machine.replay()"""
    if pattern == 'uniform':
        numbers = (rng.randrange(pages) for _ in range(length))
    elif pattern == 'sequential':
        start = rng.randrange(pages)
        numbers = ((start + i) % pages for i in range(length))
    else:
        weights = itertools.accumulate(1 / (i + 1) ** ZIPF
                                       for i in range(pages))
        order = list(range(pages))
        random.Random(pages).shuffle(order)     # the same hot pages always
        numbers = (order[i] for i in rng.choices(
            range(pages), cum_weights=list(weights), k=length))
    flag = LIST_WRITE if write else 0
    return array.array('I', (number | flag for number in numbers))


class System:
    """A context manager; entering it can raise peers.Skip"""

    backend = None

    def __init__(self, size, local, scratch):
        """@size: memory of the guest; @local: how much of it may be in
        memory while it runs"""
        self.size = size
        self.local = local
        self.scratch = scratch
        self.stack = contextlib.ExitStack()
        self.machine = None
        self.args = []
        self.wrapper = []

    def __enter__(self):
        try:
            self.prepare()
            self.machine = self.stack.enter_context(Machine(
                self.backend, self.size, self.args, self.wrapper))
            self.machine.guest(FILL, self.size, 1)
            self.start()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *exc):
        self.stack.close()

    @property
    def pid(self):
        return self.machine.vm.get_pid()

    def prepare(self):
        """Before QEMU starts"""

    def start(self):
        """All memory of the guest is in use"""

    def evict(self, size):
        """Move the first @size bytes away, while the guest is idle"""
        raise NotImplementedError

    def limit(self):
        """From now on the guest has no more than @local"""

    def keep(self):
        """Called often while the guest runs"""


class Ours(System):
    """memory-backend-rwp, kept within its limit by this script"""

    def prepare(self):
        self.backend = 'memory-backend-rwp'
        self.store = os.path.join(self.scratch, 'overcommit')
        with open(self.store, 'wb') as file:
            file.truncate(BASE + self.size)
        self.stack.callback(os.unlink, self.store)
        self.args = ['-blockdev', json.dumps(
            {'driver': 'file', 'node-name': 'store', 'filename': self.store,
             'aio': 'io_uring', 'cache': {'direct': self.direct}})]

    direct = False

    def evict(self, size):
        self.machine.run_job('rwp-evict', size, target='store')

    def limit(self):
        self.most = self.local + self._resident() - self.size
        self.machine.qmp('rwp-track-start', id='mem0', interval=100)
        time.sleep(0.3)
        self.keep()

    def _resident(self):
        return self.machine.info()['resident']

    def keep(self):
        excess = self._resident() - self.most
        if excess > 0:
            self.machine.evict_bytes(
                int(excess + self.local * SLACK) // PAGE * PAGE, 'store')


class OursDirect(Ours):
    """The same past the page cache"""
    direct = True


class Swap(System):
    """memory-backend-ram in a memory cgroup, and swap"""

    backend = 'memory-backend-ram'

    def device(self):
        return peers.SwapFile(self.scratch, BASE + self.size * 2)

    def prepare(self):
        self.group = self.stack.enter_context(peers.MemoryGroup())
        self.stack.enter_context(self.device())
        self.wrapper = self.group.wrapper

    def evict(self, size):
        address = self.machine.memory()
        for _ in range(10):
            peers.pageout(self.pid, address, size)
            if peers.swapped(self.pid) >= size * 0.98:
                return
        raise peers.Skip('the kernel does not swap the memory out')

    def limit(self):
        # Whatever else QEMU needs is not meant to go away. Some more, or the
        # kernel takes the group to be out of memory now and then.
        self.group.limit(int(self.group.usage() - self.size +
                             peers.swapped(self.pid) +
                             self.local * (1 + SLACK)))


class SwapZram(Swap):
    """The same with zram"""

    def device(self):
        return peers.Zram(BASE + self.size * 2)


class File(System):
    """memory-backend-file, paged out with MADV_PAGEOUT"""

    def prepare(self):
        peers.need_root()
        self.path = os.path.join(self.scratch, 'memory')
        self.backend = f'memory-backend-file,share=on,mem-path={self.path}'

    def start(self):
        self.stack.callback(os.unlink, self.path)
        self.fd = os.open(self.path, os.O_RDWR)
        self.stack.callback(os.close, self.fd)
        # Only to ask which of its pages are in memory
        self.map = mmap.mmap(self.fd, self.size, offset=BASE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def _resident(self):
        vector = ctypes.create_string_buffer(self.size // PAGE)
        peers.LIBC.mincore(ctypes.c_void_p(self.address),
                           ctypes.c_size_t(self.size), vector)
        return (self.size // PAGE - vector.raw.count(0)) * PAGE

    def _page_out(self, offset, size):
        # Pages that are dirty stay in the page cache, but are not mapped
        # any more, so that MADV_PAGEOUT does not see them again
        os.fdatasync(self.fd)
        peers.pageout(self.pid, self.machine.memory() + offset, size)
        os.fdatasync(self.fd)
        os.posix_fadvise(self.fd, BASE + offset, size,
                         os.POSIX_FADV_DONTNEED)

    def evict(self, size):
        for _ in range(5):
            self._page_out(0, size)
            if self._resident() <= self.size - size * 0.98:
                return
        raise peers.Skip('the kernel does not page the memory out')

    def limit(self):
        # Seen with a cgroup, and with a loop that pages out: minutes for
        # what takes the others a second
        raise peers.Skip('a limit for the page cache of a file that is '
                         'written to makes the guest stand still')


# The peer that has goals
SWAP = 'swap on a file'

# What runs beside each other, and what the peer is called. The swaps cannot
# be on at the same time.
GROUPS = (
    ((Ours, OursDirect), Swap, SWAP),
    ((Ours,), SwapZram, 'swap on zram'),
    ((Ours,), File, 'memory-backend-file, MADV_PAGEOUT'),
)

# Memory of the guest, what it gets, what is touched page by page, and how
# many accesses a turn has
SIZE = 256 << 20
LOCAL = SIZE // 4
TOUCH_BYTES = 16 << 20
LENGTH = 16384


def touches(bench, systems, names, peer_name):
    """Touch evicted pages in random order, one at a time"""
    seed = bench.seed()

    def measure(system):
        system.evict(TOUCH_BYTES)
        away = system.machine.touch(TOUCH_BYTES, seed)
        return bench.summary(away, system.machine.touch(TOUCH_BYTES, seed))

    *ours, peer = bench.turns(f'touch, {peer_name}', *(
        lambda system=system: measure(system) for system in systems))
    for name, values in zip(names, ours):
        for key in (0.5, 0.99, 'mean'):
            text = key if key == 'mean' else f'p{key * 100:.0f}'
            bench.report.add(
                f'touch of an evicted page, {text}, {name}', 'us',
                [value[key] / 1e3 for value in values], peer_name,
                [value[key] / 1e3 for value in peer],
                goal=0.8 if key == 0.5 and peer_name == SWAP else None)


def patterns(bench, systems, names, peer_name):
    """Run with a quarter of the memory"""
    for system in systems:
        system.limit()
    for pattern, write in itertools.product(PATTERNS, (False, True)):
        title = f'{pattern} {"writes" if write else "reads"}'
        rows = {name: [0] * 32 for name in (*names, peer_name)}

        def measure(system, name, pattern=pattern, write=write, rows=rows):
            ticks, histogram = system.machine.replay(accesses(
                pattern, SIZE // PAGE, LENGTH, write, bench.random),
                system.keep)
            rows[name] = [a + b for a, b in zip(rows[name], histogram)]
            return bench.ns(ticks) / LENGTH / 1e3

        *ours, peer = bench.turns(f'4x overcommit, {title}, {peer_name}', *(
            lambda system=system, name=name: measure(system, name)
            for system, name in zip(systems, (*names, peer_name))))
        for name, values in zip(names, ours):
            goal = 0.8 if pattern == 'uniform' and \
                peer_name == SWAP else None
            bench.report.add(f'4x overcommit, {title}, mean, {name}', 'us',
                             values, peer_name, peer, goal=goal)
        bench.report.about.setdefault('overcommit_log2_ticks', {})[
            f'{title}, {peer_name}'] = rows


def measure_all(bench):
    """The part 'overcommit' of the run"""
    bench.report.about['overcommit'] = {
        'size': SIZE, 'local': LOCAL, 'accesses': LENGTH, 'zipf': ZIPF,
        'ticks_per_second': bench.ticks}
    for ours, peer, peer_name in GROUPS:
        names = ['O_DIRECT' if system.direct else 'page cache'
                 for system in ours]
        try:
            with contextlib.ExitStack() as stack:
                systems = []
                for system in (peer, *ours):
                    directory = os.path.join(bench.scratch, system.__name__)
                    os.makedirs(directory, exist_ok=True)
                    systems.append(stack.enter_context(
                        system(SIZE, LOCAL, directory)))
                systems.append(systems.pop(0))
                touches(bench, systems, names, peer_name)
                patterns(bench, systems, names, peer_name)
        except peers.Skip as reason:
            bench.skip(f'overcommit, {peer_name}', reason)
        except (ConnectionError, EOFError) as error:
            bench.skip(f'overcommit, {peer_name}', 'QEMU ended, maybe because '
                       f'its memory cgroup was out of memory: {error}')
