from types import SimpleNamespace

import numpy as np
import pytest

from yaofang.eval.intervals import Sample
from yaofang.eval.levels import Comparison
from yaofang.eval.lists import ListReader, counts_json, duplicates, patient_json
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.patient import PatientFacts

FACTS = {"1-1": PatientFacts(egfr=20.0), "2-1": PatientFacts(egfr=90.0), "3-1": PatientFacts(allergies=("阿司匹林",))}


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary()


@pytest.fixture(scope="module")
def conflicts(vocabulary):
    tiers = np.zeros((len(vocabulary), len(vocabulary)), np.uint8)
    a, b, c = (vocabulary.index(label) for label in ("二甲双胍", "阿卡波糖", "阿司匹林肠溶片"))
    tiers[a, b] = tiers[b, a] = 1
    tiers[a, c] = tiers[c, a] = 2
    return SimpleNamespace(tiers=tiers, version="test")


def figures(lists, vocabulary, conflicts, facts=FACTS, level="label"):
    reader = ListReader(Comparison(level, vocabulary), vocabulary, conflicts, facts)
    return reader.figures(lists, Sample(list(lists)), link=False)


def test_two_names_of_one_drug_and_route_are_a_duplicate_and_a_repeat_is_none(vocabulary):
    one, other = (drug.label for drug in vocabulary.with_generic("氨氯地平")[:2])
    assert duplicates([one, other, one, "阿卡波糖"], vocabulary) == 1
    assert duplicates([one, one, "硝苯地平控释片"], vocabulary) == 0
    assert duplicates(["无此药", "无此药甲"], vocabulary) == 0
    assert duplicates([], vocabulary) == 0


def test_a_tablet_and_an_eye_drop_of_one_drug_are_no_duplicate(vocabulary):
    by_generic: dict[str, dict[str, str]] = {}
    for drug in vocabulary:
        by_generic.setdefault(drug.generic, {})[drug.route] = drug.label
    two_routes = next(list(labels.values()) for labels in by_generic.values() if len(labels) > 1)
    assert duplicates(two_routes, vocabulary) == 0


def test_drugs_against_the_patient_are_counted_by_tier_as_the_hand_does(vocabulary, conflicts):
    lists = {"1-1": ["二甲双胍", "阿托伐他汀钙片"], "2-1": ["二甲双胍", "无此药"], "3-1": ["阿司匹林肠溶片"]}
    found = figures(lists, vocabulary, conflicts)
    assert found.patient.drugs == 4
    assert found.patient.against[1] == 2, "metformin at an eGFR of 20, aspirin in an allergy to it"
    assert found.patient.records_with[1] == 2
    value = patient_json(found.patient)
    assert value["T1"] == {"drugs": 2, "rate": 0.5, "records": 2, "share": pytest.approx(2 / 3)}
    assert found.figures["patient_T1_rate"].value == 0.5
    assert found.figures["patient_T1_share"].value == pytest.approx(2 / 3)


def test_without_facts_nothing_is_said_of_the_patient(vocabulary, conflicts):
    found = figures({"1-1": ["二甲双胍"]}, vocabulary, conflicts, facts=None)
    assert found.patient is None
    assert patient_json(found.patient) is None
    assert "patient_T1_rate" not in found.figures


def test_a_record_without_facts_among_others_is_asked_nothing(vocabulary, conflicts):
    found = figures({"1-1": ["二甲双胍"], "9-9": ["二甲双胍"]}, vocabulary, conflicts)
    assert (found.patient.drugs, found.patient.records) == (1, 2)


def test_every_rate_has_a_figure_that_equals_its_count(vocabulary, conflicts):
    lists = {
        "1-1": ["二甲双胍", "阿卡波糖", "阿司匹林肠溶片"],
        "2-1": ["二甲双胍"],
        "3-1": [],
        "4-1": ["二甲双胍"] * 2 + ["无此药"],
    }
    found = figures(lists, vocabulary, conflicts)
    shown = counts_json(found.conflicts)
    for tier in (1, 2, 3):
        assert found.figures[f"T{tier}_rate"].value == shown[f"T{tier}"]["rate"]
        assert found.figures[f"T{tier}_share"].value == shown[f"T{tier}"]["share"]
    assert (shown["pairs"], shown["T1"]["rate"]) == (3, 1 / 3)
    for name in ("empty", "repeats", "duplicates", "outside"):
        assert found.figures[name].value == getattr(found, name) / 4
    assert (found.empty, found.repeats, found.outside) == (1, 1, 1)
    assert found.figures["mean_drugs"].value == found.mean_drugs == 6 / 4


def test_lists_of_one_drug_have_no_pair_and_no_rate(vocabulary, conflicts):
    found = figures({"1-1": ["二甲双胍"], "2-1": ["阿卡波糖"]}, vocabulary, conflicts)
    assert found.figures["T1_rate"] is None
    assert counts_json(found.conflicts)["T1"]["rate"] == 0
