"""PRAUC and calibration of the labels' own probabilities, read off the details that predict wrote.

The score is `p_include`: of listed drugs their own, of others that of `considered`, 0 of every label in neither. Knows details
and vocabulary; the formulas are in `ranking` and `reliability`. A 0/1 list has no ranking, so it gets none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yaofang.data.recommendation import Recommendation
from yaofang.eval.intervals import Array, Figure, Sample
from yaofang.eval.levels import Level, class_of
from yaofang.eval.ranking import average_precision
from yaofang.eval.reliability import (
    Binning,
    Intervals,
    Reliability,
    ReliabilityTable,
    brier_by_record,
    intervals,
    reliability_table,
)
from yaofang.vocab.drugs import Vocabulary

SCORE = "p_include"
BINNING: Binning = "expected"
"""Bins of equal sums of p: nearly every cell of 651 labels is near 0, and bins of equal size would show only those."""

NO_DETAILS = "not defined: no details"
NO_LABELS = "not defined: p_include is of labels, which are not compared here"
NO_SCORE = "not defined: the details hold no p_include"
SOME_SCORE = "not defined: some drugs of the details have no p_include"
NO_RANKING = "not defined: p_include is only 0 and 1, which ranks nothing"


@dataclass(frozen=True, slots=True)
class Probabilities:
    """How well the probabilities rank each record's labels, and whether they are true shares."""

    score: str | None
    """`p_include`; None where nothing is defined."""
    reason: str | None
    """Why nothing is defined; None where it is."""
    prauc: Figure | None = None
    """Mean over records with gold of the record's average precision (`ranking.average_precision`)."""
    prauc_over_patients: float | None = None
    """Mean over patients of each one's mean, as GAMENet and SafeDrug report their networks."""
    records: int = 0
    """Records with gold, over which PRAUC is a mean."""
    constant: int = 0
    """Those whose labels all have the same score: a record without details, for one."""
    brier: Figure | None = None
    """Mean over records and labels of (p - held)^2 (Brier 1950)."""
    calibration: ReliabilityTable | None = None
    """Overall, of drugs with at least 50 positives, and of the rest by ATC-4."""
    intervals: Mapping[str, Intervals | None] = field(default_factory=dict)
    """Of each part of the calibration, by `part_key`; the ECE has none (`reliability.Intervals` says why)."""


def judged(
    gold: Mapping[str, Sequence[str]],
    details: Mapping[str, Recommendation] | None,
    vocabulary: Vocabulary,
    level: Level,
    sample: Sample,
) -> Probabilities:
    """The figures of the records in `gold`, which go by the sample's rows; what is not defined says why."""
    reason = _undefined(gold, details, level)
    if reason or details is None:
        return Probabilities(None, reason)
    scores, held = matrices(gold, details, vocabulary)
    if np.isin(scores, (0, 1)).all():
        return Probabilities(None, NO_RANKING)
    ranking = average_precision(SCORE, scores, held)
    counted = Sample([one for one, is_in in zip(sample.patients, ranking.counted, strict=True) if is_in], *_how(sample))
    width = len(vocabulary)
    p, known = scores[:, :width], held[:, :width]
    groups = {column: class_of(drug) for column, drug in enumerate(vocabulary)}
    table = reliability_table(p, known, vocabulary.labels, groups, binning=BINNING)
    how = {"resamples": sample.resamples, "seed": sample.seed}
    return Probabilities(
        score=ranking.score,
        reason=None,
        prauc=counted.means(ranking.values[ranking.counted][:, None])[0] if ranking.counted.any() else None,
        prauc_over_patients=ranking.mean_over_patients(sample.patients),
        records=int(ranking.counted.sum()),
        constant=ranking.constant,
        brier=sample.means(brier_by_record(p, known)[:, None])[0],
        calibration=table,
        intervals={part_key(one): intervals(p, known, sample.patients, columns=one.columns, **how) for one in parts_of(table)},
    )


def parts_of(table: ReliabilityTable) -> tuple[Reliability, ...]:
    """Overall first, then drugs, groups and the rest."""
    return (table.overall, *table.drugs, *table.groups, *([table.rest] if table.rest is not None else []))


def part_key(one: Reliability) -> str:
    """`drug/阿卡波糖`: what a part goes by in the JSON's `intervals`."""
    return f"{one.kind}/{one.name}"


def _how(sample: Sample) -> tuple[int, int]:
    return sample.resamples, sample.seed


def _undefined(gold: Mapping[str, Sequence[str]], details: Mapping[str, Recommendation] | None, level: Level) -> str | None:
    """Why there is no ranking, in words for the user; None if there is one."""
    if details is None:
        return NO_DETAILS
    if level != "label":
        return NO_LABELS
    own = [details[id_] for id_ in gold if id_ in details]
    listed = [drug.p_include for one in own for drug in one.drugs]
    if not any(one.considered for one in own) and not any(p is not None for p in listed):
        return NO_SCORE
    return SOME_SCORE if None in listed else None


def matrices(
    gold: Mapping[str, Sequence[str]], details: Mapping[str, Recommendation], vocabulary: Vocabulary
) -> tuple[Array, NDArray[np.bool_]]:
    """p_include and gold, both [records, labels]: the vocabulary's labels in their order, then gold names outside it (p 0).

    A record without details has p 0 everywhere.
    """
    index = {label: column for column, label in enumerate(vocabulary.labels)}
    for name in sorted({name for names in gold.values() for name in names} - set(index)):
        index[name] = len(index)
    scores, held = np.zeros((len(gold), len(index))), np.zeros((len(gold), len(index)), dtype=np.bool_)
    for row, (id_, names) in enumerate(gold.items()):
        held[row, [index[name] for name in names]] = True
        for label, p in included(details[id_]).items() if id_ in details else ():
            if label in index:
                scores[row, index[label]] = p
    return scores, held


def included(one: Recommendation) -> dict[str, float]:
    """Label -> p_include of what is listed or was considered; of a listed drug without any, nothing."""
    considered = {other.label: other.p_include for other in one.considered}
    return considered | {drug.label: drug.p_include for drug in one.drugs if drug.p_include is not None}


def calibration_json(table: ReliabilityTable | None, vocabulary: Sequence[str]) -> dict[str, Any] | None:
    """The table with the labels' names in place of columns; those of `overall` are all of the vocabulary's."""
    if table is None:
        return None

    def plain(one: Reliability) -> dict[str, Any]:
        value = asdict(one)
        columns = value.pop("columns")
        return value if one.kind == "overall" else {**value, "labels": [vocabulary[column] for column in columns]}

    return {
        "binning": BINNING,
        "overall": plain(table.overall),
        "drugs": [plain(one) for one in table.drugs],
        "groups": [plain(one) for one in table.groups],
        "rest": None if table.rest is None else plain(table.rest),
    }
