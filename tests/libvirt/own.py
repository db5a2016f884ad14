#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# test-timeout: 900
"""The tests that libvirt has for itself, those of our patches among them.

One result for each of libvirt's test programs, as meson reports it. Their
output is in build/libvirt/meson-logs/testlog.txt. The suite syntax-check is
left out: it judges the whole of libvirt, and fails in places that are not
ours.
"""

import json
import os
import re
import subprocess
import sys

BUILD = os.path.join(os.environ['RWP_BUILD'], 'libvirt')
RESULT = re.compile(r'^ *\d+/\d+ (?:\S+ / |\S+ - )?(.+?) +'
                    r'(OK|FAIL|SKIP|TIMEOUT|ERROR|EXPECTEDFAIL|INTERRUPT|'
                    r'UNEXPECTEDPASS)\b')
GOOD = ('OK', 'EXPECTEDFAIL')


def count():
    """How many there are."""
    listed = subprocess.run(['meson', 'introspect', '--tests', BUILD],
                            check=True, stdout=subprocess.PIPE, text=True)
    return sum('syntax-check' not in ' '.join(test['suite'])
               for test in json.loads(listed.stdout))


def main():
    print(f'1..{count()}', flush=True)
    command = ['meson', 'test', '-C', BUILD, '--no-suite', 'syntax-check',
               '--timeout-multiplier', '10', '--print-errorlogs']
    number = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT) as meson:
        for line in meson.stdout:
            match = RESULT.match(line)
            if not match:
                print('#', line.rstrip(), flush=True)
                continue
            number += 1
            name, verdict = match.groups()
            good = 'ok' if verdict in GOOD + ('SKIP',) else 'not ok'
            skip = ' # SKIP by libvirt' if verdict == 'SKIP' else ''
            print(f'{good} {number} {name}{skip}', flush=True)
    return 1 if meson.returncode else 0


if __name__ == '__main__':
    sys.exit(main())
