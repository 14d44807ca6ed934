import numpy as np
import pytest

from yaofang.eval.intervals import Figure, Sample
from yaofang.eval.metrics import bootstrap_means, percentile_interval

PATIENTS = [1, 1, 2, 3, 3, 4, 5, 6]
VALUES = np.random.default_rng(1).random((8, 2))


def test_a_mean_has_the_interval_of_the_bootstrap_over_patients():
    first, second = Sample(PATIENTS, 500, 7).means(VALUES)
    drawn = bootstrap_means(VALUES, PATIENTS, resamples=500, seed=7)
    for figure, column, own in zip((first, second), drawn.T, VALUES.T, strict=True):
        assert figure.value == pytest.approx(own.mean())
        assert (figure.low, figure.high) == pytest.approx(percentile_interval(column))


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    above, below = np.array([[1.0], [1.0]]), np.array([[1.0], [9.0]])
    (figure,) = Sample(["a", "b"]).ratios(above, below)
    assert figure.value == pytest.approx(0.2)
    assert (figure.low, figure.high) == pytest.approx((1 / 9, 1))


def test_a_ratio_without_denominator_is_no_figure_and_one_patients_has_no_interval():
    above, below = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 0.0]])
    assert Sample(["a", "b"]).ratios(above, below) == [None, Figure(0.5, None, None)]
    assert Sample(["a", "a"]).means(np.array([[0.0], [1.0]])) == [Figure(0.5, None, None)]


def test_a_resample_without_a_denominator_is_left_out_of_the_interval():
    inside = np.array([[1.0], [1.0], [0.0], [0.0], [0.0]])
    (figure,) = Sample(range(5)).ratios(inside * 0.25, inside)
    assert (figure.value, figure.low, figure.high) == (0.25, 0.25, 0.25)


def test_a_difference_is_paired_over_the_same_resamples():
    values = np.column_stack([VALUES[:, 0] + 0.1, VALUES[:, 0]])
    figure = Sample(PATIENTS).difference(values, np.ones_like(values))
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.1, 0.1, 0.1))
    assert Sample(PATIENTS).difference(values, np.zeros_like(values)) is None
