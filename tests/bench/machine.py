# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual machine that is measured.

Machine     QEMU with the firmware guest.c, which touches memory and measures
            what that takes; see there for the mailbox

The guest runs with TCG. Commands reach it through guest memory, by the qtest
protocol, and an NMI, so that it is halted between commands. Its time stamp
counter is that of the host.

Every wait has a limit, which is there to end a run that hangs.

RWP_TEST_SCALE divides sizes, for machines that are emulated.
"""

import array
import base64
import os
import shutil
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BUILD = os.path.join(TOP, 'build')
# Where qemu-system-x86_64 and qemu-img are; set it to compare builds
QEMU = os.environ.get('RWP_QEMU') or os.path.join(BUILD, 'qemu')
SCALE = int(os.environ.get('RWP_TEST_SCALE') or 1)
LIMIT = 60 * SCALE
PAGE = 4096
MIB = 1 << 20

# Of struct mailbox and RESULTS in guest.c
MAILBOX = 0x1000
RESULTS = 0x100000
LIST = 0x1000000
LIST_WRITE = 1 << 31
COMMAND, START, PAGES, SEED, STARTED, DONE, LOW, HIGH = range(8)
TOUCH, WRITE, FILL, REPLAY = range(1, 5)

ROM_SIZE = 0x10000
RESET = 0xfff0

# Where the memory that is measured begins: no lower page is ever evicted
BASE = 64 * MIB

sys.path.insert(0, os.path.join(BUILD, 'src', 'qemu', 'python'))

# pylint: disable=wrong-import-position
from qemu.machine import QEMUMachine                    # noqa: E402
from qemu.machine.qtest import QEMUQtestProtocol        # noqa: E402


def firmware():
    """guest.bin at the start of a ROM, and at the reset vector a jump to it"""
    with open(os.path.join(BUILD, 'bench', 'guest.bin'), 'rb') as file:
        image = file.read()
    # Real mode: jmp rel16 is e9, and 3 bytes long
    jump = b'\xe9' + (-(RESET + 3) & 0xffff).to_bytes(2, 'little')
    return (image.ljust(RESET, b'\0') + jump).ljust(ROM_SIZE, b'\0')


class Machine:
    """A context manager: at the end QEMU and its files are gone."""

    def __init__(self, backend, size, args=(), wrapper=()):
        """@backend: the -object option without id and size;
        @size: bytes of memory above BASE; @wrapper: a command that QEMU's
        is appended to"""
        self.size = size
        self.dir = tempfile.mkdtemp(prefix='rwp-bench-')
        self.vm = None
        self.qtest = None
        try:
            self._launch(backend, args, wrapper)
        except BaseException:
            self.close()
            raise

    def _launch(self, backend, args, wrapper):
        rom = os.path.join(self.dir, 'rom')
        with open(rom, 'wb') as file:
            file.write(firmware())
        socket = os.path.join(self.dir, 'qtest')
        self.qtest = QEMUQtestProtocol(socket, server=True)
        self.qtest.settimeout(LIMIT)
        ram = BASE + self.size
        self.vm = QEMUMachine(
            os.path.join(QEMU, 'qemu-system-x86_64'),
            base_temp_dir=self.dir, qmp_timer=LIMIT, wrapper=wrapper, args=[
                '-nodefaults', '-accel', 'tcg',
                '-machine', 'pc,memory-backend=mem0', '-m', f'{ram // MIB}M',
                '-object', f'{backend},id=mem0,size={ram}', '-bios', rom,
                # No option ROM: nobody but the guest touches its memory
                '-global', 'apic-common.vapic=off',
                '-qtest', 'unix:' + socket, '-qtest-log', 'none', *args])
        start = time.monotonic()
        self.vm.launch()
        self.qtest.accept()
        self.qtest.settimeout(LIMIT)
        self._wait(lambda: self._get(DONE), 0.001)
        self.boot_seconds = time.monotonic() - start

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        """End QEMU, in whatever state it is."""
        if self.vm:
            try:
                self.vm.kill()
            except Exception as error:  # pylint: disable=broad-except
                print(f'end of QEMU: {error}', file=sys.stderr)
            for line in (self.vm.get_log() or '').splitlines():
                if ': info: ' not in line:
                    print('QEMU said: ' + line, file=sys.stderr)
        if self.qtest:
            self.qtest.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- the guest ----------------------------------------------------------

    def _qtest(self, text):
        answer = self.qtest.cmd(text).split()
        if not answer or answer[0] != 'OK':
            raise OSError(f'qtest: {text}: {answer}')
        return answer[1] if len(answer) > 1 else None

    def _get(self, field):
        return int(self._qtest(f'readl 0x{MAILBOX + 4 * field:x}'), 0)

    def _set(self, field, value):
        self._qtest(f'writel 0x{MAILBOX + 4 * field:x} 0x{value:x}')

    @staticmethod
    def _wait(condition, pause, meanwhile=None):
        limit = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > limit:
                raise TimeoutError('the guest does not answer')
            if meanwhile:
                meanwhile()
            time.sleep(pause)

    def guest(self, command, size, seed=0, meanwhile=None):
        """Let the guest do @command with @size bytes from BASE on, a power of
        two; returns the ticks it took. Seed 0: in sequence. @meanwhile is
        called now and then."""
        return self._guest(command, size // PAGE, seed, meanwhile)

    def _guest(self, command, pages, seed, meanwhile):
        started, done = self._get(STARTED), self._get(DONE)
        self._set(START, BASE)
        self._set(PAGES, pages)
        self._set(SEED, seed)
        self._set(COMMAND, command)

        def has_started():
            # An NMI that comes just before the guest halts does not wake it
            self.qmp('inject-nmi')
            time.sleep(0.001)
            return self._get(STARTED) != started

        self._wait(has_started, 0.01)
        self._wait(lambda: self._get(DONE) != done, 0.005 if meanwhile
                   else 0.02, meanwhile)
        return self._get(HIGH) << 32 | self._get(LOW)

    def replay(self, accesses, meanwhile=None):
        """Access pages as the array @accesses says, see LIST in guest.c;
        returns the ticks of all together, and the histogram."""
        data = base64.b64encode(accesses.tobytes()).decode()
        self._qtest(f'b64write 0x{LIST:x} 0x{len(accesses) * 4:x} {data}')
        self._guest(REPLAY, len(accesses), 0, meanwhile)
        data = self._qtest(f'b64read 0x{RESULTS:x} 0x{34 * 4:x}')
        *rows, low, high = array.array('I', base64.b64decode(data))
        return high << 32 | low, rows

    def memory(self):
        """The address of the memory above BASE in QEMU"""
        for line in self.qmp('human-monitor-command', command_line='info '
                             'ramblock').splitlines():
            # The block of the backend is the largest
            words = line.split()
            if words[1:] and words[0].endswith('mem0'):
                return int(words[-2], 16) + BASE
        raise RuntimeError('info ramblock does not know mem0')

    def touch(self, size, seed):
        """Touch each page once; returns the ticks of each touch."""
        self.guest(TOUCH, size, seed)
        data = self._qtest(f'b64read 0x{RESULTS:x} 0x{size // PAGE * 4:x}')
        return array.array('I', base64.b64decode(data))

    # -- commands -----------------------------------------------------------

    def qmp(self, command, **arguments):
        return self.vm.cmd(command, **arguments)

    def info(self):
        return self.qmp('query-rwp', id='mem0')[0]

    def run_job(self, command, size, ranges=None, **arguments):
        """Run a job on @size bytes from BASE on, or on @ranges of them;
        returns its seconds."""
        self.vm.get_qmp_events()
        start = time.monotonic()
        self.qmp(command, job_id='job0', id='mem0',
                 ranges=ranges or [{'offset': BASE, 'length': size}],
                 **arguments)
        self.vm.event_wait('JOB_STATUS_CHANGE', LIMIT,
                           {'data': {'id': 'job0', 'status': 'concluded'}})
        seconds = time.monotonic() - start
        job = self.qmp('query-jobs')[0]
        self.qmp('job-dismiss', id='job0')
        if job.get('error'):
            raise OSError(f'{command}: {job["error"]}')
        return seconds

    def evict_bytes(self, size, target):
        """Evict the oldest @size bytes, unless that is going on already."""
        for job in self.qmp('query-jobs'):
            if job['status'] != 'concluded':
                return
            self.qmp('job-dismiss', id=job['id'])
        self.qmp('rwp-evict', job_id='keep', id='mem0', bytes=size,
                 target=target)

    def next_cycle(self):
        """Wait for the end of the next cycle; returns its figures."""
        def completed():
            return self.info()['cycle']['completed']

        last = completed()
        # To ask more often would disturb what is measured
        self._wait(lambda: completed() > last, 0.25)
        return self.info()['cycle']
