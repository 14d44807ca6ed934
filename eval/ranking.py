"""PRAUC as the medication recommendation field reports it, from scores whose name is told.

Works on arrays: scores [records, labels] beside gold [records, labels]; knows no drug, no file and no model. A generator has no
PRAUC until somebody says what its score of a label is (`p_include`, `p_step` ...), so the name goes in and comes out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yaofang.vocab.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """How well one score ranks each record's labels."""

    score: str
    """Name of the score, as it was given: figures of two scores are two results."""
    values: NDArray[np.float64]
    """[records] average precision of each record in [0, 1]; NaN where the record has no gold label.

    Those that are `counted` can be resampled by patient (`metrics.bootstrap_means`) and compared (`paired`).
    """
    constant: int
    """Records with gold whose labels all have the same score: nothing is ranked there, and the value is |gold| / labels."""

    @property
    def counted(self) -> NDArray[np.bool_]:
        """[records] which records have a value: those with at least one gold label."""
        return ~np.isnan(self.values)

    @property
    def mean(self) -> float | None:
        """Mean over the records that have a value (each record weighs the same); None if none has."""
        return float(self.values[self.counted].mean()) if self.counted.any() else None

    def mean_over_patients(self, patients: Sequence[int | str]) -> float | None:
        """Mean over patients of each patient's mean over records (each patient weighs the same); None if nothing is counted."""
        if not self.counted.any():
            return None
        _, rows = np.unique(self._owners(patients), return_inverse=True)
        return float((np.bincount(rows, self.values[self.counted]) / np.bincount(rows)).mean())

    def _owners(self, patients: Sequence[int | str]) -> NDArray[np.str_]:
        if len(patients) != len(self.values):
            raise InputError(f"{len(patients)} patients for {len(self.values)} records", way_out="Give one patient a record.")
        return np.asarray([str(patient) for patient in patients])[self.counted]


def average_precision(score: str, scores: NDArray[np.floating], gold: NDArray[np.bool_]) -> Ranking:
    """PRAUC of each record: AP = sum over thresholds n of (R_n - R_(n-1)) P_n, over all labels of the record.

    `scores` [records, labels] are any finite numbers, higher is likelier; `gold` [records, labels] is bool. Labels with equal
    scores share a threshold, so that no order among ties is invented. This is scikit-learn's `average_precision_score` of one
    record's row, which `multi_label_metric` of GAMENet (AAAI 2019, code/util.py) and SafeDrug (IJCAI 2021, src/util.py) takes
    with average="macro" (of no effect on one row).

    Three averages go by the name PRAUC. `Ranking.mean` is over records: what `multi_label_metric` returns, and what SafeDrug
    reports for its logistic regression (src/LR.py). For its network it calls it patient by patient and averages again
    (src/SafeDrug.py): `Ranking.mean_over_patients`. One curve pooled over all records and labels is the third; it is not
    given here, because it also measures whether records can be compared with each other.

    A record without gold has no recall: its value is NaN and it is in no average (scikit-learn: 0, with a warning). A
    record whose scores are all equal is counted, with |gold| / labels, and `Ranking.constant` says how many there are.

    Raises InputError for scores that are only 0 and 1. Such a list is no ranking: its AP is P R + (1 - R) |gold| / labels
    and hangs on where the list was cut. Also for a score without a name, shapes that differ, no label, and scores that are
    not finite.
    """
    from sklearn.metrics import average_precision_score

    _check(score, scores, gold)
    values = np.full(len(scores), np.nan)
    for row in np.flatnonzero(gold.any(axis=1)):
        values[row] = average_precision_score(gold[row], scores[row])
    constant = (scores == scores[:, :1]).all(axis=1) & gold.any(axis=1)
    return Ranking(score, values, int(constant.sum()))


def _check(score: str, scores: NDArray[np.floating], gold: NDArray[np.bool_]) -> None:
    if not score.strip():
        raise InputError("a score without a name", way_out="Say what is ranked by: p_include, p_step ...")
    if scores.ndim != 2 or scores.shape != gold.shape or not scores.size:
        problem = f"scores {list(scores.shape)} and gold {list(gold.shape)}"
        raise InputError(problem, field=score, way_out="Give both as [records, labels], at least one of each.")
    if gold.dtype != np.bool_:
        raise InputError(f"gold is {gold.dtype}", field=score, way_out="Give gold as bool.")
    if not np.isfinite(scores).all():
        raise InputError("scores that are not finite", field=score, way_out="Give every label a number.")
    if np.isin(scores, (0, 1)).all():
        way_out = "Give a probability of every label; a 0/1 list has precision and recall, but no PRAUC."
        raise InputError("scores are only 0 and 1, which ranks nothing", field=score, way_out=way_out)
