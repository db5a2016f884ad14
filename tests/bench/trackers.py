# SPDX-License-Identifier: GPL-2.0-or-later
"""Trackers beside each other, and beside what needs no userfaultfd.

For the trackers rwp and zap: arm and scan per GiB, what the touch of an armed
page costs the guest, commit window, and the time of a fetch by touch. Beside
them two methods that need no userfaultfd, on a guest with an ordinary memfd:
idle page tracking (admin-guide/mm/idle_page_tracking.rst of Linux), and
clear_refs with smaps (filesystems/proc.rst). The guest touches a known set of
pages, so of each it can be said how much of the set it finds (recall) and how
much of what it finds is in the set (precision). smaps tells amounts only.

Each line of the table has tracker=rwp on one side, and another method on the
other. Needs a kernel with RWP.
"""

import array
import os
import random
import struct
import sys
import time

from machine import MIB, PAGE, TOP, WRITE, Machine

sys.path.insert(0, os.path.join(TOP, 'tests', 'integration'))
# pylint: disable=wrong-import-position
from guestvm import (GuestVM, QMPError, touched_pages,       # noqa: E402
                     wait_for)

RAM = 32 * MIB
# Made longer if the guest needs more to go through its set
INTERVAL_S = 0.5
# The last one counts
CYCLES = 5
# For one that ends no cycle
LONG_MS = 600000
IDLE = '/sys/kernel/mm/page_idle/bitmap'
START = 2 * MIB
SEED = 4711
DENSITY = 64
ACCESSES = 4096
GIB = 1 << 30
OURS = ('rwp, anonymous', 'rwp, memfd')

# What a method has: key, name, unit, and what the report makes of it
FIGURES = (
    ('cycle', 'arm and scan', 'ms/GiB', {}),
    ('touch', 'touch of an armed page', 'ns', {}),
    ('recall', 'recall', '', {'more': True}),
    ('precision', 'precision', '', {'more': True}),
    ('commit-mean', 'commit window, mean', 'us', {}),
    ('commit-max', 'commit window, longest', 'us', {}),
    ('fetch', 'fetch of a touched page', 'us', {}),
)
# For the ratio to a peer, or for the value
GOALS = {('touch', 'zap, memfd'): 1, ('recall', None): 1,
         ('precision', None): 1}


class TooShort(Exception):
    """The guest did not go through its set within the interval."""


class Trial:
    """What to do with any guest."""

    def __init__(self, interval):
        self.interval = interval
        self.pages = (RAM - 2 * START) // PAGE
        self.truth = {START // PAGE + page for page in
                      touched_pages(self.pages, SEED, DENSITY)}
        # Its mailbox
        self.truth.add(1)

    def set_up(self, guest):
        """All pages are populated, then the guest goes through its set."""
        guest.region(0, START, self.pages)
        # With content, or else there is nothing to fetch
        guest.mode(0, 'COUNT')
        guest.wait_field(0, 'ROUNDS', lambda value: value > 0)
        guest.mode(0, 'IDLE')
        guest.region(0, START, self.pages, seed=SEED, density=DENSITY)
        guest.mode(0, 'READ')

    def round_ns(self, guest, seconds):
        """Time that the guest takes for one round."""
        rounds, start = guest.get(0, 'ROUNDS'), time.monotonic()
        time.sleep(seconds)
        done = guest.get(0, 'ROUNDS') - rounds
        return (time.monotonic() - start) * 1e9 / max(done, 1)

    def quality(self, found):
        right = len(found & self.truth)
        return {'recall': right / len(self.truth),
                'precision': right / max(len(found), 1)}


def await_cycles(guest, count):
    def completed():
        return guest.info()['cycle']['completed']

    wanted = completed() + count
    wait_for(f'cycle {wanted}', lambda: completed() >= wanted, completed)


def hot_pages(guest):
    return {page for run in guest.map() if run.get('age') == 0
            for page in range(run['offset'] // PAGE,
                              (run['offset'] + run['length']) // PAGE)}


def median_latency(info):
    rows = info['fetch']['latency']
    half, seen = sum(row['count'] for row in rows) / 2, 0
    for row in rows:
        seen += row['count']
        if seen >= half:
            return row['up-to-ns'] / 1000
    return 0


def tracker(trial, options):
    """One tracker: costs of tracking, then those of eviction."""
    with GuestVM('memory-backend-rwp,readahead=0,' + options, RAM) as guest:
        trial.set_up(guest)
        guest.qmp('rwp-track-start', id='mem0',
                  interval=int(trial.interval * 1000))
        await_cycles(guest, CYCLES)
        if trial.interval * 1e9 < 3 * trial.round_ns(guest,
                                                     5 * trial.interval):
            raise TooShort
        found, cycle = hot_pages(guest), guest.info()['cycle']
        scale = GIB / RAM / 1e6
        figures = {'cycle': (cycle['arm-ns'] + cycle['scan-ns']) * scale}
        guest.qmp('rwp-track-stop', id='mem0')
        guest.mode(0, 'IDLE')
        return figures | trial.quality(found) | evict_and_fetch(trial, guest)


def evict_and_fetch(trial, guest):
    everything = [{'offset': START, 'length': trial.pages * PAGE}]
    try:
        error = guest.run_job('rwp-evict', target='store0', ranges=everything)
    except QMPError:
        # On a kernel that has rwp, zap is for comparison of trackers only
        return {}
    assert error is None, error
    commits = guest.info()['evict']
    windows = {} if not commits['commits'] else {
        'commit-mean': commits['commit-mean-ns'] / 1000,
        'commit-max': commits['commit-max-ns'] / 1000}
    guest.set(0, 'DENSITY', 32)
    guest.mode(0, 'READ')
    rounds = guest.get(0, 'ROUNDS')
    guest.wait_field(0, 'ROUNDS', lambda value: value > rounds)
    return windows | {'fetch': median_latency(guest.info())}


def guest_mapping(pid, size):
    """First address of the guest's memory in QEMU."""
    with open(f'/proc/{pid}/maps', encoding='utf-8') as file:
        for line in file:
            first, last = (int(x, 16) for x in
                           line.split()[0].split('-'))
            if last - first == size and 'memfd' in line:
                return first
    raise OSError('the guest has no memfd of that size')


def page_frames(pid, first, size):
    """Of each page that is mapped; None of others. See proc(5)."""
    with open(f'/proc/{pid}/pagemap', 'rb') as file:
        file.seek(first // PAGE * 8)
        raw = file.read(size // PAGE * 8)
    return [entry & ((1 << 55) - 1) if entry >> 63 else None
            for entry, in struct.iter_unpack('<Q', raw)]


class IdleBitmap:
    """Of the 64 frames around each of @frames"""

    def __init__(self, frames):
        self.words = {frame // 64 for frame in frames if frame}
        self.file = os.open(IDLE, os.O_RDWR)

    def set(self):
        for word in self.words:
            os.pwrite(self.file, b'\xff' * 8, word * 8)

    def read(self):
        return {word: struct.unpack('<Q', os.pread(self.file, 8, word * 8))[0]
                for word in self.words}

    def close(self):
        os.close(self.file)


def idle_pages(trial):
    """Idle page tracking, by page frames."""
    with GuestVM('memory-backend-memfd', RAM) as guest:
        trial.set_up(guest)
        pid = guest.vm.get_pid()
        frames = page_frames(pid, guest_mapping(pid, RAM), RAM)
        bitmap = IdleBitmap(frames)
        for _ in range(CYCLES):
            start = time.monotonic()
            bitmap.set()
            arm = time.monotonic() - start
            time.sleep(trial.interval)
            start = time.monotonic()
            bits = bitmap.read()
            scan = time.monotonic() - start
        bitmap.close()
        found = {page for page, frame in enumerate(frames) if frame and
                 not bits[frame // 64] >> frame % 64 & 1}
        scale = GIB / RAM * 1e3
        return {'cycle': (arm + scan) * scale} | trial.quality(found)


def referenced(pid, first):
    """Bytes that smaps says were referenced."""
    inside = False
    with open(f'/proc/{pid}/smaps', encoding='utf-8') as file:
        for line in file:
            if line.startswith(f'{first:x}-'):
                inside = True
            elif inside and line.startswith('Referenced:'):
                return int(line.split()[1]) * 1024
    return 0


def forget_references(pid):
    with open(f'/proc/{pid}/clear_refs', 'w', encoding='ascii') as file:
        file.write('1')


def clear_refs(trial):
    """Referenced bits of the page tables."""
    with GuestVM('memory-backend-memfd', RAM) as guest:
        trial.set_up(guest)
        pid = guest.vm.get_pid()
        first = guest_mapping(pid, RAM)
        for _ in range(CYCLES):
            start = time.monotonic()
            forget_references(pid)
            arm = time.monotonic() - start
            time.sleep(trial.interval)
            start = time.monotonic()
            amount = referenced(pid, first)
            scan = time.monotonic() - start
        scale = GIB / RAM * 1e3
        return {'cycle': (arm + scan) * scale,
                # It tells an amount: no more of it than that can be right
                'precision': min(len(trial.truth) * PAGE / amount, 1)}


def arm_tracker(machine):
    machine.qmp('rwp-track-start', id='mem0', interval=LONG_MS)
    wait_for('the first pass', lambda: machine.info()['cycle']['scan-ns'])


def arm_idle(machine):
    bitmap = IdleBitmap(page_frames(machine.vm.get_pid(), machine.memory(),
                                    RAM))
    bitmap.set()
    bitmap.close()


def arm_references(machine):
    forget_references(machine.vm.get_pid())


def touch_ns(bench, backend, arm):
    """What a touch takes longer right after @arm than later"""
    pages = random.Random(SEED).sample(range(RAM // PAGE), ACCESSES)
    with Machine(backend, RAM) as machine:
        machine.guest(WRITE, RAM)
        accesses = array.array('I', pages)
        machine.replay(accesses)
        arm(machine)
        armed, later = (machine.replay(accesses)[0] for _ in range(2))
    return bench.ns(armed - later) / ACCESSES


def methods():
    """{name: (function of a trial, backend, what arms its memory)}"""
    def tracked(options):
        return (lambda trial: tracker(trial, options),
                'memory-backend-rwp,' + options, arm_tracker)

    found = {
        OURS[0]: tracked('tracker=rwp,backing=anonymous,thp=off'),
        OURS[1]: tracked('tracker=rwp,backing=memfd'),
        'zap, memfd': tracked('tracker=zap'),
        'page_idle': (idle_pages, 'memory-backend-memfd', arm_idle),
        'clear_refs and smaps': (clear_refs, 'memory-backend-memfd',
                                 arm_references),
    }
    if not os.path.exists(IDLE):
        del found['page_idle']
    return found


def measure(bench, trial):
    """Returns {method: [its figures, of each turn]}"""
    results = {name: [] for name in methods()}
    for turn in range(1, bench.repeats + 1):
        for name, (method, backend, arm) in methods().items():
            bench.progress(f'{name}: turn {turn} of {bench.repeats}')
            results[name].append(method(trial) | {
                'touch': touch_ns(bench, backend, arm)})
    return results


def values(turns, key):
    return [turn[key] for turn in turns if key in turn]


def fill(report, results):
    for key, name, unit, more in FIGURES:
        for method in OURS:
            ours = values(results[method], key)
            peers = {peer: values(turns, key)
                     for peer, turns in results.items()
                     if peer not in OURS and values(turns, key)}
            if ours and (not peers or (key, None) in GOALS):
                peers = {None: None} | peers
            for peer, theirs in peers.items():
                report.add(f'{method}: {name}', unit, ours, peer, theirs,
                           goal=GOALS.get((key, peer)), **more)


def kernel_has_rwp():
    with GuestVM('memory-backend-rwp', MIB) as guest:
        return guest.info()['tracker'] == 'rwp'


def measure_all(bench):
    """The part 'trackers' of the run"""
    interval = INTERVAL_S
    if not kernel_has_rwp():
        bench.skip('trackers', 'the kernel has no userfaultfd RWP')
        return
    while True:
        try:
            results = measure(bench, Trial(interval))
            break
        except TooShort:
            interval *= 2
            bench.progress(f'the interval was too short: now {interval} s')
    bench.report.about['trackers'] = {
        'size': RAM, 'interval_s': interval, 'seed': SEED}
    fill(bench.report, results)
    if 'page_idle' not in results:
        bench.skip('page_idle', 'the kernel was built without it')
