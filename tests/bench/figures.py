# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures beside their peers: ratios, a table, a JSON file.

Figure      one line of the table
Report      all of them, and where they were measured
"""

import dataclasses
import json
import os
import platform
from statistics import median
from typing import Optional


@dataclasses.dataclass
class Figure:
    """@goal is for the ratio, or for the value if there is no peer; an upper
    bound, or a lower one if @more is better."""
    name: str
    unit: str
    ours: float
    peer: Optional[str] = None
    peer_value: Optional[float] = None
    goal: Optional[float] = None
    more: bool = False
    turns: int = 1

    @property
    def ratio(self):
        if not self.peer_value:
            return None
        return self.ours / self.peer_value

    @property
    def met(self):
        """None if there is no goal"""
        value = self.ours if self.peer is None else self.ratio
        if self.goal is None or value is None:
            return None
        return value >= self.goal if self.more else value <= self.goal

    def as_json(self):
        """All digits that mean anything"""
        def short(value):
            return None if value is None else float(f'{value:.4g}')

        return {'name': self.name, 'unit': self.unit,
                'ours': short(self.ours), 'peer': self.peer,
                'peer_value': short(self.peer_value),
                'ratio': short(self.ratio),
                'better': 'more' if self.more else 'less',
                'goal': self.goal, 'met': self.met, 'turns': self.turns}

    def row(self):
        """The cells of the table"""
        goal = '' if self.goal is None else \
            ('>= ' if self.more else '<= ') + f'{self.goal:g}'
        ratio = '' if self.ratio is None else f'{self.ratio:.2f}'
        peer = '' if self.peer_value is None else f'{self.peer_value:.4g}'
        met = {None: '', True: 'yes', False: 'NO'}[self.met]
        return (self.name, self.unit, f'{self.ours:.4g}', peer,
                self.peer or '', ratio, goal, met)


HEADER = ('figure', 'unit', 'ours', 'peer', 'the peer is', 'ratio', 'goal',
          'met')


class Report:
    """@about: what a reader must know of the run"""

    def __init__(self, about):
        self.figures = []
        self.skipped = []       # what is missing, and why
        self.about = about | {
            'kernel': platform.release(), 'machine': platform.machine(),
            'cpus': os.cpu_count(),
        }

    def add(self, name, unit, ours, peer=None, peer_values=None, **goals):
        """@ours and @peer_values: what the repeats gave; medians count"""
        self.figures.append(Figure(
            name, unit, median(ours), peer,
            median(peer_values) if peer_values else None, turns=len(ours),
            **goals))

    def table(self):
        rows = [HEADER] + [figure.row() for figure in self.figures]
        widths = [max(len(row[i]) for row in rows)
                  for i in range(len(HEADER))]
        return '\n'.join('  '.join(
            cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows)

    def save(self, path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w', encoding='utf-8') as file:
            json.dump({'figures': [f.as_json() for f in self.figures],
                       'skipped': self.skipped} | self.about, file, indent=2)
            file.write('\n')
