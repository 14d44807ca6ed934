"""What the baselines share: how scores become a list, and how settings are chosen on the validation patients.

No label of these is fitted on before the settings are chosen. Their texts are: the TF-IDF's document frequencies, and what is
reduced from it, come from all training records.

Knows records, labels as strings and arrays of scores; not where the scores come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yaofang.data.records import Record
from yaofang.data.splits import folds
from yaofang.eval.metrics import board_score
from yaofang.vocab.errors import InputError

Scores = NDArray[np.float64]
"""[records, labels]: probability, or any other score where more means likelier."""
Lists = list[tuple[str, list[str]]]
"""(就诊标识, labels) of each record, in the order of the records."""
Report = Callable[[str], None]

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """Which labels of a record's scores become its list: at least one, the likeliest first."""

    kind: str
    """`top`: the `value` likeliest; `threshold`: all with a score of at least `value`, or else the likeliest one."""
    value: float

    def sizes(self, scores: Scores) -> NDArray[np.intp]:
        """How many labels each record's list has: scores [records, labels] -> [records]."""
        if self.kind == "top":
            return np.full(len(scores), min(int(self.value), scores.shape[1]), dtype=np.intp)
        sizes: NDArray[np.intp] = np.maximum(1, (scores >= self.value).sum(axis=1))
        return sizes

    def choose(self, scores: NDArray[np.float64]) -> list[int]:
        """Columns of one record's scores."""
        (size,) = self.sizes(scores[None])
        return [int(column) for column in _order(scores[None])[0, :size]]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was chosen on the validation patients, and what it scored there."""

    baseline: str
    rule: Rule
    settings: Mapping[str, float]
    train_records: int
    validation_records: int
    validation_patients: int
    jaccard: float
    f1: float
    board: float
    sources: Mapping[str, int] = field(default_factory=dict)
    """Where the lists that were asked for come from -> how many, for a baseline that has several sources."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


TOP_RULES = tuple(Rule("top", k) for k in range(1, 31))
THRESHOLD_RULES = (
    *(Rule("threshold", round(0.05 + 0.01 * step, 2)) for step in range(56)),
    *(Rule("top", k) for k in range(1, 16)),
)


def validation_split(train: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """(records to fit on, records to tune on), no patient in both: one fold of five, or of as many as there are patients."""
    patients = len({record.patient for record in train})
    if patients < 2:
        problem = f"tuning needs training records of at least two patients, there are records of {patients}"
        raise InputError(problem, way_out="Give a training file with the records of more patients (患者序号).")
    fold = folds(train, min(FOLDS, patients), seed)
    fitting = [record for record, number in zip(train, fold, strict=True) if number != 0]
    return fitting, [record for record, number in zip(train, fold, strict=True) if number == 0]


def places_of(some: Sequence[Record], train: Sequence[Record]) -> list[int]:
    """The rows that some of the training records have among all of them."""
    place = {record.id: row for row, record in enumerate(train)}
    return [place[record.id] for record in some]


def best_rule(
    scores: Scores, labels: Sequence[str], records: Sequence[Record], rules: Sequence[Rule]
) -> tuple[Rule, tuple[float, float]]:
    """The rule with the highest board score on these records, and its mean Jaccard and F1; the first of equals.

    Scored as `metrics.score_record` does, for all records at once: a list is the first labels of a record's order, so
    the hits of every length are one running sum.
    """
    column = {label: place for place, label in enumerate(labels)}
    has = np.zeros(scores.shape, dtype=bool)
    for row, record in enumerate(records):
        has[row, [column[label] for label in set(record.drugs) if label in column]] = True
    hits = np.take_along_axis(has, _order(scores), axis=1).cumsum(axis=1)
    gold = np.array([len(set(record.drugs)) for record in records])
    best: tuple[Rule, tuple[float, float]] = (rules[0], (-1.0, -1.0))
    for rule in rules:
        taken = rule.sizes(scores)
        both = hits[np.arange(len(records)), taken - 1]
        figures = (float((both / (gold + taken - both)).mean()), float((2 * both / (gold + taken)).mean()))
        if board_score(*figures) > board_score(*best[1]):
            best = rule, figures
    return best


def label_table(records: Sequence[Record], labels: Sequence[str]) -> NDArray[np.bool_]:
    """[records, labels]: whether a record takes the drug home."""
    return np.array([[label in record.drugs for label in labels] for record in records])


def ranked(names: Iterable[str]) -> list[tuple[str, int]]:
    """Each name with how often it occurs, by falling frequency, then by name."""
    return sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))


def ranked_labels(records: Iterable[Record], at_least: int = 1) -> list[tuple[str, int]]:
    """The labels of at least so many records, by falling frequency; the most frequent one where none has so many."""
    every = ranked(label for record in records for label in record.drugs)
    return [one for one in every if one[1] >= at_least] or every[:1]


def lists_of(records: Sequence[Record], scores: Scores, labels: Sequence[str], rule: Rule) -> Lists:
    """The list that the rule makes of each record's scores."""
    rows = zip(records, scores, strict=True)
    return [(record.id, [labels[column] for column in rule.choose(row)]) for record, row in rows]


def tuning_of(
    name: str,
    rule: Rule,
    settings: Mapping[str, float],
    train: Sequence[Record],
    held_out: Sequence[Record],
    figures: tuple[float, float],
    sources: Mapping[str, int] | None = None,
) -> Tuning:
    """What was chosen, with the sizes of the split; `figures` are mean Jaccard and F1 on the records held out."""
    return Tuning(
        baseline=name,
        rule=rule,
        settings=settings,
        train_records=len(train),
        validation_records=len(held_out),
        validation_patients=len({record.patient for record in held_out}),
        jaccard=figures[0],
        f1=figures[1],
        board=board_score(*figures),
        sources=sources or {},
    )


def _order(scores: Scores) -> NDArray[np.intp]:
    """Columns of each record, the likeliest first, equals in their order."""
    return np.argsort(-scores, axis=1, kind="stable")
