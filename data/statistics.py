"""The tables that describe a set of records: tokens, labels, the long tail, co-occurrence, visits.

Knows records and a function that counts tokens; does not know tokenizers or how tables are printed. Percentiles are
interpolated linearly, as numpy and pandas do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from yaofang.data.answer import drug_frequency
from yaofang.data.prompts import build_prompt
from yaofang.data.records import Record

_Key = TypeVar("_Key", str, tuple[str, str])

PERCENTILES = (50, 80, 90, 95, 99)
HEAD_SHARE, TAIL_SHARE = 0.099, 0.1007
"""Shares of the labels seen that are called head and tail: 58 and 59 of the competition's 586."""


@dataclass(frozen=True)
class Spread:
    """How a number is distributed over records or patients."""

    count: int
    mean: float
    min: float
    max: float
    percentiles: dict[str, float]
    """`P50` to `P99`."""


@dataclass(frozen=True)
class LabelClass:
    """Head, middle or tail of the labels by frequency."""

    labels: int
    share: float
    """Of the labels seen."""
    mean_frequency: float


@dataclass(frozen=True)
class Statistics:
    """All tables over a set of records. `tokens` is of the prompt's record turn, `labels` of drugs per record."""

    records: int
    patients: int
    tokens: Spread | None
    drugs: Spread
    diagnoses: Spread
    visits: Spread
    labels_seen: int
    labels_unseen: tuple[str, ...] | None
    """Labels of the vocabulary that no record has; None without a vocabulary."""
    labels_outside: tuple[str, ...] | None
    """Labels of records that the vocabulary has not; None without a vocabulary."""
    frequency: tuple[tuple[str, int], ...]
    """Every label seen, most frequent first, equals by label."""
    head: LabelClass
    middle: LabelClass
    tail: LabelClass
    cooccurrence_mean: float
    """Over all pairs of different labels seen: in how many records both are, on average."""
    cooccurrence_max: int
    cooccurrence_top: tuple[tuple[str, str, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, ready for `json.dumps`."""
        return asdict(self)


def statistics(
    records: Sequence[Record], *, count: Callable[[str], int] | None = None, vocabulary: Sequence[str] | None = None
) -> Statistics:
    """All tables over at least one record. Without `count` there are no tokens, without `vocabulary` no unseen labels.

    Records without drugs (a test board) count in tokens and visits, not in drugs per record.
    """
    frequency = drug_frequency(records)
    ranked = _ranked(frequency)
    head, middle, tail = _classes([number for _, number in ranked])
    pairs = cooccurrence(records)
    known = None if vocabulary is None else set(vocabulary)
    return Statistics(
        records=len(records),
        patients=len({record.patient for record in records}),
        tokens=None if count is None else spread(count_tokens(record, count) for record in records),
        drugs=spread(len(record.drugs) for record in records if record.drugs),
        diagnoses=spread(len(record.diagnoses) for record in records),
        visits=spread(Counter(record.patient for record in records).values()),
        labels_seen=len(ranked),
        labels_unseen=None if vocabulary is None else tuple(label for label in vocabulary if label not in frequency),
        labels_outside=None if known is None else tuple(label for label, _ in ranked if label not in known),
        frequency=tuple(ranked),
        head=head,
        middle=middle,
        tail=tail,
        cooccurrence_mean=_mean_of_pairs(pairs, len(ranked)),
        cooccurrence_max=max(pairs.values(), default=0),
        cooccurrence_top=tuple((*pair, number) for pair, number in _ranked(pairs)[:10]),
    )


def _ranked(counter: Counter[_Key]) -> list[tuple[_Key, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def count_tokens(record: Record, count: Callable[[str], int]) -> int:
    """Tokens of the record's turn of the prompt, uncut."""
    return count(build_prompt(record).messages[-1]["content"])


def spread(values: Iterable[float]) -> Spread:
    """Mean, extremes and percentiles; all zero where there is no value."""
    numbers = np.array(list(values), dtype=float)
    if not numbers.size:
        return Spread(0, 0.0, 0.0, 0.0, {f"P{p}": 0.0 for p in PERCENTILES})
    points = np.percentile(numbers, PERCENTILES)
    named = {f"P{p}": float(point) for p, point in zip(PERCENTILES, points, strict=True)}
    return Spread(numbers.size, float(numbers.mean()), float(numbers.min()), float(numbers.max()), named)


def cooccurrence(records: Iterable[Record]) -> Counter[tuple[str, str]]:
    """In how many records each pair of labels is, the pair in the order of its names."""
    return Counter(pair for record in records for pair in combinations(sorted(set(record.drugs)), 2))


def _mean_of_pairs(pairs: Counter[tuple[str, str]], labels: int) -> float:
    possible = labels * (labels - 1) // 2
    return pairs.total() / possible if possible else 0.0


def _classes(frequencies: Sequence[int]) -> tuple[LabelClass, LabelClass, LabelClass]:
    """Head, middle and tail of frequencies in falling order."""
    n = len(frequencies)
    head, tail = round(HEAD_SHARE * n), round(TAIL_SHARE * n)
    groups = frequencies[:head], frequencies[head : n - tail], frequencies[n - tail :]
    first, second, third = (LabelClass(len(g), len(g) / n if n else 0.0, sum(g) / len(g) if g else 0.0) for g in groups)
    return first, second, third
