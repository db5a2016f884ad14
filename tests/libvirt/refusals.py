#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 600
"""What cannot be combined with <source type='rwp'/>, and what libvirt says.

A line for each: "define", or "start" for what depends on the host, must fail
with a message that names both sides.
"""

import os
import sys

from host import enter, Guest, Host, IMAGES, MIB, run_steps, Tap

RAM = 32 * MIB
STORE = '<store type="file" format="raw"><source file="{store}"/></store>'
SOURCE = '<source type="rwp"/>'
NUMA = '''<cpu><numa>
  <cell id="0" cpus="0" memory="16" unit="MiB"/>
  <cell id="1" cpus="1" memory="16" unit="MiB"/>
</numa></cpu>'''

# command, what is tried, in <memoryBacking>, elements of the domain, devices,
# parts of the message
CASES = (
    ('define', 'the element without the source',
     '<source type="memfd"/><rwp interval="100"/>', '', '',
     ("'rwp'", 'source')),
    ('define', 'an interval below 10 ms',
     SOURCE + '<rwp interval="9"/>', '', '', ('interval', '10')),
    ('define', 'an unknown tracker',
     SOURCE + '<rwp tracker="guess"/>', '', '', ('tracker', 'guess')),
    ('define', 'locked memory',
     SOURCE + '<locked/>', '', '', ("'rwp'", 'locked')),
    ('define', 'immediate allocation and a store',
     SOURCE + '<allocation mode="immediate"/><rwp>' + STORE + '</rwp>', '',
     '', ('store', 'immediate')),
    ('define', 'two NUMA cells and one store',
     SOURCE + '<rwp>' + STORE + '</rwp>', NUMA, '', ('store', 'NUMA')),
    ('define', 'a store in qcow2',
     SOURCE + '<rwp><store type="file" format="qcow2">'
     '<source file="{store}"/></store></rwp>', '', '', ('store', 'raw')),
    ('define', 'a store that is a directory',
     SOURCE + '<rwp><store type="dir"><source dir="/"/></store></rwp>', '',
     '', ('store', 'file')),
    ('define', 'a store without source',
     SOURCE + '<rwp><store type="file"/></rwp>', '', '', ('store', 'source')),
    ('define', 'a host device (VFIO)',
     SOURCE, '', '<hostdev mode="subsystem" type="pci" managed="no"><source>'
     '<address domain="0" bus="0" slot="3" function="0"/></source>'
     '</hostdev>', ("'rwp'", 'VFIO')),
    ('define', 'a SCSI host device (vhost-scsi)',
     SOURCE, '', '<hostdev mode="subsystem" type="scsi_host"><source '
     'protocol="vhost" wwpn="naa.5123456789abcde0"/></hostdev>',
     ("'rwp'", 'vhost-scsi')),
    ('define', 'graphics with blob resources',
     SOURCE, '', '<video><model type="virtio" blob="on"/></video>',
     ("'rwp'", 'blob')),
    ('define', 'virtiofs',
     SOURCE + '<access mode="shared"/>', '', '<filesystem type="mount">'
     '<driver type="virtiofs"/><source dir="/"/><target dir="x"/>'
     '</filesystem>', ("'rwp'", 'virtiofs')),
    ('define', 'a vhost-user network device',
     SOURCE + '<access mode="shared"/>', '', '<interface type="vhostuser">'
     '<source type="unix" path="/run/x" mode="server"/>'
     '<model type="virtio"/></interface>', ("'rwp'", 'vhostuser')),
    ('define', 'a vhost-user disk',
     SOURCE + '<access mode="shared"/>', '', '<disk type="vhostuser" '
     'device="disk"><driver name="qemu" type="raw"/><source type="unix" '
     'path="/run/x"/><target dev="vda" bus="virtio"/></disk>',
     ("'rwp'", 'vhostuser')),
    ('define', 'launchSecurity',
     SOURCE, '<launchSecurity type="sev"><policy>0x1</policy>'
     '<cbitpos>47</cbitpos><reducedPhysBits>1</reducedPhysBits>'
     '</launchSecurity>', '', ("'rwp'", 'launchSecurity')),
    ('start', 'a store that does not exist',
     SOURCE + '<rwp><store type="file" format="raw"><source file="/none"/>'
     '</store></rwp>', '', '', ('/none', 'No such file')),
    ('start', 'a store that is too small',
     SOURCE + '<rwp><store type="file" format="raw"><source file="{small}"/>'
     '</store></rwp>', '', '', ('small.raw', '33554432')),
)


def refusal(tap, host, case, paths):
    command, what, memory, elements, devices, parts = case
    guest = Guest('refused')
    path = os.path.join(IMAGES, 'refused.xml')
    memory = memory.format(**paths)
    with open(path, 'w', encoding='ascii') as file:
        file.write(guest.xml(
            RAM, f'<memoryBacking>{memory}</memoryBacking>{elements}',
            devices=devices, cpus=2 if elements == NUMA else 1))
    said = host.refused('define', path)
    if not said:
        said = host.refused('start', 'refused') if command == 'start' else ''
        host.refused('destroy', 'refused')
        host.virsh('undefine', 'refused')
    elif command == 'start':
        said = f'define failed: {said}'
    tap.check(all(part in said for part in parts) and
              f'Failed to {command}' in said,
              f'{command}: {what}', said or 'it was not refused')


def main():
    enter()
    tap = Tap()
    # No guest runs. As another user, who may not open /dev/kvm though QEMU can
    # when it is asked, libvirtd would ask QEMU anew for each command.
    with Host('root') as host:
        paths = {'store': host.image('store.raw', RAM),
                 'small': host.image('small.raw', RAM - MIB)}
        for case in CASES:
            run_steps(tap, ((refusal, host, case, paths),))
    return tap.done()


if __name__ == '__main__':
    sys.exit(main())
