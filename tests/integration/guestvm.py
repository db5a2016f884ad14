# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine with the memory-touching guest, and TAP output.

Tap        results, a line each
GuestVM    QEMU with the firmware of tests/qtest/rwp/guest.S, which touches
           memory as the mailbox says (tests/qtest/rwp/guest-abi.h)

The guest runs with TCG, or what RWP_TEST_ACCEL says. Its memory is read and
written from outside by the qtest protocol, that is by QEMU's main loop.

RWP_TEST_SCALE divides sizes and amounts, for machines that are emulated.

Every wait has a limit (LIMIT seconds without any progress), which is there to
end a test that hangs; no test passes or fails by how long something took.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

TOP = os.environ.get('RWP_TOP') or os.path.dirname(os.path.dirname(
    os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(os.environ.get('RWP_BUILD') or
                     os.path.join(TOP, 'build'), 'qemu')
GUEST = os.path.join(TOP, 'tests', 'qtest', 'rwp')
SCALE = int(os.environ.get('RWP_TEST_SCALE') or 1)
ACCEL = os.environ.get('RWP_TEST_ACCEL') or 'tcg'
LIMIT = 120
MIB = 1 << 20
# For RWP_INJECT: a step left out, and a stay in the moment that it guards.
# What takes luck without that takes hours on an emulated machine.
MUTATIONS = {'skip-trap': 'delay-punch', 'skip-unmap': 'delay-stage',
             'early-wake': 'delay-punch'}

sys.path.insert(0, os.path.join(TOP, 'build', 'src', 'qemu', 'python'))

# pylint: disable=wrong-import-position
from qemu.machine import QEMUMachine                    # noqa: E402
from qemu.machine.qtest import QEMUQtestProtocol        # noqa: E402
from qemu.qmp.legacy import QMPError                    # noqa: E402


class Tap:
    """Test results as TAP on stdout; the plan comes last."""

    def __init__(self):
        self.number = 0
        self.failed = 0

    def check(self, good, name, detail=''):
        self.number += 1
        self.failed += not good
        print(f'{"ok" if good else "not ok"} {self.number} - {name}')
        if detail:
            self.note(detail)
        sys.stdout.flush()
        return good

    def skip(self, name, reason):
        self.number += 1
        print(f'ok {self.number} - {name} # SKIP {reason}', flush=True)

    @staticmethod
    def note(text):
        for line in str(text).splitlines():
            print(f'# {line}', flush=True)

    def run(self, name, function, *args):
        """An exception in @function is a failed test called @name."""
        try:
            function(*args)
        except (AssertionError, OSError, QMPError, TimeoutError) as error:
            self.check(False, name, f'{type(error).__name__}: {error}')

    def done(self):
        print(f'1..{self.number}', flush=True)
        return 1 if self.failed else 0


def wait_for(what, condition, progress=lambda: None, pause=0.05):
    """Wait until condition(); progress() must keep changing, if given.

    @pause: seconds between two looks. Returns what condition() does.
    """
    last = progress()
    limit = time.monotonic() + LIMIT
    while True:
        result = condition()
        if result:
            return result
        now = progress()
        if now != last:
            last = now
            limit = time.monotonic() + LIMIT
        if time.monotonic() > limit:
            raise TimeoutError(f'waited for {what}')
        time.sleep(pause)


def read_words(path):
    """What is in a file of /proc, or nothing if it is gone."""
    try:
        with open(path, encoding='ascii') as file:
            return ' '.join(file.read().split())
    except OSError:
        return ''


def read_link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ''


def read_abi():
    """The numbers of guest-abi.h, without their prefix."""
    with open(os.path.join(GUEST, 'guest-abi.h'), encoding='ascii') as file:
        return {name: int(number, 0) for name, number in
                re.findall(r'^#define RWP_GUEST_(\w+) (\w+)$', file.read(),
                           re.M)}


ABI = read_abi()
PAGE = ABI['PAGE']


def firmware():
    """A ROM with the guest at its start and a jump at the reset vector."""
    with open(os.path.join(GUEST, 'guest-image.h'), encoding='ascii') as file:
        image = bytes(int(byte, 16)
                      for byte in re.findall(r'0x(\w\w),', file.read()))
    rom = bytearray(ABI['ROM_SIZE'])
    rom[:len(image)] = image
    reset = ABI['RESET_OFFSET']
    # Real mode: jmp rel16 (e9), 3 bytes long, to offset 0
    rom[reset:reset + 3] = b'\xe9' + (-(reset + 3) & 0xffff).to_bytes(
        2, 'little')
    return bytes(rom)


def touched_pages(pages, seed, density):
    """Which pages of a region the guest touches, see guest-abi.h."""
    def in_set(page):
        value = (page * ABI['HASH_1'] ^ seed) * ABI['HASH_2']
        return (value & 0xffffffff) >> 24 < density
    return {page for page in range(pages) if in_set(page)}


class GuestVM:
    """A context manager: the VM and its files are gone at the end."""

    def __init__(self, backend, ram, cpus=1, env=None, args=(), store=None):
        """
        @backend: the -object option without id and size; @ram: bytes;
        @store: the -blockdev option of store0, else a file
        """
        self.ram = ram
        self.cpus = cpus
        self.dir = tempfile.mkdtemp(prefix='rwp-')
        self.serial_path = os.path.join(self.dir, 'serial')
        self.store_path = os.path.join(self.dir, 'store')
        self.vm = None
        self.qtest = None
        # Called again and again while a job runs
        self.meanwhile = lambda: None
        try:
            self._launch(backend, env or {}, args, store or
                         'driver=file,node-name=store0,filename=' +
                         self.store_path)
        except BaseException:
            self.close()
            raise

    def _launch(self, backend, env, args, store):
        rom = os.path.join(self.dir, 'rom')
        with open(rom, 'wb') as file:
            file.write(firmware())
        with open(self.store_path, 'wb') as file:
            file.truncate(self.ram)
        socket = os.path.join(self.dir, 'qtest')
        qtest = QEMUQtestProtocol(socket, server=True)
        qtest.settimeout(LIMIT)
        wrapper = ['env'] + [f'{name}={value}' for name, value in env.items()]
        self.vm = QEMUMachine(
            os.path.join(BUILD, 'qemu-system-x86_64'), wrapper=wrapper,
            base_temp_dir=self.dir, qmp_timer=LIMIT, args=[
                '-nodefaults', '-accel',
                'tcg,thread=multi' if ACCEL == 'tcg' else ACCEL,
                '-machine', 'pc,memory-backend=mem0',
                '-smp', str(self.cpus), '-m', f'{self.ram // MIB}M',
                '-object', f'{backend},id=mem0,size={self.ram}',
                '-blockdev', store,
                '-bios', rom, '-serial', 'file:' + self.serial_path,
                # No option ROM: nobody but the guest touches its memory
                '-global', 'apic-common.vapic=off',
                '-qtest', 'unix:' + socket, '-qtest-log', 'none', *args])
        self.vm.launch()
        qtest.accept()
        qtest.settimeout(LIMIT)
        self.qtest = qtest
        for cpu in range(0 if '-incoming' in args else self.cpus):
            self.wait_field(cpu, 'ALIVE', lambda value: value == 1)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        if self.qtest:
            self.qtest.close()
        if self.vm:
            try:
                # A guest under mutation may be in any state: do not ask
                self.vm.kill()
            except Exception as error:  # pylint: disable=broad-except
                Tap.note(f'end of QEMU: {error}')
            log = self.vm.get_log()
            if log and log.strip():
                Tap.note('QEMU said: ' + log.strip())
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- guest memory -------------------------------------------------------

    def command(self, text):
        answer = self.qtest.cmd(text).split()
        if not answer or answer[0] != 'OK':
            raise OSError(f'qtest: {text}: {answer}')
        return answer[1] if len(answer) > 1 else None

    def _address(self, cpu, field):
        return ABI['MAILBOX'] + cpu * ABI['BLOCK'] + ABI[field]

    def get(self, cpu, field):
        return int(self.command(f'readl 0x{self._address(cpu, field):x}'), 0)

    def set(self, cpu, field, value):
        self.command(f'writel 0x{self._address(cpu, field):x} 0x{value:x}')

    def standstill(self):
        """What to know of a guest that does not go on, as text."""
        proc = f'/proc/{self.vm.get_pid()}'
        report = [f'serial port: {self.serial()!r}', str(self.info()),
                  str(self.qmp('query-status'))]
        report += [str(run) for run in self.map() if run['state'] == 'moving']
        # A guest that was reset, or whose processors execute something else
        report += [str(event) for event in self.vm.get_qmp_events()
                   if event['event'] in ('RESET', 'SHUTDOWN', 'STOP')]
        report.append(self.qmp('human-monitor-command',
                               command_line='info registers -a'))
        # Twice, to see what moves
        for _ in range(2):
            report += [f'CPU {cpu} {field} {self.get(cpu, field)}'
                       for cpu in range(self.cpus)
                       for field in ('MODE', 'ACK', 'ROUNDS')]
            for task in sorted(glob.glob(f'{proc}/task/*')):
                report += [read_words(os.path.join(task, name))
                           for name in ('comm', 'wchan', 'stack', 'stat')]
            time.sleep(1)
        # Faults that nobody has read yet, and all
        for path in glob.glob(f'{proc}/fd/*'):
            if 'userfaultfd' in read_link(path):
                report.append(read_words(path.replace('/fd/', '/fdinfo/')))
        return '; '.join(report)

    def wait_field(self, cpu, field, condition):
        """Wait until the field is as wanted; it must keep changing."""
        value = last = self.get(cpu, field)
        limit = time.monotonic() + LIMIT
        while not condition(value):
            if value != last:
                last = value
                limit = time.monotonic() + LIMIT
            if time.monotonic() > limit:
                raise TimeoutError(f'{field} of CPU {cpu} stays {value}; '
                                   + self.standstill())
            if self.get(cpu, 'BAD'):
                raise AssertionError(self.mismatch(cpu))
            time.sleep(0.01)
            value = self.get(cpu, field)
        return value

    def mode(self, cpu, name):
        """Change the mode and wait until it is in effect."""
        self.set(cpu, 'MODE', ABI[name])
        self.wait_field(cpu, 'ACK', lambda value: value == ABI[name])

    def region(self, cpu, start, pages, seed=0, density=256, offset=0):
        """Set the region of an idle CPU."""
        assert self.get(cpu, 'ACK') == ABI['IDLE']
        self.set(cpu, 'START', start)
        self.set(cpu, 'PAGES', pages)
        self.set(cpu, 'MASK', (1 << (pages - 1).bit_length()) - 1)
        self.set(cpu, 'SEED', seed)
        self.set(cpu, 'DENSITY', density)
        self.set(cpu, 'OFFSET', offset)

    def verify(self, cpu):
        """Let an idle CPU compare all pages of its region."""
        before = self.get(cpu, 'VERIFIED')
        self.mode(cpu, 'VERIFY')
        self.wait_field(cpu, 'VERIFIED', lambda value: value != before)
        self.mode(cpu, 'IDLE')

    def mismatch(self, cpu):
        """What a CPU found wrong, or None."""
        if not self.get(cpu, 'BAD'):
            return None
        return (f'CPU {cpu}, address 0x{self.get(cpu, "BAD_ADDRESS"):x}: '
                f'0x{self.get(cpu, "BAD_FOUND"):08x} instead of '
                f'0x{self.get(cpu, "BAD_EXPECTED"):08x}')

    def serial(self):
        try:
            with open(self.serial_path, encoding='latin-1') as file:
                return file.read()[-60:]
        except OSError:
            return ''

    # -- commands -----------------------------------------------------------

    def qmp(self, command, **arguments):
        return self.vm.cmd(command, **arguments)

    def info(self):
        return self.qmp('query-rwp', id='mem0')[0]

    def map(self, **arguments):
        """All runs of the map."""
        runs = []
        offset = arguments.pop('offset', 0)
        while offset is not None:
            part = self.qmp('query-rwp-map', id='mem0', offset=offset,
                            max_runs=65536, **arguments)
            runs += part['runs']
            offset = part.get('next')
        return runs

    def job(self, job_id):
        for job in self.qmp('query-jobs'):
            if job['id'] == job_id:
                return job
        return None

    def run_job(self, command, **arguments):
        """Start a job, wait for its end; returns its error or None."""
        self.qmp(command, job_id='job0', id='mem0', **arguments)
        limit = time.monotonic() + LIMIT
        last = None
        while True:
            job = self.job('job0')
            if job['status'] == 'concluded':
                break
            if job['current-progress'] != last:
                last = job['current-progress']
                limit = time.monotonic() + LIMIT
            if time.monotonic() > limit:
                raise TimeoutError(f'{command} makes no progress: {job}')
            self.meanwhile()
            time.sleep(0.002)
        self.qmp('job-dismiss', id='job0')
        self.vm.get_qmp_events()
        return job.get('error')


def tracked_backends():
    """-object options of the kinds that the host can track, the best first."""
    default = 'memory-backend-rwp'
    with GuestVM(default, MIB) as guest:
        pager = guest.info()['pager']
    return [default] + ([default + ',backing=memfd'] if pager == 'move'
                        else [])


def have_backend():
    """None, or the reason why memory-backend-rwp cannot be used here."""
    with tempfile.TemporaryDirectory() as scratch:
        result = subprocess.run(
            [os.path.join(BUILD, 'qemu-system-x86_64'), '-machine', 'none',
             '-nodefaults', '-display', 'none', '-S', '-daemonize',
             '-pidfile', os.path.join(scratch, 'pid'), '-object',
             f'memory-backend-rwp,id=m,size={MIB}'],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode == 0:
            with open(os.path.join(scratch, 'pid'), encoding='ascii') as pid:
                os.kill(int(pid.read()), 15)
            return None
        return result.stderr.strip() or f'QEMU ended with {result.returncode}'
