#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 600
"""Are the tracked hot pages exactly those that the guest touches?

usage: exactness.py [--seed=NUMBER]

The guest touches a pseudo-random subset of its pages for ever, all of them
many times in a cycle, and its mailbox; nobody touches anything else. So the
set of pages with age 0 must be that set: recall and precision 1, page by
page. Then the set changes, and the ages have to follow: age 0 for the new
set, for the others the cycles since the change.

A cycle only counts if the guest went through its set twice within it, as told
by the guest; on a slow machine the interval is made longer until it does.
"""

import argparse
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from guestvm import (ABI, GuestVM, LIMIT, MIB, PAGE, SCALE, Tap,  # noqa: E402
                     have_backend, touched_pages, tracked_backends, wait_for)

RAM = max(64 * MIB // SCALE, 8 * MIB)
START = 2 * MIB
PAGES = (RAM - 2 * START) // PAGE
FIRST_INTERVAL = 1000
MAILBOX = {ABI['MAILBOX'] // PAGE}


def guest_pages(seed, density):
    """The set of pages, numbered from the start of the backend."""
    return {START // PAGE + page
            for page in touched_pages(PAGES, seed, density)}


def pages_of(run):
    first = run['offset'] // PAGE
    return range(first, first + run['length'] // PAGE)


def ages_of(guest):
    """The age of each page that has one."""
    return {page: run['age'] for run in guest.map() if 'age' in run
            for page in pages_of(run)}


def wait_for_cycle(guest, after):
    """Wait until more than @after cycles are completed; returns how many."""
    def more():
        completed = guest.info()['cycle']['completed']
        return completed if completed > after else None
    return wait_for(f'a cycle after {after}', more, pause=0.01)


class Observer:
    """Looks at the guest in a cycle in which it did its whole work."""

    def __init__(self, guest, tap):
        self.guest = guest
        self.tap = tap
        self.interval = FIRST_INTERVAL
        self.completed = 0
        self.cold = set()       # what a map with min-age has, in that cycle

    def start(self):
        self.guest.qmp('rwp-track-start', id='mem0', interval=self.interval)
        self.completed = 0

    def restart(self):
        self.guest.qmp('rwp-track-stop', id='mem0')
        self.start()

    def slow_down(self):
        self.interval *= 2
        if self.interval > 1000 * LIMIT:
            raise TimeoutError('the guest makes no progress')
        self.tap.note(f'interval {self.interval} ms')
        self.restart()

    def full_cycle(self):
        """
        The ages right after a cycle in which the guest went through its set
        at least twice, and the figures and cold pages of the same moment.
        """
        guest = self.guest
        while True:
            before = wait_for_cycle(guest, self.completed)
            rounds = guest.get(0, 'ROUNDS')
            self.completed = wait_for_cycle(guest, before)
            enough = guest.get(0, 'ROUNDS') >= rounds + 2
            info = guest.info()
            ages = ages_of(guest)
            self.cold = {page for run in guest.map(min_age=1)
                         for page in pages_of(run)}
            # At the end of the next cycle ages change before it is counted
            after = guest.info()
            if after['cycle']['completed'] != self.completed or \
               after['ages'] != info['ages'] or self.completed != before + 1:
                # Too slow to look at one cycle
                self.slow_down()
            elif enough:
                return ages, info
            else:
                self.slow_down()


def compare(tap, name, found, truth):
    right = len(found & truth)
    recall = right / len(truth)
    precision = right / len(found) if found else 0
    tap.check(found == truth, name,
              f'{len(truth)} pages touched, {len(found)} found, recall '
              f'{recall:.6f}, precision {precision:.6f}')
    for what, pages in (('missed', truth - found), ('extra', found - truth)):
        if pages:
            tap.note(f'{what}: {sorted(pages)[:8]} ... ({len(pages)})')


def touch(guest, mode, seed, density):
    guest.mode(0, 'IDLE')
    guest.region(0, START, PAGES, seed=seed, density=density)
    guest.mode(0, mode)


def populate(guest):
    """Let the guest write to all pages of the region."""
    rounds = guest.get(0, 'ROUNDS')
    touch(guest, 'WRITE', 0, 256)
    guest.wait_field(0, 'ROUNDS', lambda value: value > rounds)


def check_hot_set(tap, name, mode, backend, rng):
    """Age 0 is the touched set, and the figures agree with the map."""
    seed, density = rng.randrange(1 << 32), rng.randint(10, 200)
    with GuestVM(backend, RAM) as guest:
        populate(guest)
        touch(guest, mode, seed, density)
        observer = Observer(guest, tap)
        observer.start()
        ages, info = observer.full_cycle()
        truth = guest_pages(seed, density) | MAILBOX
        found = {page for page, age in ages.items() if age == 0}
        compare(tap, f'{name}: hot pages are the pages touched', found, truth)
        tap.check(info['hot'] == info['cycle']['accessed'] ==
                  len(truth) * PAGE, f'{name}: size of the hot set',
                  f'{info["hot"]}')
        everything = guest_pages(0, 256) | MAILBOX
        compare(tap, f'{name}: all used pages have an age', set(ages),
                everything)
        histogram = {row['age']: row['bytes'] for row in info['ages']}
        expected = {}
        for age in ages.values():
            expected[age] = expected.get(age, 0) + PAGE
        tap.check(histogram == expected,
                  f'{name}: the histogram is that of the map',
                  '' if histogram == expected else f'{histogram} {expected}')
        compare(tap, f'{name}: cold pages are the others', observer.cold,
                everything - truth)


def ages_after_change(guest, observer, first_seed, second_seed):
    """The ages after the guest went over to another set."""
    touch(guest, 'READ', first_seed, 64)
    observer.start()
    while True:
        interval = observer.interval
        observer.full_cycle()
        touch(guest, 'READ', second_seed, 64)
        # The cycle in which the change fell, and one in any case after it
        observer.full_cycle()
        ages, _ = observer.full_cycle()
        if observer.interval == interval:
            return ages
        # Ages were lost meanwhile: begin again
        touch(guest, 'READ', first_seed, 64)
        observer.restart()


def check_change(tap, rng, backend):
    """Each page has the age of the last touch."""
    first_seed, second_seed = rng.randrange(1 << 32), rng.randrange(1 << 32)
    with GuestVM(backend, RAM) as guest:
        populate(guest)
        ages = ages_after_change(guest, Observer(guest, tap), first_seed,
                                 second_seed)
        old = guest_pages(first_seed, 64)
        new = guest_pages(second_seed, 64) | MAILBOX
        compare(tap, 'change: the new set is hot',
                {page for page, age in ages.items() if age == 0}, new)
        cooled = {ages.get(page) for page in old - new}
        tap.check(len(cooled) == 1 and min(cooled) >= 1,
                  'change: the old set has the age of the change',
                  f'ages {cooled}')
        never = {ages.get(page) for page in
                 guest_pages(0, 256) - old - new}
        tap.check(len(never) == 1 and min(never) > max(cooled),
                  'change: what was in neither set is older',
                  f'ages {never}')


def check_after_eviction(tap, rng, backend):
    """Evicted pages stay cold, and fetched ones become hot."""
    seed = rng.randrange(1 << 32)
    with GuestVM(backend, RAM) as guest:
        populate(guest)
        touch(guest, 'WRITE', seed, 64)
        observer = Observer(guest, tap)
        observer.start()
        observer.full_cycle()
        error = guest.run_job('rwp-evict', target='store0', min_age=1)
        assert error is None, error
        ages, info = observer.full_cycle()
        truth = guest_pages(seed, 64) | MAILBOX
        compare(tap, 'eviction: hot pages are the pages touched',
                {page for page, age in ages.items() if age == 0}, truth)
        everything = guest_pages(0, 256) | MAILBOX
        away = info['evicted'] + info['zero']
        tap.check(away == len(everything - truth) * PAGE,
                  'eviction: exactly the cold pages went', f'{away} bytes')
        tap.check(info['resident'] == len(truth) * PAGE,
                  'eviction: exactly the hot pages stayed',
                  f'{info["resident"]} bytes')
        touch(guest, 'READ', 0, 256)
        ages, info = observer.full_cycle()
        compare(tap, 'eviction: fetched pages are hot',
                {page for page, age in ages.items() if age == 0}, everything)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seed', type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    reason = have_backend()
    if reason:
        print(f'1..0 # SKIP {reason}')
        return 0

    tap = Tap()
    tap.note(f'seed {options.seed}')
    rng = random.Random(options.seed)
    for backend in tracked_backends():
        # A touched huge page would be hot as a whole
        backend += ',thp=off'
        tap.note(backend)
        for mode in ('READ', 'WRITE'):
            name = f'{mode.lower()}s'
            tap.run(name, check_hot_set, tap, name, mode, backend, rng)
        tap.run('change', check_change, tap, rng, backend)
        tap.run('eviction', check_after_eviction, tap, rng, backend)
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
