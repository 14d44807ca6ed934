import numpy as np
import pytest

from yaofang.data.records import Record
from yaofang.eval.intervals import Figure, Sample
from yaofang.eval.subgroups import LEAST, by_subgroup, diagnosis_counts, groups_of, widest_gap


def record(**given):
    values = {"patient": 1, "id": "1-1", "sex": "男", "birth": "1960-05", "visit": "2020-05", "diagnoses": ("高血压",)}
    return Record(**(values | given))


def both(groups, jaccard, patients=None):
    sample = Sample(patients or list(range(len(groups))))
    found = by_subgroup(groups, np.array(jaccard, dtype=float), sample)
    return found, widest_gap(found, groups, np.array(jaccard, dtype=float), sample)


@pytest.mark.parametrize(
    ("visit", "band"),
    [
        ("2005-04", "<45"),
        ("2005-05", "45-59"),
        ("2020-04", "45-59"),
        ("2020-05", "60-74"),
        ("2035-05", ">=75"),
        (None, "not stated"),
    ],
)
def test_the_age_at_the_visit_decides_the_band(visit, band):
    assert groups_of(record(visit=visit), 1, None)["age"] == band


@pytest.mark.parametrize(("count", "band"), [(0, "not stated"), (1, "1-3"), (3, "1-3"), (4, "4-7"), (7, "4-7"), (8, ">=8")])
def test_the_number_of_diagnoses_decides_the_band(count, band):
    names = tuple(f"诊断{number}" for number in range(count))
    assert groups_of(record(diagnoses=names), 1, None)["diagnoses"] == band


def test_sex_and_visits_are_read_and_what_is_not_stated_stays_so():
    assert groups_of(record(), 1, None) | {"sex": "male", "visits": "single"} == groups_of(record(), 1, None)
    other = groups_of(record(sex=None), 2, None)
    assert (other["sex"], other["visits"]) == ("not stated", "multi")


def test_a_diagnosis_of_four_training_records_is_rare_and_one_of_five_is_not():
    trained = diagnosis_counts(
        [record(id=str(n), diagnoses=("高血压3级（极高危）", "高血压Ⅲ级", *(["痛风"] if n < 4 else []))) for n in range(5)]
    )
    assert trained == {"高血压3级": 5, "痛风": 4}, "a record counts once, by the plain form"
    assert groups_of(record(diagnoses=("高血压3级（高危）",)), 1, trained)["rare_diagnosis"] == "no"
    assert groups_of(record(diagnoses=("高血压3级", "痛风")), 1, trained)["rare_diagnosis"] == "yes"
    assert groups_of(record(diagnoses=("从未见过",)), 1, trained)["rare_diagnosis"] == "yes"
    assert groups_of(record(diagnoses=()), 1, trained)["rare_diagnosis"] == "not stated"
    assert "rare_diagnosis" not in groups_of(record(), 1, None), "nothing is known of the training"


def test_a_group_holds_the_mean_over_its_own_records_and_patients():
    groups = [{"sex": "male"}, {"sex": "female"}, {"sex": "male"}, {"sex": "male"}]
    (female, male), gap = both(groups, [0.2, 0.5, 0.4, 0.9], patients=[1, 2, 1, 3])
    assert (female.records, female.patients, female.jaccard) == (1, 1, Figure(0.5, None, None))
    assert (male.records, male.patients, male.jaccard.value) == (3, 2, 0.5)
    assert male.jaccard.low == pytest.approx(0.3), "the mean of patient 1's two visits"
    assert male.jaccard.high == pytest.approx(0.9)
    assert gap is None, "no group has 30 records"


def test_the_worst_gap_is_within_one_attribute_among_groups_of_thirty_records_and_has_an_interval():
    large, values = LEAST, []
    groups = []
    for age, sex, jaccard, count in (
        ("<45", "male", 0.9, large),
        ("45-59", "female", 0.5, large),
        (">=75", "male", 0.1, large - 1),
    ):
        groups += [{"age": age, "sex": sex}] * count
        values += [jaccard - 0.05, jaccard + 0.05] * (count // 2) + [jaccard] * (count % 2)
    groups += [{"age": "not stated"}] * large
    values += [0.0] * large
    found, gap = both(groups, values)
    assert (gap.attribute, gap.high, gap.low) == ("age", "<45", "45-59"), (
        ">=75 is too small, and not stated is no group of people"
    )
    assert gap.difference.value == pytest.approx(0.4)
    assert gap.difference.low < 0.4 < gap.difference.high
    assert [one.group for one in found if one.attribute == "age"] == ["<45", "45-59", ">=75", "not stated"]


def test_without_records_there_is_no_subgroup_and_no_gap():
    assert both([{}, {}], [0.1, 0.2]) == ((), None)
