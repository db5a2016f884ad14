#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Does scripts/run-tests see each way in which a test program can fail?

Each case is a small program in a scratch copy of the tree, the verdict that
run-tests must give on it and a text that its output must hold.
"""

import os
import shutil
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))

# name, program, status, text
CASES = (
    ('all pass', 'echo 1..2; echo ok 1 a; echo "ok 2 - b"', 0,
     '2 passed, 0 failed, 0 skipped'),
    ('plan at the end', 'echo ok 1 a; echo 1..1', 0, '1 passed, 0 failed'),
    ('a test fails', 'echo 1..2; echo not ok 1 a; echo ok 2 b', 1,
     'not ok s/t.sh a'),
    ('an expected failure passes', 'echo 1..1; echo "not ok 1 a # TODO x"', 0,
     '1 passed, 0 failed'),
    ('a skipped test is named', 'echo 1..2; echo ok 1 a; '
     'echo "ok 2 b # SKIP no kvm"', 0, 's/t.sh b: no kvm'),
    ('everything skipped', 'echo "1..0 # SKIP no kvm"', 1, 'No test passed'),
    ('status 77 skips', 'echo no userfaultfd; exit 77', 1,
     's/t.sh: no userfaultfd'),
    ('fewer results than planned', 'echo 1..2; echo ok 1 a', 1,
     '1 results, 2 planned'),
    ('more results than planned', 'echo 1..1; echo ok 1 a; echo ok 2 b', 1,
     '2 results, 1 planned'),
    ('no plan', 'echo ok 1 a', 1, 'no plan'),
    ('no output', ':', 1, 'no test result printed'),
    ('bail out', 'echo 1..1; echo ok 1 a; echo "Bail out! broken"', 1,
     'broken'),
    ('exit status', 'echo 1..1; echo ok 1 a; exit 3', 1, 'exit status 3'),
    ('crash', 'echo 1..1; echo ok 1 a; kill -SEGV $$', 1, 'SIGSEGV'),
    ('time limit', '# test-timeout: 1\necho 1..2; echo ok 1 a; sleep 30', 1,
     'not done after 1 s'),
    ('a child that stays', 'sleep 30 & echo 1..1; echo ok 1 a', 0,
     '1 passed, 0 failed'),
    ('the log is shown', 'echo 1..1; echo "# why"; echo not ok 1 a', 1,
     '| # why'),
)


def run_case(scratch, program):
    path = os.path.join(scratch, 'tests', 's', 't.sh')
    with open(path, 'w', encoding='utf-8') as file:
        file.write('#!/bin/bash\n' + program + '\n')
    os.chmod(path, 0o755)
    result = subprocess.run([os.path.join(scratch, 'scripts', 'run-tests'),
                             's'], check=False, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return result.returncode, result.stdout


def beside(scratch):
    """Two suites at a time: each waits for the other, and one fails."""
    for suite, other, verdict in (('s', 'u', 'ok'), ('u', 's', 'not ok')):
        directory = os.path.join(scratch, 'tests', suite)
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, 't.sh')
        with open(path, 'w', encoding='utf-8') as file:
            file.write('#!/bin/bash\n# test-timeout: 20\necho 1..1\n'
                       f'touch {scratch}/{suite}\n'
                       f'until [ -e {scratch}/{other} ]; do sleep 0.1; done\n'
                       f'echo {verdict} 1 a\n')
        os.chmod(path, 0o755)
    result = subprocess.run([os.path.join(scratch, 'scripts', 'run-tests'),
                             '--beside=u,v', 's', 'u'], check=False, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return result.returncode == 1 and \
        'not ok u/t.sh a' in result.stdout and \
        '1 passed, 1 failed' in result.stdout


def main():
    print(f'1..{len(CASES) + 2}')
    with tempfile.TemporaryDirectory() as scratch:
        os.makedirs(os.path.join(scratch, 'tests', 's'))
        os.makedirs(os.path.join(scratch, 'scripts'))
        shutil.copy(os.path.join(TOP, 'scripts', 'run-tests'),
                    os.path.join(scratch, 'scripts'))
        for number, (name, program, status, text) in enumerate(CASES, 1):
            got, output = run_case(scratch, program)
            good = got == status and text in output
            print(f'{"ok" if good else "not ok"} {number} {name}')
            if not good:
                print(f'# status {got}, wanted {status} and "{text}"')
                for line in output.splitlines():
                    print(f'# {line}')
            sys.stdout.flush()
        os.unlink(os.path.join(scratch, 'tests', 's', 't.sh'))
        empty = subprocess.run([os.path.join(scratch, 'scripts', 'run-tests'),
                                's'], check=False, stdout=subprocess.DEVNULL)
        print(f'{"ok" if empty.returncode == 1 else "not ok"} '
              f'{len(CASES) + 1} no program at all')
        print(f'{"ok" if beside(scratch) else "not ok"} '
              f'{len(CASES) + 2} suites beside others')


if __name__ == '__main__':
    main()
