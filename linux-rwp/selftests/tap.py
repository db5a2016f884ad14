# SPDX-License-Identifier: GPL-2.0-or-later
"""Read the TAP that a test program printed, with what goes around it.

results(text) returns a list of (status, name), status being "ok", "skip" or
"fail". A plan that was not kept is a failure named "plan": a program that died
half-way must not look like one that passed.
"""

import re

LINE = re.compile(r'^(not )?ok (\d+)\s*-?\s*(.*)$')


def results(text):
    out, plan = [], None
    for line in text.splitlines():
        line = line.strip()
        m = re.match(r'^1\.\.(\d+)', line)
        if m and plan is None:
            plan = int(m.group(1))
            continue
        m = LINE.match(line)
        if not m:
            continue
        name = m.group(3)
        status = 'fail' if m.group(1) else 'ok'
        if '# SKIP' in name:
            status = 'skip' if status == 'ok' else status
            # "# SKIP name" or "name # SKIP reason"
            name = name.replace('# SKIP', ' ').strip()
            name = re.sub(r'\s+see above$|\s*\(.*\)$', '', name)
        out.append((status, re.sub(r'\s+', ' ', name).strip()))
    if plan is None or len(out) < plan:
        out.append(('fail', 'plan: %d of %s tests reported'
                    % (len(out), plan)))
    return out
