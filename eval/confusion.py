"""Which drug is taken for which: missed gold names against extra predicted ones, record by record.

Works on sets of names; what is one drug and what is one class is told by two functions. Knows no vocabulary and no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeVar

TOP = 20
"""Rows of each list that are kept."""

NOTHING = 1e-9
"""A weight below this is an error of rounding."""

Key = Callable[[str], str]
"""Name -> what it counts as: `Comparison.key` of one level."""
Name = TypeVar("Name", str, tuple[str, str])
Weights = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Mistaken:
    """One name that stands where the gold has another of the same class."""

    gold: str
    predicted: str
    group: str
    """The ATC-4 class that both share."""
    same_generic: bool
    """Only the label differs; the drug is the same."""
    count: float
    """Summed over records: a record's share is at most 1 and may be a fraction (`confusion`)."""
    records: int
    """Records that miss `gold` and list `predicted` in its place, wholly or in part."""
    of_gold: int
    """Records whose gold holds `gold`."""
    of_predicted: int
    """Records that list `predicted`."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A name that was missed, or listed too much, with nothing of its class on the other side."""

    name: str
    group: str
    count: float
    of: int
    """Records whose gold (of a missed name) or list (of an extra one) holds it."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """All records' mistakes; missed = paired + the unpaired missed ones, extra = paired + the unpaired extra ones."""

    records: int
    missed: int
    """Gold names that the lists lack, summed over records."""
    extra: int
    """Listed names that the gold lacks, summed over records."""
    paired: float
    """Missed names with an extra one of the same class in their place."""
    same_generic: float
    """Of those: the same drug under another label."""
    pairs: tuple[Mistaken, ...]
    """Most frequent first, at most `top`, as are the two lists below."""
    missed_alone: tuple[Alone, ...]
    extra_alone: tuple[Alone, ...]


def confusion(
    gold: Sequence[AbstractSet[str]],
    predicted: Sequence[AbstractSet[str]],
    class_of: Key,
    generic_of: Key,
    *,
    top: int = TOP,
) -> Confusion:
    """Pair what is missed with what is extra in the same record; one set a record on either side, in the same order.

    Nothing says which extra name was meant for which missed one, so each class is spread evenly: with m missed and e extra
    names of one ATC-4 class, each of the m * e pairs counts 1 / max(m, e), which sums to min(m, e); the rest is unpaired. Names
    of one generic are paired in this way before the others of their class. Nothing is paired across classes. The
    definition is our own; of two sides with one name each it is the plain count.
    """
    tally = _Tally(class_of)
    for y, p in zip(gold, predicted, strict=True):
        missed, extra = dict.fromkeys(sorted(y - p), 1.0), dict.fromkeys(sorted(p - y), 1.0)
        same = _spread(missed, extra, generic_of)
        tally.add(same, _spread(missed, extra, class_of), missed, extra)
    of_gold, of_predicted = (Counter(name for names in side for name in names) for side in (gold, predicted))
    return Confusion(
        records=len(gold),
        missed=sum(len(y - p) for y, p in zip(gold, predicted, strict=True)),
        extra=sum(len(p - y) for y, p in zip(gold, predicted, strict=True)),
        paired=sum(tally.pairs.values()),
        same_generic=tally.same_generic,
        pairs=tally.mistaken(of_gold, of_predicted, generic_of, top),
        missed_alone=tally.alone(tally.missed, of_gold, top),
        extra_alone=tally.alone(tally.extra, of_predicted, top),
    )


def _spread(missed: dict[str, float], extra: dict[str, float], key: Key) -> Weights:
    """Weights of the pairs within each key; what they use up is taken from `missed` and `extra`.

    With weights a_i and b_j of one key a pair gets a_i b_j / max(sum a, sum b), so the pairs sum to the smaller side.
    """
    found: Weights = {}
    ours, theirs = _by_key(missed, key), _by_key(extra, key)
    for group in ours.keys() & theirs.keys():
        a, b = sum(missed[name] for name in ours[group]), sum(extra[name] for name in theirs[group])
        found |= {(i, j): missed[i] * extra[j] / max(a, b) for i in ours[group] for j in theirs[group]}
        _use(missed, ours[group], 1 - min(a, b) / a)
        _use(extra, theirs[group], 1 - min(a, b) / b)
    return found


def _by_key(weights: Mapping[str, float], key: Key) -> dict[str, list[str]]:
    """Key -> its names that have any weight left."""
    found: dict[str, list[str]] = {}
    for name in weights:
        found.setdefault(key(name), []).append(name)
    return found


def _use(weights: dict[str, float], names: Iterable[str], left: float) -> None:
    """Leave this share of the names' weights; what is only an error of rounding goes too."""
    for name in names:
        weights[name] *= left
        if weights[name] < NOTHING:
            del weights[name]


@dataclass(slots=True)
class _Tally:
    """Sums over records."""

    class_of: Key
    pairs: Weights = field(default_factory=dict)
    records: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    same_generic: float = 0.0

    def add(self, same: Weights, other: Weights, missed: Mapping[str, float], extra: Mapping[str, float]) -> None:
        """One record: its pairs of one generic, its other pairs, and what is left of both sides."""
        self.same_generic += sum(same.values())
        for pair, weight in (*same.items(), *other.items()):
            self.pairs[pair] = self.pairs.get(pair, 0.0) + weight
            self.records[pair] += 1
        for sums, left in ((self.missed, missed), (self.extra, extra)):
            for name, weight in left.items():
                sums[name] = sums.get(name, 0.0) + weight

    def mistaken(self, gold: Counter[str], predicted: Counter[str], generic_of: Key, top: int) -> tuple[Mistaken, ...]:
        """The most frequent pairs; equals by name."""
        return tuple(
            Mistaken(
                gold=y,
                predicted=p,
                group=self.class_of(y),
                same_generic=generic_of(y) == generic_of(p),
                count=count,
                records=self.records[y, p],
                of_gold=gold[y],
                of_predicted=predicted[p],
            )
            for (y, p), count in _most(self.pairs, top)
        )

    def alone(self, sums: Mapping[str, float], listed: Counter[str], top: int) -> tuple[Alone, ...]:
        """The most frequent unpaired names; equals by name."""
        return tuple(Alone(name, self.class_of(name), count, listed[name]) for name, count in _most(sums, top))


def _most(sums: Mapping[Name, float], top: int) -> list[tuple[Name, float]]:
    return sorted(sums.items(), key=lambda one: (-one[1], one[0]))[:top]
