"""Metrics of drug lists: accuracy as the competition scores it, conflicts by tier, intervals over patients.

Works on names, sets and arrays; knows no files, no records and no vocabulary beyond a mapping from label to matrix row.
Averages are over records unless a docstring says otherwise. CDrugRed below is the data set's paper, arXiv 2510.21084.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

TIERS = (1, 2, 3)
"""Tiers of a conflict table; 0 is a pair without an entry, which means "no data"."""


@dataclass(frozen=True, slots=True)
class RecordScore:
    """How one predicted set compares with the gold set of the same record; each figure in [0, 1]."""

    jaccard: float
    precision: float
    recall: float
    f1: float


ZERO = RecordScore(0.0, 0.0, 0.0, 0.0)


def jaccard(gold: AbstractSet[str], predicted: AbstractSet[str]) -> float:
    """|y ∩ p| / |y ∪ p| of one record; 0 where both are empty (CDrugRed: an empty prediction scores 0)."""
    union = len(gold | predicted)
    return len(gold & predicted) / union if union else 0.0


def precision(gold: AbstractSet[str], predicted: AbstractSet[str]) -> float:
    """|y ∩ p| / |p| of one record; 0 where nothing is predicted (CDrugRed)."""
    return len(gold & predicted) / len(predicted) if predicted else 0.0


def recall(gold: AbstractSet[str], predicted: AbstractSet[str]) -> float:
    """|y ∩ p| / |y| of one record; 0 where the gold is empty, which happens in no training record of CDrugRed."""
    return len(gold & predicted) / len(gold) if gold else 0.0


def f1(gold: AbstractSet[str], predicted: AbstractSet[str]) -> float:
    """2PR / (P + R) with P and R of this one record; 0 where both are 0 (CDrugRed: F1 per record, then averaged; not micro)."""
    p, r = precision(gold, predicted), recall(gold, predicted)
    return 2 * p * r / (p + r) if p + r else 0.0


def score_record(gold: Collection[str], predicted: Collection[str]) -> RecordScore:
    """All four figures of one record. Names count once, however often they are listed."""
    y, p = set(gold), set(predicted)
    return RecordScore(jaccard(y, p), precision(y, p), recall(y, p), f1(y, p))


def board_score(mean_jaccard: float, mean_f1: float) -> float:
    """(Jaccard + F1) / 2 of the two means over records (CHIP 2025 shared task 2, arXiv 2511.06230)."""
    return (mean_jaccard + mean_f1) / 2


def repeats(names: Sequence[str]) -> int:
    """How many entries of a list name something that the list has named before."""
    return len(names) - len(set(names))


def outside(names: Iterable[str], index: Mapping[str, int]) -> list[str]:
    """The distinct names that are not labels of the vocabulary, in the order in which they first occur."""
    return [name for name in dict.fromkeys(names) if name not in index]


@dataclass(frozen=True, slots=True)
class ConflictCounts:
    """Pairs of drugs over many lists, pooled."""

    records: int
    pairs: int
    """Sum over the lists of n(n-1)/2, n = the number of distinct labels that the conflict table has a row for."""
    conflicts: Mapping[int, int]
    """Tier -> number of those pairs that have exactly this tier."""
    records_with: Mapping[int, int]
    """Tier -> number of lists with at least one such pair."""

    def rate(self, tier: int) -> float:
        """Sum of interacting pairs / sum of all pairs over records (micro); 0 where no list has two drugs.

        This is the DDI rate of GAMENet (AAAI 2019) and SafeDrug (IJCAI 2021), for one tier. It depends on the matrix
        and on the length of the lists, so it is read beside the gold's rate and the number of drugs.
        """
        return self.conflicts[tier] / self.pairs if self.pairs else 0.0

    def share(self, tier: int) -> float:
        """Records with at least one pair of this tier / all records."""
        return self.records_with[tier] / self.records if self.records else 0.0


def count_conflicts(lists: Iterable[Collection[str]], index: Mapping[str, int], tiers: NDArray[np.uint8]) -> ConflictCounts:
    """Count the pairs of each tier in the lists.

    `tiers` is a symmetric [D, D] array of tiers 0..3, `index` maps a label to its row. A name without a row can be
    checked against nothing: it is left out of both sums, so that invented names do not dilute the rate.
    """
    records = pairs = 0
    conflicts = dict.fromkeys(TIERS, 0)
    records_with = dict.fromkeys(TIERS, 0)
    for names in lists:
        records += 1
        rows = sorted({index[name] for name in names if name in index})
        found = [int(tiers[a, b]) for a, b in combinations(rows, 2)]
        pairs += len(found)
        for tier in TIERS:
            conflicts[tier] += found.count(tier)
            records_with[tier] += tier in found
    return ConflictCounts(records, pairs, conflicts, records_with)


def bootstrap_means(
    values: NDArray[np.float64], patients: Sequence[int | str], *, resamples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Means over records in resamples of whole patients: values [records, K] -> [resamples, K].

    The cluster bootstrap (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8): patients are
    drawn with replacement, each brings all of its visits, and the mean is taken over the records drawn. Visits of one
    patient resemble each other, so a bootstrap over records would give intervals that are too narrow.
    """
    _, rows = np.unique(np.asarray([str(patient) for patient in patients]), return_inverse=True)
    count = int(rows.max()) + 1
    sizes = np.bincount(rows, minlength=count).astype(np.float64)
    sums = np.stack([np.bincount(rows, weights=column, minlength=count) for column in values.T], axis=1)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    means: NDArray[np.float64] = (draws @ sums) / (draws @ sizes)[:, None]
    return means


def percentile_interval(means: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of one figure's bootstrap means (Efron 1979): the middle `level` of them."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
