"""Calibration of probabilities, drug by drug: of the drugs given 0.3, are three in ten really on the discharge list?

Works on arrays: p [records, labels] beside held [records, labels]; knows no record, no file, and no ATC code beyond the group
names it is given. A cell is one label of one record. `eval.calibration` learns curves; this module judges them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from yaofang.eval.metrics import bootstrap_means, percentile_interval
from yaofang.vocab.errors import InputError

BINS = 10
LEAST = 50
"""Positives below which a drug has no curve of its own."""
OVERALL = "全部"
REST = "其他"

Binning = Literal["mass", "width", "expected"]
"""How [0, 1] is cut into bins.

mass: equally many cells each, the default. width: equal steps of p. expected: equal sums of p each; where nearly every cell is
near 0, as with hundreds of labels, this is the one that shows how the high probabilities do. Equal p always share a bin, so
there may be fewer bins than asked for.
"""
Kind = Literal["overall", "drug", "group", "rest"]
Interval = tuple[float, float]
Floats = NDArray[np.float64]
Held = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bin:
    """One point of a reliability curve."""

    predicted: float
    """Mean p of its cells."""
    observed: float
    """Share of its cells that are held."""
    count: int
    """Cells."""
    low: float
    high: float
    """95% Wilson interval of `observed` (Wilson 1927). It takes cells for independent; visits of one patient are not."""


@dataclass(frozen=True, slots=True)
class Recalibration:
    """logit P(held) = intercept + slope logit p (Cox 1958, Biometrika 45:562); a calibrated p has slope 1 and intercept 0.

    Both are fitted together, without penalty, over the cells with 0 < p < 1: the logit of 0 and 1 is infinite.
    """

    slope: float | None
    """Below 1: too extreme, above 1: too timid. None where no finite fit exists (see `recalibration`)."""
    intercept: float | None
    in_the_large: float | None
    """Intercept with the slope held at 1 (calibration-in-the-large, Van Calster 2016): above 0, drugs are under-predicted."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """How well p is calibrated over the cells of a drug, of a group of drugs, or of all."""

    name: str
    kind: Kind
    columns: tuple[int, ...]
    """The labels in it, as columns of p."""
    count: int
    """Cells: records times columns."""
    positives: int
    predicted: float
    """Mean p."""
    observed: float
    """Share of cells held."""
    brier: float
    """Mean (p - held)^2 (Brier 1950)."""
    ece: float
    """Sum over bins of count / cells |observed - predicted| (Naeini, Cooper and Hauskrecht 2015), over `bins`."""
    recalibration: Recalibration
    extreme: int
    """Cells with p = 0 or 1, which recalibration leaves out."""
    surprises: int
    """Those of them that are held at p = 0 or not held at p = 1; a p that was too small to be told counts as 0."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class ReliabilityTable:
    """Calibration overall, of each frequent drug, and of the other drugs by group."""

    overall: Reliability
    drugs: tuple[Reliability, ...]
    """In the order of the columns."""
    groups: tuple[Reliability, ...]
    """In the order of their names."""
    rest: Reliability | None
    """Drugs of groups that are too small, and of none; None if there are no such drugs. It may itself be small."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Bootstrap intervals over patients, (low, high), of the figures of the same names; None where there is no figure.

    There is none of the ECE: a sum of absolute gaps grows with noise, and a resample adds noise to the sample's own.
    """

    brier: Interval
    gap: Interval
    """Of observed - predicted."""
    slope: Interval | None
    intercept: Interval | None
    in_the_large: Interval | None


def curve(p: Floats, held: Held, bins: int = BINS, binning: Binning = "mass") -> tuple[Bin, ...]:
    """Reliability curve of cells p [n] in [0, 1] and held [n] bool, in ascending order of p; bins without cells are left out.

    With "mass" and "width" the bins are those of scikit-learn's `calibration_curve` ("quantile" and "uniform"): a p on an edge
    belongs to the lower bin.
    """
    from scipy.stats import binomtest

    place = np.searchsorted(_edges(p, bins, binning), p)
    counts, hits, sums = (np.bincount(place, weights, minlength=bins) for weights in (None, held, p))
    found = []
    for at in np.flatnonzero(counts):
        count, hit = int(counts[at]), int(hits[at])
        interval = binomtest(hit, count).proportion_ci(0.95, method="wilson")
        found.append(Bin(float(sums[at] / count), hit / count, count, float(interval.low), float(interval.high)))
    return tuple(found)


def _edges(p: Floats, bins: int, binning: Binning) -> Floats:
    """[bins - 1] the inner edges."""
    steps = np.linspace(0, 1, bins + 1)
    if binning == "mass":
        steps = np.percentile(p, steps * 100)
    elif binning == "expected":
        ordered = np.sort(p)
        mass = np.cumsum(ordered)
        steps = ordered[np.searchsorted(mass, steps * mass[-1])]
    elif binning != "width":
        raise InputError(f"no way to bin is called {binning}", way_out="Choose mass, width or expected.")
    edges: Floats = steps[1:-1]
    return edges


def brier_by_record(p: Floats, held: Held) -> Floats:
    """[records] mean over labels of (p - held)^2: their mean is the Brier score, so they can be bootstrapped and compared."""
    values: Floats = ((p - held) ** 2).mean(axis=1)
    return values


def recalibration(p: Floats, held: Held) -> Recalibration:
    """Cox's logistic recalibration of cells p [n] and held [n] bool, over those with 0 < p < 1.

    All figures are None where these are all held or all not. Slope and intercept are also None where p is constant, or where
    some p separates held from not held: then no finite estimate exists (Albert and Anderson 1984, Biometrika 71:1).
    """
    inside = (p > 0) & (p < 1)
    y, x = held[inside], _logit(p[inside])
    if not y.any() or y.all():
        return Recalibration(None, None, None)
    slope, intercept = (None, None) if _separated(x, y) else _fit(x, y)
    return Recalibration(slope, intercept, _offset(x, y))


def _logit(p: Floats) -> Floats:
    found: Floats = np.log(p) - np.log1p(-p)
    return found


def _separated(x: Floats, y: Held) -> bool:
    held, others = x[y], x[~y]
    return bool(others.max() <= held.min() or held.max() <= others.min())


def _fit(x: Floats, y: Held) -> tuple[float, float]:
    """(slope, intercept) of the greatest likelihood; Newton's steps do not depend on the scale of x."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, max_iter=1000).fit(x[:, None], y)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _offset(x: Floats, y: Held) -> float:
    """The a at which the sum of expit(a + x) equals the sum of y: the likelihood's derivative there is 0."""
    from scipy.optimize import brentq
    from scipy.special import expit, logit

    share = float(y.mean())
    low, high = logit(share) - x.max() - 1, logit(share) - x.min() + 1
    return float(brentq(lambda a: expit(a + x).mean() - share, low, high))


def reliability(
    name: str, kind: Kind, p: Floats, held: Held, columns: Sequence[int], *, bins: int = BINS, binning: Binning = "mass"
) -> Reliability:
    """All figures of the given columns of p [records, labels] and held [records, labels], their cells pooled."""
    own, y = p[:, columns].ravel(), held[:, columns].ravel()
    points = curve(own, y, bins, binning)
    extreme = (own == 0) | (own == 1)
    return Reliability(
        name=name,
        kind=kind,
        columns=tuple(columns),
        count=own.size,
        positives=int(y.sum()),
        predicted=float(own.mean()),
        observed=float(y.mean()),
        brier=float(((own - y) ** 2).mean()),
        ece=sum(abs(one.predicted - one.observed) * one.count for one in points) / own.size,
        recalibration=recalibration(own, y),
        extreme=int(extreme.sum()),
        surprises=int((extreme & (own != y)).sum()),
        bins=points,
    )


def reliability_table(
    p: NDArray[np.floating],
    held: Held,
    labels: Sequence[str],
    groups: Mapping[int, str],
    *,
    least: int = LEAST,
    bins: int = BINS,
    binning: Binning = "mass",
) -> ReliabilityTable:
    """Calibration of p [records, labels] in [0, 1] against held [records, labels] bool, overall and by drug.

    A label with at least `least` positives stands alone under its name in `labels`. The others are pooled by `groups`
    (column -> group name, such as the ATC-4 code; a column may be missing), and groups with fewer than `least` positives, or
    without a name, once more as 其他.

    Raises InputError for shapes that do not fit, no records, a p outside [0, 1] or NaN, and fewer than one bin.
    """
    probabilities = _checked(p, held, labels, bins)
    positives = held.sum(axis=0)
    frequent = np.flatnonzero(positives >= least).tolist()
    pooled: dict[str, list[int]] = {}
    for column in np.flatnonzero(positives < least).tolist():
        pooled.setdefault(groups.get(column, REST), []).append(column)
    large = sorted(name for name, own in pooled.items() if name != REST and positives[own].sum() >= least)
    rest = sorted(column for name, own in pooled.items() if name not in large for column in own)

    def judge(name: str, kind: Kind, columns: Sequence[int]) -> Reliability:
        return reliability(name, kind, probabilities, held, columns, bins=bins, binning=binning)

    return ReliabilityTable(
        overall=judge(OVERALL, "overall", range(len(labels))),
        drugs=tuple(judge(labels[column], "drug", [column]) for column in frequent),
        groups=tuple(judge(name, "group", pooled[name]) for name in large),
        rest=judge(REST, "rest", rest) if rest else None,
    )


def intervals(
    p: Floats,
    held: Held,
    patients: Sequence[int | str],
    *,
    columns: Sequence[int] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Intervals | None:
    """Intervals of p [records, labels] against held, over the cells of `columns` (`Reliability.columns`; all if None).

    Whole patients are drawn (`metrics.bootstrap_means`). Recalibration is not fitted again: each resample takes one step of
    Newton from the fit of all cells, theta* = theta + H*^-1 u*, with the score u* and the information H* of the resample
    (the one-step bootstrap: Moulton and Zeger 1991, Computational Statistics and Data Analysis 11:53). None for fewer than
    two patients.
    """
    if len(set(map(str, patients))) < 2:
        return None
    own, y = (p, held) if columns is None else (p[:, columns], held[:, columns])

    def redrawn(values: Floats) -> Floats:
        return bootstrap_means(values, patients, resamples=resamples, seed=seed)

    def around(value: float, steps: Floats) -> Interval:
        low, high = percentile_interval(steps, level)
        return value + low, value + high

    means = redrawn(np.stack([brier_by_record(own, y), (y - own).mean(axis=1)], axis=1))
    fit = recalibration(own.ravel(), y.ravel())
    slope = intercept = large = None
    if fit.slope is not None and fit.intercept is not None:
        u0, u1, h00, h01, h11 = redrawn(_derivatives(own, y, fit.intercept, fit.slope)).T
        determinant = h00 * h11 - h01**2
        intercept = around(fit.intercept, (h11 * u0 - h01 * u1) / determinant)
        slope = around(fit.slope, (h00 * u1 - h01 * u0) / determinant)
    if fit.in_the_large is not None:
        u0, _, h00, _, _ = redrawn(_derivatives(own, y, fit.in_the_large, 1.0)).T
        large = around(fit.in_the_large, u0 / h00)
    return Intervals(around(0.0, means[:, 0]), around(0.0, means[:, 1]), slope, intercept, large)


def _derivatives(p: Floats, held: Held, intercept: float, slope: float) -> Floats:
    """[records, 5]: sums over a record's cells of the log likelihood's score (2) and information (3: 00, 01, 11)."""
    from scipy.special import expit

    inside = (p > 0) & (p < 1)
    x = _logit(np.where(inside, p, 0.5))
    fitted = expit(intercept + slope * x)
    score, weight = inside * (held - fitted), inside * fitted * (1 - fitted)
    return np.stack([cells.sum(axis=1) for cells in (score, score * x, weight, weight * x, weight * x**2)], axis=1)


def _checked(p: NDArray[np.floating], held: Held, labels: Sequence[str], bins: int) -> Floats:
    """p as float64; sums of probabilities that miss 0 or 1 by rounding alone are put there."""
    if p.ndim != 2 or p.shape != held.shape or p.shape[1] != len(labels) or not p.size:
        problem = f"p {list(p.shape)}, held {list(held.shape)} and {len(labels)} labels"
        raise InputError(problem, way_out="Give both as [records, labels], at least one of each.")
    if held.dtype != np.bool_:
        raise InputError(f"held is {held.dtype}", way_out="Give held as bool.")
    if not ((p >= -1e-6) & (p <= 1 + 1e-6)).all():
        raise InputError("p outside [0, 1]", way_out="Calibration is of probabilities; give p_include, not a logit.")
    if bins < 1:
        raise InputError(f"{bins} bins", way_out="Give at least one.")
    clipped: Floats = np.clip(p.astype(np.float64), 0.0, 1.0)
    return clipped
