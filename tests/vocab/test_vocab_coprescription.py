"""Evidence from a training set: counts in patients, exact intervals, what is proposed for review."""

from __future__ import annotations

import json

import pytest
from scipy.stats import poisson

from yaofang.vocab.coprescription import AVOIDED, count_pairs, from_json, poisson_interval, to_json


def test_the_interval_of_a_poisson_count_is_the_exact_one() -> None:
    for count in (0, 1, 3, 10, 120):
        low, high = poisson_interval(count)
        assert poisson.cdf(count, high) == pytest.approx(0.025)
        if count:
            assert poisson.sf(count - 1, low) == pytest.approx(0.025)
    assert poisson_interval(0)[0] == 0.0


def test_a_pair_is_counted_in_patients_not_in_records() -> None:
    visits = [(1, ["甲", "乙"]), (1, ["甲", "乙"]), (1, ["乙", "甲", "甲"]), (2, ["甲"]), (3, ["丙"]), (4, ["乙"])]
    found = count_pairs(visits)
    pair = found.between("乙", "甲")
    assert (found.patients, found.records) == (4, 6)
    assert pair is not None
    assert (pair.observed, pair.expected, pair.ratio) == (1, 1.0, 1.0)


def test_drugs_of_two_visits_are_not_together() -> None:
    found = count_pairs([(patient, [name]) for patient in range(30) for name in ("甲", "乙")])
    pair = found.between("甲", "乙")
    assert pair is not None
    assert (pair.observed, pair.expected) == (0, 30.0)
    assert pair.high == pytest.approx(3.688879 / 30, rel=1e-5)


def test_only_a_pair_that_chance_would_show_often_is_proposed_as_avoided() -> None:
    common = [(patient, ["甲"] if patient % 2 else ["乙"]) for patient in range(400)]
    rare = [(1000 + patient, ["丙"] if patient % 2 else ["丁"]) for patient in range(20)]
    found = count_pairs([*common, *rare])
    assert [(pair.a, pair.b) for pair in found.avoided()] == [("乙", "甲")]
    assert all(pair.high < AVOIDED for pair in found.avoided())


def test_evidence_survives_a_file() -> None:
    found = count_pairs([(1, ["甲", "乙"]), (2, ["甲"]), (3, ["乙", "丙"])])
    again = from_json(json.loads(json.dumps(to_json(found))))
    assert again.pairs.keys() == found.pairs.keys()
    assert again.combined()[0].observed == 1
