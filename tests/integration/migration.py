#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 600
"""A guest with evicted pages is migrated while it runs.

usage: migration.py

Both CPUs count in all pages of a region, and all of that is evicted. When the
migration has begun, one CPU goes on to count, so that evicted pages come back
and are written after they were sent. At the destination both go on, and compare
each page: neither may have lost a round. What nobody touched is still evicted
at the source.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from guestvm import (GuestVM, MIB, PAGE, SCALE, Tap,            # noqa: E402
                     have_backend, tracked_backends, wait_for)

RAM = 64 * MIB // SCALE
# First byte and pages, of the CPU that counts on and of the other one
HOT = (8 * MIB // SCALE, 512 // SCALE)
COLD = (16 * MIB // SCALE, 4096 // SCALE)
RANGES = [{'offset': start, 'length': pages * PAGE}
          for start, pages in (HOT, COLD)]
MOVE = 'memory-backend-rwp,tracker=none,backing=anonymous'

# Capabilities, and whether it goes to a file
WAYS = (('precopy', (), False),
        ('multifd', ('multifd',), False),
        ('mapped-ram', ('mapped-ram', 'multifd'), True))


class Destination(GuestVM):
    """It has no guest to wait for before that has arrived."""

    arrived = False

    def wait_field(self, cpu, field, condition):
        return super().wait_field(cpu, field, condition) if self.arrived \
            else None


def await_migration(guest):
    info = {}

    def completed():
        info.update(guest.qmp('query-migrate'))
        assert info.get('status') not in ('failed', 'cancelled'), info
        return info.get('status') == 'completed'
    wait_for('the migration', completed,
             lambda: info.get('ram', {}).get('transferred'), pause=0.01)


def set_up(guest, capabilities):
    guest.qmp('migrate-set-capabilities', capabilities=[
        {'capability': name, 'state': True} for name in capabilities])
    # Whatever the guest writes, it may stop for as long as that takes
    guest.qmp('migrate-set-parameters', downtime_limit=20000,
              max_bandwidth=64 * MIB)


def evicted(guest, region):
    start, pages = region
    return sum(run['length'] for run in guest.map(offset=start,
                                                  length=pages * PAGE)
               if run['state'] == 'evicted')


def rounds(guest, cpu, more):
    before = guest.get(cpu, 'ROUNDS')
    guest.wait_field(cpu, 'ROUNDS', lambda value: value >= before + more)


def count(guest):
    for cpu, (start, pages) in enumerate((HOT, COLD)):
        guest.region(cpu, start, pages)
        guest.mode(cpu, 'COUNT')
    for cpu in (0, 1):
        rounds(guest, cpu, 2)
        guest.mode(cpu, 'IDLE')
    error = guest.run_job('rwp-evict', target='store0', ranges=RANGES)
    assert error is None, error


def compare(guest):
    """Returns what is wrong, or None."""
    rounds(guest, 0, 2)
    guest.mode(0, 'IDLE')
    for cpu in (0, 1):
        guest.verify(cpu)
    guest.mode(1, 'COUNT')
    rounds(guest, 1, 2)
    return guest.mismatch(0) or guest.mismatch(1)


def migrate(tap, name, backend, capabilities, to_file):
    with GuestVM(backend, RAM, cpus=2) as source, \
         Destination(backend, RAM, cpus=2,
                     args=['-incoming', 'defer']) as destination:
        uri = ('file:' if to_file else 'unix:') + os.path.join(source.dir,
                                                               'migration')
        for guest in (source, destination):
            set_up(guest, capabilities)
        count(source)
        before = evicted(source, COLD)
        hot = evicted(source, HOT)
        assert before == COLD[1] * PAGE and hot == HOT[1] * PAGE
        if not to_file:
            destination.qmp('migrate-incoming', uri=uri)
        source.qmp('migrate', uri=uri)
        source.mode(0, 'COUNT')
        await_migration(source)
        touched = source.info()['fetch']['fault']
        after = evicted(source, COLD)
        if to_file:
            destination.qmp('migrate-incoming', uri=uri)
        await_migration(destination)
        destination.arrived = True
        wrong = compare(destination)
        tap.check(wrong is None, f'{name}: nothing is lost', wrong or '')
        tap.check(after == before, f'{name}: what was evicted still is',
                  f'{before >> 10} KiB before, {after >> 10} KiB after; '
                  f'{touched} pages came back by a touch')


def main():
    tap = Tap()
    reason = have_backend()
    if reason:
        tap.skip('migration', reason)
        return tap.done()
    backends = tracked_backends() + [MOVE]
    for backend in backends:
        for way, capabilities, to_file in WAYS:
            name = f'{backend}, {way}'
            tap.run(name, migrate, tap, name, backend, capabilities, to_file)
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
