import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaofang.vocab.drugs import Drug, Vocabulary, load_vocabulary
from yaofang.vocab.files import read_table
from yaofang.vocab.lexicon import FOLDER
from yaofang.vocab.matching import generic_of, link, match, normalise
from yaofang.vocab.naming import names_in

VOCABULARY = load_vocabulary()
ALIASES = FOLDER / "aliases.tsv"
GOLD = Path(__file__).resolve().parents[3] / "shared" / "real" / "shanghai_t1dm.gold.json"

DIFFERENT_DRUGS = [
    ("瑞格列奈", "那格列奈"),
    ("达格列净片", "恩格列净片"),
    ("达格列净片", "卡格列净片"),
    ("匹伐他汀", "普伐他汀"),
    ("沙格列汀", "阿格列汀"),
    ("诺和灵30R", "诺和灵50R"),
    ("诺和灵R", "诺和灵N"),
    ("诺和锐30", "诺和锐50"),
    ("硫必利片", "舒必利片"),
    ("维生素B1片", "维生素B12片"),
    ("氨氯地平片", "左氨氯地平"),
    ("碳酸钙片", "碳酸钙D3片"),
    ("碳酸锂片", "碳酸钙片"),
    ("单硝酸异山梨酯片", "硝酸异山梨酯片"),
    ("美托洛尔缓释片", "阿罗洛尔"),
    ("西格列汀二甲双胍片", "维格列汀二甲双胍片"),
    ("聚乙二醇", "聚乙二醇洛塞那肽"),
    ("枸橼酸钾颗粒", "枸橼酸铋钾颗粒"),
    ("复方甘草片", "复方甘草酸苷片"),
]


def only(*labels: str) -> Vocabulary:
    return Vocabulary(tuple(VOCABULARY.drug(label) for label in labels))


def one_apart(a: str, b: str) -> bool:
    if len(a) == len(b):
        return sum(x != y for x, y in zip(a, b, strict=True)) == 1
    short, long = sorted((a, b), key=len)
    return len(long) - len(short) == 1 and any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("硫酸氢氯吡格雷片（75mg） qd", "氯吡格雷"),
        ("苯磺酸氨氯地平片 5mg*14片/盒", "氨氯地平"),
        ("盐酸二甲双胍缓释片0.5g bid 口服", "二甲双胍"),
        ("1.阿卡波糖片 50mg tid 嚼服", "阿卡波糖"),
        ("富马酸比索洛尔片(康忻)", "比索洛尔"),
        ("阿司匹林肠溶片-拜耳医药", "阿司匹林"),
        ("拜耳 阿司匹林肠溶片", "阿司匹林"),
        ("碳酸钙D3片600mg 每晚一次", "碳酸钙D3"),
        ("维生素B12片", "维生素B12"),
        ("琥珀酸亚铁片", "琥珀酸亚铁"),
        ("枸橼酸钾颗粒", "枸橼酸钾"),
        ("硝酸甘油片 必要时舌下含服", "硝酸甘油"),
        ("碳酸氢钠片", "碳酸氢钠"),
        ("低分子肝素钠注射液", "低分子肝素钠"),
        ("氢化可的松", "氢化可的松"),
        ("诺和灵３０Ｒ", "诺和灵30R"),
        ("诺和灵(30R)笔芯 3ml:300u", "诺和灵30R"),
        ("门冬胰岛素30注射液 早12u 晚10u 餐前", "门冬胰岛素30"),
        ("甘精胰岛素注射液 12单位 睡前皮下注射", "甘精胰岛素"),
        ("立普妥(R)", "立普妥"),
        ("氯化钾口服溶液", "氯化钾"),
        ("30/70混合重组人胰岛素注射液", "30/70混合重组人胰岛素"),
        ("优泌林70/30", "优泌林70/30"),
    ],
)
def test_normalising_takes_off_what_surrounds_the_generic(text: str, bare: str) -> None:
    assert normalise(text) == bare


@pytest.mark.parametrize(
    ("text", "label", "method"),
    [
        ("阿司匹林肠溶片", "阿司匹林肠溶片", "exact"),
        ("阿司匹林肠溶片 100mg qd", "阿司匹林肠溶片", "normalised"),
        ("波立维 75mg*7片/盒", "波立维", "normalised"),
        ("沐舒坦", "盐酸氨溴索片", "alias"),
        ("心痛定", "硝苯地平片", "alias"),
        ("二甲双胍缓释片", "盐酸二甲双胍缓释片", "normalised"),
        ("二甲双胍片0.5g", "盐酸二甲双胍片", "normalised"),
        ("氨氯地平", "氨氯地平片", "alias"),
        ("苯磺酸左旋氨氯地平片", "苯磺酸左氨氯地平片", "normalised"),
        ("精蛋白生物合成人胰岛素注射液（预混30R）", "诺和灵30R", "normalised"),
        ("精蛋白生物合成人胰岛素注射液（预混50R）", "诺和灵50R", "normalised"),
        ("门冬胰岛素(30)", "预混门冬胰岛素30", "normalised"),
        ("厄贝沙坦氢氯噻嗪片（安博诺）", "厄贝沙坦氢氯噻嗪", "normalised"),
        ("双氯芬酸钠凝胶", "双氯芬酸二乙胺乳胶剂", "normalised"),
        ("左氧氟沙星", "左氧氟沙星片", "alias"),
    ],
)
def test_a_written_name_is_matched_to_the_label_of_its_generic(text: str, label: str, method: str) -> None:
    found = match(text, VOCABULARY)
    assert found.drug is not None
    assert (found.text, found.drug.label, found.method) == (text, label, method)


@pytest.mark.parametrize(
    "text",
    [
        "瑞格列奈(那格列奈)",
        "阿司匹林+氯吡格雷",
        "停用阿司匹林",
        "人胰岛素",
        "胰岛素",
        "甘油",
        "甲状腺",
        "低分子肝素钠注射液",
        "富马酸亚铁片",
        "酸钙片",
        "乳腺结节",
        "止疼药",
        "氯化钾注射液",
        "",
        "100mg",
    ],
)
def test_an_ambiguous_or_unknown_text_is_left_unmatched(text: str) -> None:
    assert match(text, VOCABULARY).drug is None
    assert match(text, VOCABULARY).method == "none"


@pytest.mark.parametrize(("a", "b"), DIFFERENT_DRUGS)
def test_names_that_look_alike_never_match_each_other(a: str, b: str) -> None:
    for text, label in ((a, b), (b, a)):
        for wording in (text, text + "片", f"盐酸{text} 10mg qd", f"{text}(进口)"):
            assert match(wording, only(label)).drug is None, wording


def test_no_label_matches_a_label_of_another_generic() -> None:
    pairs = [(a, b) for a in VOCABULARY for b in VOCABULARY if a.generic != b.generic and one_apart(a.label, b.label)]
    assert len(pairs) > 60
    for a, b in pairs:
        assert match(a.label, only(b.label)).drug is None, (a.label, b.label)


def test_every_label_and_every_generic_leads_to_its_own_generic() -> None:
    for drug in VOCABULARY:
        assert generic_of(drug.label) == generic_of(drug.generic) == drug.generic
        assert generic_of(f"{drug.label} 10mg qd 口服") == drug.generic


def test_every_alias_leads_to_a_generic_of_the_table_and_is_no_label() -> None:
    rows = [row for _, row in read_table(ALIASES)]
    assert len({row["alias"] for row in rows}) == len(rows) >= 100
    for row in rows:
        assert row["alias"] not in VOCABULARY
        assert VOCABULARY.with_generic(row["generic"]), row
        assert generic_of(row["alias"]) == row["generic"]


def test_brand_names_lead_to_generics_even_if_the_vocabulary_lacks_the_brand() -> None:
    small = only("阿卡波糖", "阿托伐他汀钙片", "甘精胰岛素", "阿司匹林肠溶片")
    expected = {"拜唐苹": "阿卡波糖", "立普妥": "阿托伐他汀钙片", "来得时": "甘精胰岛素", "拜阿司匹灵": "阿司匹林肠溶片"}
    for brand, label in expected.items():
        found = match(brand, small)
        assert found.method == "alias"
        assert found.drug is not None
        assert found.drug.label == label
    assert match("格华止", small).drug is None


def test_an_unlinked_name_never_passes_for_a_generic() -> None:
    drug = link("瑞格列奈(那格列奈)")
    assert (drug.kind, drug.ingredients) == ("unlinked", ())
    assert not VOCABULARY.with_generic(drug.generic)
    assert generic_of("瑞格列奈(那格列奈)") == "瑞格列奈(那格列奈)"


def test_a_known_generic_of_another_list_wins_over_the_bundled_table() -> None:
    drug = link("没有这种药片")
    own = Vocabulary((drug,))
    assert match("没有这种药片", own).drug == drug
    assert match("没有这种药片 5mg", own).drug == drug


@pytest.mark.skipif(not GOLD.exists(), reason="../shared/real/shanghai_t1dm.gold.json is absent")
def test_the_roots_of_the_real_stays_are_generics_of_the_table() -> None:
    roots = {root for names in json.loads(GOLD.read_text(encoding="utf-8")).values() for root in names}
    assert {root for root in roots if not VOCABULARY.with_generic(root) or generic_of(root) != root} == set()


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_is_normalised_without_error_and_matches_only_what_it_names(text: str) -> None:
    normalise(text)
    found = match(text, VOCABULARY)
    assert found.drug is None or found.drug.generic == generic_of(text)


@given(
    st.sampled_from(VOCABULARY.drugs),
    st.sampled_from(["", " 10mg", " 0.25g*24片", "（进口）", " 每日一次", "(100mg)", " 5mg qd 口服", "®"]),
    st.sampled_from(["", "1.", "拜耳 ", " "]),
)
@settings(max_examples=300, deadline=None)
def test_a_label_with_dose_maker_and_frequency_is_still_that_label(drug: Drug, after: str, before: str) -> None:
    found = match(before + drug.label + after, VOCABULARY)
    assert found.drug is not None
    assert found.drug.generic == drug.generic


@pytest.mark.parametrize(
    ("text", "generic"),
    [
        ("缬沙坦氨氯地平片80mg/5mg", "缬沙坦氨氯地平"),
        ("厄贝沙坦氢氯噻嗪片150mg/12.5mg", "厄贝沙坦氢氯噻嗪"),
        ("甘精胰岛素注射液300IU/3ml", "甘精胰岛素"),
        ("门冬胰岛素30注射液300u/3ml/支", "门冬胰岛素30"),
        ("硝苯地平控释片30mg/日", "硝苯地平"),
        ("甲钴胺片0.5mg/次", "甲钴胺"),
        ("布地奈德福莫特罗粉吸入剂160/4.5ug", "布地奈德福莫特罗"),
        ("阿卡波糖\u200b", "阿卡波糖"),
        ("左旋多巴/苄丝肼", "多巴丝肼"),
        ("1.30/70混合重组人胰岛素", "人胰岛素30R"),
        ("阿司匹林肠溶片100mg*30", "阿司匹林"),
        ("吸入用布地奈德混悬液", "布地奈德"),
        ("Metformin 500mg bid", "二甲双胍"),
        ("isosorbide mononitrate", "单硝酸异山梨酯"),
    ],
)
def test_names_as_notes_write_them_lead_to_their_generic(text: str, generic: str) -> None:
    assert generic_of(text) == generic


def test_a_free_text_list_is_cut_into_names() -> None:
    assert names_in("出院带药：二甲双胍 0.5g 每日三次 + 格列美脲 2mg qd") == ["二甲双胍 0.5g 每日三次", "格列美脲 2mg qd"]
    assert names_in("1.阿卡波糖 50mg，3次/日；2、甲钴胺 0.5mg tid。") == ["阿卡波糖 50mg", "甲钴胺 0.5mg tid"]
    assert names_in("") == []
