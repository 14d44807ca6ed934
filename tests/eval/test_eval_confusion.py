import random
from dataclasses import asdict

import pytest

from yaofang.eval.confusion import Alone, Mistaken, confusion
from yaofang.eval.levels import Comparison
from yaofang.vocab.drugs import load_vocabulary


def of_letters(gold: list[str], predicted: list[str], top: int = 20):
    """Names are two letters and a number: class A, generic Ab, label Ab1."""
    sides = ([set(names.split()) for names in side] for side in (gold, predicted))
    return confusion(*sides, lambda name: name[0], lambda name: name[:2], top=top)


def counts(found) -> dict[tuple[str, str], float]:
    return {(one.gold, one.predicted): one.count for one in found.pairs}


def test_a_drug_taken_for_another_of_its_class_is_counted_once_a_record():
    found = of_letters(["Aa1 Ba1", "Aa1", "Aa1"], ["Ab1 Ba1", "Ab1", "Aa1"])
    assert found.pairs == (Mistaken("Aa1", "Ab1", "A", False, 2.0, 2, 3, 2),)
    assert (found.missed, found.extra, found.paired, found.same_generic) == (2, 2, 2.0, 0.0)


def test_names_of_different_classes_are_never_paired():
    found = of_letters(["Aa1 Cc1"], ["Ba1 Cc1"])
    assert found.pairs == ()
    assert found.missed_alone == (Alone("Aa1", "A", 1.0, 1),)
    assert found.extra_alone == (Alone("Ba1", "B", 1.0, 1),)


def test_another_label_of_the_same_drug_goes_before_another_drug_of_the_class():
    found = of_letters(["Aa1"], ["Aa2 Ab1"])
    assert counts(found) == {("Aa1", "Aa2"): 1.0}
    assert found.same_generic == 1.0
    assert [one.name for one in found.extra_alone] == ["Ab1"]


def test_where_nothing_tells_which_is_meant_the_count_is_spread_evenly():
    assert counts(of_letters(["Aa1"], ["Ab1 Ac1"])) == {("Aa1", "Ab1"): 0.5, ("Aa1", "Ac1"): 0.5}
    two = of_letters(["Aa1 Ab1"], ["Ac1 Ad1"])
    assert set(counts(two).values()) == {0.5}
    assert two.paired == 2.0
    assert two.missed_alone == two.extra_alone == ()


def test_what_the_smaller_side_leaves_stays_unpaired():
    found = of_letters(["Aa1 Ab1"], ["Ac1"])
    assert {one.name: one.count for one in found.missed_alone} == {"Aa1": 0.5, "Ab1": 0.5}


def test_paired_and_unpaired_always_add_up_to_all_mistakes():
    draw, names = random.Random(5), [f"{c}{g}{n}" for c in "ABC" for g in "abc" for n in "12"]
    sides = [[" ".join(draw.sample(names, draw.randint(0, 9))) for _ in range(60)] for _ in range(2)]
    found = of_letters(*sides, top=1000)
    for total, alone in ((found.missed, found.missed_alone), (found.extra, found.extra_alone)):
        assert total == pytest.approx(found.paired + sum(one.count for one in alone))
    assert found.paired == pytest.approx(sum(one.count for one in found.pairs))
    assert found.same_generic == pytest.approx(sum(one.count for one in found.pairs if one.same_generic))


def test_the_top_is_cut_by_count_and_then_by_name():
    found = of_letters(["Aa1", "Ba1", "Aa1", "Ca1"], ["Ab1", "Bb1", "Ab1", "Cb1"], top=2)
    assert list(counts(found)) == [("Aa1", "Ab1"), ("Ba1", "Bb1")]
    assert found.paired == 4.0


def test_equal_lists_and_empty_lists_confuse_nothing():
    assert asdict(of_letters(["Aa1", ""], ["Aa1", ""])) == {
        "records": 2,
        "missed": 0,
        "extra": 0,
        "paired": 0,
        "same_generic": 0.0,
        "pairs": (),
        "missed_alone": (),
        "extra_alone": (),
    }


def test_real_labels_are_paired_by_their_class_and_generic():
    vocabulary = load_vocabulary()
    classes, generics = Comparison("atc4", vocabulary), Comparison("generic", vocabulary)
    gold = [{"阿托伐他汀钙片", "卡格列净片", "甲钴胺"}]
    predicted = [{"瑞舒伐他汀", "达格列净片", "阿司匹林肠溶片"}]
    found = confusion(gold, predicted, classes.key, generics.key)
    assert counts(found) == {("阿托伐他汀钙片", "瑞舒伐他汀"): 1.0, ("卡格列净片", "达格列净片"): 1.0}
    assert {one.group for one in found.pairs} == {"C10AA", "A10BK"}
