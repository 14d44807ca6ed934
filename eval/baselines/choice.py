"""The baselines that the field knows, so that every score has something beside it: most frequent, last visit, neighbours,
TF-IDF + logistic regression, gradient-boosted trees. `DEFINITIONS` has a line on each.

All choose their settings on a fifth of the training patients, never on a record of the board they predict, and then learn
from all training records. They read the records' diagnoses where they are given. They know labels as strings, and no
conflicts (their lists show what a system without a conflict mask does).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from yaofang.data.records import Record, lines_of
from yaofang.eval.baselines.boosting import trees
from yaofang.eval.baselines.definitions import DEFINITIONS
from yaofang.eval.baselines.history import last_visit, neighbours
from yaofang.eval.baselines.regression import tfidf
from yaofang.eval.baselines.tuning import (
    TOP_RULES,
    Lists,
    Report,
    Scores,
    Tuning,
    best_rule,
    lists_of,
    ranked_labels,
    tuning_of,
    validation_split,
)
from yaofang.vocab.errors import InputError

__all__ = [
    "DEFINITIONS",
    "Tuning",
    "check_training",
    "last_visit",
    "most_frequent",
    "neighbours",
    "run_baseline",
    "tfidf",
    "trees",
    "usable_training",
]


def run_baseline(
    name: str,
    train: Sequence[Record],
    records: Sequence[Record],
    *,
    seed: int = 0,
    known: Sequence[Record] = (),
    report: Report = lambda _: None,
) -> tuple[Lists, Tuning]:
    """Lists of the baseline of this name, one of `DEFINITIONS`, and what was tuned.

    The drugs of `records` are not read. `known` is for `last-visit` alone: records, beside the training records, whose
    drugs may be read. `report` gets lines on the way. Raises InputError for another name, for training records of one
    patient, and for `known` where it would be ignored.
    """
    if known and name != "last-visit":
        raise InputError(f"{name} reads no known records", field="--known", way_out="Leave --known out, or take last-visit.")
    if name == "most-frequent":
        return most_frequent(train, records, seed=seed, report=report)
    if name == "last-visit":
        return last_visit(train, records, seed=seed, known=known, report=report)
    if name == "neighbours":
        return neighbours(train, records, seed=seed, report=report)
    if name == "tfidf":
        return tfidf(train, records, seed=seed, report=report)
    if name == "trees":
        return trees(train, records, seed=seed, report=report)
    raise InputError(f"there is no baseline {name!r}", way_out=f"Take one of: {', '.join(DEFINITIONS)}.")


def most_frequent(
    train: Sequence[Record], records: Sequence[Record], *, seed: int = 0, report: Report = lambda _: None
) -> tuple[Lists, Tuning]:
    """Predict the k most frequent labels of the training records for every record; k is tuned by board score."""
    fitting, held_out = validation_split(train, seed)
    scores, labels = frequencies(fitting, len(held_out))
    rule, figures = best_rule(scores, labels, held_out, TOP_RULES)
    final, final_labels = frequencies(train, len(records))
    tuning = tuning_of("most-frequent", rule, {}, train, held_out, figures)
    report(f"k={rule.value:g}: board score {tuning.board:.4f} on validation patients")
    return lists_of(records, final, final_labels, rule), tuning


def frequencies(train: Sequence[Record], rows: int) -> tuple[Scores, list[str]]:
    """How many training records have each label, the same for every row: [rows, labels], labels by falling frequency."""
    counted = ranked_labels(train)
    return np.tile([float(count) for _, count in counted], (rows, 1)), [label for label, _ in counted]


def check_training(records: Sequence[Record], vocabulary: Container[str], file: str | Path | None = None) -> None:
    """Raise InputError for the first record that `usable_training` would leave out."""
    _, errors = usable_training(records, vocabulary, file)
    if errors:
        raise errors[0]


def usable_training(
    records: Sequence[Record], vocabulary: Container[str], file: str | Path | None = None
) -> tuple[list[Record], list[InputError]]:
    """The records that can be learned from, and an error for each of the others, both in the order of `records`.

    The others have no drug, or a label that is not in the vocabulary. `file` is where the records came from, for the errors.
    """
    found = [(record, _unusable(record, vocabulary)) for record in records]
    wrong = {record.id for record, problem in found if problem}
    lines = lines_of(file, wrong) if wrong and file is not None else {}
    errors = [
        InputError(problem[0], file=file, line=lines.get(record.id), field="出院带药列表", way_out=problem[1])
        for record, problem in found
        if problem
    ]
    return [record for record, problem in found if not problem], errors


def _unusable(record: Record, vocabulary: Container[str]) -> tuple[str, str] | None:
    """What keeps a record from being learned from, and the way out."""
    if not record.drugs:
        return f"training record {record.id} has no drug", "Take records without drugs out of the training file."
    strange = next((label for label in record.drugs if label not in vocabulary), None)
    if strange is None:
        return None
    problem = f"{strange!r} of training record {record.id} is not in the vocabulary"
    return problem, "Give the list that holds it with --vocab (sft: --set data.vocabulary=LIST)."
