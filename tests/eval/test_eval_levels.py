import pytest

from yaofang.eval.levels import Comparison, linked
from yaofang.vocab.drugs import load_vocabulary


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("二甲双胍", "A10BA"),
        ("盐酸二甲双胍缓释片", "A10BA"),
        ("西格列汀二甲双胍片", "西格列汀二甲双胍"),
        ("恒格列净二甲双胍缓释片", "恒格列净二甲双胍"),
        ("银杏叶软胶囊", "N06DX"),
        ("甘精胰岛素", "A10AE"),
        ("不是药名", "不是药名"),
    ],
)
def test_a_class_is_five_characters_of_the_code_and_a_combination_is_its_generic(vocabulary, name, key):
    assert Comparison("atc4", vocabulary).key(name) == key


def test_a_provisional_class_is_kept_as_it_is(vocabulary):
    drug = next(one for one in vocabulary if one.atc and one.atc.startswith("~") and len(one.ingredients) == 1)
    assert Comparison("atc4", vocabulary).key(drug.label) == drug.atc


def test_a_drug_without_a_code_is_a_class_of_its_own(vocabulary):
    drug = next(one for one in vocabulary if one.atc is None)
    assert Comparison("atc4", vocabulary).key(drug.label) == drug.generic


def test_a_name_of_another_list_has_the_class_of_its_generic(vocabulary):
    assert "阿托伐他汀" not in vocabulary
    assert Comparison("atc4", vocabulary).key("阿托伐他汀") == Comparison("atc4", vocabulary).key("阿托伐他汀钙片") == "C10AA"


def test_each_level_is_coarser_than_the_one_before(vocabulary):
    names = ["氨氯地平", "苯磺酸氨氯地平片", "硝苯地平控释片"]
    assert [len(Comparison(level, vocabulary).keys(names)) for level in ("label", "generic", "atc4")] == [3, 2, 1]


def test_counts_of_labels_are_summed_by_key(vocabulary):
    counts = {"二甲双胍": 3, "盐酸二甲双胍片": 2, "阿卡波糖": 1}
    assert Comparison("generic", vocabulary).counts(counts) == {"二甲双胍": 5, "阿卡波糖": 1}
    assert Comparison("label", vocabulary).counts(counts) == counts


def test_names_are_linked_to_labels_and_what_links_to_none_stays(vocabulary):
    assert linked(["阿托伐他汀钙片", "不是药名"], vocabulary) == ["阿托伐他汀钙片", "不是药名"]
    assert linked(["阿卡波糖片"], vocabulary)[0] in vocabulary
