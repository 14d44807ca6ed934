"""Baselines that copy: the drugs of the patient's previous visit, and the drugs of patients with similar diagnoses.

They learn nothing but how often a label or a diagnosis occurs. Drugs are read from training records and from records that the
caller hands in as known, never from the records that are asked for. scikit-learn is imported only where it is used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yaofang.data.records import Record
from yaofang.eval.baselines.named_drugs import NamedDrugs
from yaofang.eval.baselines.tuning import (
    THRESHOLD_RULES,
    TOP_RULES,
    Lists,
    Report,
    Rule,
    Scores,
    Tuning,
    best_rule,
    label_table,
    lists_of,
    ranked_labels,
    tuning_of,
    validation_split,
)
from yaofang.eval.metrics import board_score, score_record

NEIGHBOURS = (5, 10, 20, 30, 50, 80, 120)
SOURCES = ("previous visit", "named in the record", "most frequent")


def last_visit(
    train: Sequence[Record],
    records: Sequence[Record],
    *,
    seed: int = 0,
    known: Sequence[Record] = (),
    report: Report = lambda _: None,
) -> tuple[Lists, Tuning]:
    """Predict the drugs that the same patient took home last time, or else what comes nearest to that.

    1. The drugs of the latest earlier visit of the patient among `train` and `known` (`previous_visit`). Splits are by patient
       and boards give no drugs, so there is none unless the caller has some: `known` are records whose drugs may be read.
    2. Else the drugs that 现病史 and 既往史 name as taken before admission, by the lexicon's spellings.
    3. Else the k most frequent labels of the training records; k is tuned by board score, on validation patients without
       their own earlier visits, as a board has them.

    `Tuning.sources` counts the lists of `records` by these three.
    """
    fitting, held_out = validation_split(train, seed)
    counted = ranked_labels(fitting)
    copied = [names for names, _ in _copied(held_out, [*fitting, *known], NamedDrugs(counted))]
    rule, figures = _best_top(copied, counted, held_out)
    every = ranked_labels(train)
    found = _copied(records, [*train, *known], NamedDrugs(every))
    frequent = [label for label, _ in every[: int(rule.value)]]
    sources = Counter(source for _, source in found)
    tuning = tuning_of("last-visit", rule, {}, train, held_out, figures, {source: sources[source] for source in SOURCES})
    report("lists from: " + ", ".join(f"{source} {count}" for source, count in tuning.sources.items()))
    return [(record.id, list(names or frequent)) for record, (names, _) in zip(records, found, strict=True)], tuning


def previous_visit(record: Record, visits: Iterable[Record]) -> Record | None:
    """The latest of the visits that is an earlier one of the same patient and has drugs; None where there is none.

    Visits are ordered by 就诊时间, then by 就诊标识 (its numbers as numbers: 2-10 comes after 2-9); by 就诊标识 alone where a
    time is missing on one side. Two files may number their patients alike: where both visits have a sex or a month of birth,
    these must agree.
    """
    same = [visit for visit in visits if visit.drugs and _same_patient(visit, record)]
    timed = record.visit is not None and all(visit.visit is not None for visit in same)
    earlier = [visit for visit in same if _moment(visit, timed) < _moment(record, timed)]
    return max(earlier, key=lambda visit: _moment(visit, timed), default=None)


def neighbours(
    train: Sequence[Record],
    records: Sequence[Record],
    *,
    seed: int = 0,
    counts: Sequence[int] = NEIGHBOURS,
    report: Report = lambda _: None,
) -> tuple[Lists, Tuning]:
    """Predict what the k training records with the most similar diagnoses took home; k and the rule are tuned by board score.

    A label's score is the share of the neighbours' similarity (`similarities`) that comes from records with it. A record that
    shares no diagnosis with any training record gets the labels' frequencies over all of them.
    """
    fitting, held_out = validation_split(train, seed)
    alike = similarities(held_out, fitting)
    labels = [label for label, _ in ranked_labels(fitting)]
    has = label_table(fitting, labels)
    tried: list[tuple[int, Rule, tuple[float, float]]] = []
    for count in counts:
        rule, figures = best_rule(votes(alike, has, count), labels, held_out, THRESHOLD_RULES)
        tried.append((count, rule, figures))
        board = board_score(*figures)
        report(f"k={count}, {rule.kind} {rule.value:g}: board score {board:.4f} on validation patients")
    count, rule, figures = max(tried, key=lambda one: board_score(*one[2]))
    final_labels = [label for label, _ in ranked_labels(train)]
    final = votes(similarities(records, train), label_table(train, final_labels), count)
    tuning = tuning_of("neighbours", rule, {"k": count}, train, held_out, figures)
    return lists_of(records, final, final_labels, rule), tuning


def similarities(records: Sequence[Record], train: Sequence[Record]) -> NDArray[np.float64]:
    """Weighted Jaccard index of the diagnosis sets, [records, train]: sum of w over A ∩ B / sum of w over A ∪ B.

    w(d) = ln((1 + N) / (1 + n_d)) + 1, the inverse document frequency of scikit-learn's TfidfTransformer (smooth_idf), with
    N training records, n_d of them with the diagnosis d. Two records without a diagnosis have similarity 0.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=tuple, binary=True, dtype=np.float64)
    counter.fit([(*record.diagnoses, "") for record in [*train, *records]])  # "": a vocabulary may not be empty
    asked, known = (counter.transform([record.diagnoses for record in some]) for some in (records, train))
    weight = np.log((1 + len(train)) / (1 + np.asarray(known.sum(axis=0)).ravel())) + 1
    shared = _dense((asked.multiply(weight)).tocsr() @ known.T)
    union = (asked @ weight)[:, None] + (known @ weight)[None, :] - shared
    similarity: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return similarity


def votes(alike: NDArray[np.float64], has: NDArray[np.bool_], count: int) -> Scores:
    """Similarity-weighted share of the `count` nearest records that have a label: [records, train], [train, labels] -> scores.

    Of equally near records the first in the file are taken. Where nothing is alike, all records have one vote each.
    """
    nearest = np.argsort(-alike, axis=1, kind="stable")[:, :count]
    weights = np.zeros_like(alike)
    np.put_along_axis(weights, nearest, np.take_along_axis(alike, nearest, axis=1), axis=1)
    weights[weights.sum(axis=1) == 0] = 1.0
    scores: Scores = (weights @ has) / weights.sum(axis=1, keepdims=True)
    return scores


def _copied(records: Sequence[Record], visits: Sequence[Record], named: NamedDrugs) -> list[tuple[tuple[str, ...], str]]:
    """(drugs, one of SOURCES) of each record; no drugs where they are to be the most frequent ones."""
    by_patient: dict[int, list[Record]] = {}
    for visit in visits:
        by_patient.setdefault(visit.patient, []).append(visit)
    return [_copied_for(record, by_patient.get(record.patient, []), named) for record in records]


def _copied_for(record: Record, visits: Sequence[Record], named: NamedDrugs) -> tuple[tuple[str, ...], str]:
    previous = previous_visit(record, visits)
    if previous is not None:
        return previous.drugs, SOURCES[0]
    taken = named.taken_before(record)
    return (taken, SOURCES[1]) if taken else ((), SOURCES[2])


def _best_top(
    copied: Sequence[Sequence[str]], counted: Sequence[tuple[str, int]], gold: Sequence[Record]
) -> tuple[Rule, tuple[float, float]]:
    """The k of the highest board score where records without a copied list get the k most frequent labels."""
    labels = [label for label, _ in counted]

    def figures(rule: Rule) -> tuple[float, float]:
        lists = (names or labels[: int(rule.value)] for names in copied)
        scored = [score_record(record.drugs, names) for record, names in zip(gold, lists, strict=True)]
        return float(np.mean([one.jaccard for one in scored])), float(np.mean([one.f1 for one in scored]))

    found = [(rule, figures(rule)) for rule in TOP_RULES]
    return max(found, key=lambda one: board_score(*one[1]))


def _same_patient(visit: Record, record: Record) -> bool:
    pairs = ((visit.sex, record.sex), (visit.birth, record.birth))
    return visit.patient == record.patient and all(a == b for a, b in pairs if a is not None and b is not None)


def _moment(record: Record, timed: bool) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    return _numbers(record.visit or "") if timed else (), _numbers(record.id), record.id


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", text))


def _dense(matrix: Any) -> NDArray[np.float64]:
    return np.asarray(matrix.toarray(), dtype=np.float64)
