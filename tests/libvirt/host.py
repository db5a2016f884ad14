# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirt of its own for a test, and the memory-touching guest under it.

enter()      run the test in namespaces of its own
run_steps()  its parts
Host         libvirtd, virsh and NBD servers
Guest        what the guest of tests/qtest/rwp/guest.S does, by the mailbox

The libvirt of build/libvirt keeps everything below one directory in /run (see
libvirt/configure). The test has a mount namespace in which /run is empty, so
nothing of the machine's own libvirt, systemd or D-Bus is seen or touched, and
a process namespace: whatever ends the test ends all that it started.

The guest's CPUs and memory are driven by the qtest protocol, which
<qemu:commandline> adds to each domain. Nothing else goes round libvirt.

Every wait has a limit without progress, which is there to end a test that
hangs; no test passes or fails by how long something took.
"""

import grp
import json
import os
import pwd
import re
import shutil
import struct
import subprocess
import sys
import time

TOP = os.environ.get('RWP_TOP') or os.path.dirname(os.path.dirname(
    os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, 'tests', 'integration'))

# pylint: disable=wrong-import-position
from guestvm import ABI, ACCEL, BUILD as QEMU_BUILD, LIMIT        # noqa: E402
from guestvm import firmware, GuestVM, have_backend, MIB, PAGE    # noqa: E402
from guestvm import Tap, wait_for                                 # noqa: E402
from qemu.machine.qtest import QEMUQtestProtocol                  # noqa: E402

LIBVIRT = os.environ.get('RWP_LIBVIRT_BUILD') or \
    os.path.join(os.path.dirname(QEMU_BUILD), 'libvirt')
VIRSH = [os.path.join(LIBVIRT, 'tools', 'virsh'), '-c', 'qemu:///system']
# Below /run, as libvirt/configure has it
STATE = '/run/rwp-libvirt'
QEMU = os.path.join(STATE, 'qemu', 'qemu-system-x86_64')
IMAGES = os.path.join(STATE, 'images')
VIRT_TYPE = 'kvm' if ACCEL == 'kvm' else 'qemu'
# The devices of the harness machine are root's, as they are
IN_MACHINE = VIRT_TYPE == 'kvm'
USER = 'root' if IN_MACHINE else 'nobody'
# What the script "run" there does, without what it does to systemd's units
ENVIRONMENT = {**os.environ, 'LIBVIRT_DIR_OVERRIDE': '1',
               'LD_LIBRARY_PATH': os.path.join(LIBVIRT, 'src')}
INSIDE = 'RWP_LIBVIRT_INSIDE'
UNSHARE = ['unshare', '--mount', '--pid', '--fork', '--kill-child',
           '--mount-proc']


def skip(reason):
    print(f'1..0 # SKIP {reason}', flush=True)
    sys.exit(77)


def enter():
    """Go on in new namespaces, or skip the test."""
    if os.environ.get(INSIDE):
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'mode=755', 'rwp',
                        '/run'], check=True)
        return
    if os.getuid() != 0:
        skip('a libvirtd that runs guests as another user needs root')
    if not os.path.exists(os.path.join(LIBVIRT, 'src', 'libvirtd')):
        print('Bail out! build/libvirt has no libvirtd: make libvirt')
        sys.exit(1)
    possible = subprocess.run(UNSHARE + ['true'], stderr=subprocess.PIPE,
                              text=True, check=False)
    if possible.returncode:
        skip(f'no namespaces here: {possible.stderr.strip()}')
    reason = have_backend()
    if reason:
        skip(reason)
    # The shell is process 1 and reaps what daemons leave behind
    os.execvpe(UNSHARE[0],
               UNSHARE + ['bash', '-c', '"$@"; exit $?', 'init',
                          sys.executable] + sys.argv,
               {**os.environ, INSIDE: '1'})


class VirshError(Exception):
    """virsh failed; the text is what it said."""


def paths():
    """Where the libvirt that was built looks for what; all below STATE."""
    with open(os.path.join(LIBVIRT, 'configmake.h'), encoding='ascii') as file:
        return dict(re.findall(r'^#define (\w+DIR) "(.*)"$', file.read(),
                               re.M))


def run_steps(tap, steps):
    """Call (function, argument...) one after another, until one raises."""
    for function, *arguments in steps:
        try:
            function(tap, *arguments)
        except Exception as error:      # pylint: disable=broad-except
            tap.check(False, f'{function.__name__} goes through',
                      f'{type(error).__name__}: {error}')
            return


def record_boot():
    """Say in /run/utmp when the host was booted; utmp(5).

    libvirt remembers that with the owner of a file, and trusts neither if it
    is told something else. Without a record each libvirtd computes it from the
    uptime, and after a restart it can be off by a second.
    """
    with open('/proc/stat', encoding='ascii') as file:
        seconds = int(re.search(r'^btime (\d+)$', file.read(), re.M).group(1))
    with open('/run/utmp', 'wb') as file:
        file.write(struct.pack('hi32s4s32s256s2h3i4i20s', 2, 0, b'~', b'~~',
                               b'reboot', b'', 0, 0, 0, seconds, 0,
                               0, 0, 0, 0, b''))


class Host:
    """A context manager: a host with a libvirtd."""

    def __init__(self, user=USER):
        self.user = user
        self.daemon = None
        self.servers = []
        self.log = os.path.join(STATE, 'libvirtd.log')

    def __enter__(self):
        record_boot()
        os.makedirs(IMAGES)
        # QEMU makes the socket of the qtest protocol there
        os.chmod(IMAGES, 0o1777)
        etc = os.path.join(paths()['SYSCONFDIR'], 'libvirt')
        os.makedirs(etc)
        os.makedirs(paths()['RUNSTATEDIR'])
        # The path to the build may be closed to the user of the guests
        os.makedirs(os.path.dirname(QEMU))
        subprocess.run(['mount', '--bind', QEMU_BUILD, os.path.dirname(QEMU)],
                       check=True)
        with open(os.path.join(etc, 'qemu.conf'), 'w',
                  encoding='ascii') as conf:
            # No virtlogd; no group of the machine's control groups
            conf.write(f'user = "{self.user}"\n'
                       'group = "nogroup"\n'
                       'security_driver = "none"\n'
                       'cgroup_controllers = []\n'
                       'stdio_handler = "file"\n' +
                       'namespaces = []\n' * IN_MACHINE)
        with open(os.path.join(etc, 'libvirtd.conf'), 'w',
                  encoding='ascii') as conf:
            conf.write('auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
                       f'log_outputs = "2:file:{self.log}"\n')
        try:
            self.start_daemon()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        for server in self.servers:
            server.kill()
            server.wait()
        self.stop_daemon()
        self.keep(self.log)
        logs = os.path.join(paths()['LOCALSTATEDIR'], 'log', 'libvirt', 'qemu')
        for name in os.listdir(logs) if os.path.isdir(logs) else []:
            self.keep(os.path.join(logs, name))

    @staticmethod
    def keep(path):
        """Keep a log with the results of the test."""
        results = os.environ.get('RWP_RESULTS')
        if results and os.path.exists(path):
            shutil.copy(path, results)

    def start_daemon(self):
        etc = os.path.join(paths()['SYSCONFDIR'], 'libvirt')
        # pylint: disable=consider-using-with
        self.daemon = subprocess.Popen(
            [os.path.join(LIBVIRT, 'src', 'libvirtd'),
             '-f', os.path.join(etc, 'libvirtd.conf')], env=ENVIRONMENT,
            stdin=subprocess.DEVNULL, stdout=sys.stderr)
        wait_for('libvirtd', self.answers)

    def stop_daemon(self):
        self.daemon.terminate()
        try:
            self.daemon.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()

    def answers(self):
        if self.daemon.poll() is not None:
            raise OSError(f'libvirtd ended with {self.daemon.returncode}')
        try:
            self.virsh('version')
            return True
        except VirshError:
            return False

    @staticmethod
    def virsh(*arguments, readonly=False, progress=False):
        """What virsh prints; @progress: with progress reports."""
        result = subprocess.run(
            VIRSH + ['-r'] * readonly + list(arguments), env=ENVIRONMENT,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, check=False, timeout=LIMIT)
        if result.returncode:
            raise VirshError(result.stderr.strip())
        return (result.stdout + result.stderr * progress).strip()

    @staticmethod
    def begin(*arguments):
        """A virsh that goes on by itself; its process."""
        return subprocess.Popen(
            VIRSH + list(arguments), env=ENVIRONMENT,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)

    def ids(self):
        """User and group of the guests."""
        user = pwd.getpwnam(self.user)
        return user.pw_uid, grp.getgrnam('nogroup').gr_gid

    def refused(self, *arguments):
        """What virsh says when it fails, and '' if it does not."""
        try:
            self.virsh(*arguments)
        except VirshError as error:
            return str(error)
        return ''

    def qmp(self, domain, command, **arguments):
        """The answer of QEMU to a command, given by virsh."""
        answer = json.loads(self.virsh(
            'qemu-monitor-command', domain,
            json.dumps({'execute': command, 'arguments': arguments})))
        if 'error' in answer:
            raise VirshError(answer['error']['desc'])
        return answer['return']

    def job(self, domain, command, **arguments):
        """Start a job of QEMU and wait for its end; its error, or None."""
        self.qmp(domain, command, **{'job-id': 'job0', **arguments})
        job = wait_for(command, lambda: next(
            (job for job in self.qmp(domain, 'query-jobs')
             if job['id'] == 'job0' and job['status'] == 'concluded'), None))
        self.qmp(domain, 'job-dismiss', id='job0')
        return job.get('error')

    def stats(self, domain, readonly=False):
        """domstats --vm as a dictionary."""
        lines = self.virsh('domstats', domain, '--vm',
                           readonly=readonly).splitlines()
        return {name.strip(): value for name, _, value in
                (line.partition('=') for line in lines) if value}

    def image(self, name, size, owner=None):
        """A sparse file; its path."""
        path = os.path.join(IMAGES, name)
        with open(path, 'wb') as file:
            file.truncate(size)
        if owner is not None:
            os.chown(path, owner, owner)
        return path

    def serve(self, name, size):
        """An NBD server for a new image; the path of its socket."""
        path = self.image(name, size)
        socket = os.path.join(IMAGES, name + '.sock')
        # pylint: disable=consider-using-with
        self.servers.append(subprocess.Popen(
            ['nbdkit', '--foreground', '--exit-with-parent',
             f'--unix={socket}', 'file', path], stdin=subprocess.DEVNULL))
        wait_for('nbdkit', lambda: os.path.exists(socket))
        os.chmod(socket, 0o666)
        return socket


class Guest(GuestVM):
    """The guest of a domain, which has to be defined with xml().

    Of GuestVM it has what concerns the mailbox.
    """

    # pylint: disable=super-init-not-called
    def __init__(self, name):
        self.name = name
        self.cpus = 1
        self.socket = os.path.join(IMAGES, name + '.qtest')
        self.serial_path = os.path.join(IMAGES, name + '.serial')
        self.qtest = None

    def xml(self, ram, memory='', arguments=(), devices='', cpus=1):
        """A domain of @ram bytes.

        @memory: more elements of the domain; @arguments: more options of
        QEMU; @devices: more devices
        """
        rom = os.path.join(IMAGES, 'rom')
        with open(rom, 'wb') as file:
            file.write(firmware())
        arguments = ['-qtest', f'unix:{self.socket},server=on,wait=off',
                     '-qtest-log', 'none',
                     '-global', 'apic-common.vapic=off', *arguments]
        lines = '\n'.join(f"    <qemu:arg value='{argument}'/>"
                          for argument in arguments)
        return f'''\
<domain type='{VIRT_TYPE}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{self.name}</name>
  <memory unit='b'>{ram}</memory>
  {memory}
  <vcpu>{cpus}</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <loader type='rom'>{rom}</loader>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{QEMU}</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{self.serial_path}'/></serial>
    <memballoon model='none'/>
    {devices}
  </devices>
  <qemu:commandline>
{lines}
  </qemu:commandline>
</domain>
'''

    def connect(self):
        """Take up the connection to a QEMU that was started."""
        self.qtest = QEMUQtestProtocol(self.socket)
        self.qtest.connect()
        self.qtest.settimeout(LIMIT)

    def started(self):
        """The same, of a guest that begins: wait until it runs."""
        self.connect()
        self.wait_field(0, 'ALIVE', lambda value: value == 1)

    def close(self):
        if self.qtest:
            self.qtest.close()
            self.qtest = None

    def fill(self, start, size, rounds=3):
        """Let the guest go through a region that it knows the content of."""
        self.region(0, start, size // PAGE)
        self.mode(0, 'COUNT')
        self.wait_field(0, 'ROUNDS', lambda value: value >= rounds)
        self.mode(0, 'IDLE')

    def intact(self):
        """Let the guest compare the region; what is wrong, or None."""
        try:
            self.verify(0)
        except AssertionError as error:
            return str(error)
        return self.mismatch(0)


__all__ = ['ABI', 'enter', 'Guest', 'Host', 'IMAGES', 'MIB', 'QEMU', 'STATE',
           'run_steps', 'Tap', 'VIRT_TYPE', 'VirshError', 'wait_for']
