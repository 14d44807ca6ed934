"""Two baselines, so that every score has something beside it: the most frequent k, and TF-IDF + logistic regression.

Both choose their settings on a fifth of the training patients, never on a record of the board they predict, and then learn
from all training records. They read the records' diagnoses where they are given. They know labels as strings: no generics,
and no conflicts (their lists show what a system without a conflict mask does). scikit-learn is imported only where it is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yaofang.data.records import Record, lines_of
from yaofang.data.splits import folds
from yaofang.eval.metrics import board_score, score_record
from yaofang.vocab.errors import InputError

Scores = NDArray[np.float64]
"""[records, labels]: probability, or any other score where more means likelier."""

SECTIONS = ("chief_complaint", "present_illness", "past_history", "admission", "course")
FOLDS = 5
FEATURES = 30_000
SELECTED = 12_000
STRENGTHS = (10.0, 30.0, 100.0)
MIN_POSITIVES = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """Which labels of a record's scores become its list: at least one, the likeliest first."""

    kind: str
    """`top`: the `value` likeliest; `threshold`: all with a score of at least `value`, or else the likeliest one."""
    value: float

    def choose(self, scores: NDArray[np.float64]) -> list[int]:
        """Columns of one record's scores."""
        order = np.argsort(-scores, kind="stable")
        if self.kind == "top":
            return [int(column) for column in order[: int(self.value)]]
        return [int(column) for column in order[: max(1, int((scores >= self.value).sum()))]]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was chosen on the validation patients, and what it scored there."""

    baseline: str
    rule: Rule
    settings: dict[str, float]
    train_records: int
    validation_records: int
    validation_patients: int
    jaccard: float
    f1: float
    board: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


TOP_RULES = tuple(Rule("top", k) for k in range(1, 31))
THRESHOLD_RULES = (
    *(Rule("threshold", round(0.05 + 0.01 * step, 2)) for step in range(56)),
    *(Rule("top", k) for k in range(1, 16)),
)


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


def most_frequent(
    train: Sequence[Record], records: Sequence[Record], *, seed: int = 0
) -> tuple[list[tuple[str, list[str]]], Tuning]:
    """Predict the k most frequent labels of the training records for every record; k is tuned by board score."""
    fitting, held_out = validation_split(train, seed)
    scores, labels = _frequencies(fitting, len(held_out))
    rule, figures = best_rule(scores, labels, held_out, TOP_RULES)
    final, final_labels = _frequencies(train, len(records))
    tuning = _tuning("most-frequent", rule, {}, train, held_out, figures)
    return _lists(records, final, final_labels, rule), tuning


def tfidf(
    train: Sequence[Record],
    records: Sequence[Record],
    *,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    min_positives: int = MIN_POSITIVES,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[list[tuple[str, list[str]]], Tuning]:
    """Predict with one logistic regression a label over TF-IDF features; C and the rule are tuned by board score.

    The features are described at `_Features`; a label with fewer than `min_positives` training records gets no
    regression and is never predicted. `report` gets a line a fit.
    """
    fitting, held_out = validation_split(train, seed)
    features = _Features().fit(train)
    all_train, asked = features.transform(train), features.transform(records)
    place = {record.id: row for row, record in enumerate(train)}
    inside = all_train[[place[record.id] for record in fitting]]
    outside = all_train[[place[record.id] for record in held_out]]
    tried: list[tuple[float, Rule, float, float]] = []
    for strength in strengths:
        scores, labels = regression_scores(inside, fitting, outside, strength, min_positives)
        rule, (jaccard, f1) = best_rule(scores, labels, held_out, THRESHOLD_RULES)
        tried.append((strength, rule, jaccard, f1))
        board = board_score(jaccard, f1)
        report(f"C={strength:g}, {rule.kind} {rule.value:g}: board score {board:.4f} on validation patients")
    strength, rule, jaccard, f1 = max(tried, key=lambda one: board_score(one[2], one[3]))
    final, final_labels = regression_scores(all_train, train, asked, strength, min_positives)
    tuning = _tuning("tfidf", rule, {"C": strength}, train, held_out, (jaccard, f1))
    return _lists(records, final, final_labels, rule), tuning


def validation_split(train: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """(records to fit on, records to tune on), no patient in both: one fold of five, or of as many as there are patients."""
    patients = len({record.patient for record in train})
    if patients < 2:
        problem = f"tuning needs training records of at least two patients, there are records of {patients}"
        raise InputError(problem, way_out="Give a training file with the records of more patients (患者序号).")
    fold = folds(train, min(FOLDS, patients), seed)
    fitting = [record for record, number in zip(train, fold, strict=True) if number != 0]
    return fitting, [record for record, number in zip(train, fold, strict=True) if number == 0]


def best_rule(
    scores: Scores, labels: Sequence[str], records: Sequence[Record], rules: Sequence[Rule]
) -> tuple[Rule, tuple[float, float]]:
    """The rule with the highest board score on these records, and its mean Jaccard and F1; the first of equals."""
    best: tuple[Rule, tuple[float, float]] = (rules[0], (-1.0, -1.0))
    for rule in rules:
        found = [
            score_record(record.drugs, [labels[column] for column in rule.choose(row)])
            for record, row in zip(records, scores, strict=True)
        ]
        figures = (float(np.mean([one.jaccard for one in found])), float(np.mean([one.f1 for one in found])))
        if board_score(*figures) > board_score(*best[1]):
            best = rule, figures
    return best


def regression_scores(
    features: Any, records: Sequence[Record], board: Any, strength: float, min_positives: int
) -> tuple[Scores, list[str]]:
    """Fit one against the rest for every label; probabilities [board records, labels], labels by falling frequency.

    The regressions run on the features that chi-squared, over the labels of `records`, finds most telling, with rows
    scaled to length 1 again: all 30,000 would take liblinear several times as long. A label that all records have
    gets probability 1.
    """
    from sklearn.feature_selection import SelectKBest, chi2
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    counts = Counter(label for record in records for label in record.drugs)
    labels = [label for label, count in _ranked(counts) if count >= min_positives] or [_ranked(counts)[0][0]]
    has = np.array([[label in record.drugs for label in labels] for record in records])
    telling = SelectKBest(chi2, k=min(SELECTED, features.shape[1])).fit(features, has)
    inside, outside = (normalize(telling.transform(matrix)) for matrix in (features, board))
    scores = np.ones((outside.shape[0], len(labels)))
    for column in np.flatnonzero(~has.all(axis=0)):
        # tol: the default is 100 times finer, which changes no list of drugs and takes half as long again.
        model = LogisticRegression(solver="liblinear", dual=True, C=strength, tol=1e-2, max_iter=1000, random_state=0)
        scores[:, column] = model.fit(inside, has[:, column]).predict_proba(outside)[:, 1]
    return scores, labels


class _Features:
    """Sparse features of a record: TF-IDF of the character 2- and 3-grams of its sections, and of its diagnoses as tokens."""

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._text = TfidfVectorizer(analyzer="char", ngram_range=(2, 3), max_features=FEATURES, sublinear_tf=True)
        self._diagnoses = TfidfVectorizer(analyzer=tuple)
        self._has_diagnoses = False

    def fit(self, records: Sequence[Record]) -> _Features:
        """Learn n-grams and their document frequencies, from texts and diagnoses alone."""
        texts = [_text(record) for record in records]
        if not any(len(text) > 1 for text in texts):
            raise InputError("the training records hold no text")
        self._text.fit(texts)
        self._has_diagnoses = any(record.diagnoses for record in records)
        if self._has_diagnoses:
            self._diagnoses.fit([record.diagnoses for record in records])
        return self

    def transform(self, records: Sequence[Record]) -> Any:
        """Sparse matrix [records, features]."""
        from scipy.sparse import hstack

        text = self._text.transform([_text(record) for record in records])
        if not self._has_diagnoses:
            return text.tocsr()
        return hstack([text, self._diagnoses.transform([record.diagnoses for record in records])]).tocsr()


def _text(record: Record) -> str:
    return "\n".join(getattr(record, section) for section in SECTIONS)


def _frequencies(train: Sequence[Record], rows: int) -> tuple[Scores, list[str]]:
    ranked = _ranked(Counter(label for record in train for label in record.drugs))
    return np.tile([float(count) for _, count in ranked], (rows, 1)), [label for label, _ in ranked]


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """By falling frequency, then by label."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _lists(records: Sequence[Record], scores: Scores, labels: Sequence[str], rule: Rule) -> list[tuple[str, list[str]]]:
    rows = zip(records, scores, strict=True)
    return [(record.id, [labels[column] for column in rule.choose(row)]) for record, row in rows]


def _tuning(
    name: str,
    rule: Rule,
    settings: dict[str, float],
    train: Sequence[Record],
    held_out: Sequence[Record],
    figures: tuple[float, float],
) -> Tuning:
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
    )
