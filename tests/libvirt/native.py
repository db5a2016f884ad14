#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 600
"""A guest with <source type='rwp'/> under libvirt, from define to destroy.

The store is a file, then an NBD export. All that is done is done by virsh: XML,
the domrwp commands, domstats; meanwhile libvirtd is restarted and the guest
saved and restored. What the guest finds in its memory tells whether it is all
there.
"""

import os
import re
import sys

from host import (ABI, enter, Guest, Host, IMAGES, MIB, QEMU, run_steps, Tap,
                  VIRT_TYPE, wait_for)

RAM = 32 * MIB
START = 4 * MIB
SIZE = 8 * MIB
# Of the store before it is used: neither root nor who runs the guest
OWNER = 12345

FILE = '<store type="file" format="raw"><source file="{}"/></store>'
NBD = '''<store type="network" format="raw">
  <source protocol="nbd" name="">
    <host transport="unix" socket="{}"/>
  </source>
</store>'''


def backing(store):
    return ('<memoryBacking><source type="rwp"/><rwp interval="100">'
            f'{store}</rwp></memoryBacking>')


def info(host, name='native'):
    """domrwpinfo as a dictionary."""
    return dict(line.split(None, 1) for line in
                host.virsh('domrwpinfo', name).splitlines())


def number(host, key):
    return int(info(host)[key])


def away(host):
    return number(host, 'evicted') + number(host, 'zero')


def capabilities(tap, host):
    text = host.virsh('domcapabilities', '--emulatorbin', QEMU, '--virttype',
                      VIRT_TYPE, '--machine', 'pc', '--arch', 'x86_64')
    found = re.search(r'<memoryBacking.*?</memoryBacking>', text, re.S)
    tap.check(found and '<value>rwp</value>' in found.group(0),
              'domcapabilities names rwp', found and found.group(0))


def define(tap, host, guest, store):
    path = os.path.join(IMAGES, guest.name + '.xml')
    with open(path, 'w', encoding='ascii') as file:
        file.write(guest.xml(RAM, backing(store)))
    host.virsh('define', '--validate', path)
    text = host.virsh('dumpxml', guest.name)
    found = re.search(r'<memoryBacking.*?</memoryBacking>', text, re.S)
    tap.check(found and "<rwp interval='100'>" in found.group(0) and
              '<store ' in found.group(0),
              'define --validate takes it, and dumpxml has it',
              found and found.group(0))


def start(tap, host, guest, path):
    before = os.stat(path)
    host.virsh('start', guest.name)
    guest.started()
    now = os.stat(path)
    tap.check(before.st_uid == OWNER and now.st_uid == host.ids()[0],
              'the store belongs to the user of the guest while it runs',
              f'user {before.st_uid}, then {now.st_uid}')
    figures = info(host)
    tap.check(figures['store'] == 'libvirt-rwp-storage' and
              figures['interval'] == '100' and figures['size'] == str(RAM),
              'the memory is our backend, with its store and interval',
              '\n'.join(f'{name} {figures[name]}' for name in
                        ('id', 'tracker', 'pager', 'store')))
    node = next(node for node in
                host.qmp(guest.name, 'query-named-block-nodes')
                if node['node-name'] == 'libvirt-rwp-storage')
    tap.check(node['cache']['direct'],
              'the store is opened past the page cache', node['cache'])


def track(tap, host, guest):
    guest.fill(START, SIZE)
    host.virsh('domrwp-start', guest.name)
    wait_for('three cycles', lambda: number(host, 'cycle.completed') >= 3)
    # On a busy host, the guest may do nothing for a cycle
    hot = wait_for('a cycle with an access', lambda: number(host, 'hot'))
    tap.check(hot < SIZE and info(host)['tracking'] == 'true',
              'domrwp-start: the idle guest touches its mailbox only',
              f'{hot} bytes hot, {number(host, "resident")} resident')


def evict(tap, host, guest, path=None):
    said = host.virsh('domrwp-evict', guest.name, '--min-age', '2', '--wait',
                      progress=True)
    figures = info(host, guest.name)
    tap.check('100' in said and int(figures['evicted']) >= SIZE,
              'domrwp-evict --wait evicts what is cold', said)
    if path:
        tap.check(os.stat(path).st_blocks * 512 >= SIZE,
                  'it is in the store')
    runs = host.virsh('domrwpmap', guest.name, '--offset', str(START),
                      '--length', str(SIZE)).splitlines()[1:]
    tap.check(sum(int(run.split()[1]) for run in runs
                  if run.split()[2] == 'evicted') == SIZE,
              'domrwpmap says so', '\n'.join(runs[:5]))


def statistics(tap, host, guest):
    host.virsh('domrwp-stop', guest.name)
    evicted = number(host, 'evicted')
    for readonly in (False, True):
        stats = host.stats(guest.name, readonly=readonly)
        tap.check(int(stats.get('vm.rwp-evicted.cur', -1)) == evicted and
                  int(stats.get('vm.rwp-evict-pages.sum', -1)) ==
                  number(host, 'evict.pages'),
                  'domstats --vm has the figures' +
                  ' for a read-only client' * readonly,
                  '' if readonly else '\n'.join(
                      f'{name}={value}' for name, value in stats.items()))
    if VIRT_TYPE == 'kvm':
        tap.check(any(not name.startswith('vm.rwp-') for name in stats),
                  'domstats --vm has those of KVM beside them')
    said = host.refused('-r', 'domrwpinfo', guest.name)
    tap.check(said, 'a read-only client has no other commands', said)


def cancel_jobs(host, guest):
    for job in host.qmp(guest.name, 'query-jobs'):
        host.qmp(guest.name, 'job-cancel', id=job['id'])
    wait_for('its end', lambda: not host.qmp(guest.name, 'query-jobs'))


def restart(tap, host, guest):
    """While a job is running, and with pages in the store."""
    before = away(host)
    host.virsh('domrwp-fetch', guest.name, '--speed', '64K')
    wait_for('the job', lambda: away(host) < before)
    host.stop_daemon()
    host.start_daemon()
    job = host.qmp(guest.name, 'query-jobs')
    tap.check(host.virsh('domstate', guest.name) == 'running' and job and
              away(host) > 0,
              'libvirtd is restarted while a job runs', job)
    said = host.refused('domrwp-evict', guest.name, '--min-age', '1')
    tap.check('still running' in said, 'there is one job at a time', said)
    cancel_jobs(host, guest)
    bad = guest.intact()
    tap.check(not bad and number(host, 'fetch.fault') > 0,
              'the guest finds its memory intact, read from the store',
              bad or f'{number(host, "fetch.fault")} faults, '
              f'{number(host, "fetch.requested")} requested')


def left_behind(tap, host, guest):
    """The job of a --wait that was killed, which nobody dismisses."""
    command = ('domrwp-evict', guest.name, '--offset', str(START),
               '--length', str(SIZE))
    virsh = host.begin(*command, '--speed', '64K', '--wait')
    wait_for('the job', lambda: host.qmp(guest.name, 'query-jobs'))
    virsh.kill()
    virsh.wait()
    said = host.refused(*command, '--wait')
    tap.check("'rwp-evict-pc.ram' is still running" in said,
              'a job of a virsh that was killed goes on, as virsh says', said)
    for job in host.qmp(guest.name, 'query-jobs'):
        host.qmp(guest.name, 'job-cancel', id=job['id'])
    wait_for('its end', lambda: all(
        job['status'] == 'concluded'
        for job in host.qmp(guest.name, 'query-jobs')))
    job = host.qmp(guest.name, 'query-jobs')
    said = host.refused(*command, '--wait')
    tap.check(job and not said and number(host, 'evicted') >= SIZE and
              not host.qmp(guest.name, 'query-jobs'),
              'it is dismissed by the next domrwp-evict', said or job)
    bad = guest.intact()
    tap.check(not bad, 'after that, the memory is intact', bad)


def save(tap, host, guest):
    path = os.path.join(IMAGES, 'saved')
    evict_all = ('domrwp-evict', guest.name, '--offset', str(START),
                 '--length', str(SIZE))
    host.virsh(*evict_all, '--speed', '64K')
    said = host.refused('save', guest.name, path)
    tap.check('wait for its end, or cancel it' in said and
              host.virsh('domstate', guest.name) == 'running',
              'save is refused during an eviction; the guest runs on', said)
    cancel_jobs(host, guest)
    host.virsh(*evict_all, '--wait')
    evicted = number(host, 'evicted')
    guest.close()
    host.virsh('save', guest.name, path)
    host.virsh('restore', path)
    guest.connect()
    bad = guest.intact()
    tap.check(evicted >= SIZE and not bad,
              'save and restore, with evicted pages: the memory is intact',
              bad)
    host.virsh(*evict_all, '--wait')
    evicted = number(host, 'evicted')
    bad = guest.intact()
    tap.check(evicted >= SIZE and not bad,
              'after that, eviction goes on as before', bad)
    host.virsh(*evict_all, '--wait')
    host.virsh('domrwp-fetch', guest.name, '--wait')
    tap.check(evicted >= SIZE and away(host) == 0,
              'domrwp-fetch --wait brings all back')
    guest.close()
    host.virsh('managedsave', guest.name)
    host.virsh('start', guest.name)
    guest.connect()
    bad = guest.intact()
    tap.check(not bad and guest.get(0, 'ACK') == ABI['IDLE'],
              'managedsave and start: the memory is intact', bad)


def end(tap, host, guest, path):
    host.virsh('domrwp-evict', guest.name, '--offset', str(START),
               '--length', str(SIZE), '--wait')
    tap.check(number(host, 'evicted') >= SIZE and
              os.stat(path).st_uid == host.ids()[0],
              'before destroy, pages are in the store')
    host.virsh('destroy', guest.name)
    status = os.stat(path)
    tap.check(status.st_uid == OWNER and status.st_gid == OWNER,
              'destroy gives the store back to its owner',
              f'user {status.st_uid}, group {status.st_gid}')


def over_nbd(tap, host, guest):
    define(tap, host, guest, NBD.format(host.serve('export.raw', RAM)))
    host.virsh('start', guest.name)
    guest.started()
    guest.fill(START, SIZE)
    host.virsh('domrwp-start', guest.name)
    wait_for('three cycles', lambda: int(info(host, guest.name)
                                         ['cycle.completed']) >= 3)
    evict(tap, host, guest, os.path.join(IMAGES, 'export.raw'))
    bad = guest.intact()
    tap.check(not bad, 'over NBD: the guest finds its memory intact', bad)
    host.virsh('destroy', guest.name)


def main():
    enter()
    tap = Tap()
    guest, other = Guest('native'), Guest('over-nbd')
    with Host() as host:
        path = host.image('store.raw', RAM, OWNER)
        run_steps(tap, ((capabilities, host),
                        (define, host, guest, FILE.format(path)),
                        (start, host, guest, path),
                        (track, host, guest),
                        (evict, host, guest, path),
                        (statistics, host, guest),
                        (restart, host, guest),
                        (left_behind, host, guest),
                        (save, host, guest),
                        (end, host, guest, path)))
        guest.close()
        run_steps(tap, ((over_nbd, host, other),))
        other.close()
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
