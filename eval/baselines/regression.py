"""The baseline `tfidf`: one logistic regression a drug over TF-IDF features of a record's text and diagnoses.

scikit-learn is imported only where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from yaofang.data.records import Record
from yaofang.eval.baselines.tuning import (
    THRESHOLD_RULES,
    Lists,
    Report,
    Rule,
    Scores,
    Tuning,
    best_rule,
    label_table,
    lists_of,
    places_of,
    ranked_labels,
    tuning_of,
    validation_split,
)
from yaofang.eval.metrics import board_score
from yaofang.vocab.errors import InputError

SECTIONS = ("chief_complaint", "present_illness", "past_history", "admission", "course")
FEATURES = 30_000
SELECTED = 12_000
STRENGTHS = (10.0, 30.0, 100.0)
MIN_POSITIVES = 3


def tfidf(
    train: Sequence[Record],
    records: Sequence[Record],
    *,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
    min_positives: int = MIN_POSITIVES,
    report: Report = lambda _: None,
) -> tuple[Lists, Tuning]:
    """Predict with one logistic regression a label over TF-IDF features; C and the rule are tuned by board score.

    The features are described at `Features`; a label with fewer than `min_positives` training records gets no
    regression and is never predicted. `report` gets a line a fit.
    """
    fitting, held_out = validation_split(train, seed)
    features = Features().fit(train)
    all_train, asked = features.transform(train), features.transform(records)
    inside, outside = (all_train[places_of(some, train)] for some in (fitting, held_out))
    tried: list[tuple[float, Rule, float, float]] = []
    for strength in strengths:
        scores, labels = regression_scores(inside, fitting, outside, strength, min_positives)
        rule, (jaccard, f1) = best_rule(scores, labels, held_out, THRESHOLD_RULES)
        tried.append((strength, rule, jaccard, f1))
        board = board_score(jaccard, f1)
        report(f"C={strength:g}, {rule.kind} {rule.value:g}: board score {board:.4f} on validation patients")
    strength, rule, jaccard, f1 = max(tried, key=lambda one: board_score(one[2], one[3]))
    final, final_labels = regression_scores(all_train, train, asked, strength, min_positives)
    tuning = tuning_of("tfidf", rule, {"C": strength}, train, held_out, (jaccard, f1))
    return lists_of(records, final, final_labels, rule), tuning


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

    labels = [label for label, _ in ranked_labels(records, min_positives)]
    has = label_table(records, labels)
    telling = SelectKBest(chi2, k=min(SELECTED, features.shape[1])).fit(features, has)
    inside, outside = (normalize(telling.transform(matrix)) for matrix in (features, board))
    scores = np.ones((outside.shape[0], len(labels)))
    for column in np.flatnonzero(~has.all(axis=0)):
        # tol: the default is 100 times finer, which changes no list of drugs and takes half as long again.
        model = LogisticRegression(solver="liblinear", dual=True, C=strength, tol=1e-2, max_iter=1000, random_state=0)
        scores[:, column] = model.fit(inside, has[:, column]).predict_proba(outside)[:, 1]
    return scores, labels


class Features:
    """Sparse features of a record: TF-IDF of the character 2- and 3-grams of its sections, and of its diagnoses as tokens."""

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._text = TfidfVectorizer(analyzer="char", ngram_range=(2, 3), max_features=FEATURES, sublinear_tf=True)
        self._diagnoses = TfidfVectorizer(analyzer=tuple)
        self._has_diagnoses = False

    def fit(self, records: Sequence[Record]) -> Features:
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
