"""Paired comparison of two systems on the same records: a difference, its interval and a p-value, all over patients.

Works on one figure a record, whatever it is (Jaccard, F1, average precision, Brier score); knows no drug and no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yaofang.eval.metrics import bootstrap_means, percentile_interval
from yaofang.vocab.errors import InputError

BLOCK = 1000
"""Permutations drawn at a time, for the sake of memory."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """What system A scores more than system B on the same records."""

    name: str
    """Of the figure, as it was given."""
    a: float
    """Mean over records of system A."""
    b: float
    difference: float
    """a - b."""
    low: float | None
    """Bootstrap interval of the difference over patients; None with fewer than two patients, who would vary in nothing."""
    high: float | None
    p_value: float
    """Two-sided, by sign flips of patients; not corrected for how many figures or systems were compared."""
    exact: bool
    """All sign patterns were counted, none drawn."""
    records: int
    patients: int


def paired_difference(
    name: str,
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    patients: Sequence[int | str],
    *,
    resamples: int = 1000,
    permutations: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Compare a [records] with b [records], the figures of two systems on the same records in the same order.

    The interval is the percentile interval of mean(a) - mean(b) in resamples of whole patients, both systems seeing the same
    patients each time (`metrics.bootstrap_means`); the p-value is `sign_flip_p` of each patient's summed difference.

    Raises InputError for lengths that differ, no records, and values that are not finite: a figure that a record does not
    have (average precision without gold) is left out of both systems first.
    """
    _check(name, a, b, patients)
    values = np.stack([a, b], axis=1).astype(np.float64)
    less = values[:, 0] - values[:, 1]
    owners, rows = np.unique(np.asarray([str(patient) for patient in patients]), return_inverse=True)
    low = high = None
    if len(owners) > 1:
        low, high = percentile_interval(bootstrap_means(less[:, None], patients, resamples=resamples, seed=seed)[:, 0], level)
    sums: NDArray[np.float64] = np.bincount(rows, less).astype(np.float64)
    p_value, exact = sign_flip_p(sums, permutations=permutations, seed=seed)
    means = values.mean(axis=0)
    return PairedDifference(
        name=name,
        a=float(means[0]),
        b=float(means[1]),
        difference=float(less.mean()),
        low=low,
        high=high,
        p_value=p_value,
        exact=exact,
        records=len(less),
        patients=len(owners),
    )


def sign_flip_p(sums: NDArray[np.float64], *, permutations: int = 10_000, seed: int = 0) -> tuple[float, bool]:
    """(p-value, whether exact) of the paired permutation test over patients, for each patient's summed difference [patients].

    If the systems are alike, their names may be swapped in any patient, with all of the patient's records at once, so
    each sign e_k of s_k is as likely as the other (Fisher, The Design of Experiments, 1935, section 21; as "approximate
    randomization": Noreen 1989). With S = |sum of s_k| and S* = |sum of e_k s_k|:

        p = #{S* >= S} / 2^n                over all patterns, if there are at most `permutations`,
        p = (1 + #{S* >= S}) / (1 + N)      over N = `permutations` random ones otherwise (Phipson and Smyth 2010), never 0.

    n counts the patients with s_k other than 0: the others change no sum. Sums that differ by rounding alone count as
    equal. One patient, or two equal systems, give 1.
    """
    moving = sums[sums != 0]
    slack = 1e-12 * float(np.abs(moving).sum())
    observed = abs(float(moving.sum())) - slack
    if 2.0 ** len(moving) <= permutations:
        patterns = np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving)) & 1
        return float((_flipped(patterns, moving) >= observed).mean()), True
    random, hits = np.random.default_rng(seed), 0
    for at in range(0, permutations, BLOCK):
        size = (min(BLOCK, permutations - at), len(moving))
        hits += int((_flipped(random.integers(0, 2, size), moving) >= observed).sum())
    return (1 + hits) / (1 + permutations), False


def _flipped(patterns: NDArray[np.int64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N] the absolute sums under patterns [N, patients] of 0 and 1."""
    totals: NDArray[np.float64] = np.abs((1.0 - 2.0 * patterns) @ sums)
    return totals


def _check(name: str, a: NDArray[np.floating], b: NDArray[np.floating], patients: Sequence[int | str]) -> None:
    if a.ndim != 1 or a.shape != b.shape or len(patients) != len(a) or not len(a):
        problem = f"values {list(a.shape)} and {list(b.shape)} for {len(patients)} patients"
        raise InputError(problem, field=name, way_out="Give both systems one value a record, on the same records.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("values that are not finite", field=name, way_out="Leave records without a value out of both systems.")
