"""Figures with their bootstrap intervals over patients: means over records, and ratios of sums over records.

Works on arrays with a row a record; knows no names and no files. All figures of one `Sample` are read off the same resamples
of whole patients (`metrics.bootstrap_means`), so that differences between them are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yaofang.eval.metrics import bootstrap_means, percentile_interval

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95% bootstrap interval over patients; the bounds are None where fewer than two patients make it up."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Whose records the rows of an array are, and how they are resampled."""

    patients: Sequence[int | str]
    """Of each row."""
    resamples: int = 1000
    seed: int = 0

    def means(self, values: Array) -> list[Figure]:
        """One Figure a column of values [records, K]: the mean over records."""
        return [figure for figure in self.ratios(values, np.ones_like(values)) if figure is not None]

    def ratios(self, above: Array, below: Array) -> list[Figure | None]:
        """One Figure a column: sum of `above` over records / sum of `below`, both [records, K]; None where that sum is 0.

        The ratio estimator of a cluster sample (Cochran, Sampling Techniques, 3rd ed. 1977, section 6): numerator and
        denominator are both resampled. A mean over some of the records is the ratio whose `below` is 1 for those and 0 for the
        others.
        """
        values = ratio_of_sums(above.sum(axis=0), below.sum(axis=0))
        drawn = self.drawn(above, below).T
        enough = [self._patients_in(column) > 1 for column in below.T]
        return [_figure(float(v), d if is_enough else None) for v, d, is_enough in zip(values, drawn, enough, strict=True)]

    def difference(self, above: Array, below: Array) -> Figure | None:
        """First minus second column's ratio, over the same resamples; None where one of them is not defined."""
        first, second = ratio_of_sums(above.sum(axis=0), below.sum(axis=0))
        drawn = self.drawn(above, below)
        enough = all(self._patients_in(column) > 1 for column in below.T)
        return _figure(float(first - second), drawn[:, 0] - drawn[:, 1] if enough else None)

    def _patients_in(self, below: Array) -> int:
        """How many patients have a part in a denominator."""
        return len({patient for patient, part in zip(self.patients, below, strict=True) if part})

    def drawn(self, above: Array, below: Array) -> Array:
        """The ratios of every resample: [resamples, K]; NaN where a resample has no `below`."""
        columns = above.shape[1]
        means = bootstrap_means(np.hstack([above, below]), self.patients, resamples=self.resamples, seed=self.seed)
        return ratio_of_sums(means[:, :columns], means[:, columns:])


def ratio_of_sums(above: Array, below: Array) -> Array:
    """`above` / `below`, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _figure(value: float, drawn: Array | None) -> Figure | None:
    """One value with the interval of its resamples, of which those without a value are left out; None if it has none itself."""
    if np.isnan(value):
        return None
    return Figure(value, None, None) if drawn is None else Figure(value, *percentile_interval(drawn[~np.isnan(drawn)]))
