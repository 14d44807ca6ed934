"""Damaged names: repaired only where one drug alone can be meant."""

from __future__ import annotations

import pytest

from yaofang.vocab.damaged import by_length, repaired
from yaofang.vocab.lexicon import load_lexicon
from yaofang.vocab.matching import generic_of, meaning
from yaofang.vocab.unlisted import is_no_drug, reads_like_patent_medicine


@pytest.mark.parametrize(
    ("written", "generic"),
    [
        ("折麦布片", "依折麦布"),
        ("阿托伐他丁钙片", "阿托伐他汀"),
        ("阿司匹林林肠溶片", "阿司匹林"),
        ("瑞舒伐他定钙片", "瑞舒伐他汀"),
        ("螺内脂片", "螺内酯"),
        ("甲双胍片", "二甲双胍"),
    ],
)
def test_one_lost_doubled_or_mistyped_character_is_repaired(written: str, generic: str) -> None:
    assert generic_of(written) == generic


@pytest.mark.parametrize("written", ["格列净片", "酸钙片", "嗪片", "X格列汀片", "诺和灵40R", "维生素B7片", "头孢片", "沙星片"])
def test_a_name_near_several_drugs_is_left_alone(written: str) -> None:
    found = meaning(written)
    assert found.drug.kind == "unlinked", (found.method, found.drug.generic)


def test_a_lost_character_that_makes_another_drug_is_not_put_back() -> None:
    names = {"左卡尼汀": frozenset({"左卡尼汀"}), "异维A酸": frozenset({"异维A酸"})}
    assert repaired("卡尼汀", names, by_length(names)) == (None, ("左卡尼汀",))
    assert repaired("维A酸", names, by_length(names)) == (None, ("异维A酸",))


def test_a_wrong_digit_or_letter_is_never_repaired() -> None:
    names = {"诺和灵30R": frozenset({"人胰岛素30R"}), "维生素B12": frozenset({"维生素B12"})}
    assert repaired("诺和灵40R", names, by_length(names))[0] is None
    assert repaired("维生素B11", names, by_length(names))[0] is None


def test_a_generic_that_the_lexicon_lacks_is_hardly_ever_repaired_into_another() -> None:
    """One generic in nine is taken out of the lexicon in turn: its name must not become another drug's."""
    spellings = load_lexicon().spellings
    drugs = [name for name, entries in load_lexicon().entries.items() if entries[0].kind == "drug" and len(name) > 2]
    taken = []
    for drug in drugs[::9]:
        left = by_length(name for name in spellings if drug not in spellings[name])
        found, _ = repaired(drug, spellings, left)
        if "low molecular weight heparin" in load_lexicon().entries[drug][0].ingredients:
            continue  # 低分子量肝素 without its salt is any of them; with 钙 it is nadroparin, by the list's own row
        if found is not None and set(load_lexicon().entries[found][0].ingredients) != set(
            load_lexicon().entries[drug][0].ingredients
        ):
            taken.append((drug, found))
    assert len(taken) <= 0.005 * len(drugs[::9]), taken


@pytest.mark.parametrize(
    "name", ["乳腺结节", "止疼药", "一次性使用注射器", "血糖试纸", "高血压3级", "门诊复查", "创可贴", "腰椎间盘突出症"]
)
def test_what_is_no_drug_is_recognised(name: str) -> None:
    assert is_no_drug(name)
    assert meaning(name).drug.kind == "not_a_drug"


@pytest.mark.parametrize("name", ["清热化湿健脾颗粒", "参芪补血胶囊", "活血通络丸"])
def test_a_patent_medicine_of_no_table_is_recognised_by_its_words(name: str) -> None:
    assert reads_like_patent_medicine(name)
    assert meaning(name).drug.kind == "patent_medicine"


@pytest.mark.parametrize("name", ["丹参酮ⅡA磺酸钠注射液", "新生儿胆红素片", "奥拉西坦胶囊", "苦参素片", "人参皂苷Rg3胶囊"])
def test_a_western_name_never_reads_like_a_patent_medicine(name: str) -> None:
    assert not reads_like_patent_medicine(name)
