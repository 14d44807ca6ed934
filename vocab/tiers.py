"""From what the sources say of each pair of units to its tier: boolean matrices in, a matrix of tiers out.

`tier_of` is the only place that decides a tier. Knows levels and issuers; does not know drugs, labels or reasons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from yaofang.vocab.evidence import INFERRED, LEVELS, NEVER, SYSTEMIC, WHITELIST, Row, Unit

Bools = NDArray[np.bool_]
Tiers = NDArray[np.uint8]


def tier_of(contraindicated: Bools, majors: Tiers, moderate: Bools, minor: Bools, twice: Bools, whitelisted: Bools) -> Tiers:
    """The tier of each pair of units: the only place that decides it.

    T1: contraindicated, or major in two independent sources (`majors` counts issuers), or one ingredient or class
    `twice`. T2: any other major, or a dose change or monitoring is asked for, or a T1 that is whitelisted as standard
    care. T3: to be noted, or whitelisted and nothing else. 0: no source says anything.
    """
    masked = contraindicated | (majors >= 2) | twice
    warned = (majors >= 1) | moderate | (masked & whitelisted)
    return np.select([masked & ~whitelisted, warned, minor | whitelisted], [1, 2, 3], 0).astype(np.uint8)


def unit_tiers(
    units: Sequence[Unit], terms: Mapping[Unit, frozenset[str]], rows: Mapping[tuple[str, str], Sequence[Row]]
) -> Tiers:
    """The tiers of all pairs of units, [U, U]: one boolean matrix a level and, for majors, a source."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, unit in enumerate(units):
        for term in terms[unit]:
            members[term].append(number)
    size = (len(units), len(units))
    marks: dict[tuple[str, str], Bools] = defaultdict(lambda: np.zeros(size, np.bool_))
    for (a, b), found in rows.items():
        if a not in members or b not in members:
            continue
        where = np.ix_(members[a], members[b])
        for row in found:
            marks[row.level, row.issuer][where] = True
    for mark in marks.values():
        mark |= mark.T
    return _tiers_from_marks(units, marks)


def _tiers_from_marks(units: Sequence[Unit], marks: Mapping[tuple[str, str], Bools]) -> Tiers:
    """Add up the marks by level; a unit beside itself has no interaction, but may be one ingredient twice."""
    size = (len(units), len(units))
    apart = ~np.eye(len(units), dtype=np.bool_)
    herbs = [number for number, unit in enumerate(units) if unit.is_herb]
    apart[herbs, herbs] = True  # a toxic herb in two patent medicines: rows of herb_pairs.tsv name it twice
    said: dict[str, NDArray[np.uint8]] = {level: np.zeros(size, np.uint8) for level in (*LEVELS, NEVER, WHITELIST)}
    for (level, issuer), mark in sorted(marks.items(), key=lambda item: item[0][1] == INFERRED):
        # What is inferred from a class is no second source beside a regulator: it only stands where nobody else speaks.
        said[level] = np.maximum(said[level], mark) if issuer == INFERRED else said[level] + mark
    keys = {unit.key: number for number, unit in enumerate(units)}
    named = [unit.place == SYSTEMIC and not unit.is_herb for unit in units]
    numbers = np.array([keys[unit.key] if one else -1 for unit, one in zip(units, named, strict=True)], dtype=np.int64)
    same = (numbers[:, None] == numbers[None, :]) & (numbers[:, None] >= 0)
    # One issuer that calls a pair contraindicated in one row and major in another is still one source.
    return tier_of(
        contraindicated=(said["contraindicated"] > 0) & apart,
        majors=np.where(apart, said["major"], 0).astype(np.uint8),
        moderate=(said["moderate"] > 0) & apart,
        minor=(said["minor"] > 0) & apart,
        # One inhaled ingredient in two inhalers is the class twice: a local unit beside itself counts for such rows.
        twice=((said[NEVER] > 0) & (apart | np.diag([unit.place != SYSTEMIC for unit in units]))) | same,
        whitelisted=said[WHITELIST] > 0,
    )
