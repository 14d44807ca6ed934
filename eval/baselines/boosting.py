"""The baseline `trees`: gradient-boosted trees, one against the rest, over dense features of a record.

scikit-learn is imported only where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yaofang.data.facts import facts_of
from yaofang.data.records import Record
from yaofang.eval.baselines.named_drugs import NamedDrugs
from yaofang.eval.baselines.regression import SECTIONS, Features
from yaofang.eval.baselines.tuning import (
    THRESHOLD_RULES,
    Lists,
    Report,
    Scores,
    Tuning,
    best_rule,
    label_table,
    lists_of,
    places_of,
    ranked,
    ranked_labels,
    tuning_of,
    validation_split,
)
from yaofang.eval.metrics import board_score

MIN_POSITIVES = 30
MIN_RECORDS = 10
"""Training records with a diagnosis or with a drug's name before it is a feature."""
COMPONENTS = 50
ROUNDS = (10, 20, 40)
LEAVES = 8
RATE = 0.1


def trees(
    train: Sequence[Record],
    records: Sequence[Record],
    *,
    seed: int = 0,
    rounds: Sequence[int] = ROUNDS,
    min_positives: int = MIN_POSITIVES,
    report: Report = lambda _: None,
) -> tuple[Lists, Tuning]:
    """Predict with gradient-boosted trees for each label; the number of trees and the rule are tuned by board score.

    The features are described at `DenseFeatures`; a label with fewer than `min_positives` training records gets no trees and
    is never predicted. The validation patients stop the boosting: all of `rounds` are read off one fit. `report` gets a line
    for each.
    """
    fitting, held_out = validation_split(train, seed)
    features = DenseFeatures(seed).fit(train)
    all_train, asked = features.transform(train), features.transform(records)
    inside, outside = (all_train[places_of(some, train)] for some in (fitting, held_out))
    staged, labels = boosted_scores(inside, fitting, outside, rounds, min_positives)
    tried = [
        (count, *best_rule(scores, labels, held_out, THRESHOLD_RULES)) for count, scores in zip(rounds, staged, strict=True)
    ]
    for count, rule, figures in tried:
        report(f"{count} trees, {rule.kind} {rule.value:g}: board score {board_score(*figures):.4f} on validation patients")
    count, rule, figures = max(tried, key=lambda one: board_score(*one[2]))
    (final,), final_labels = boosted_scores(all_train, train, asked, [count], min_positives)
    tuning = tuning_of("trees", rule, {"trees": count}, train, held_out, figures)
    return lists_of(records, final, final_labels, rule), tuning


def boosted_scores(
    features: NDArray[np.float32],
    records: Sequence[Record],
    board: NDArray[np.float32],
    rounds: Sequence[int],
    min_positives: int,
) -> tuple[list[Scores], list[str]]:
    """Fit one against the rest for every label; probabilities [board records, labels] after each of `rounds` trees, and labels.

    A label that all records have gets probability 1; a column that is NaN in all records is left out. Histograms, leaf-wise
    growth: scikit-learn's HistGradientBoostingClassifier, after LightGBM (Ke et al., NeurIPS 2017).
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    labels = [label for label, _ in ranked_labels(records, min_positives)]
    has = label_table(records, labels)
    told = ~np.isnan(features).all(axis=0)
    inside, outside = features[:, told], board[:, told]
    scores = np.ones((len(rounds), len(board), len(labels)))
    for column in np.flatnonzero(~has.all(axis=0)) if len(board) else ():
        model = HistGradientBoostingClassifier(
            max_iter=max(rounds), learning_rate=RATE, max_leaf_nodes=LEAVES, early_stopping=False, random_state=0
        )
        model.fit(inside, has[:, column])
        for trees_grown, probability in enumerate(model.staged_predict_proba(outside), 1):
            if trees_grown in rounds:
                scores[rounds.index(trees_grown), :, column] = probability[:, 1]
    return list(scores), labels


class DenseFeatures:
    """Dense features of a record: its TF-IDF reduced by a truncated SVD, and what its fields and its text name.

    Those are: diagnoses of at least `MIN_RECORDS` training records and drugs that the text of as many of them names
    (`NamedDrugs`), both as indicators; the number of diagnoses; the age in years at the visit; the sex (1 male, 0 female).
    Age and sex are NaN where they are not known.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._sparse = Features()
        self._diagnoses: list[str] = []
        self._drugs: list[str] = []

    def fit(self, records: Sequence[Record]) -> DenseFeatures:
        """Learn the columns; of the records' drugs only which labels there are and how frequent each is."""
        from sklearn.decomposition import TruncatedSVD

        matrix = self._sparse.fit(records).transform(records)
        components = min(COMPONENTS, matrix.shape[1] - 1, len(records))
        self._svd = TruncatedSVD(components, n_iter=2, random_state=self._seed).fit(matrix)
        self._named = NamedDrugs(ranked_labels(records))
        self._diagnoses = _frequent(record.diagnoses for record in records)
        self._drugs = _frequent(self._found(record) for record in records)
        return self

    def transform(self, records: Sequence[Record]) -> NDArray[np.float32]:
        """[records, columns]."""
        facts = [facts_of(_without_text(record)) for record in records]
        numbers = [[len(fact.diagnoses), _number(fact.age), _male(fact.sex)] for fact in facts]
        parts: list[Any] = [
            self._svd.transform(self._sparse.transform(records)) if records else np.zeros((0, self._svd.n_components)),
            np.array(numbers, dtype=np.float32).reshape(len(records), 3),
            _indicators([record.diagnoses for record in records], self._diagnoses),
            _indicators([self._found(record) for record in records], self._drugs),
        ]
        return np.hstack(parts).astype(np.float32)

    def _found(self, record: Record) -> tuple[str, ...]:
        return self._named.find("\n".join(getattr(record, section) for section in SECTIONS))


def _without_text(record: Record) -> Record:
    return record.model_copy(update=dict.fromkeys(SECTIONS, ""))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _male(sex: str | None) -> float:
    return float("nan") if sex is None else float(sex == "male")


def _frequent(names: Iterable[Sequence[str]]) -> list[str]:
    return [name for name, count in ranked(name for some in names for name in some) if count >= MIN_RECORDS]


def _indicators(names: Sequence[Sequence[str]], columns: Sequence[str]) -> NDArray[np.float32]:
    """[rows, columns]: 1 where a row has the column's name."""
    made = np.zeros((len(names), len(columns)), dtype=np.float32)
    place = {name: column for column, name in enumerate(columns)}
    for row, some in enumerate(names):
        made[row, [place[name] for name in some if name in place]] = 1
    return made
