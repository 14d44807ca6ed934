"""What a training set says of pairs: how often two drugs were prescribed together, against what chance would give.

A pair is counted in patients, not in records: the visits of one patient repeat each other. Observed O = patients with a record
that holds both; expected E = n_a n_b / N under independence; the ratio O / E has the exact interval of a Poisson count
(Garwood 1936: lower chi2(.025, 2 O) / 2, upper chi2(.975, 2 O + 2) / 2, each over E). It is evidence beside the sources: a pair
that doctors avoid is proposed for review, a pair that they combine although it is T1 is listed for review; no tier changes.
Knows lists of names and patients; does not read records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from scipy.stats import chi2

AVOIDED = 0.2
"""A pair whose ratio's upper bound is under this is avoided."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two generics in a training set."""

    a: str
    b: str
    observed: int
    """Patients who got both in one record."""
    expected: float
    """Patients who would by chance."""
    ratio: float
    low: float
    high: float
    """95% interval of the ratio."""

    def to_json(self) -> dict[str, Any]:
        """For files."""
        return {**asdict(self), **{key: round(getattr(self, key), 4) for key in ("expected", "ratio", "low", "high")}}


@dataclass(frozen=True)
class CoPrescription:
    """The pairs of one training set."""

    patients: int
    records: int
    pairs: Mapping[tuple[str, str], Pair]
    """Key: both generics in sorted order. Pairs that were never together and expected in less than one patient are left out."""

    def between(self, a: str, b: str) -> Pair | None:
        """The pair of two generics, or None where it is not in the table."""
        return self.pairs.get((min(a, b), max(a, b)))

    def avoided(self) -> list[Pair]:
        """Pairs whose upper bound is under `AVOIDED`, the most expected first: proposed for review."""
        found = [pair for pair in self.pairs.values() if pair.high < AVOIDED]
        return sorted(found, key=lambda pair: (-pair.expected, pair.a, pair.b))

    def combined(self, least: int = 1) -> list[Pair]:
        """Pairs that at least so many patients got together, the most frequent first."""
        found = [pair for pair in self.pairs.values() if pair.observed >= least]
        return sorted(found, key=lambda pair: (-pair.observed, pair.a, pair.b))


def count_pairs(lists: Iterable[tuple[int, Sequence[str]]]) -> CoPrescription:
    """Count (patient, generics of one record). A generic that a record names twice counts once."""
    having: dict[str, set[int]] = {}
    together: dict[tuple[str, str], set[int]] = {}
    patients: set[int] = set()
    records = 0
    for patient, names in lists:
        records += 1
        patients.add(patient)
        for name in set(names):
            having.setdefault(name, set()).add(patient)
        for a, b in combinations(sorted(set(names)), 2):
            together.setdefault((a, b), set()).add(patient)
    counts = Counter({name: len(found) for name, found in having.items()})
    pairs = {}
    for a, b in combinations(sorted(counts), 2):
        expected = counts[a] * counts[b] / len(patients)
        observed = len(together.get((a, b), ()))
        if observed or expected >= 1:
            pairs[a, b] = _pair(a, b, observed, expected)
    return CoPrescription(len(patients), records, pairs)


def _pair(a: str, b: str, observed: int, expected: float) -> Pair:
    low, high = poisson_interval(observed)
    return Pair(a, b, observed, expected, observed / expected, low / expected, high / expected)


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact 95% interval of the mean of a Poisson variable of which `count` was seen (Garwood 1936)."""
    low = 0.0 if count == 0 else float(chi2.ppf(0.025, 2 * count)) / 2
    return low, float(chi2.ppf(0.975, 2 * count + 2)) / 2


def to_json(found: CoPrescription) -> dict[str, Any]:
    """For `yaofang vocab evidence --out`."""
    return {
        "patients": found.patients,
        "records": found.records,
        "pairs": [pair.to_json() for pair in found.pairs.values()],
    }


def from_json(value: Mapping[str, Any]) -> CoPrescription:
    """What `to_json` wrote. Raises KeyError or TypeError for another shape."""
    pairs = [Pair(**pair) for pair in value["pairs"]]
    return CoPrescription(int(value["patients"]), int(value["records"]), {(pair.a, pair.b): pair for pair in pairs})
