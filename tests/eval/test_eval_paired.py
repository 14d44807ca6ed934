from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from yaofang.eval.metrics import bootstrap_means
from yaofang.eval.paired import paired_difference, sign_flip_p
from yaofang.vocab.errors import InputError


@pytest.fixture
def random():
    return np.random.default_rng(3)


def test_three_patients_have_the_p_value_that_the_hand_counts():
    # |±3 ±2 ±1| reaches 4 in 3+2+1 = 6, 3+2-1 = 4 and their mirror images: 4 of 8
    assert sign_flip_p(np.array([3.0, 2.0, -1.0])) == (4 / 8, True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-6, 6), max_size=7))
def test_zeros_change_no_p_value_and_all_patterns_are_counted(sums):
    observed = abs(sum(sums))
    flipped = [
        abs(sum(sign * one for sign, one in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=len(sums))
    ]
    expected = sum(one >= observed for one in flipped) / len(flipped)
    assert sign_flip_p(np.array(sums, dtype=float)) == (pytest.approx(expected), True)


def test_sums_that_are_equal_but_for_rounding_count_as_equal():
    assert sign_flip_p(np.array([0.1, 0.2, -0.3]))[0] == 1.0
    assert sign_flip_p(np.array([0.1, 0.2, 0.3, -0.6, 0.7]))[0] == sign_flip_p(np.array([1.0, 2.0, 3.0, -6.0, 7.0]))[0]


def test_the_exact_p_value_is_that_of_scipy(random):
    sums = random.normal(0.4, 1, 10)
    theirs = permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=10_000)
    assert sign_flip_p(sums) == (pytest.approx(theirs.pvalue), True)


def test_the_drawn_p_value_is_near_the_exact_one_and_the_same_each_time(random):
    sums = random.normal(0.4, 1, 12)
    exact, all_counted = sign_flip_p(sums)
    drawn = sign_flip_p(sums, permutations=4000)
    assert all_counted
    assert drawn == (pytest.approx(exact, abs=0.03), False)
    assert drawn == sign_flip_p(sums, permutations=4000)


def test_a_drawn_p_value_is_never_zero_and_counts_the_observed_pattern():
    assert sign_flip_p(np.ones(40), permutations=999) == (1 / 1000, False)


def test_a_system_without_advantage_is_called_better_in_one_test_of_twenty(random):
    found = [sign_flip_p(random.normal(0, 1, 25), permutations=199, seed=seed)[0] <= 0.05 for seed in range(400)]
    assert 0.02 < np.mean(found) < 0.09


def test_the_difference_is_that_of_the_means_over_records():
    found = paired_difference("jaccard", np.array([0.5, 1.0, 0.0]), np.array([0.5, 0.4, 0.3]), ["x", "y", "y"])
    assert (found.name, found.records, found.patients) == ("jaccard", 3, 2)
    assert (found.a, found.b) == (pytest.approx(0.5), pytest.approx(0.4))
    assert found.difference == pytest.approx(0.1)


def test_the_interval_is_of_the_same_resamples_for_both_systems(random):
    a, b = random.random(40), random.random(40)
    patients = [record // 2 for record in range(40)]
    means = bootstrap_means(np.stack([a, b], axis=1), patients, seed=5)
    low, high = np.quantile(means[:, 0] - means[:, 1], [0.025, 0.975])
    found = paired_difference("f1", a, b, patients, seed=5)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_what_two_systems_share_widens_no_interval(random):
    hard = random.random(60)
    found = paired_difference("f1", hard + 0.01, hard, list(range(60)))
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    assert found.p_value < 0.001


def test_visits_of_one_patient_are_no_independent_evidence():
    a, b = np.full(60, 0.6), np.full(60, 0.5)
    assert paired_difference("f1", a, b, list(range(60))).p_value < 0.001
    assert paired_difference("f1", a, b, [record // 20 for record in range(60)]).p_value == 2 / 8


def test_one_patient_proves_nothing():
    found = paired_difference("f1", np.array([1.0, 0.9]), np.array([0.0, 0.1]), ["x", "x"])
    assert (found.low, found.high, found.p_value, found.exact) == (None, None, 1.0, True)


def test_two_equal_systems_differ_in_nothing(random):
    values = random.random(30)
    found = paired_difference("f1", values, values.copy(), list(range(30)))
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_swapping_the_systems_turns_the_sign_and_nothing_else(random):
    a, b, patients = random.random(50), random.random(50), [record // 3 for record in range(50)]
    one, other = paired_difference("f1", a, b, patients), paired_difference("f1", b, a, patients)
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert one.p_value == other.p_value


@pytest.mark.parametrize(
    ("a", "b", "patients", "problem"),
    [
        ([0.5], [0.5, 0.6], ["x"], "values \\[1\\] and \\[2\\] for 1 patients"),
        ([0.5, 0.6], [0.5, 0.6], ["x"], "for 1 patients"),
        ([], [], [], "values \\[0\\]"),
        ([[0.5]], [[0.5]], ["x"], "one value a record"),
        ([0.5, np.nan], [0.5, np.nan], ["x", "y"], "not finite"),
    ],
)
def test_what_is_not_paired_is_refused(a, b, patients, problem):
    with pytest.raises(InputError, match=problem):
        paired_difference("f1", np.array(a), np.array(b), patients)
