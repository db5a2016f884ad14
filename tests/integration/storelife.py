#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 900
"""Does a guest survive all that can happen to its store?

usage: storelife.py [--gone=SECONDS] [--only=WORD]

Two CPUs go through their pages for ever: compare the content of a page with
what they wrote there the last time, write something new. All of these pages
are evicted. Then something happens to the store: its server is killed and
started again, is away for --gone seconds (3), or fails at random; there is no
space; it is slow; it returns other bytes than it was given. The CPUs have to
wait for what cannot be read, everything else goes on, the node cannot be
removed, and when the store is well again each page is what it was.

The same with QEMU told to end in the middle, which it must do properly.

Many CPUs that all wait for the store do not make QEMU take more of the host
than it says. And what is in an encrypted store is not what was in the guest.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
# pylint: disable=wrong-import-position
from guestvm import (ABI, BUILD, GuestVM, LIMIT, MIB, PAGE,     # noqa: E402
                     QMPError, Tap, have_backend, wait_for)

RAM = 16 * MIB
# Of each CPU: first byte, pages
REGIONS = ((2 * MIB, 1024), (8 * MIB, 1024))
SECRET = b'the quick brown fox jumps over the lazy dog'


class Server:
    """An NBD server for a file in a directory of its own."""

    def __init__(self, program='qemu-nbd', rate='100%'):
        self.dir = tempfile.mkdtemp(prefix='rwp-')
        self.file = os.path.join(self.dir, 'store')
        self.socket = os.path.join(self.dir, 'nbd.sock')
        self.fail = os.path.join(self.dir, 'fail')
        self.process = None
        with open(self.file, 'wb') as file:
            file.truncate(RAM)
        self.command = {
            'qemu-nbd': [os.path.join(BUILD, 'qemu-nbd'), '-t', '-e', '0',
                         '-f', 'raw', '-k', self.socket, self.file],
            'nbdkit': ['nbdkit', '-f', '-U', self.socket, '--filter=error',
                       'file', self.file, 'error-pread=EIO',
                       f'error-pread-rate={rate}',
                       f'error-pread-file={self.fail}'],
            'slow': ['nbdkit', '-f', '-U', self.socket, '--filter=delay',
                     'file', self.file, 'rdelay=10ms'],
        }[program]

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self):
        self.process = subprocess.Popen(  # pylint: disable=R1732
            self.command, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def listens():
            assert self.process.poll() is None, 'the NBD server ended'
            return os.path.exists(self.socket)
        wait_for('the NBD server to listen', listens, pause=0.01)

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
        if os.path.exists(self.socket):
            os.unlink(self.socket)

    def set_failing(self, failing):
        if failing:
            with open(self.fail, 'wb'):
                pass
        else:
            os.unlink(self.fail)

    def invert(self):
        """Every byte of the store becomes another one, or what it was."""
        with open(self.file, 'r+b') as file:
            content = file.read()
            file.seek(0)
            file.write(bytes(byte ^ 0xff for byte in content))

    def node(self, options=''):
        return ['-blockdev', 'driver=nbd,node-name=store,server.type=unix,'
                f'server.path={self.socket}{options}']


class Guest(GuestVM):
    """CPUs with a region each, and a store called "store"."""

    def __init__(self, args, options='', regions=REGIONS):
        self.regions = regions
        super().__init__('memory-backend-rwp' + options, RAM,
                         cpus=len(regions), args=args)
        for cpu, (start, pages) in enumerate(regions):
            self.region(cpu, start, pages)

    def write(self, rounds):
        """Let the CPUs go through their pages, a few times at least."""
        before = [self.get(cpu, 'ROUNDS') for cpu in range(self.cpus)]
        for cpu in range(self.cpus):
            self.mode(cpu, 'COUNT')
        for cpu in range(self.cpus):
            while self.get(cpu, 'ROUNDS') < before[cpu] + rounds:
                self.retry()

    def retry(self):
        """After a failure, the next try may be some seconds away."""
        self.qmp('rwp-retry', id='mem0')
        for cpu in range(self.cpus):
            mismatch = self.mismatch(cpu)
            assert not mismatch, mismatch
        time.sleep(0.01)

    def idle(self):
        for cpu in range(self.cpus):
            self.set(cpu, 'MODE', ABI['IDLE'])
            limit = time.monotonic() + LIMIT
            while self.get(cpu, 'ACK') != ABI['IDLE']:
                assert time.monotonic() < limit, f'CPU {cpu} waits for ever'
                self.retry()

    def evict(self, pages=None):
        """Returns the error of the job."""
        return self.run_job('rwp-evict', target='store', ranges=[
            {'offset': start, 'length': (pages or all_pages) * PAGE}
            for start, all_pages in self.regions])

    def prepare(self):
        """All pages have content, and are in the store."""
        self.write(2)
        self.idle()
        error = self.evict()
        assert error is None, error
        assert self.info()['evicted'] >= sum(pages for _, pages in
                                             self.regions) * PAGE

    def start_waiting(self):
        """The store is broken: let the CPUs touch it."""
        for cpu in range(self.cpus):
            self.mode(cpu, 'COUNT')
        wait_for('both CPUs to wait',
                 lambda: self.info()['fetch']['waiting'] >= 2, pause=0.01)

    def refuse_removal(self):
        try:
            self.qmp('blockdev-del', node_name='store')
        except QMPError as error:
            assert 'in use' in str(error), error
        else:
            raise AssertionError('the store was removed')

    def verify_all(self):
        """The store is well again: is every page?"""
        self.write(2)
        self.idle()
        error = self.evict()
        assert error is None, error
        for cpu in range(self.cpus):
            self.verify(cpu)
        assert self.info()['fetch']['waiting'] == 0

    def end(self, how):
        """QEMU must end with status 0."""
        if how == 'quit':
            self.vm.qmp('quit')
        else:
            os.kill(self.vm.get_pid(), signal.SIGTERM)
        self.vm.wait(timeout=LIMIT)
        assert self.vm.exitcode() == 0, f'exit status {self.vm.exitcode()}'


def outage(tap, name, server, break_it, repair, gone, options=''):
    """The store breaks while nothing happens, and while it is used."""
    with server, Guest(server.node(options)) as guest:
        guest.prepare()
        break_it()
        guest.start_waiting()
        guest.refuse_removal()
        time.sleep(gone)
        errors = guest.info()['fetch']['errors']
        repair()
        guest.verify_all()
        tap.check(errors > 0, name, f'{errors} failed reads')


def restarts(tap, name, options, times):
    """The server is killed and started again under load."""
    with Server() as server, Guest(server.node(options)) as guest:
        guest.prepare()
        for cpu in range(2):
            guest.mode(cpu, 'COUNT')
        failed = 0
        for _ in range(times):
            guest.qmp('rwp-evict', job_id='job1', id='mem0', target='store',
                      ranges=[{'offset': 0, 'length': RAM}])
            server.stop()
            guest.refuse_removal()
            server.start()
            while guest.job('job1')['status'] != 'concluded':
                guest.retry()
            failed += 'error' in guest.job('job1')
            guest.qmp('job-dismiss', id='job1')
        guest.verify_all()
        tap.check(True, name, f'{failed} of {times} evictions failed')


def random_errors(tap):
    """A fifth of all reads fails."""
    with Server('nbdkit', '20%') as server, Guest(server.node()) as guest:
        guest.prepare()
        server.set_failing(True)
        guest.write(1)
        guest.idle()
        errors = guest.info()['fetch']['errors']
        server.set_failing(False)
        guest.verify_all()
        tap.check(errors > 0, 'EIO at random', f'{errors} failed reads')


def file_node(path, driver, options):
    return ['-blockdev', f'driver={driver},node-name=store,{options}'
            f'image.driver=file,image.filename={path}']


def failing_writes(tap, name, errno, text):
    """Writes fail: pages stay where they are."""
    with tempfile.TemporaryDirectory(prefix='rwp-') as scratch:
        path = os.path.join(scratch, 'store')
        with open(path, 'wb') as file:
            file.truncate(RAM)
        rules = ''.join(f'inject-error.{i}.event=none,'
                        f'inject-error.{i}.iotype=write,'
                        f'inject-error.{i}.errno={errno},'
                        f'inject-error.{i}.once=on,' for i in range(3))
        with Guest(file_node(path, 'blkdebug', rules)) as guest:
            guest.write(2)
            errors = [guest.evict() for _ in range(3)]
            failed = [error for error in errors if error]
            assert all(text in error for error in failed), failed
            failures = guest.info()['evict']['failed']
            guest.verify_all()
            tap.check(failed and failures, name,
                      f'{failed[:1]}, {failures} pages stayed')


def slow_store(tap):
    """A store of 1 MiB/s."""
    with tempfile.TemporaryDirectory(prefix='rwp-') as scratch:
        path = os.path.join(scratch, 'store')
        with open(path, 'wb') as file:
            file.truncate(RAM)
        args = ['-object', 'throttle-group,id=slow,x-bps-total=1048576',
                '-blockdev',
                f'driver=file,node-name=store-file,filename={path}',
                '-blockdev', 'driver=throttle,node-name=store,'
                'throttle-group=slow,file=store-file']
        with Guest(args, ',readahead=0') as guest:
            guest.write(2)
            guest.qmp('rwp-evict', job_id='job1', id='mem0', target='store',
                      ranges=[{'offset': start, 'length': 128 * PAGE}
                              for start, _ in REGIONS])
            guest.refuse_removal()
            while guest.job('job1')['status'] != 'concluded':
                guest.retry()
            guest.idle()
            assert guest.evict(128) is None
            evicted = guest.info()['evicted']
            for cpu in range(2):
                guest.verify(cpu)
            fetched = guest.info()['fetch']['fault'] * PAGE
            tap.check(fetched >= evicted > 0, 'slow store',
                      f'{evicted} bytes evicted')
            guest.end('quit')


def wrong_bytes(tap):
    """The store returns something else."""
    with Server() as server, Guest(server.node()) as guest:
        name = 'wrong bytes'
        if not guest.info()['checksum']:
            tap.skip(name, 'QEMU was built without libxxhash')
            return
        guest.prepare()
        server.invert()
        guest.start_waiting()
        guest.refuse_removal()
        error = guest.run_job('rwp-fetch')
        assert 'checksum' in error, error
        corrupt = guest.info()['fetch']['corrupt']
        server.invert()
        guest.verify_all()
        tap.check(corrupt >= 2, name, f'{corrupt} pages')


def endings(tap):
    """QEMU is told to end while both CPUs wait."""
    for how in ('quit', 'SIGTERM'):
        with Server() as server, Guest(server.node()) as guest:
            guest.prepare()
            server.stop()
            guest.start_waiting()
            guest.end(how)
            tap.check(True, f'{how} while CPUs wait')


def host_memory(guest):
    """Anonymous memory of QEMU beside that of the guest."""
    with open(f'/proc/{guest.vm.get_pid()}/status', encoding='ascii') as file:
        anonymous = sum(int(line.split()[1]) * 1024 for line in file
                        if line.startswith('RssAnon:'))
    info = guest.info()
    return anonymous - (info['resident'] if info['pager'] == 'move' else 0)


def storm(tap):
    """Many CPUs touch evicted memory at a time, for ever."""
    name = 'refault storm'
    if not shutil.which('nbdkit'):
        tap.skip(name, 'nbdkit is not installed')
        return
    cpus, pages, limit = 8, 48, 2
    regions = tuple((2 * MIB + cpu * MIB, pages) for cpu in range(cpus))
    with Server('slow') as server, \
         Guest(server.node(), f',readahead=0,max-fetches={limit}',
               regions) as guest:
        guest.prepare()
        before = host_memory(guest)
        most = queued = buffers = memory = 0
        rounds = guest.get(0, 'ROUNDS')
        for cpu in range(cpus):
            guest.mode(cpu, 'COUNT')
        while guest.get(0, 'ROUNDS') == rounds:
            info = guest.info()['resources']
            most = max(most, info['fetches'])
            queued = max(queued, info['queued'])
            buffers = max(buffers, info['buffers'])
            memory = max(memory, host_memory(guest))
            assert info['buffers'] <= info['max-buffers'], info
            guest.retry()
        info = guest.info()['resources']
        guest.verify_all()
        tap.check(info['peak-fetches'] <= limit and 0 < most <= limit and
                  0 < queued < cpus, f'{name}: reads at a time',
                  f'{most} reads, {queued} waited')
        bound = info['max-buffers'] + 8 * MIB
        tap.check(memory - before <= bound, f'{name}: memory of the host',
                  f'{memory - before} bytes more, {buffers} for buffers')


def find_secret(args, path):
    with Guest(args) as guest:
        address = REGIONS[0][0]
        guest.command(f'write 0x{address:x} {len(SECRET)} 0x{SECRET.hex()}')
        error = guest.evict(1)
        assert error is None, error
        state = guest.map(offset=address, length=PAGE)[0]['state']
        assert state == 'evicted', state
        guest.end('quit')
    with open(path, 'rb') as file:
        return SECRET in file.read()


def encryption(tap):
    """What is in a LUKS store is not readable; in others it is."""
    name = 'LUKS store'
    with tempfile.TemporaryDirectory(prefix='rwp-') as scratch:
        path = os.path.join(scratch, 'store')
        secret = 'secret,id=key,data=abc'
        made = subprocess.run(
            [os.path.join(BUILD, 'qemu-img'), 'create', '-q', '--object',
             secret, '-f', 'luks', '-o', 'key-secret=key,iter-time=10', path,
             str(RAM)], stderr=subprocess.PIPE, text=True, check=False)
        if made.returncode:
            tap.skip(name, made.stderr.strip())
            return
        luks = find_secret([
            '-object', secret,
            '-blockdev', f'driver=file,node-name=store-file,filename={path}',
            '-blockdev', 'driver=luks,node-name=store,file=store-file,'
            'key-secret=key'], path)
        os.truncate(path, 0)
        os.truncate(path, RAM)
        plain = find_secret(['-blockdev', 'driver=file,node-name=store,'
                             f'filename={path}'], path)
        tap.check(plain and not luks, name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--gone', type=float, default=3)
    parser.add_argument('--only', default='')
    args = parser.parse_args()
    tap = Tap()
    reason = have_backend()
    if reason:
        tap.skip('store life', reason)
        return tap.done()

    def killed():
        server = Server()
        outage(tap, 'server gone', server, server.stop, server.start,
               args.gone)

    def failing():
        if not shutil.which('nbdkit'):
            tap.skip('EIO', 'nbdkit is not installed')
            return
        server = Server('nbdkit')
        outage(tap, 'EIO', server, lambda: server.set_failing(True),
               lambda: server.set_failing(False), 0)
        random_errors(tap)

    tests = (
        ('gone', killed),
        ('eio', failing),
        ('restart', lambda: restarts(tap, 'server restarts', '', 5)),
        ('reconnect', lambda: restarts(
            tap, 'server restarts, with reconnect-delay',
            ',reconnect-delay=5', 3)),
        ('enospc', lambda: failing_writes(
            tap, 'no space', 28, 'No space left on device')),
        ('write', lambda: failing_writes(
            tap, 'EIO of writes', 5, 'Input/output error')),
        ('slow', lambda: slow_store(tap)),
        ('wrong', lambda: wrong_bytes(tap)),
        ('storm', lambda: storm(tap)),
        ('end', lambda: endings(tap)),
        ('luks', lambda: encryption(tap)),
    )
    for name, test in tests:
        if args.only in name:
            start = time.monotonic()
            tap.run(name, test)
            tap.note(f'{name}: {time.monotonic() - start:.1f} s')
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
