import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from yaofang.eval.calibration import reliability as equal_width
from yaofang.eval.metrics import bootstrap_means
from yaofang.eval.reliability import (
    Recalibration,
    brier_by_record,
    curve,
    intervals,
    recalibration,
    reliability,
    reliability_table,
)
from yaofang.vocab.errors import InputError

TIED = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0])


@pytest.fixture
def random():
    return np.random.default_rng(4)


def drawn(random, records, labels, *, intercept=0.0, slope=1.0):
    """p and outcomes whose true recalibration is known."""
    x = random.normal(-2, 1.5, (records, labels))
    return expit(x), random.random((records, labels)) < expit(intercept + slope * x)


def test_a_curve_of_two_bins_is_what_the_hand_computes():
    p = np.array([0.1, 0.2, 0.6, 0.8])
    low, high = curve(p, np.array([False, True, True, True]), bins=2)
    assert (low.predicted, low.observed, low.count) == (pytest.approx(0.15), 0.5, 2)
    assert (high.predicted, high.observed, high.count) == (pytest.approx(0.7), 1.0, 2)


def test_the_interval_of_a_bin_is_wilsons():
    # 2 of 10, z = 1.959964: centre (0.2 + z^2/20) / (1 + z^2/10), half-width z sqrt(0.016 + z^2/400) / (1 + z^2/10)
    (only,) = curve(np.full(10, 0.3), np.arange(10) < 2)
    z = 1.959964
    centre, half = (0.2 + z**2 / 20) / (1 + z**2 / 10), z * np.sqrt(0.016 + z**2 / 400) / (1 + z**2 / 10)
    assert (only.low, only.high) == (pytest.approx(centre - half, abs=1e-6), pytest.approx(centre + half, abs=1e-6))


@settings(max_examples=25, deadline=None)
@given(
    arrays(float, 25, elements=TIED | st.floats(0, 1)),
    arrays(bool, 25),
    st.sampled_from([("mass", "quantile"), ("width", "uniform")]),
)
def test_bins_are_those_of_scikit_learn(p, held, binning):
    ours, theirs = binning
    held[:2] = True, False
    observed, predicted = calibration_curve(held, p, n_bins=5, strategy=theirs)
    found = curve(p, held, 5, ours)
    assert [one.observed for one in found] == pytest.approx(observed.tolist())
    assert [one.predicted for one in found] == pytest.approx(predicted.tolist())
    assert sum(one.count for one in found) == 25


def test_bins_of_equal_mass_hold_equally_many_cells(random):
    assert {one.count for one in curve(random.random(200), random.random(200) < 0.5)} == {20}


def test_equal_probabilities_share_a_bin():
    found = curve(np.array([0.0] * 95 + [0.2, 0.4, 0.6, 0.8, 1.0]), np.zeros(100, dtype=bool))
    assert found[0].count >= 95
    assert sum(one.count for one in found) == 100


def test_bins_of_equal_expectation_show_the_high_probabilities_that_equal_mass_hides(random):
    p = np.concatenate([np.full(9000, 0.001) * random.random(9000), random.random(100)])
    held = random.random(9100) < p
    by_mass, by_sum = curve(p, held), curve(p, held, binning="expected")
    assert max(one.predicted for one in by_mass) < 0.1
    assert max(one.predicted for one in by_sum) > 0.8
    sums = [one.predicted * one.count for one in by_sum]
    assert sums == pytest.approx([p.sum() / 10] * 10, abs=1.0)


@pytest.mark.parametrize("binning", ["mass", "width", "expected"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_scores_make_one_bin(binning, value):
    (only,) = curve(np.full(7, value), np.arange(7) < 3, binning=binning)
    assert (only.predicted, only.observed, only.count) == (pytest.approx(value), 3 / 7, 7)


def test_a_way_to_bin_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="quantile"):
        curve(np.array([0.5]), np.array([True]), binning="quantile")


def test_brier_is_that_of_scikit_learn_pooled_and_record_by_record(random):
    p, held = drawn(random, 30, 8)
    expected = brier_score_loss(held.ravel(), p.ravel())
    assert reliability("all", "overall", p, held, range(8)).brier == pytest.approx(expected)
    assert brier_by_record(p, held).mean() == pytest.approx(expected)
    assert brier_by_record(p, held)[3] == pytest.approx(brier_score_loss(held[3], p[3]))


def test_ece_is_the_weighted_gap_of_the_bins():
    p, held = np.array([[0.1], [0.2], [0.6], [0.8]]), np.array([[False], [True], [True], [True]])
    found = reliability("x", "drug", p, held, [0], bins=2)
    assert found.ece == pytest.approx((2 * (0.5 - 0.15) + 2 * (1 - 0.7)) / 4)


def test_ece_with_bins_of_equal_width_is_that_of_the_calibration_verb(random):
    p, held = drawn(random, 200, 3)
    found = reliability("all", "overall", p, held, range(3), binning="width")
    assert found.ece == pytest.approx(equal_width(p.ravel(), held.ravel())["ece"])


def test_recalibration_finds_the_truth_that_outcomes_were_drawn_from(random):
    p, held = drawn(random, 40_000, 1, intercept=0.5, slope=0.7)
    found = recalibration(p.ravel(), held.ravel())
    assert found.slope == pytest.approx(0.7, abs=0.05)
    assert found.intercept == pytest.approx(0.5, abs=0.08)


def test_recalibration_is_the_greatest_likelihood(random):
    p, held = (cells.ravel() for cells in drawn(random, 150, 1, intercept=-0.4, slope=1.6))
    x = logit(p)

    def loss(theta):
        z = theta[0] + theta[1] * x
        return np.logaddexp(0, z).sum() - z[held].sum()

    best = minimize(loss, [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 2000}).x
    found = recalibration(p, held)
    assert (found.intercept, found.slope) == (pytest.approx(best[0], abs=1e-4), pytest.approx(best[1], abs=1e-4))


def test_the_large_intercept_makes_the_expected_number_the_observed_one(random):
    p, held = (cells.ravel() for cells in drawn(random, 300, 1, intercept=1.0))
    found = recalibration(p, held)
    assert expit(found.in_the_large + logit(p)).sum() == pytest.approx(held.sum())


def test_a_table_of_two_probabilities_has_the_recalibration_that_the_hand_computes():
    # at logit 0 one of two is held, at logit(0.8) = log 4 nine of ten: log 9 = intercept + slope log 4, intercept 0
    p = np.array([0.5] * 2 + [0.8] * 10)
    held = np.array([True, False] + [True] * 9 + [False])
    found = recalibration(p, held)
    assert found.slope == pytest.approx(np.log(9) / np.log(4))
    assert found.intercept == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("outcome", [True, False])
def test_outcomes_that_are_all_the_same_have_no_recalibration(outcome):
    assert recalibration(np.array([0.2, 0.6, 0.9]), np.full(3, outcome)) == Recalibration(None, None, None)


def test_constant_scores_have_no_slope_but_a_level():
    found = recalibration(np.full(4, 0.5), np.array([True, True, True, False]))
    assert (found.slope, found.intercept) == (None, None)
    assert found.in_the_large == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    "held",
    [[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1]],
    ids=["separated", "separated the wrong way round", "touching at a tie"],
)
def test_scores_that_separate_the_outcomes_have_no_finite_slope(held):
    found = recalibration(np.array([0.1, 0.1, 0.4, 0.7, 0.9]), np.array(held, dtype=bool))
    assert found.slope is None
    assert found.in_the_large is not None


def test_certainties_are_left_out_of_recalibration_and_wrong_ones_are_counted(random):
    p, held = drawn(random, 80, 2)
    certain = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    outcomes = np.array([[False, True], [True, False], [True, True]])
    found = reliability("all", "overall", np.vstack([p, certain]), np.vstack([held, outcomes]), range(2))
    assert (found.extreme, found.surprises) == (6, 3)
    assert found.recalibration == recalibration(p.ravel(), held.ravel())


@settings(max_examples=25, deadline=None)
@given(arrays(float, 12, elements=TIED), arrays(bool, 12))
def test_no_outcomes_of_any_scores_raise_or_warn(p, held):
    found = reliability("x", "drug", p[:, None], held[:, None], [0])
    assert 0 <= found.ece <= 1
    assert all(one.low <= one.observed <= one.high or one.count == 0 for one in found.bins)
    assert (found.recalibration.slope is None) == (found.recalibration.intercept is None)


def test_frequent_drugs_stand_alone_the_others_in_groups_and_small_groups_together():
    held = np.zeros((100, 7), dtype=bool)
    for column, positives in enumerate([50, 49, 30, 20, 10, 5, 0]):
        held[:positives, column] = True
    groups = {0: "C10AA", 1: "C10AA", 2: "A10BA", 3: "A10BA", 4: "B01AC", 5: "B01AC"}
    p = np.tile(np.linspace(0.01, 0.9, 100)[:, None], (1, 7))
    table = reliability_table(p, held, list("abcdefg"), groups)
    assert [(one.name, one.columns, one.positives) for one in table.drugs] == [("a", (0,), 50)]
    assert [(one.name, one.columns, one.positives) for one in table.groups] == [("A10BA", (2, 3), 50)]
    assert table.rest is not None
    assert (table.rest.name, table.rest.columns, table.rest.positives) == ("其他", (1, 4, 5, 6), 64)
    assert (table.overall.name, table.overall.count, table.overall.positives) == ("全部", 700, 164)


def test_every_column_is_judged_once_besides_overall(random):
    p, held = drawn(random, 120, 20)
    table = reliability_table(
        p, held, [str(column) for column in range(20)], {column: str(column % 4) for column in range(15)}, least=25
    )
    rest = table.rest.columns if table.rest else ()
    columns = [column for one in (*table.drugs, *table.groups) for column in one.columns] + list(rest)
    assert sorted(columns) == list(range(20))
    assert all(one.positives >= 25 for one in (*table.drugs, *table.groups))


def test_frequent_drugs_alone_leave_no_rest():
    p, held = np.full((4, 2), 0.5), np.array([[True, False]] * 2 + [[False, True]] * 2)
    assert reliability_table(p, held, ["a", "b"], {}, least=2).rest is None


def test_a_record_whose_prediction_and_gold_are_empty_is_counted_as_right():
    table = reliability_table(np.zeros((1, 3)), np.zeros((1, 3), dtype=bool), ["a", "b", "c"], {})
    assert (table.overall.brier, table.overall.ece, table.overall.extreme) == (0, 0, 3)
    assert table.overall.recalibration == Recalibration(None, None, None)


def test_probabilities_that_miss_one_by_rounding_are_ones():
    table = reliability_table(np.array([[1 + 1e-9, -1e-9]]), np.array([[True, False]]), ["a", "b"], {})
    assert (table.overall.brier, table.overall.surprises) == (0, 0)


@pytest.mark.parametrize(
    ("p", "held", "labels", "problem"),
    [
        ([[0.5]], [[True, False]], ["a"], "p \\[1, 1\\], held \\[1, 2\\]"),
        ([[0.5]], [[True]], ["a", "b"], "2 labels"),
        ([[1.5]], [[True]], ["a"], "outside \\[0, 1\\]"),
        ([[np.nan]], [[True]], ["a"], "outside \\[0, 1\\]"),
        ([[0.5]], [[1]], ["a"], "held is int"),
        (np.zeros((0, 1)), np.zeros((0, 1), dtype=bool), ["a"], "p \\[0, 1\\]"),
    ],
)
def test_what_is_no_probability_of_a_cell_is_refused(p, held, labels, problem):
    with pytest.raises(InputError, match=problem):
        reliability_table(np.array(p), np.array(held), labels, {})


def test_intervals_hold_their_figures_and_widen_with_visits_of_one_patient(random):
    p, held = drawn(random, 40, 10)
    twice, owners = (np.repeat(p, 3, axis=0), np.repeat(held, 3, axis=0)), np.repeat(np.arange(40), 3).tolist()
    found, naive = intervals(*twice, owners), intervals(*twice, list(range(120)))
    figures = reliability("all", "overall", p, held, range(10))
    own = figures.recalibration
    for name, value in {
        "brier": figures.brier,
        "gap": figures.observed - figures.predicted,
        "slope": own.slope,
        "intercept": own.intercept,
        "in_the_large": own.in_the_large,
    }.items():
        low, high = getattr(found, name)
        assert low < value < high, name
        assert high - low > 1.4 * np.diff(getattr(naive, name))[0], name


def test_the_one_step_interval_is_near_that_of_fitting_every_resample_again(random):
    p, held = drawn(random, 60, 12, slope=0.8)
    found = intervals(p, held, list(range(60)), resamples=300)
    slopes = []
    for _ in range(80):
        rows = random.integers(0, 60, 60)
        slopes.append(recalibration(p[rows].ravel(), held[rows].ravel()).slope)
    low, high = np.quantile(slopes, [0.025, 0.975])
    width = high - low
    assert found.slope == (pytest.approx(low, abs=0.25 * width), pytest.approx(high, abs=0.25 * width))


def test_the_interval_of_brier_is_that_of_its_record_values(random):
    p, held = drawn(random, 30, 4)
    means = bootstrap_means(brier_by_record(p[:, [1, 3]], held[:, [1, 3]])[:, None], list(range(30)), seed=2)
    assert intervals(p, held, list(range(30)), columns=[1, 3], seed=2).brier == pytest.approx(
        tuple(np.quantile(means, [0.025, 0.975]))
    )


def test_one_patient_has_no_intervals_and_degenerate_outcomes_have_none_of_recalibration(random):
    p, held = drawn(random, 6, 3)
    assert intervals(p, held, ["x"] * 6) is None
    found = intervals(p, np.ones((6, 3), dtype=bool), list(range(6)))
    assert (found.slope, found.intercept, found.in_the_large) == (None, None, None)
    assert found.brier[0] <= ((p - 1) ** 2).mean() <= found.brier[1]
