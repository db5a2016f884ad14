#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 900
"""Touches that hit the moments in which an eviction or a fetch is vulnerable.

usage: windows.py

QEMU is made to stay in one of these moments (RWP_INJECT=delay-..., see
system/rwp/inject.h) for much longer than all the rest takes, while two CPUs of
the guest write to the pages that are evicted. So nearly every touch of a page
on its way falls into that moment; that it did is seen by what QEMU counts.
Nothing may be lost.

And with the step left out that guards the moment, something must be: without
luck, because the moment is long.

The other half are fills of the kernel that fail with EAGAIN, every other one.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from guestvm import (GuestVM, MIB, MUTATIONS, PAGE, Tap,        # noqa: E402
                     have_backend, tracked_backends)

RAM = 16 * MIB
START = 2 * MIB
# One batch
PAGES = 512
# A CPU that is through before a batch is written leaves nothing to remove
MANY_PAGES = 2560
# Place in the page, of each CPU
PLACES = (0, 64)
DELAY_NS = 20000000
# How often to hit a window at least, and how many jobs that takes at most
TIMES = 10
MOST = 400

MOVE = 'memory-backend-rwp,tracker=none,backing=anonymous'


def delayed_fetches(info):
    """Fetches by touch that took as long as the delay."""
    return sum(row['count'] for row in info['fetch']['latency']
               if row['up-to-ns'] > DELAY_NS)


# The pager, the window, and how to see that it was hit
WINDOWS = (
    ('move', 'delay-claim', lambda info: info['evict']['pages']),
    ('move', 'delay-stage', lambda info: info['evict']['cancelled']),
    ('move', 'delay-fetch', delayed_fetches),
    ('punch', 'delay-claim', lambda info: info['evict']['cancelled']),
    ('punch', 'delay-stage', lambda info: info['evict']['cancelled']),
    # The host kernel takes away what page tables say of a touch
    ('punch', 'delay-stage,reclaim', lambda info: info['evict']['cancelled']),
    ('punch', 'delay-punch', lambda info: info['fetch']['fault']),
    ('punch', 'delay-wake', lambda info: info['fetch']['fault']),
    ('punch', 'delay-fetch', delayed_fetches),
    ('move', 'eagain', lambda info: info['fetch']['fault']),
    ('punch', 'eagain', lambda info: info['fetch']['fault']),
)

# The others are of an eviction
FETCH = ('delay-fetch', 'eagain')


def pages_for(steps):
    return MANY_PAGES if 'delay-punch' in steps or 'delay-wake' in steps \
        else PAGES


def evict(guest, pages=PAGES):
    error = guest.run_job('rwp-evict', target='store0', ranges=[
        {'offset': START, 'length': pages * PAGE}])
    assert error is None, error


def start_writers(guest, pages):
    for cpu, place in enumerate(PLACES):
        guest.region(cpu, START, pages, offset=place)
        guest.mode(cpu, 'COUNT')


def idle(guest):
    for cpu in range(len(PLACES)):
        guest.mode(cpu, 'IDLE')


def start_fetching(guest, pages):
    """The writers begin with pages that are all gone."""
    start_writers(guest, pages)
    for cpu in range(len(PLACES)):
        guest.wait_field(cpu, 'ROUNDS', lambda value: value > 0)
    idle(guest)
    evict(guest, pages)
    for cpu in range(len(PLACES)):
        guest.mode(cpu, 'COUNT')


def mismatch(guest):
    return guest.mismatch(0) or guest.mismatch(1)


def verify(guest, pages):
    """Compare all pages from inside, fetched by touch and by a job."""
    idle(guest)
    for by_job in (False, True):
        evict(guest, pages)
        if by_job:
            error = guest.run_job('rwp-fetch')
            assert error is None, error
        for cpu in range(len(PLACES)):
            guest.verify(cpu)
    return mismatch(guest)


def check_window(tap, backend, pager, window, hits):
    name = f'{pager} {window}'
    pages = pages_for(window)
    with GuestVM(backend, RAM, cpus=2, env={'RWP_INJECT': window}) as guest:
        start = start_fetching if window in FETCH else start_writers
        start(guest, pages)
        for number in range(MOST):
            evict(guest, pages)
            info = guest.info()
            batches = (number + 1) * pages // PAGES
            if mismatch(guest) or min(batches, hits(info)) >= TIMES:
                break
        found = mismatch(guest) or verify(guest, pages)
        tap.check(not found, f'{name}: nothing is lost', found or '')
        tap.check(hits(info) >= TIMES, f'{name}: the window was hit',
                  f'{hits(info)} times in {number + 1} jobs')


def check_broken(tap, backend, steps):
    name = f'{steps} is caught'
    pages = pages_for(steps)
    # Or else it is the checksum that notices, and the writers wait for good
    backend += ',checksum=off'
    with GuestVM(backend, RAM, cpus=2, env={'RWP_INJECT': steps}) as guest:
        start_writers(guest, pages)
        for number in range(MOST):
            evict(guest, pages)
            if mismatch(guest):
                break
        tap.check(mismatch(guest) is not None, name,
                  f'{mismatch(guest)}, after {number + 1} jobs')


def check_trusted(tap, backend, pager):
    """A fill that failed taken for one that was done: pages are zeros."""
    with GuestVM(backend, RAM,
                 env={'RWP_INJECT': 'eagain,trust-eagain'}) as guest:
        guest.region(0, START, PAGES)
        guest.mode(0, 'COUNT')
        guest.wait_field(0, 'ROUNDS', lambda value: value > 1)
        guest.mode(0, 'IDLE')
        evict(guest)
        # By a job: who touched a page would wait for ever. Of two fills that
        # follow each other one fails.
        half = PAGES * PAGE // 2
        for offset in (START, START + half):
            error = guest.run_job('rwp-fetch', ranges=[
                {'offset': offset, 'length': half}])
            assert error is None, error
        try:
            guest.verify(0)
        except AssertionError:
            pass
        tap.check(guest.mismatch(0) is not None,
                  f'{pager} eagain,trust-eagain is caught',
                  guest.mismatch(0) or 'not noticed')


def main():
    reason = have_backend()
    if reason:
        print(f'1..0 # SKIP {reason}')
        return 0
    tap = Tap()
    backends = {'punch': 'memory-backend-rwp,backing=memfd', 'move': MOVE}
    if len(tracked_backends()) > 1:
        backends['move'] = 'memory-backend-rwp'
    for pager, window, hits in WINDOWS:
        tap.run(f'{pager} {window}', check_window, tap, backends[pager],
                pager, window, hits)
    for steps in map(','.join, MUTATIONS.items()):
        tap.run(f'{steps} is caught', check_broken, tap, backends['punch'],
                steps)
    for pager in ('move', 'punch'):
        tap.run(f'{pager} eagain,trust-eagain', check_trusted, tap,
                backends[pager], pager)
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
