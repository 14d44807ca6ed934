"""Figures of inspection: how often the top evidence is the true cause, and how long a counterfactual record takes.

yaofang bench inspection --out docs/results/inspection.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from yaofang.data.ward.simulate import simulate
from yaofang.decoding.recommender import Recommender
from yaofang.glm.loading import LoadedModel
from yaofang.inspection.counterfactual import counterfactual
from yaofang.inspection.faithfulness import faithfulness
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

DRUGS, PIECES = 8, 20
"""The size of record whose time is measured."""
WHAT = (
    f"seconds of the counterfactuals of one record with {DRUGS} drugs and {PIECES} pieces of evidence that its prompt shows "
    "(the first of the test board with so many; its own drugs, its first pieces): median of the rounds, the model loaded"
)


def measure(
    loaded: LoadedModel,
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    *,
    records: int = 100,
    patients: int = 1910,
    seed: int = 1,
    trained_on: Sequence[tuple[int, int]] = (),
    rounds: int = 5,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """`faithfulness` of this ward's first `records` test records, and `time` of one counterfactual record."""
    found = faithfulness(
        loaded, vocabulary, conflicts, records=records, patients=patients, seed=seed, trained_on=trained_on, report=report
    )
    seconds = counterfactual_seconds(Recommender([loaded], vocabulary, conflicts, audit=False), patients, seed, rounds)
    return {**found, "time": {"what_it_is": WHAT, "drugs": DRUGS, "pieces": PIECES, "rounds": rounds, **seconds}}


def counterfactual_seconds(recommender: Recommender, patients: int, seed: int, rounds: int) -> dict[str, Any]:
    """The record taken and the seconds of each round, sorted, and their median. InputError if no record is as large."""
    for record in simulate(patients, seed).test:
        drugs = list(record.drugs[:DRUGS])
        if len(drugs) < DRUGS:
            continue
        asked = record.model_copy(update={"drugs": ()})
        shown = counterfactual(recommender, asked, drugs)
        pieces = [piece for piece, seen in zip(shown.pieces, shown.seen, strict=True) if seen][:PIECES]
        if len(pieces) < PIECES:
            continue
        spent = sorted(_seconds(recommender, asked, drugs, pieces) for _ in range(rounds))
        return {"record": record.id, "seconds": [round(one, 2) for one in spent], "median": spent[len(spent) // 2]}
    raise InputError(f"no record shows {DRUGS} drugs and {PIECES} pieces", way_out="Measure on more patients.")


def _seconds(recommender: Recommender, record: Any, drugs: Sequence[str], pieces: Sequence[Any]) -> float:
    begun = perf_counter()
    counterfactual(recommender, record, drugs, evidence=pieces)
    return perf_counter() - begun
