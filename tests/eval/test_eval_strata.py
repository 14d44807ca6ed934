import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from yaofang.data.records import Record
from yaofang.data.statistics import statistics
from yaofang.eval.intervals import Figure, Sample
from yaofang.eval.strata import STRATA, by_stratum, strata_of

COUNTS = {f"药{number:02d}": 40 - number for number in range(20)}
"""20 labels: 2 head, 16 middle, 2 tail."""


def strata(gold, predicted, counts=COUNTS, patients=None):
    found = by_stratum(list(map(set, gold)), list(map(set, predicted)), counts, Sample(patients or list(range(len(gold)))))
    return {one.name: one for one in found}


def test_the_competitions_586_labels_fall_into_58_head_469_middle_and_59_tail():
    names = list(strata_of({str(number): 1000 - number for number in range(586)}).values())
    assert [names.count(name) for name in STRATA] == [58, 469, 59, 0]


def test_the_strata_are_those_of_the_statistics_of_the_same_records():
    records = [Record(patient=n, id=f"{n}-1", drugs=tuple(label for label, k in COUNTS.items() if n < k)) for n in range(40)]
    found, told = list(strata_of(COUNTS).values()), statistics(records)
    assert [found.count(name) for name in STRATA[:3]] == [told.head.labels, told.middle.labels, told.tail.labels]


def test_equal_counts_are_ordered_by_label_and_a_count_of_nothing_is_unseen():
    counts = dict.fromkeys(reversed(COUNTS), 3) | {"从未": 0}
    found = strata_of(counts)
    assert [label for label, name in found.items() if name == "head"] == ["药00", "药01"]
    assert [label for label, name in found.items() if name == "tail"] == ["药18", "药19"]
    assert "从未" not in found


def test_figures_pool_the_entries_of_a_stratum_over_all_records_by_hand():
    gold = [["药00", "药05"], ["药01", "药19"], ["药00"]]
    predicted = [["药00", "药01"], ["药01", "药05", "新药"], []]
    found = strata(gold, predicted)
    head, middle, tail, unseen = (found[name] for name in STRATA)
    assert (head.gold, head.predicted, head.hits) == (3, 3, 2)
    assert (head.precision.value, head.recall.value, head.f1.value) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (middle.gold, middle.predicted, middle.hits) == (1, 1, 0)
    assert (middle.precision.value, middle.f1.value) == (0, 0)
    assert (tail.gold, tail.predicted, tail.precision) == (1, 0, None)
    assert (tail.recall, tail.f1) == (Figure(0, None, None), Figure(0, None, None)), "one patient has the only entry"
    assert (unseen.labels, unseen.predicted, unseen.recall) == (1, 1, None)


def test_a_stratum_scores_as_the_micro_average_of_its_labels_in_scikit_learn():
    random = np.random.default_rng(3)
    y, p = random.random((60, 20)) < 0.3, random.random((60, 20)) < 0.3
    sides = [[{label for label, is_in in zip(COUNTS, row, strict=True) if is_in} for row in side] for side in (y, p)]
    found = strata(*sides)
    for name, columns in (("head", slice(0, 2)), ("middle", slice(2, 18)), ("tail", slice(18, 20))):
        theirs = precision_recall_fscore_support(y[:, columns], p[:, columns], average="micro")[:3]
        one = found[name]
        assert (one.precision.value, one.recall.value, one.f1.value) == pytest.approx(theirs)
        assert one.f1.low < one.f1.value < one.f1.high


def test_an_empty_prediction_and_an_empty_gold_have_no_precision_or_no_recall():
    empty = strata([["药00"]], [[]])["head"]
    assert (empty.precision, empty.recall.value, empty.f1.value) == (None, 0, 0)
    no_gold = strata([[]], [["药00"]])["head"]
    assert (no_gold.precision.value, no_gold.recall, no_gold.f1.value) == (0, None, 0)
