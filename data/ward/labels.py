"""Which label of a therapy group a doctor writes.

A team writes the labels that its pharmacy stocks: a part of the group's labels that depends on the team. The record names the
team, so that the choice can be read and is no mere chance.

Knows weights and teams; knows nothing of indications.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from zlib import crc32

import numpy as np

from yaofang.data.ward.tables import Tables


class LabelChoice:
    """Draws labels of a group. Over all teams, each label comes in proportion to its weight."""

    def __init__(self, tables: Tables) -> None:
        self.teams = len(tables.ward["teams"])
        self.width = float(tables.ward["team_width"])
        self.mix = float(tables.ward["team_mix"])
        self.groups_of: dict[str, tuple[str, ...]] = {}
        for row in tables.labels:
            self.groups_of[row.label] = (*self.groups_of.get(row.label, ()), row.group)
        self.popularity: dict[str, float] = {}
        self.stock: dict[str, list[str]] = {}
        self.ends: dict[str, list[float]] = {}
        self.starts: dict[str, list[float]] = {}
        for group in dict.fromkeys(label.group for label in tables.labels):
            self._add(group, tables)

    def _add(self, group: str, tables: Tables) -> None:
        rows = [label for label in tables.labels if label.group == group and label.note not in ("once", "test_only")]
        rows.sort(key=lambda label: (-label.popularity, label.label))
        weights = [max(tables.weights.get(label.label, label.popularity), 1e-6) for label in rows]
        total = sum(weights) or 1.0
        self.popularity[group] = sum(label.popularity for label in rows)
        self.stock[group] = [label.label for label in rows]
        self.ends[group] = [end / total for end in accumulate(weights)]
        noise = np.random.default_rng(crc32(group.encode())).normal(0, self.mix, self.teams)
        order = np.argsort(np.argsort(np.arange(self.teams) + noise))
        self.starts[group] = [float(place) / self.teams for place in order]

    def draw(
        self, group: str, team: int, rng: np.random.Generator, allowed: Callable[[str], bool] = lambda label: True
    ) -> str | None:
        """A label of the group that `allowed` accepts, or None after some tries. A group may be named by a label itself."""
        if group not in self.stock:
            return group if allowed(group) else None
        stock = self.stock[group]
        for attempt in range(6 if stock else 0):
            width = self.width if attempt < 3 else 1.0
            place = (self.starts[group][team] + width * rng.random()) % 1.0
            label = stock[min(bisect_right(self.ends[group], place), len(stock) - 1)]
            if allowed(label):
                return label
        return None
