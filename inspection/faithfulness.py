"""How often the top evidence of a drug is the true cause, on the simulated ward, where the cause of every drug is known.

    found = faithfulness(load_model(), vocabulary, conflicts, records=100)

Judged are the drugs that are both in the model's list and in the doctors': of the others the ward knows no cause that the model
could have found. A drug's evidence are the finest pieces that are in the prompt: diagnoses, sentences, and sections of one
piece. The pieces that state its cause are

- **diagnosis**: the diagnosis in the list, and every sentence that names it; for a disease that is on no list, the sentence;
- **earlier drug**: the sentence that holds the truth file's span, and every other that names the drug as the span does, or by
  its label: a record often says twice what the patient takes at home;
- **finding**: the sentence that holds the span, or the diagnosis that stands for it.

Habits have no cause in the record and are left out. A drug whose cause was cut out of the prompt by fitting, so that no piece
states it, cannot be traced by anybody: it is counted apart. Says nothing about real patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from yaofang.data.records import Record
from yaofang.data.ward.simulate import draft, write
from yaofang.data.ward.tables import load_tables
from yaofang.data.ward.text import Truth
from yaofang.decoding.recommender import Recommender
from yaofang.eval.metrics import bootstrap_means, percentile_interval
from yaofang.glm.loading import LoadedModel
from yaofang.inspection.attention import attention
from yaofang.inspection.counterfactual import Counterfactual, counterfactual, prepare
from yaofang.inspection.evidence import DIAGNOSES, FIELDS, Piece, Shown
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

GOAL = 0.75
RANKINGS = {
    "counterfactual": "log-odds of the drug at its place in the list, lost when the piece is taken out",
    "counterfactual_at_head": "the same for the drug as the first of an empty list",
    "attention": "attention from the tokens of the drug's name to those of the piece, mean over layers and heads, summed",
    "random": "any piece with the same chance: the share of pieces that state the cause, exactly and not by a draw",
}
"""Keys of the results, and what they rank by."""
LEGEND = {
    "what_it_is": "share of drugs whose top piece of evidence states the true cause of the simulated ward; interval: 95%, "
    "bootstrap over patients. Says nothing about real patients.",
    "top_is_cause": "the top piece is one of those that state the cause (a diagnosis or a sentence that names it; a sentence "
    "that names the home drug; the sentence of the finding)",
    "top_is_span": "stricter: the top piece is the diagnosis itself, or holds the one span that the truth file gives; only "
    "drugs whose span is in the prompt",
    "judged": "drugs in the model's list and in the gold whose cause some piece of the prompt states",
    "cut": "drugs in both lists whose cause fitting has cut out of the prompt: no piece states it, so they are not judged",
    "habit": "drugs in both lists that a doctor's habit has caused: nothing in the record says why, so they are not judged",
    "not_in_gold": "drugs of the model's list that the gold does not have: they have no true cause",
}
Report = Callable[[str], None]


@dataclass
class Judged:
    """One line a judged drug, and the counts of those that were not."""

    patients: list[int] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    hits: list[list[float]] = field(default_factory=list)
    """For each of RANKINGS."""
    span_hits: list[list[float]] = field(default_factory=list)
    """The same for the stricter figure; NaN where the span is not in the prompt."""
    left_out: Counter[str] = field(default_factory=Counter)


def faithfulness(
    loaded: LoadedModel,
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    *,
    records: int = 100,
    patients: int = 1910,
    seed: int = 1,
    trained_on: Sequence[tuple[int, int]] = (),
    batch_size: int = 16,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """All figures, on the first `records` records of the ward's test board, with a legend of their keys.

    `patients` and `seed` are the ward's; `trained_on` says those of the wards that the model has seen. Raises InputError if
    this ward is one of them.
    """
    if seed in {trained for _, trained in trained_on}:
        way_out = "Measure on a ward of another seed."
        raise InputError(f"the model was trained on the ward of seed {seed}", field="--seed", way_out=way_out)
    board, truth = _board(patients, seed, records)
    recommender = Recommender([loaded], vocabulary, conflicts, diagnoses="given", audit=False)
    judged, begun = Judged(), perf_counter()
    for number, record in enumerate(board, 1):
        judge(recommender, record, truth.get(record.id, {}), judged, batch_size=batch_size)
        report(f"{number} of {len(board)} records, {len(judged.hits)} drugs judged")
    return {
        "legend": {**LEGEND, **RANKINGS},
        "goal": GOAL,
        "model": {"name": loaded.name, "version": loaded.version},
        "ward": {"patients": patients, "seed": seed, "records": len(board)},
        **figures(judged),
        "seconds_a_record": (perf_counter() - begun) / len(board),
    }


def _board(patients: int, seed: int, records: int) -> tuple[list[Record], dict[str, dict[str, Truth]]]:
    """Records of the test board, and of each the truth by label."""
    tables = load_tables()
    board, causes = write(draft(patients, seed, tables).test[:records], seed, tables)
    truth: dict[str, dict[str, Truth]] = {}
    for cause in causes:
        truth.setdefault(cause.id, {})[cause.label] = cause
    return board, truth


def judge(
    recommender: Recommender, record: Record, truth: Mapping[str, Truth], judged: Judged, *, batch_size: int = 16
) -> None:
    """Add one record's drugs to `judged`. The model never sees the record's drugs."""
    made = recommender(record.model_copy(update={"drugs": ()}))
    judged.left_out["not_in_gold"] += sum(label not in truth for label in made.labels)
    causes = [truth[label] for label in made.labels if label in truth]
    if all(cause.cause == "habit" for cause in causes):
        judged.left_out["habit"] += len(causes)
        return
    found = counterfactual(recommender, record, made, batch_size=batch_size)
    looked = attention(recommender, record, made, evidence=found.pieces)
    shown = prepare(recommender, record, made).shown
    for cause in causes:
        judge_drug(record, cause, found, looked[found.drugs.index(cause.label)], shown, judged)


def judge_drug(
    record: Record,
    cause: Truth,
    found: Counterfactual,
    looked: npt.NDArray[np.float64],
    shown: Shown,
    judged: Judged,
) -> None:
    """Add one drug of `found` to `judged`; `looked` [pieces] is the attention paid for it."""
    if cause.cause == "habit":
        judged.left_out["habit"] += 1
        return
    ranked = found.ranked
    span = [_at_span(found.pieces[at], cause, shown) for at in ranked]
    stated = [own or _states(found.pieces[at], record, cause, shown) for at, own in zip(ranked, span, strict=True)]
    if not any(stated):
        judged.left_out["cut"] += 1
        return
    drug = found.drugs.index(cause.label)
    by = (found.effect[drug, ranked], found.head_effect[drug, ranked], looked[ranked])
    judged.patients.append(record.patient)
    judged.causes.append(cause.cause)
    judged.hits.append([*(float(stated[int(one.argmax())]) for one in by), float(np.mean(stated))])
    strict = [*(float(span[int(one.argmax())]) for one in by), float(np.mean(span))]
    judged.span_hits.append(strict if any(span) else [np.nan] * len(strict))


def _at_span(piece: Piece, cause: Truth, shown: Shown) -> bool:
    """Whether the piece holds the truth's own span, all of which is in the prompt."""
    section, start, end = cause.evidence
    if not piece.holds(section, start, end):
        return False
    return section == DIAGNOSES or shown.shows(section, start, end)


def _states(piece: Piece, record: Record, cause: Truth, shown: Shown) -> bool:
    """Whether the piece says the cause in another place: the diagnosis's or the home drug's name, all in the prompt."""
    if piece.section == DIAGNOSES or cause.cause == "finding":
        return False
    section, start, end = cause.evidence
    said = record.diagnoses[start] if section == DIAGNOSES else getattr(record, FIELDS[section])[start:end]
    names = {said, cause.label} if cause.cause == "earlier drug" else {said}
    places = [(name, piece.text.find(name)) for name in names]
    return any(at >= 0 and shown.shows(piece.section, piece.start + at, piece.start + at + len(name)) for name, at in places)


def figures(judged: Judged) -> dict[str, Any]:
    """The counts and, for each ranking, the share of hits with its interval, over all and by cause."""
    causes = Counter(judged.causes)
    return {
        "drugs": {"judged": len(judged.hits), **{key: judged.left_out[key] for key in ("cut", "habit", "not_in_gold")}},
        "judged_by_cause": dict(causes),
        "top_is_cause": _table(judged, judged.hits),
        "top_is_span": _table(judged, judged.span_hits),
        "by_cause": {
            cause: _table(
                judged,
                [one if own == cause else [np.nan] * len(one) for one, own in zip(judged.hits, judged.causes, strict=True)],
            )
            for cause in sorted(causes)
        },
    }


def _table(judged: Judged, hits: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Per ranking: value, low, high and the number of drugs behind them; no value where there is none."""
    values = np.array(hits, dtype=np.float64).reshape(-1, len(RANKINGS))
    kept = ~np.isnan(values).any(axis=1)
    drugs = int(kept.sum())
    if not drugs:
        return {"drugs": 0}
    owners = [judged.patients[at] for at in np.flatnonzero(kept)]
    means = bootstrap_means(values[kept], owners)
    rows: dict[str, Any] = {"drugs": drugs}
    for at, name in enumerate(RANKINGS):
        low, high = percentile_interval(means[:, at])
        rows[name] = {"value": float(values[kept, at].mean()), "low": low, "high": high}
    return rows
