"""Learns and judges the calibration of `p_include`: among drugs given 0.3, is it really three lists in ten that hold them?

    yaofang calibrate --model runs/mine --records validation.jsonl

Records with drugs, of patients that the model did not train on, are sampled from (`decoding.writing`); isotonic regression
(scikit-learn) turns the raw inclusion probabilities into shares. Knows records and a Recommender.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from yaofang.data.records import Record
from yaofang.decoding.calibration import Calibration
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.writing import Lists
from yaofang.vocab.errors import InputError

BINS = 10
LEAST = 20
"""Records below which a curve would be noise."""


@dataclass(frozen=True)
class Drawn:
    """A record's sampled lists beside its own drugs, both as positions in the vocabulary."""

    record: Record
    lists: Lists
    gold: frozenset[int]


def draw(
    recommender: Recommender, records: Sequence[Record], batch_size: int = 8, report: Callable[[int], None] = lambda _: None
) -> list[Drawn]:
    """Sampled lists of records with drugs, which the model does not see. InputError for a label outside the vocabulary."""
    found: list[Drawn] = []
    vocabulary = recommender.vocabulary
    for record in records:
        outside = [label for label in record.drugs if label not in vocabulary]
        if outside or not record.drugs:
            problem = f"{outside[0]} is not in the vocabulary" if outside else "no drugs"
            raise InputError(f"record {record.id}: {problem}", field="出院带药列表", way_out="Give records with their drugs.")
    for at in range(0, len(records), batch_size):
        some = records[at : at + batch_size]
        tasks = [recommender.prepare(record.model_copy(update={"drugs": ()})) for record in some]
        for record, lists in zip(some, recommender.writer.sampled(tasks), strict=True):
            found.append(Drawn(record, lists, frozenset(map(vocabulary.index, record.drugs))))
        report(len(some))
    return found


def pairs(drawn: Sequence[Drawn]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Raw inclusion probability and whether the record has the drug, for every drug that the model gives any probability."""
    raw = np.stack([one.lists.inclusion for one in drawn])
    held = np.zeros(raw.shape)
    for row, one in enumerate(drawn):
        held[row, sorted(one.gold)] = 1.0
    possible = raw > 0
    return raw[possible], held[possible]


def fit(drawn: Sequence[Drawn], samples: int, about: dict[str, Any]) -> Calibration:
    """The isotonic curve of these records. InputError for fewer than 20 records."""
    from sklearn.isotonic import IsotonicRegression

    if len(drawn) < LEAST:
        raise InputError(f"{len(drawn)} records", field="--records", way_out=f"Give at least {LEAST}, better some hundreds.")
    raw, held = pairs(drawn)
    curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(raw, held)
    points, shares = (tuple(map(float, values)) for values in (curve.X_thresholds_, curve.y_thresholds_))
    patients = len({one.record.patient for one in drawn})
    return Calibration(points, shares, samples, {**about, "records": len(drawn), "patients": patients})


def reliability(p: npt.NDArray[np.float64], held: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Brier score, expected calibration error (ten bins of equal width, weighted by size), and the bins themselves.

    Brier 1950; Naeini, Cooper and Hauskrecht 2015. Both only over drugs to which the model gives any probability.
    """
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = [
        {"mean_p": float(p[place == at].mean()), "share": float(held[place == at].mean()), "drugs": int((place == at).sum())}
        for at in range(BINS)
        if (place == at).any()
    ]
    gap = sum(abs(one["mean_p"] - one["share"]) * one["drugs"] for one in bins) / len(p)
    return {"brier": float(((p - held) ** 2).mean()), "ece": gap, "bins": bins}


def calibrate(
    recommender: Recommender, records: Sequence[Record], batch_size: int, report: Callable[[int], None] = lambda _: None
) -> tuple[Calibration, dict[str, Any]]:
    """The curve of all records, and how curves of one half of the patients did on the other (raw beside calibrated)."""
    drawn = draw(recommender, records, batch_size, report)
    about = {"model": recommender.versions["model"], "settings": recommender.settings.diagnoses}
    curve = fit(drawn, recommender.settings.samples, about)
    patients = sorted({one.record.patient for one in drawn})
    halves = [[one for one in drawn if (one.record.patient in patients[::2]) == first] for first in (True, False)]
    raw, held, calibrated = [], [], []
    for mine, other in (halves, halves[::-1]):
        if len(mine) < LEAST or not other:
            continue
        p, y = pairs(other)
        raw.append(p)
        held.append(y)
        calibrated.append(fit(mine, recommender.settings.samples, {})(p))
    if not raw:
        return curve, {}
    y = np.concatenate(held)
    judged = {"raw": reliability(np.concatenate(raw), y), "calibrated": reliability(np.concatenate(calibrated), y)}
    return replace(curve, about={**curve.about, **{key: value["ece"] for key, value in judged.items()}}), judged
