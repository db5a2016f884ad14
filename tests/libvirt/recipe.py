#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 600
"""memory-backend-rwp under a libvirt that does not know it.

The recipe of docs/libvirt.rst: <qemu:commandline> for the memory and the
store, qemu-monitor-command for the commands. Nothing here needs the patches
of libvirt/, and so it is what to expect of a libvirt without them. (Its one
domain of type qemu has a single provider of statistics.)
"""

import os
import sys

from host import (ABI, enter, Guest, Host, IMAGES, MIB, run_steps, Tap,
                  wait_for)

RAM = 32 * MIB
START = 4 * MIB
SIZE = 8 * MIB


def memory(store):
    """The options of QEMU for the memory and its store."""
    return ['-blockdev', '{"driver":"file","node-name":"cold","filename":"%s",'
            '"discard":"unmap","cache":{"direct":true,"no-flush":true}}' %
            store,
            '-object', '{"qom-type":"memory-backend-rwp","id":"rwp0",'
            '"size":%d,"interval":100,"store":"cold"}' % RAM,
            '-machine', 'memory-backend=rwp0']


def define(tap, host, guest, store):
    path = os.path.join(IMAGES, 'recipe.xml')
    with open(path, 'w', encoding='ascii') as file:
        file.write(guest.xml(RAM, arguments=memory(store)))
    host.virsh('define', '--validate', path)
    tap.check('recipe' in host.virsh('list', '--all', '--name'),
              'define --validate takes the recipe')


def info(host):
    return host.qmp('recipe', 'query-rwp')[0]


def start(tap, host, guest, store):
    """The store of a command line is nothing that libvirt knows."""
    said = host.refused('start', 'recipe')
    tap.check('Permission denied' in said and store in said,
              'a store that the guest\'s user may not open is refused', said)
    os.chown(store, *host.ids())
    host.virsh('start', 'recipe')
    guest.started()
    backend = info(host)
    tap.check(backend['store'] == 'cold' and backend['size'] == RAM,
              'the domain starts with our memory and its store',
              f'tracker {backend["tracker"]}, pager {backend["pager"]}')


def track(tap, host, guest):
    guest.fill(START, SIZE)
    host.qmp('recipe', 'rwp-track-start', id='rwp0')
    wait_for('three cycles',
             lambda: info(host)['cycle']['completed'] >= 3)
    # On a busy host, the guest may do nothing for a cycle
    backend = wait_for('a cycle with an access', lambda: next(
        (one for one in (info(host),) if one['hot']), None))
    tap.check(backend['tracking'] and backend['hot'] < SIZE,
              'tracking: the idle guest touches its mailbox only',
              f'{backend["hot"]} bytes hot, {backend["resident"]} resident')


def evict(tap, host):
    error = host.job('recipe', 'rwp-evict', id='rwp0', **{
        'min-age': 2, 'auto-dismiss': False})
    backend = info(host)
    tap.check(not error and backend['evicted'] >= SIZE,
              'the rest is evicted to the file',
              f'{error or "no error"}; {backend["evicted"]} bytes evicted')
    stats = host.stats('recipe')
    tap.check(int(stats.get('vm.rwp-evicted.cur', -1)) == backend['evicted'] and
              int(stats.get('vm.rwp-evict-pages.sum', -1)) ==
              backend['evict']['pages'],
              'domstats --vm has the figures', '\n'.join(
                  f'{name}={value}' for name, value in stats.items()))
    stats = host.stats('recipe', readonly=True)
    tap.check('vm.rwp-working-set.cur' in stats,
              'domstats --vm has them for a read-only client')


def restart(tap, host, guest):
    evicted = info(host)['evicted']
    host.stop_daemon()
    host.start_daemon()
    tap.check(host.virsh('domstate', 'recipe') == 'running' and
              info(host)['evicted'] == evicted,
              'a new libvirtd finds the guest, and what is evicted')
    bad = guest.intact()
    tap.check(not bad and info(host)['fetch']['fault'] > 0,
              'the guest finds its memory intact, read from the store',
              bad or str(info(host)['fetch']))


def save(tap, host, guest):
    path = os.path.join(IMAGES, 'saved')
    host.qmp('recipe', 'rwp-evict', id='rwp0', speed=65536, ranges=[
        {'offset': START, 'length': SIZE}], **{
            'job-id': 'slow', 'auto-dismiss': True})
    said = host.refused('save', 'recipe', path)
    tap.check('wait for its end, or cancel it' in said and
              host.virsh('domstate', 'recipe') == 'running',
              'save is refused during an eviction; the guest runs on', said)
    host.qmp('recipe', 'job-cancel', id='slow')
    wait_for('its end', lambda: not host.qmp('recipe', 'query-jobs'))

    host.job('recipe', 'rwp-evict', id='rwp0', ranges=[
        {'offset': START, 'length': SIZE}], **{'auto-dismiss': False})
    evicted = info(host)['evicted']
    guest.close()
    host.virsh('save', 'recipe', path)
    host.virsh('restore', path)
    guest.connect()
    bad = guest.intact()
    tap.check(evicted >= SIZE and not bad,
              'save and restore, with evicted pages: the memory is intact',
              bad)
    error = host.job('recipe', 'rwp-evict', id='rwp0', ranges=[
        {'offset': START, 'length': SIZE}], **{'auto-dismiss': False})
    evicted = info(host)['evicted']
    bad = guest.intact()
    tap.check(not error and evicted >= SIZE and not bad,
              'after that, eviction goes on as before', error or bad)
    error = host.job('recipe', 'rwp-fetch', id='rwp0',
                     **{'auto-dismiss': False})
    tap.check(not error and info(host)['evicted'] == 0,
              'rwp-fetch brings back what is evicted', error)
    guest.close()
    host.virsh('managedsave', 'recipe')
    host.virsh('start', 'recipe')
    guest.connect()
    bad = guest.intact()
    tap.check(not bad and guest.get(0, 'ACK') == ABI['IDLE'],
              'managedsave and start: the memory is intact', bad)


def end(tap, host, store):
    error = host.job('recipe', 'rwp-evict', id='rwp0', ranges=[
        {'offset': START, 'length': SIZE}], **{'auto-dismiss': False})
    evicted = info(host)['evicted']
    host.virsh('destroy', 'recipe')
    tap.check(not error and evicted >= SIZE and
              host.virsh('domstate', 'recipe') == 'shut off',
              'destroy ends a guest with evicted pages')
    tap.check(os.stat(store).st_uid == host.ids()[0],
              'libvirt leaves the owner of the store alone')


def main():
    enter()
    tap = Tap()
    guest = Guest('recipe')
    with Host() as host:
        store = host.image('store.raw', RAM)
        run_steps(tap, ((define, host, guest, store),
                        (start, host, guest, store),
                        (track, host, guest),
                        (evict, host),
                        (restart, host, guest),
                        (save, host, guest),
                        (end, host, store)))
        guest.close()
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
