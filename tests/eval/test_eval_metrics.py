import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score
from sklearn.preprocessing import MultiLabelBinarizer

from yaofang.eval.metrics import (
    board_score,
    bootstrap_means,
    count_conflicts,
    outside,
    percentile_interval,
    repeats,
    score_record,
)

DRUGS = ["阿司匹林", "氯吡格雷", "华法林", "二甲双胍", "阿卡波糖", "缬沙坦", "依那普利"]
INDEX = {drug: row for row, drug in enumerate(DRUGS)}
lists = st.lists(st.sampled_from(DRUGS), min_size=0, max_size=6)


def tiers(*pairs: tuple[int, int, int]) -> np.ndarray:
    table = np.zeros((len(DRUGS), len(DRUGS)), dtype=np.uint8)
    for a, b, tier in pairs:
        table[a, b] = table[b, a] = tier
    return table


def test_a_record_scores_what_the_hand_computes():
    score = score_record(["a", "b", "c"], ["b", "c", "d", "e"])
    assert score.jaccard == 2 / 5
    assert score.precision == 2 / 4
    assert score.recall == 2 / 3
    assert score.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))


@pytest.mark.parametrize(("gold", "predicted"), [(["a"], []), ([], ["a"]), ([], []), (["a"], ["b"])])
def test_an_empty_or_disjoint_list_scores_zero_everywhere(gold, predicted):
    score = score_record(gold, predicted)
    assert (score.jaccard, score.precision, score.recall, score.f1) == (0, 0, 0, 0)


def test_a_repeated_name_counts_once_in_the_score_and_is_counted_as_a_repeat():
    assert score_record(["a", "b"], ["a", "a", "a"]) == score_record(["a", "b"], ["a"])
    assert repeats(["a", "b", "a", "a"]) == 2
    assert repeats([]) == 0


def test_names_outside_the_vocabulary_are_listed_once_in_order():
    assert outside(["x", "阿司匹林", "y", "x"], INDEX) == ["x", "y"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(lists, lists), min_size=1, max_size=12))
def test_means_over_records_equal_those_of_scikit_learn(pairs):
    binarise = MultiLabelBinarizer(classes=DRUGS)
    gold = binarise.fit_transform([set(y) for y, _ in pairs])
    predicted = binarise.transform([set(p) for _, p in pairs])
    scores = [score_record(y, p) for y, p in pairs]
    for name, theirs in (
        ("jaccard", jaccard_score),
        ("precision", precision_score),
        ("recall", recall_score),
        ("f1", f1_score),
    ):
        ours = np.mean([getattr(score, name) for score in scores])
        assert ours == pytest.approx(theirs(gold, predicted, average="samples", zero_division=0)), name


def test_f1_is_the_mean_of_the_records_not_micro_and_not_from_mean_precision_and_recall():
    records = [({"a", "b", "c", "d"}, {"a", "b", "c", "d"}), ({"a"}, {"b", "c", "d"}), ({"a", "b"}, {"a"})]
    scores = [score_record(y, p) for y, p in records]
    mean = sum(score.f1 for score in scores) / 3
    hits, listed, wanted = 5, 8, 7
    p, r = (sum(score.precision for score in scores) / 3, sum(score.recall for score in scores) / 3)
    assert mean == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert mean != pytest.approx(2 * hits / (listed + wanted))
    assert mean != pytest.approx(2 * p * r / (p + r))


def test_the_board_score_of_the_winner_is_the_mean_of_its_jaccard_and_f1():
    assert board_score(0.5102, 0.6267) == pytest.approx(0.56845)


def test_conflict_rates_pool_pairs_over_records():
    table = tiers((0, 1, 2), (0, 2, 1), (5, 6, 1), (3, 4, 3))
    lists = [
        ["阿司匹林", "氯吡格雷", "华法林"],  # three pairs: T2, T1, none
        ["二甲双胍", "阿卡波糖"],  # one pair: T3
        ["缬沙坦", "依那普利", "阿司匹林", "二甲双胍"],  # six pairs: one T1
    ]
    counts = count_conflicts(lists, INDEX, table)
    assert counts.pairs == 3 + 1 + 6
    assert counts.conflicts == {1: 2, 2: 1, 3: 1}
    assert counts.rate(1) == 0.2
    assert counts.rate(1) != pytest.approx((1 / 3 + 0 + 1 / 6) / 3), "micro, not the mean of the records' rates"
    assert counts.records_with == {1: 2, 2: 1, 3: 1}
    assert counts.share(1) == 2 / 3


def test_a_list_of_one_drug_has_no_pair_and_rate_zero():
    counts = count_conflicts([["华法林"]], INDEX, tiers((0, 2, 1)))
    assert (counts.pairs, counts.rate(1), counts.share(1), counts.records) == (0, 0.0, 0.0, 1)


def test_repeats_and_unknown_names_make_no_pairs():
    table = tiers((0, 2, 1))
    once = count_conflicts([["阿司匹林", "华法林"]], INDEX, table)
    assert count_conflicts([["阿司匹林", "华法林", "华法林", "无此药"]], INDEX, table) == once
    assert once.pairs == 1


def test_no_records_at_all_give_rates_of_zero():
    counts = count_conflicts([], INDEX, tiers())
    assert (counts.rate(1), counts.share(1)) == (0.0, 0.0)


def test_the_bootstrap_is_the_same_for_the_same_seed_and_another_for_another():
    values = np.random.default_rng(1).random((40, 3))
    patients = [record // 2 for record in range(40)]
    first = bootstrap_means(values, patients, seed=3)
    assert first.shape == (1000, 3)
    assert np.array_equal(first, bootstrap_means(values, patients, seed=3))
    assert not np.array_equal(first, bootstrap_means(values, patients, seed=4))


def test_the_bootstrap_equals_one_that_draws_patients_by_hand():
    values, patients = np.array([[0.0], [1.0], [0.5], [0.25]]), ["p", "p", "q", "r"]
    draws = np.random.default_rng(0).multinomial(3, [1 / 3] * 3, size=200)
    by_hand = [
        np.mean([v for n, visits in zip(draw, ([0.0, 1.0], [0.5], [0.25]), strict=True) for v in visits * n]) for draw in draws
    ]
    assert bootstrap_means(values, patients, resamples=200, seed=0)[:, 0] == pytest.approx(np.array(by_hand))


def test_visits_of_one_patient_widen_the_interval():
    values = np.repeat(np.random.default_rng(0).random(30), 6)[:, None]
    by_patient = percentile_interval(bootstrap_means(values, [row // 6 for row in range(180)])[:, 0])
    by_record = percentile_interval(bootstrap_means(values, list(range(180)))[:, 0])
    assert by_patient[1] - by_patient[0] > 1.8 * (by_record[1] - by_record[0])


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(7)
    hits = 0
    for seed in range(200):
        patients = np.repeat(np.arange(60), random.integers(1, 4, 60))
        values = (random.beta(2, 2, 60)[patients] + random.beta(2, 2, len(patients))) / 2
        low, high = percentile_interval(bootstrap_means(values[:, None], patients.tolist(), resamples=300, seed=seed)[:, 0])
        hits += low <= 0.5 <= high
    assert 0.89 <= hits / 200 <= 0.99
