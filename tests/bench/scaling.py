# SPDX-License-Identifier: GPL-2.0-or-later
"""Time and memory of each step against the size of the memory.

The memory belongs to no guest; qtest writes to some of it. What does not fit
stays untouched: holes are what most of a large guest's memory is when it
starts.
"""

import os
import shutil
import sys
import tempfile
import time

from machine import BUILD, LIMIT, PAGE, QEMU

sys.path.insert(0, os.path.join(BUILD, 'src', 'qemu', 'python'))

# pylint: disable=wrong-import-position
from qemu.machine import QEMUQtestMachine               # noqa: E402

GIB = 1 << 30
# Of the memory, and what of it is written to
SIZES = ((16 * GIB, 0), (64 * GIB, 0), (256 * GIB, 0), (1024 * GIB, 0),
         (1024 * GIB, GIB), (1024 * GIB, 4 * GIB), (1024 * GIB, 16 * GIB),
         (1024 * GIB, 64 * GIB))
# What the host needs besides the memory that is written to
RESERVE = 2 * GIB

INTERVAL_MS = 1000

# Guest physical; most of the memory of a q35 lies above. With a processor of
# AMD, that much of it would be moved to above 1 TiB.
HIGH = 4 * GIB
CPU = 'qemu64,vendor=GenuineIntel,phys-bits=48'


def own_memory(pid):
    """Anonymous memory of QEMU, and page tables: bytes. See proc(5)."""
    with open(f'/proc/{pid}/status', encoding='ascii') as file:
        rows = dict(line.split(':', 1) for line in file)
    return sum(int(rows[name].split()[0]) * 1024
               for name in ('RssAnon', 'VmPTE'))


def available_memory():
    """What can be allocated without swapping: bytes. See proc(5)."""
    with open('/proc/meminfo', encoding='ascii') as file:
        rows = dict(line.split(':', 1) for line in file)
    return int(rows['MemAvailable'].split()[0]) * 1024


class Steps:
    """What was measured of one size: {name: (milliseconds, bytes)}"""

    def __init__(self, vm):
        self.vm = vm
        self.figures = {}

    def take(self, name, function):
        before = own_memory(self.vm.get_pid())
        start = time.monotonic()
        result = function()
        self.figures[name] = (
            (time.monotonic() - start) * 1e3,
            own_memory(self.vm.get_pid()) - before)
        return result


def wait_for(vm, condition):
    """@condition: of the figures of the last cycle; returns these"""
    end = time.monotonic() + LIMIT
    while True:
        cycle = vm.cmd('query-rwp', id='mem0')[0]['cycle']
        if condition(cycle):
            return cycle
        if time.monotonic() > end:
            raise TimeoutError('no cycle is completed')
        time.sleep(0.005)


def walk_map(vm):
    offset = 0
    while offset is not None:
        answer = vm.cmd('query-rwp-map', id='mem0', offset=offset)
        offset = answer.get('next')


def measure(size, populated):
    """Returns the figures of Steps, and the answer of query-rwp"""
    directory = tempfile.mkdtemp(prefix='rwp-bench-')
    vm = QEMUQtestMachine(
        os.path.join(QEMU, 'qemu-system-x86_64'), base_temp_dir=directory,
        qmp_timer=LIMIT, args=[
            '-nodefaults', '-machine', 'q35,memory-backend=mem0',
            '-cpu', CPU, '-m', str(size >> 20), '-object',
            f'memory-backend-rwp,id=mem0,size={size}', '-qtest-log', 'none'])
    try:
        start = time.monotonic()
        vm.launch()
        steps = Steps(vm)
        steps.figures['create'] = ((time.monotonic() - start) * 1e3,
                                   own_memory(vm.get_pid()))
        if populated:
            for address in range(HIGH, HIGH + populated, GIB // 4):
                vm.qtest(f'memset 0x{address:x} 0x{GIB // 4:x} 0x5a')
        # After that command the first pass goes through all memory
        steps.take('rwp-track-start', lambda: vm.cmd(
            'rwp-track-start', id='mem0', interval=INTERVAL_MS))
        steps.take('first pass',
                   lambda: wait_for(vm, lambda cycle: cycle['scan-ns']))
        steps.take('query-rwp', lambda: vm.cmd('query-rwp', id='mem0'))
        steps.take('query-rwp-map', lambda: walk_map(vm))
        cycle = wait_for(vm, lambda cycle: cycle['completed'] >= 2)
        info = vm.cmd('query-rwp', id='mem0')[0]
        if info['resident'] < populated:
            raise RuntimeError(f'{populated} bytes were written to, and '
                               f'{info["resident"]} are resident')
        steps.figures['cycle'] = (
            (cycle['scan-ns'] + cycle['arm-ns']) / 1e6, 0)
        return steps.figures, info
    finally:
        vm.kill()
        shutil.rmtree(directory, ignore_errors=True)


def measure_all(bench):
    """The part 'scaling' of the run"""
    rows = []
    for size, populated in SIZES:
        available = available_memory()
        if populated + RESERVE > available:
            bench.skip(f'scaling, {populated // GIB} GiB populated',
                       f'{available // GIB} GiB of memory are available')
            continue
        bench.progress(f'scaling: {size // GIB} GiB, {populated // GIB} of '
                       'them populated')
        figures, info = measure(size, populated)
        rows.append({'size': size, 'populated': populated,
                     'metadata': info['metadata'],
                     'steps': {name: {'ms': round(ms, 3), 'bytes': memory}
                               for name, (ms, memory) in figures.items()}})
        for name, (ms, memory) in figures.items():
            where = f'{size // GIB} GiB, {populated // GIB} populated'
            bench.report.add(f'{name}, {where}', 'ms', [ms])
            if memory > 1 << 20:
                bench.report.add(f'{name}, {where}', 'MiB', [memory >> 20])
    bench.report.about['scaling'] = rows
    last = rows[-1]
    bench.report.add('metadata, 1 TiB', 'bytes/page',
                     [last['metadata'] / (last['size'] / PAGE)], goal=2)
