"""The figures of an ablation's runs, and the table of its cells: means over seeds, and differences to `base` with intervals.

Knows lists, labels and counts; trains nothing. Each figure of a run is a ratio of sums over records (a mean, where all records
count one), so that all are resampled alike.

**The interval of a difference.** A cell and `base` are compared seed by seed and record by record. What was drawn is crossed:
the seeds, and the patients. The variance of the mean difference is taken as v1 + v2: v1 = the variance between the seeds'
differences over their number, v2 = the bootstrap variance over patients of the difference averaged over the seeds
(`eval/intervals.py`). What seeds and patients do together is counted in both, so the interval is rather too wide than too
narrow (Owen, The pigeonhole bootstrap, 2007). It is the mean +- t sqrt(v1 + v2), with t's degrees of freedom by
Satterthwaite (Biometrics Bulletin 2, 1946): (v1 + v2)^2 / (v1^2 / (seeds - 1) + v2^2 / (patients - 1)). A bootstrap over
three seeds would be too narrow by itself.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student

from yaofang.data.records import Record
from yaofang.eval.intervals import Array, Sample, ratio_of_sums
from yaofang.eval.metrics import score_record
from yaofang.eval.strata import STRATA
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary

if TYPE_CHECKING:
    from yaofang.sft.ablation.bench import Cell

NAMES = ("jaccard", "f1", *(f"{kind}_{stratum}" for stratum in STRATA for kind in ("recall", "f1")))
"""Figures of lists. Of a stratum: hits / gold, and 2 hits / (gold + predicted), pooled over records (`eval/strata.py`)."""
T1 = "t1_pairs"
"""T1 pairs a record, of lists in which conflicts are not masked."""
UNSAFE = "unsafe"
LEVEL = 0.95


def figures_of(
    board: Sequence[Record], lists: Sequence[Sequence[str]], vocabulary: Vocabulary, conflicts: ConflictTable
) -> dict[str, float | None]:
    """Figures of one run that ask for nothing but its lists; those of strata stand in the table alone."""
    scores = np.array([_scores(record, own) for record, own in zip(board, lists, strict=True)])
    pairs = [t1_pairs(own, vocabulary, conflicts) for own in lists]
    return {
        "jaccard": float(scores[:, 0].mean()),
        "f1": float(scores[:, 1].mean()),
        "drugs": float(np.mean([len(own) for own in lists])),
        T1: float(np.mean(pairs)),
        "t1_records": float(np.mean([count > 0 for count in pairs])),
    }


def packed(lists: Sequence[Sequence[str]], vocabulary: Vocabulary) -> str:
    """Lists of labels as text: their positions in the vocabulary as JSON, by zlib and base64, a tenth of their size."""
    positions = [[vocabulary.index(label) for label in own] for own in lists]
    return base64.b64encode(zlib.compress(json.dumps(positions, separators=(",", ":")).encode(), 9)).decode()


def unpacked(text: str, vocabulary: Vocabulary) -> list[list[str]]:
    """The lists of `packed`, under the same vocabulary."""
    return [[vocabulary.labels[place] for place in own] for own in json.loads(zlib.decompress(base64.b64decode(text)))]


def t1_pairs(labels: Sequence[str], vocabulary: Vocabulary, conflicts: ConflictTable) -> int:
    """Pairs of tier T1 in a list."""
    places = [vocabulary.index(label) for label in labels]
    return sum(bool(conflicts.tiers[a, b] == 1) for a, b in combinations(places, 2))


def table(
    runs: Sequence[Mapping[str, Any]],
    cells: Sequence[Cell],
    board: Sequence[Record],
    strata: Mapping[str, str],
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
) -> dict[str, Any]:
    """Cell -> mode -> figure -> {mean, difference, low, high}, with the number of seeds; None for a cell without a run.

    `cells[0]` is what the others are compared with; it has no differences, and neither has a mode that it was not measured
    in. The bounds are None where only one seed is common. T1 pairs stand under the mode `unsafe`, compared only between cells
    whose diagnoses came about alike there.
    """
    tally = _Tally(board, strata, vocabulary, conflicts)
    counted = {(run["cell"], run["seed"]): tally.run(run) for run in runs}
    training = {(run["cell"], run["seed"]): run["training"] for run in runs}
    base = cells[0]
    found: dict[str, Any] = {}
    for cell in cells:
        own = {seed: value for (name, seed), value in counted.items() if name == cell.name}
        against = {seed: value for (name, seed), value in counted.items() if name == base.name and cell is not base}
        if not own:
            found[cell.name] = None
            continue
        spent = [training[cell.name, seed] for seed in own]
        found[cell.name] = {
            "seeds": len(own),
            "training": {key: _mean([one[key] for one in spent]) for key in ("seconds", "tokens_a_second", "loss")},
            "masked_mass": _mean([run["figures"][cell.modes[0]]["masked_mass"] for run in runs if run["cell"] == cell.name]),
            **{
                mode: _compared(mode, own, against if mode != UNSAFE or cell.modes[0] == base.modes[0] else {}, tally.sample)
                for mode in (*cell.modes, UNSAFE)
            },
        }
    return found


Sums = dict[str, tuple[Array, Array]]
"""Mode -> what stands above and below each figure's fraction, both [records, figures]."""


class _Tally:
    """What each record adds to each figure."""

    def __init__(
        self, board: Sequence[Record], strata: Mapping[str, str], vocabulary: Vocabulary, conflicts: ConflictTable
    ) -> None:
        self.board, self.strata, self.vocabulary, self.conflicts = board, strata, vocabulary, conflicts
        self.sample = Sample([record.patient for record in board])

    def run(self, run: Mapping[str, Any]) -> Sums:
        return {mode: self._sums(mode, unpacked(text, self.vocabulary)) for mode, text in run["lists"].items()}

    def _sums(self, mode: str, lists: Sequence[Sequence[str]]) -> tuple[Array, Array]:
        if mode == UNSAFE:
            pairs = np.array([[t1_pairs(own, self.vocabulary, self.conflicts)] for own in lists], dtype=np.float64)
            return pairs, np.ones_like(pairs)
        rows = [self._row(record, own) for record, own in zip(self.board, lists, strict=True)]
        above, below = np.array(rows, dtype=np.float64).transpose(1, 0, 2)
        return above, below

    def _row(self, record: Record, own: Sequence[str]) -> tuple[list[float], list[float]]:
        above, below = list(_scores(record, own)), [1.0, 1.0]
        gold, said = set(record.drugs), set(own)
        for stratum in STRATA:
            y, p, hits = (self._in(stratum, names) for names in (gold, said, gold & said))
            above += [hits, 2 * hits]
            below += [y, y + p]
        return above, below

    def _in(self, stratum: str, names: set[str]) -> int:
        return sum(self.strata.get(name, "unseen") == stratum for name in names)


def _scores(record: Record, own: Sequence[str]) -> tuple[float, float]:
    score = score_record(record.drugs, own)
    return score.jaccard, score.f1


def _compared(mode: str, own: Mapping[int, Sums], base: Mapping[int, Sums], sample: Sample) -> dict[str, Any]:
    """Each figure's mean over the seeds, and its difference to base over the seeds that both have."""
    values = np.array([_values(sums[mode]) for sums in own.values()])
    shared = [seed for seed in own if seed in base and mode in base[seed]]
    names = (T1,) if mode == UNSAFE else NAMES
    found: dict[str, Any] = {name: {"mean": _number(values[:, at].mean())} for at, name in enumerate(names)}
    if not shared:
        return found
    less = np.array([_values(own[seed][mode]) - _values(base[seed][mode]) for seed in shared])
    drawn = np.mean([_drawn(own[seed][mode], sample) - _drawn(base[seed][mode], sample) for seed in shared], axis=0)
    for at, name in enumerate(names):
        low, high = interval(less[:, at], drawn[:, at], len(set(sample.patients)))
        found[name] |= {"difference": _number(less[:, at].mean()), "low": low, "high": high}
    return found


def interval(by_seed: Array, drawn: Array, patients: int, level: float = LEVEL) -> tuple[float | None, float | None]:
    """The interval of a mean difference (module's docstring) from the seeds' differences and their means in resamples of
    patients.

    `by_seed` [seeds], `drawn` [resamples]; NaN among the latter are left out. None with one seed or a difference that is not
    defined.
    """
    whole = drawn[~np.isnan(drawn)]
    if len(by_seed) < 2 or np.isnan(by_seed).any() or len(whole) < 2 or patients < 2:
        return None, None
    mean = float(by_seed.mean())
    seeds, people = float(by_seed.var(ddof=1)) / len(by_seed), float(whole.var(ddof=1))
    if seeds + people == 0:
        return mean, mean
    degrees = (seeds + people) ** 2 / (seeds**2 / (len(by_seed) - 1) + people**2 / (patients - 1))
    reach = float(student.ppf((1 + level) / 2, degrees)) * (seeds + people) ** 0.5
    return mean - reach, mean + reach


def _values(sums: tuple[Array, Array]) -> Array:
    return ratio_of_sums(sums[0].sum(axis=0), sums[1].sum(axis=0))


def _drawn(sums: tuple[Array, Array], sample: Sample) -> Array:
    return sample.drawn(*sums)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
