import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss

from yaofang.data.recommendation import Considered, Drug, Recommendation
from yaofang.eval import probabilities
from yaofang.eval.intervals import Sample
from yaofang.eval.probabilities import calibration_json, judged, matrices, part_key, parts_of
from yaofang.vocab.drugs import load_vocabulary

LABELS = ["阿司匹林肠溶片", "氯吡格雷", "华法林", "二甲双胍", "阿卡波糖"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "list.txt"
    file.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    return load_vocabulary(file)


def details(listed, considered=None):
    """{ID: {label: p_include}} of listed drugs and of considered ones."""
    return {
        id_: Recommendation(
            id=id_,
            diagnoses=(),
            drugs=tuple(Drug(label, label, "", 0.5, p, 0.0) for label, p in drugs.items()),
            considered=tuple(Considered(label, p) for label, p in (considered or {}).get(id_, {}).items()),
        )
        for id_, drugs in listed.items()
    }


def test_the_figures_are_scikit_learns_over_all_labels_with_zero_for_what_is_in_neither_place(vocabulary):
    gold = {"1-1": ["华法林", "阿卡波糖"], "2-1": ["二甲双胍"]}
    made = details(
        {"1-1": {"华法林": 0.9, "二甲双胍": 0.6}, "2-1": {"氯吡格雷": 0.7}},
        {"1-1": {"阿卡波糖": 0.4}, "2-1": {"二甲双胍": 0.2}},
    )
    p = np.array([[0, 0, 0.9, 0.6, 0.4], [0, 0.7, 0, 0.2, 0]])
    y = np.array([[0, 0, 1, 0, 1], [0, 0, 0, 1, 0]])
    found = judged(gold, made, vocabulary, "label", Sample([1, 2]))
    assert (found.score, found.reason, found.records, found.constant) == ("p_include", None, 2, 0)
    assert found.prauc.value == pytest.approx(np.mean([average_precision_score(a, b) for a, b in zip(y, p, strict=True)]))
    assert found.prauc.low == pytest.approx(0.5)
    assert found.brier.value == pytest.approx(brier_score_loss(y.ravel(), p.ravel()))
    assert found.calibration.overall.brier == pytest.approx(found.brier.value)
    assert found.calibration.overall.positives == 3


def test_a_gold_name_outside_the_vocabulary_is_a_label_that_nothing_ranks(vocabulary):
    made = details({"1-1": {"华法林": 0.9}})
    scores, held = matrices({"1-1": ["华法林", "旧药"]}, made, vocabulary)
    assert scores.tolist() == [[0, 0, 0.9, 0, 0, 0]]
    assert held.tolist() == [[False, False, True, False, False, True]]


def test_a_record_without_details_is_ranked_by_nothing_and_counted_so(vocabulary):
    found = judged(
        {"1-1": ["华法林"], "2-1": ["华法林"]}, details({"1-1": {"华法林": 0.9}}), vocabulary, "label", Sample([1, 2])
    )
    assert (found.records, found.constant) == (2, 1)
    assert found.prauc.value == pytest.approx((1 + 1 / 5) / 2)


def test_a_record_without_gold_is_in_no_average(vocabulary):
    made = details({"1-1": {"华法林": 0.9}, "2-1": {"华法林": 0.9}})
    found = judged({"1-1": ["华法林"], "2-1": []}, made, vocabulary, "label", Sample([1, 2]))
    assert (found.records, found.prauc.value, found.prauc.low) == (1, 1, None)


@pytest.mark.parametrize(
    ("made", "level", "reason"),
    [
        (None, "label", "NO_DETAILS"),
        ({"1-1": {"华法林": None}}, "label", "NO_SCORE"),
        ({"1-1": {"华法林": 0.5, "二甲双胍": None}}, "label", "SOME_SCORE"),
        ({"1-1": {"华法林": 1.0, "二甲双胍": 0.0}}, "label", "NO_RANKING"),
        ({"1-1": {"华法林": 0.5}}, "generic", "NO_LABELS"),
    ],
)
def test_what_is_no_ranking_gets_no_figure_but_a_reason(vocabulary, made, level, reason):
    found = judged({"1-1": ["华法林"]}, None if made is None else details(made), vocabulary, level, Sample([1]))
    assert found.reason == getattr(probabilities, reason)
    assert found.reason.startswith("not defined: ")
    assert (found.score, found.prauc, found.brier, found.calibration) == (None, None, None, None)


def test_frequent_drugs_stand_alone_and_the_rest_is_pooled_under_names_in_json(vocabulary):
    random = np.random.default_rng(5)
    gold = {f"{n}-1": ["华法林"] if n < 60 else ["二甲双胍"] for n in range(70)}
    made = details({id_: {"华法林": float(random.random()), "二甲双胍": float(random.random())} for id_ in gold})
    found = judged(gold, made, vocabulary, "label", Sample(range(70)))
    value = json.loads(json.dumps(calibration_json(found.calibration, vocabulary.labels), allow_nan=False))
    assert [one["labels"] for one in value["drugs"]] == [["华法林"]]
    assert "labels" not in value["overall"]
    assert sorted(value["rest"]["labels"]) == sorted(set(LABELS) - {"华法林"})
    assert "columns" not in value["rest"]
    parts = [part_key(one) for one in parts_of(found.calibration)]
    assert list(found.intervals) == parts
    assert parts[:2] == ["overall/全部", "drug/华法林"]
    for one in parts_of(found.calibration):
        low, high = found.intervals[part_key(one)].brier
        assert low < one.brier < high
