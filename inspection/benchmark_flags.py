"""How often the two flags are raised on lists that doctors of the simulated ward wrote, and how long a report takes.

No model is needed: the lists are the records' own drugs, or labels drawn at random from those that the record does not have.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from yaofang.data.recommendation import Diagnosis, Drug, Recommendation
from yaofang.data.records import Record
from yaofang.data.ward.simulate import simulate
from yaofang.inspection.carriers import UNINDICATED, UNTREATED
from yaofang.inspection.site import write_report
from yaofang.inspection.view import Viewer
from yaofang.vocab.drugs import Vocabulary

RANDOM = 5
"""Labels drawn for each record."""
WHAT = {
    "unindicated": "无指征用药: drugs with the flag / drugs of the lists",
    "untreated": "有指征未用药: flags on the doctors' own lists, and the same a record",
    "own": "the records' own drugs, as the doctors of the ward wrote them",
    "random": f"{RANDOM} labels a record drawn at random from those that it does not have",
    "report_seconds": "seconds to read the records into views and to write the report with a page a record, no counterfactuals",
}


def flags(vocabulary: Vocabulary, *, records: int, patients: int, seed: int) -> dict[str, Any]:
    """Counts and rates of the flags over the first `records` records of the ward's test board."""
    board, viewer, rng = simulate(patients, seed).test[:records], Viewer(vocabulary), random.Random(seed)
    own = _unindicated(viewer, vocabulary, [(record, record.drugs) for record in board])
    drawn = [(record, rng.sample(sorted(set(vocabulary.labels) - set(record.drugs)), RANDOM)) for record in board]
    return {
        "what_it_is": WHAT,
        "records": len(board),
        "unindicated": {"own": own["unindicated"], "random": _unindicated(viewer, vocabulary, drawn)["unindicated"]},
        "untreated": {"flags": own["untreated"], "a_record": own["untreated"] / len(board)},
        "report_seconds": _report_seconds(viewer, vocabulary, board),
    }


def _unindicated(viewer: Viewer, vocabulary: Vocabulary, lists: Sequence[tuple[Record, Sequence[str]]]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    for record, labels in lists:
        kinds.update(flag.kind for flag in viewer.view(record, _listed(record, labels, vocabulary)).flags)
    drugs = sum(len(labels) for _, labels in lists)
    raised = kinds[UNINDICATED]
    return {"unindicated": {"flags": raised, "drugs": drugs, "rate": raised / drugs}, "untreated": kinds[UNTREATED]}


def _listed(record: Record, labels: Sequence[str], vocabulary: Vocabulary) -> Recommendation:
    entries = [vocabulary.drug(label) for label in labels]
    drugs = tuple(Drug(one.label, one.generic, one.atc or "", 0.0, None, 0.0) for one in entries)
    return Recommendation(record.id, tuple(Diagnosis(name, "given") for name in record.diagnoses), drugs)


def _report_seconds(viewer: Viewer, vocabulary: Vocabulary, board: Sequence[Record]) -> float:
    with TemporaryDirectory() as folder:
        begun = perf_counter()
        views = (viewer.view(one, _listed(one, one.drugs, vocabulary), gold=one.drugs) for one in board)
        write_report(Path(folder) / "report.html", views, count=len(board), about={})
        return perf_counter() - begun
