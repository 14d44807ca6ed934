import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

from yaofang.eval.metrics import bootstrap_means
from yaofang.eval.ranking import Ranking, average_precision
from yaofang.vocab.errors import InputError

TIED = st.sampled_from([0.0, 0.1, 0.1, 0.4, 0.9])
"""Few values, so that ties are common."""


def one(scores: list[float], gold: list[int]) -> float:
    return float(average_precision("p_include", np.array([scores]), np.array([gold], dtype=bool)).values[0])


def test_a_record_has_the_average_precision_that_the_hand_computes():
    # ranked: gold, other, gold, other: precision 1 at the first gold, 2/3 at the second
    assert one([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)


def test_ties_share_a_threshold_whatever_the_order_of_the_columns():
    # at 0.5: one of two is gold, recall 1/2; at 0.2: two of four, recall 1
    expected = 1 / 2 * 1 / 2 + 1 / 2 * 2 / 4
    for gold in ([1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]):
        assert one([0.5, 0.5, 0.2, 0.2], gold) == pytest.approx(expected)


@settings(max_examples=12, deadline=None)
@given(arrays(float, (4, 6), elements=TIED), arrays(bool, (4, 6)))
def test_every_record_equals_scikit_learn_and_the_mean_its_label_ranking(scores, gold):
    gold[:, 2], scores[0, 0] = True, 0.3
    ranking = average_precision("p_include", scores, gold)
    for row, value in enumerate(ranking.values):
        assert value == pytest.approx(average_precision_score(gold[row], scores[row], average="macro"))
    assert ranking.mean == pytest.approx(label_ranking_average_precision_score(gold, scores))


def test_a_record_without_gold_is_in_no_average():
    scores, gold = np.array([[0.9, 0.1], [0.8, 0.3]]), np.array([[False, True], [False, False]])
    ranking = average_precision("p_step", scores, gold)
    assert ranking.mean == pytest.approx(1 / 2)
    assert ranking.counted.tolist() == [True, False]
    assert np.isnan(ranking.values[1])


def test_without_any_gold_there_is_no_figure():
    ranking = average_precision("p_step", np.array([[0.9, 0.1]]), np.zeros((1, 2), dtype=bool))
    assert ranking.mean is None
    assert ranking.mean_over_patients([1]) is None


def test_an_empty_prediction_is_worth_its_share_of_gold_and_is_reported_as_constant():
    scores = np.array([[0.0, 0.0, 0.0, 0.0], [0.6, 0.2, 0.0, 0.0]])
    gold = np.array([[1, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    ranking = average_precision("p_include", scores, gold)
    assert ranking.values.tolist() == [1 / 4, 1.0]
    assert ranking.constant == 1


def test_a_constant_record_without_gold_is_not_reported_twice():
    assert average_precision("p_include", np.full((1, 3), 0.2), np.zeros((1, 3), dtype=bool)).constant == 0


def test_a_single_drug_is_always_ranked_first_of_one():
    assert one([0.2], [1]) == 1.0


def test_a_list_with_two_scores_is_worth_precision_times_recall_and_the_rest_at_prevalence():
    scores, gold = [0.7, 0.7, 0.7, 0.2, 0.2, 0.2, 0.2, 0.2], [1, 1, 0, 1, 0, 0, 0, 0]
    precision, recall, prevalence = 2 / 3, 2 / 3, 3 / 8
    assert one(scores, gold) == pytest.approx(precision * recall + (1 - recall) * prevalence)


@pytest.mark.parametrize("kind", [bool, int, float])
def test_a_list_of_zeros_and_ones_is_refused_because_it_ranks_nothing(kind):
    scores = np.array([[1, 0, 0], [0, 0, 0]], dtype=kind)
    with pytest.raises(InputError, match="p_include: scores are only 0 and 1"):
        average_precision("p_include", scores, scores.astype(bool))


@pytest.mark.parametrize(
    ("score", "scores", "gold", "problem"),
    [
        (" ", np.array([[0.5]]), np.array([[True]]), "without a name"),
        ("p", np.array([[0.5]]), np.array([[True, False]]), "scores \\[1, 1\\] and gold \\[1, 2\\]"),
        ("p", np.array([0.5]), np.array([True]), "\\[records, labels\\]"),
        ("p", np.zeros((0, 3)), np.zeros((0, 3), dtype=bool), "scores \\[0, 3\\]"),
        ("p", np.array([[0.5]]), np.array([[1]]), "gold is int"),
        ("p", np.array([[0.5, np.nan]]), np.array([[True, False]]), "not finite"),
    ],
)
def test_what_has_no_average_precision_is_refused(score, scores, gold, problem):
    with pytest.raises(InputError, match=problem):
        average_precision(score, scores, gold)


def test_the_name_of_the_score_comes_out_with_the_figure():
    assert average_precision("p_step", np.array([[0.5]]), np.array([[True]])).score == "p_step"


def test_the_average_over_patients_weighs_patients_and_not_their_visits():
    ranking = Ranking("p", np.array([1.0, 1.0, 0.5, np.nan]), 0)
    assert ranking.mean == pytest.approx(2.5 / 3)
    assert ranking.mean_over_patients(["a", "a", "b", "c"]) == pytest.approx((1 + 0.5) / 2)


def test_the_values_that_count_can_be_resampled_by_patient():
    ranking = Ranking("p", np.array([1.0] * 30 + [0.0] * 30 + [np.nan]), 0)
    values = ranking.values[ranking.counted][:, None]
    visits, patients = (bootstrap_means(values, [row // size for row in range(60)]).std() for size in (1, 15))
    assert patients > 2 * visits > 0


def test_patients_that_do_not_fit_the_records_are_refused():
    with pytest.raises(InputError, match="2 patients for 1 records"):
        Ranking("p", np.array([0.5]), 0).mean_over_patients([1, 2])
