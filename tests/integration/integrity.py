#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 1800
"""Is a write of the guest ever lost while its pages are evicted and fetched?

usage: integrity.py [--duration=SECONDS] [--evictions=PAGES] [--seed=NUMBER]

Two CPUs of a guest go through their pages for ever: compare the content of a
page with what they wrote there the last time, write something new. Half of
the pages are shared by both, at different places in the page. QEMU's main
loop does the same with pages of its own. Meanwhile jobs run back to back:
eviction by ranges, by age and by amount, some of them cancelled, and fetches.
At the end each page is compared from inside the guest, twice: fetched by the
guest's touch, and fetched by a job.

A run lasts for --duration seconds (60), and on until --evictions pages were
evicted (100000) and enough evictions were given up because the guest touched
the page. It fails if these numbers stand still.

A test of this kind must be able to fail. So it is repeated with QEMU made to
leave out one of the steps that protect a page that is written to while it is
evicted (system/rwp/inject.h); then the guest has to find lost writes.
"""

import argparse
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from guestvm import (GuestVM, LIMIT, MIB, MUTATIONS, PAGE,   # noqa: E402
                     SCALE, Tap, QMPError, have_backend, tracked_backends)


def regions(half):
    """Of each CPU: first byte, pages, place in the page."""
    return ((1 * MIB, 2 * half // PAGE, 0),
            (1 * MIB + half, 2 * half // PAGE, 64))


HALF = 16 * MIB // SCALE
REGIONS = regions(HALF)
# Not scaled: the CPUs must not come by again before anything is evicted
BROKEN_REGIONS = regions(16 * MIB)
BROKEN_RAM = 64 * MIB
# Of the main loop
OWN_START = 2 * MIB + 3 * HALF
OWN_PAGES = 256
RAM = max(64 * MIB // SCALE, OWN_START + 2 * MIB)
INTERVAL = 20

# One in so many evictions has to be given up for a touch
PER_CANCELLED = 50

# How many evictions a broken step may stay unnoticed, in those of a run
PATIENCE = 5


class OwnPages:
    """Pages that the main loop writes to."""

    def __init__(self, guest, rng):
        self.guest = guest
        self.rng = rng
        self.values = [0] * OWN_PAGES
        self.wrong = None

    def check(self, page):
        address = OWN_START + page * PAGE
        found = int(self.guest.command(f'readl 0x{address:x}'), 0)
        if found != self.values[page] and not self.wrong:
            self.wrong = (f'main loop, address 0x{address:x}: {found} '
                          f'instead of {self.values[page]}')

    def touch_some(self):
        for _ in range(4):
            page = self.rng.randrange(OWN_PAGES)
            self.check(page)
            self.values[page] += 1
            self.guest.command(f'writel 0x{OWN_START + page * PAGE:x} '
                               f'0x{self.values[page]:x}')

    def check_all(self):
        for page in range(OWN_PAGES):
            self.check(page)


class Load:
    """The jobs that run while the guest writes."""

    def __init__(self, guest, rng, tracked):
        self.guest = guest
        self.rng = rng
        self.tracked = tracked

    def ranges(self):
        """A few ranges that may overlap."""
        ranges = []
        for _ in range(self.rng.randint(1, 4)):
            first = self.rng.randrange(RAM // PAGE)
            pages = min(self.rng.randint(1, 4096), RAM // PAGE - first)
            ranges.append({'offset': first * PAGE, 'length': pages * PAGE})
        return ranges

    def everything(self):
        return [{'offset': 0, 'length': RAM}]

    def cancelled_job(self):
        """A job that is cancelled somewhere on its way."""
        guest = self.guest
        guest.qmp('rwp-evict', job_id='job1', id='mem0', target='store0',
                  ranges=self.everything(), speed=RAM)
        time.sleep(self.rng.random() / 20)
        if guest.job('job1')['status'] != 'concluded':
            try:
                guest.qmp('job-cancel', id='job1')
            except QMPError:
                # It concluded just now
                pass
        while guest.job('job1')['status'] != 'concluded':
            time.sleep(0.002)
        guest.qmp('job-dismiss', id='job1')

    def one_job(self):
        guest = self.guest
        choice = self.rng.random()
        error = None
        if choice < 0.05:
            self.cancelled_job()
        elif choice < 0.10:
            error = guest.run_job('rwp-fetch')
        elif choice < 0.15:
            error = guest.run_job('rwp-fetch', ranges=self.ranges())
        elif choice < 0.40 and self.tracked:
            error = guest.run_job('rwp-evict', target='store0', min_age=1)
        elif choice < 0.50 and self.tracked:
            error = guest.run_job('rwp-evict', target='store0',
                                  bytes=self.rng.randint(1, RAM))
        elif choice < 0.70:
            error = guest.run_job('rwp-evict', target='store0',
                                  ranges=self.ranges())
        else:
            error = guest.run_job('rwp-evict', target='store0',
                                  ranges=self.everything())
        assert error is None, f'a job failed: {error}'


class Progress:
    """Whether something still changes."""

    def __init__(self):
        self.last = None
        self.since = time.monotonic()

    def see(self, value):
        if value != self.last:
            self.last = value
            self.since = time.monotonic()

    def stalled(self):
        return time.monotonic() - self.since > LIMIT


def mismatch(guest):
    for cpu in range(len(REGIONS)):
        found = guest.mismatch(cpu)
        if found:
            return found
    return None


def start_writers(guest, where=REGIONS):
    for cpu, (start, pages, offset) in enumerate(where):
        guest.region(cpu, start, pages, offset=offset)
        guest.mode(cpu, 'COUNT')


def verify_all(guest):
    """Compare all pages from inside, after each of the ways to fetch."""
    for cpu in range(len(REGIONS)):
        guest.mode(cpu, 'IDLE')
    for fetch_by_job in (False, True):
        error = guest.run_job('rwp-evict', target='store0',
                              ranges=[{'offset': 0, 'length': RAM}])
        assert error is None, error
        if fetch_by_job:
            error = guest.run_job('rwp-fetch')
            assert error is None, error
        for cpu in range(len(REGIONS)):
            guest.verify(cpu)


def write_under_load(tap, backend, tracked, options):
    """The writers have to find everything as they left it."""
    wanted = options.evictions
    wanted_cancelled = wanted // PER_CANCELLED
    rng = random.Random(options.seed)
    with GuestVM(backend, RAM, cpus=2) as guest:
        start_writers(guest)
        if tracked:
            guest.qmp('rwp-track-start', id='mem0', interval=INTERVAL)
        load = Load(guest, rng, tracked)
        own = OwnPages(guest, rng)
        guest.meanwhile = own.touch_some
        start = time.monotonic()
        progress = Progress()
        while True:
            load.one_job()
            found = mismatch(guest) or own.wrong
            stats = guest.info()['evict']
            passed = time.monotonic() - start
            rounds = [guest.get(cpu, 'ROUNDS')
                      for cpu in range(len(REGIONS))]
            enough = stats['pages'] >= wanted and \
                stats['cancelled'] >= wanted_cancelled and min(rounds) > 0
            progress.see((min(stats['pages'], wanted),
                          min(stats['cancelled'], wanted_cancelled), rounds))
            if found or progress.stalled() and not enough or \
               passed > options.duration and enough:
                break
        tap.note(f'{passed:.0f} s, rounds {rounds}, {stats}')
        tap.note(guest.info()['fetch'])
        if not tap.check(not found, f'{backend}: no write was lost',
                         found or ''):
            return
        verify_all(guest)
        own.check_all()
        found = mismatch(guest) or own.wrong
        tap.check(not found, f'{backend}: all pages are right at the end',
                  found or '')
        tap.check(stats['pages'] >= wanted,
                  f'{backend}: enough evictions', f'{stats["pages"]} of '
                  f'{wanted:.0f}, {stats["bytes-written"]} bytes written')
        tap.check(stats['cancelled'] >= wanted_cancelled,
                  f'{backend}: enough evictions given up for a touch',
                  f'{stats["cancelled"]} of {wanted_cancelled:.0f}')
        tap.check(min(rounds) > 0 and sum(own.values) > 0,
                  f'{backend}: guest and main loop went on meanwhile')


def written_ranges():
    """What the CPUs write to, and not the program that does it.

    A broken step loses writes of the program's own variables and stack, too;
    then it stands still, and never says what it has found.
    """
    start = min(first for first, _, _ in BROKEN_REGIONS)
    end = max(first + pages * PAGE for first, pages, _ in BROKEN_REGIONS)
    return [{'offset': start, 'length': end - start}]


def break_one_step(tap, mutation, options):
    """Without one of the steps, the writers have to find something wrong."""
    name = f'mutation {mutation} is caught'
    # Or else it is the checksum that notices, and the writers wait for good
    backend = 'memory-backend-rwp,backing=memfd,checksum=off'
    with GuestVM(backend, BROKEN_RAM, cpus=2, env={
            'RWP_INJECT': f'{mutation},{MUTATIONS[mutation]}'}) as guest:
        start_writers(guest, BROKEN_REGIONS)
        start = time.monotonic()
        found = None
        pages = 0
        progress = Progress()
        while not found and pages < PATIENCE * options.evictions:
            error = guest.run_job('rwp-evict', target='store0',
                                  ranges=written_ranges())
            assert error is None, error
            found = mismatch(guest)
            pages = guest.info()['evict']['pages']
            progress.see(pages)
            if progress.stalled():
                raise TimeoutError('nothing is evicted any more; ' +
                                   guest.standstill())
        rounds = [guest.get(cpu, 'ROUNDS') for cpu in range(len(REGIONS))]
        tap.note(f'{time.monotonic() - start:.1f} s, rounds {rounds}, '
                 f'{guest.info()["evict"]}')
        tap.check(found is not None, name, found or 'not noticed')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--duration', type=float, default=60 / SCALE,
                        metavar='S')
    parser.add_argument('--evictions', type=int, default=100000 // SCALE,
                        metavar='PAGES')
    parser.add_argument('--seed', type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    reason = have_backend()
    if reason:
        print(f'1..0 # SKIP {reason}')
        return 0

    tap = Tap()
    tap.note(f'seed {options.seed}')
    short = argparse.Namespace(**vars(options))
    short.duration = options.duration / 4
    short.evictions = options.evictions // 4
    runs = [(backend, True, short if number else options)
            for number, backend in enumerate(tracked_backends())]
    # Pages that are moved, on any kernel
    runs.append(('memory-backend-rwp,tracker=none,backing=anonymous', False,
                 short))
    for backend, tracked, how in runs:
        tap.run(backend, write_under_load, tap, backend, tracked, how)
    for mutation in MUTATIONS:
        tap.run(f'mutation {mutation} is caught', break_one_step, tap,
                mutation, options)
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
