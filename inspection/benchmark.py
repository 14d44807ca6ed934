"""Figures of inspection: how often the top evidence is the true cause, how often flags are raised, and what takes how long.

yaofang bench inspection --out docs/results/inspection.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from yaofang.data.records import Record
from yaofang.data.ward.simulate import simulate
from yaofang.decoding.recommender import Recommender
from yaofang.glm.loading import LoadedModel
from yaofang.inspection.benchmark_flags import flags
from yaofang.inspection.counterfactual import counterfactual
from yaofang.inspection.evidence import Piece
from yaofang.inspection.faithfulness import faithfulness
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

ON_BOARD = 570
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
    """`faithfulness` of this ward's first `records` test records, `time` of one counterfactual record, and `flags`.

    Flags and report are of the whole test board, at most `ON_BOARD` records.
    """
    found = faithfulness(
        loaded, vocabulary, conflicts, records=records, patients=patients, seed=seed, trained_on=trained_on, report=report
    )
    seconds = counterfactual_seconds(Recommender([loaded], vocabulary, conflicts, audit=False), patients, seed, rounds)
    raised = flags(vocabulary, records=ON_BOARD, patients=patients, seed=seed)
    return {
        **found,
        "time": {"what_it_is": WHAT, "drugs": DRUGS, "pieces": PIECES, "rounds": rounds, **seconds},
        "flags": raised,
    }


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


def _seconds(recommender: Recommender, record: Record, drugs: Sequence[str], pieces: Sequence[Piece]) -> float:
    begun = perf_counter()
    counterfactual(recommender, record, drugs, evidence=pieces)
    return perf_counter() - begun
