#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 600
"""The host kernel swaps, while QEMU evicts the same memory.

usage: reclaim.py

The kernel takes page table entries away when it reclaims memory, and what they
said of a page is gone then. A page that was written after its content had been
taken for the store, and was swapped out after that, looks as if nobody had
touched it. It must stay all the same.

CPUs of the guest write to the pages that are being evicted, seldom enough that
most are swapped out before the next time. QEMU stays for a moment between
taking the content and removing the pages (RWP_INJECT=delay-stage).

Needs root, a memory cgroup, and zram. While it runs, there is swap for the whole
machine, and what other tests say of their memory need not be so any more: it is
skipped unless RWP_TEST_SWAP is set.
"""

import contextlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(os.path.dirname(HERE), 'bench'))
# pylint: disable=wrong-import-position
import peers                                                    # noqa: E402
from guestvm import (GuestVM, MIB, PAGE, SCALE, Tap,             # noqa: E402
                     have_backend, tracked_backends)
from windows import (PLACES, evict, idle, mismatch,              # noqa: E402
                     start_writers)

RAM = 32 * MIB
PAGES = 7168
JOBS = max(40 // SCALE, 5)


class Group(peers.MemoryGroup):
    """A group that a running process is put into"""

    def enter(self, pid):
        peers.write(os.path.join(self.path, 'cgroup.procs'), pid)

    def reclaim(self):
        """As much as the kernel can, or some of it"""
        for name, value in (('memory.force_empty', 0),
                            ('memory.reclaim', RAM)):
            path = os.path.join(self.path, name)
            if os.path.exists(path):
                # It could not reclaim as much
                with contextlib.suppress(OSError):
                    peers.write(path, value)
                return
        raise peers.Skip('the memory cgroup cannot be told to reclaim')


def swapped_out(group):
    """Pages of the group that are in swap"""
    stat = peers.read(os.path.join(group.path, 'memory.stat')).split()
    if 'swap' in stat:
        return int(stat[stat.index('swap') + 1]) // PAGE
    return int(peers.read(os.path.join(group.path,
                                       'memory.swap.current'))) // PAGE


def check(tap, backend):
    # Or else it is the checksum that notices, and the writers wait for good
    options = f'{backend},checksum=off'
    with peers.Zram(2 * RAM), Group() as group, \
            GuestVM(options, RAM, cpus=2,
                    env={'RWP_INJECT': 'delay-stage'}) as guest:
        group.enter(guest.vm.get_pid())
        start_writers(guest, PAGES)
        most = 0
        guest.meanwhile = group.reclaim
        for number in range(JOBS):
            evict(guest, PAGES)
            most = max(most, swapped_out(group))
            if mismatch(guest):
                break
        guest.meanwhile = lambda: None
        idle(guest)
        for cpu in range(len(PLACES)):
            guest.verify(cpu)
        found = mismatch(guest)
        tap.note(f'{number + 1} jobs, {most} pages in swap, '
                 f'{guest.info()["evict"]}')
        tap.check(not found, f'{backend}: nothing is lost', found or '')
        tap.check(most > 0, f'{backend}: memory was swapped out')


def main():
    reason = have_backend()
    if not os.environ.get('RWP_TEST_SWAP'):
        reason = 'it turns on swap; set RWP_TEST_SWAP=1 if nothing else runs'
    if reason:
        print(f'1..0 # SKIP {reason}')
        return 0
    tap = Tap()
    for backend in tracked_backends():
        try:
            tap.run(backend, check, tap, backend)
        except peers.Skip as skip:
            tap.skip(backend, str(skip))
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
