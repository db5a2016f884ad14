#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Does scripts/check-docs see what is wrong with manuals?

It checks a copy of ours, as they are and each time with one change; that they
are right as they are is a matter of the suite "tree".
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
COPIED = ('README.md', 'docs', 'qapi-additions', 'qemu/patches',
          'libvirt/patches', 'qemu/system/rwp/hmp.c', 'qemu/system/rwp/stats.c')
OPTIONS = 'qemu/patches/0008-qemu-options-describe-memory-backend-rwp.patch'
PROPERTIES = 'qemu/patches/0002-qapi-add-properties-of-memory-backend-rwp.patch'

# what is changed, file, pattern, text in its place, what is said of it ('':
# nothing); RST is the manual below
CASES = (
    ('a new property', PROPERTIES, r"^(\+ +)('\*interval')",
     r"\1'*extra': 'int',\n\1\2", 'extra is not in the synopsis'),
    ('a property without description', OPTIONS, r'``readahead``', 'readahead',
     'readahead is not described'),
    ('a property missing in the synopsis', OPTIONS, r',backing=[^,]*', '',
     'backing is not in the synopsis'),
    ('a new statistic', 'qemu/system/rwp/stats.c', r'^( +)(\{ "rwp-zero")',
     r'\1{ "rwp-extra", INSTANT(get_extra) },\n\1\2',
     'docs/rwp.rst lacks the statistic rwp-extra'),
    ('a statistic that is gone', 'qemu/system/rwp/stats.c',
     r'^ +\{ "rwp-hot".*\n', '',
     'docs/libvirt.rst has the statistic rwp-hot'),
    ('a new figure', 'qapi-additions/rwp.json', r"('pages': 'int', )",
     r"\1'extra': 'int', ", 'lacks the figure evict.extra'),
    ('a figure that is gone', 'docs/libvirt.rst', r'^( +)(evict\.busy )',
     r'\1evict.extra     0\n\1\2', 'has the figure evict.extra'),
    ('a new counter', 'qemu/system/rwp/hmp.c', r'", waiting %"',
     '", extra %" PRId64 ", waiting %"', 'README.md has what is not printed'),
    ('an ID that libvirt does not give', 'docs/libvirt.rst', '``ram-node0``',
     '``ram-node-0``', 'has the ID ram-node-0'),
    ('a malformed table', 'RST', 'TEXT', '=== ===\na   b\n=== ===\nc d e f\n',
     'x.rst:1: Malformed table'),
    ('an unknown directive', 'RST', 'TEXT', '.. wrong::\n', '"wrong"'),
    ('a reference to nothing', 'RST', 'TEXT', 'See `there`_.\n',
     'Unknown target name: "there"'),
    ('a directive of Sphinx', 'RST', 'TEXT', '.. toctree::\n\n   a\n   b\n',
     ''),
    ('a role of Sphinx', 'RST', 'TEXT', 'See :ref:`there` and :doc:`it`.\n',
     ''),
)


def copy(scratch):
    for name in COPIED:
        source, target = (os.path.join(top, name) for top in (TOP, scratch))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(source):
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)


def problems(scratch):
    """What check-docs says is wrong."""
    result = subprocess.run([os.path.join(TOP, 'scripts', 'check-docs'),
                             scratch], check=True, text=True,
                            stdout=subprocess.PIPE)
    return result.stdout, {line for line in result.stdout.splitlines()
                           if line.startswith('# ')}


def run_case(scratch, old, file, pattern, text):
    """What is said beside @old; None if it cannot be checked."""
    path = os.path.join(scratch, file if file != 'RST' else 'docs/x.rst')
    if file == 'RST':
        before = 'TEXT'
    else:
        with open(path, encoding='utf-8') as stream:
            before = stream.read()
    after, count = re.subn(pattern, text, before, count=1, flags=re.M)
    if not count:
        return {f'{file} has no {pattern}'}
    with open(path, 'w', encoding='utf-8') as stream:
        stream.write(after)
    output, new = problems(scratch)
    if file == 'RST':
        os.unlink(path)
        if 'x.rst is well-formed # SKIP' in output:
            return None
    else:
        with open(path, 'w', encoding='utf-8') as stream:
            stream.write(before)
    return new - old


def main():
    failed = 0
    print(f'1..{len(CASES)}')
    with tempfile.TemporaryDirectory() as scratch:
        copy(scratch)
        _, old = problems(scratch)
        for number, (name, file, pattern, text, said) in enumerate(CASES, 1):
            new = run_case(scratch, old, file, pattern, text)
            if new is None:
                print(f'ok {number} {name} # SKIP no docutils')
                continue
            good = any(said in line for line in new) if said else not new
            failed += not good
            print(f'{"ok" if good else "not ok"} {number} {name}')
            for line in new if not good else ():
                print(f'#   {line}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
