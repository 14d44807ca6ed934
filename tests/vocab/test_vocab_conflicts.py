from pathlib import Path

import numpy as np
import pytest

from yaofang.vocab.conflicts import FILES, TABLES, ConflictTable, load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.evidence import TABLES_OF_ROWS, load_terms
from yaofang.vocab.files import read_table
from yaofang.vocab.lexicon import load_lexicon
from yaofang.vocab.tiers import tier_of

# Pairs that a careful pharmacist keeps apart, one line a reason.
AVOID = {
    "two statins": ("阿托伐他汀钙片", "瑞舒伐他汀"),
    "a statin hidden in a combination": ("阿托伐他汀钙片", "依折麦布辛伐他汀片"),
    "a statin hidden in a patent medicine": ("洛伐他汀胶囊", "血脂康胶囊"),
    "two ARB": ("缬沙坦胶囊", "氯沙坦钾片"),
    "two ACEI": ("卡托普利", "盐酸贝那普利片"),
    "ACEI and ARB": ("卡托普利", "缬沙坦胶囊"),
    "ACEI and ARNI": ("马来酸依那普利片", "沙库巴曲缬沙坦钠片"),
    "ARB and ARNI": ("氯沙坦钾片", "诺欣妥"),
    "two dihydropyridines": ("氨氯地平片", "硝苯地平控释片"),
    "an isomer and its racemate": ("氨氯地平片", "左氨氯地平"),
    "two beta blockers": ("美托洛尔缓释片", "富马酸比索洛尔片"),
    "two DPP-4 inhibitors": ("磷酸西格列汀片", "利格列汀片"),
    "two GLP-1 agonists": ("利拉鲁肽", "聚乙二醇洛塞那肽"),
    "two SGLT2 inhibitors": ("达格列净片", "恩格列净片"),
    "two sulfonylureas": ("格列美脲", "格列齐特缓释片"),
    "two glucosidase inhibitors": ("阿卡波糖", "伏格列波糖"),
    "two PPI": ("雷贝拉唑", "兰索拉唑"),
    "PPI and P-CAB": ("雷贝拉唑", "富马酸福伏诺拉生片"),
    "two systemic NSAID": ("塞来昔布胶囊", "布洛芬缓释胶囊"),
    "two basal insulins": ("甘精胰岛素", "地特胰岛素"),
    "NPH and a basal analogue": ("诺和灵N", "德谷胰岛素"),
    "two premixed insulins": ("诺和灵30R", "诺和锐30"),
    "two mealtime insulins": ("门冬胰岛素", "赖脯胰岛素"),
    "two DOAC": ("利伐沙班片", "达比加群酯胶囊"),
    "DOAC and warfarin": ("利伐沙班片", "华法林钠片"),
    "two active vitamins D": ("阿法骨化醇", "骨化三醇软胶囊"),
    "two P2Y12 inhibitors": ("氯吡格雷", "替格瑞洛"),
    "metformin twice": ("二甲双胍", "西格列汀二甲双胍片"),
    "two names of one drug": ("氯吡格雷", "波立维"),
    "simvastatin and a strong CYP3A4 inhibitor": ("辛伐他汀片", "克拉霉素片"),
    "simvastatin and gemfibrozil": ("舒降之", "吉非罗齐胶囊"),
    "repaglinide and gemfibrozil": ("瑞格列奈", "吉非罗齐胶囊"),
    "linezolid and an SSRI": ("利奈唑胺片", "草酸艾司西酞普兰片"),
    "linezolid and Deanxit": ("利奈唑胺片", "黛力新"),
    "metoprolol and verapamil": ("美托洛尔缓释片", "盐酸维拉帕米片"),
    "ivabradine and diltiazem": ("伊伐布雷定", "地尔硫卓"),
    "finerenone and spironolactone": ("非奈利酮", "螺内酯"),
    "finerenone and a strong CYP3A4 inhibitor": ("非奈利酮", "伏立康唑片"),
    "colchicine and clarithromycin": ("秋水仙碱片", "克拉霉素片"),
    "amiodarone and sotalol": ("盐酸胺碘酮片", "索他洛尔片"),
    "two antithyroid drugs": ("甲巯咪唑", "丙硫氧嘧啶片"),
    "two xanthine oxidase inhibitors": ("别嘌醇", "非布司他"),
}

# What guidelines recommend every day.
STANDARD = [
    ("缬沙坦胶囊", "氨氯地平片"),
    ("阿托伐他汀钙片", "阿司匹林肠溶片"),
    ("二甲双胍", "甘精胰岛素"),
    ("厄贝沙坦片", "氢氯噻嗪"),
    ("阿司匹林肠溶片", "氯吡格雷"),
    ("阿司匹林肠溶片", "替格瑞洛"),
    ("卡托普利", "螺内酯"),
    ("缬沙坦胶囊", "螺内酯"),
    ("沙库巴曲缬沙坦钠片", "螺内酯"),
    ("沙库巴曲缬沙坦钠片", "美托洛尔缓释片"),
    ("非奈利酮", "缬沙坦胶囊"),
    ("甘精胰岛素", "门冬胰岛素"),
    ("诺和灵N", "诺和灵R"),
    ("诺和锐30", "门冬胰岛素"),
    ("非诺贝特", "阿托伐他汀钙片"),
    ("依折麦布片", "阿托伐他汀钙片"),
    ("单硝酸异山梨酯缓释片", "硝酸甘油片"),
    ("美托洛尔缓释片", "氨氯地平片"),
    ("美托洛尔缓释片", "地高辛"),
    ("美托洛尔缓释片", "盐酸胺碘酮片"),
    ("呋塞米", "螺内酯"),
    ("碳酸钙片", "阿法骨化醇"),
    ("碳酸钙D3片", "维生素D滴剂"),
    ("左甲状腺素钠片", "碳酸钙片"),
    ("布地奈德福莫特罗", "沙丁胺醇气雾剂"),
    ("异烟肼", "利福平胶囊"),
    ("甲氨蝶呤", "来氟米特片"),
    ("达格列净片", "二甲双胍"),
    ("多巴丝肼片", "普拉克索"),
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary()


@pytest.fixture(scope="module")
def table(vocabulary: Vocabulary) -> ConflictTable:
    return load_conflicts(vocabulary)


def tier(table: ConflictTable, a: str, b: str) -> int:
    found = table.between(a, b)
    return found.tier if found else 0


@pytest.mark.parametrize("why", AVOID)
def test_a_pair_that_must_not_go_together_is_t1(why: str, table: ConflictTable) -> None:
    found = table.between(*AVOID[why])
    assert found is not None, why
    assert found.tier == 1, why
    assert found.reasons
    assert all(reason.text and reason.source for reason in found.reasons)


@pytest.mark.parametrize(("a", "b"), STANDARD)
def test_standard_care_is_never_t1(a: str, b: str, table: ConflictTable) -> None:
    assert tier(table, a, b) != 1


def test_the_matrix_is_symmetric_with_a_zero_diagonal_and_agrees_with_between(
    table: ConflictTable, vocabulary: Vocabulary
) -> None:
    size = len(vocabulary.labels)
    assert table.tiers.shape == (size, size)
    assert table.tiers.dtype == np.uint8
    assert np.array_equal(table.tiers, table.tiers.T)
    assert not table.tiers.diagonal().any()
    assert set(np.unique(table.tiers)) == {0, 1, 2, 3}
    rng = np.random.default_rng(0)
    for first, second in rng.integers(0, size, (300, 2)):
        found = table.between(vocabulary.labels[first], vocabulary.labels[second])
        assert (found.tier if found else 0) == table.tiers[first, second]
        assert found is None or found.reasons


def test_every_t1_pair_has_a_reason_that_makes_it_t1(table: ConflictTable, vocabulary: Vocabulary) -> None:
    for first, second in np.argwhere(np.triu(table.tiers == 1)):
        reasons = table.reasons(vocabulary.labels[first], vocabulary.labels[second])
        kinds = {reason.kind for reason in reasons}
        issuers = {reason.source.partition(":")[0] for reason in reasons if reason.kind == "major"}
        assert kinds & {"contraindicated", "same_ingredient", "same_class"} or len(issuers) > 1


def test_t1_stays_a_small_share_of_all_pairs(table: ConflictTable, vocabulary: Vocabulary) -> None:
    size = len(vocabulary.labels)
    share = (table.tiers == 1).sum() / (size * (size - 1))
    assert 0.002 < share < 0.02


def test_severity_is_the_tier_as_a_number(table: ConflictTable) -> None:
    assert np.array_equal(table.severity == 1.0, table.tiers == 1)
    assert np.array_equal(table.severity == 0.5, table.tiers == 2)
    assert np.array_equal(table.severity == 0.2, table.tiers == 3)
    assert table.severity.min() == 0.0


def test_the_highest_of_all_matching_rules_wins(table: ConflictTable) -> None:
    found = table.between("辛伐他汀片", "克拉霉素片")
    assert found is not None
    assert found.tier == 1
    levels = [reason.kind for reason in found.reasons if reason.source.startswith("ANSM")]
    assert levels[0] == "contraindicated"
    assert "minor" in levels


def test_a_conditional_rule_counts_at_its_lowest_level(table: ConflictTable) -> None:
    found = table.between("阿司匹林肠溶片", "华法林钠片")
    assert found is not None
    assert [reason.kind for reason in found.reasons if "按最低级计" in reason.text] == ["minor"]


def test_a_rule_reviewed_by_hand_counts_at_the_reviewed_level(table: ConflictTable) -> None:
    found = table.between("阿司匹林肠溶片", "缬沙坦胶囊")
    assert found is not None
    assert found.tier == 3
    assert "500 mg" in found.reasons[0].text


def test_a_local_form_inherits_no_systemic_interaction(table: ConflictTable) -> None:
    assert table.between("双氯芬酸钠缓释片", "华法林钠片") is not None
    assert table.between("双氯芬酸二乙胺乳胶剂", "华法林钠片") is None
    assert table.between("氟比洛芬凝胶贴膏", "布洛芬缓释胶囊") is None
    assert table.between("左氧氟沙星滴眼液", "左氧氟沙星片") is None


def test_a_local_form_has_the_interactions_that_a_row_names(table: ConflictTable) -> None:
    found = table.between("卡替洛尔滴眼液", "盐酸维拉帕米片")
    assert found is not None
    assert found.reasons[0].source.startswith("ANSM")


def test_a_suppository_is_systemic(table: ConflictTable) -> None:
    assert tier(table, "吲哚美辛栓", "布洛芬缓释胶囊") == 1


def test_insulins_are_compared_by_action(table: ConflictTable) -> None:
    assert tier(table, "甘精胰岛素", "门冬胰岛素") == 3
    assert tier(table, "甘精胰岛素", "诺和锐30") == 2
    assert tier(table, "门冬胰岛素", "诺和锐30") == 3
    assert tier(table, "诺和灵30R", "诺和灵50R") == 1
    assert tier(table, "诺和益", "甘精胰岛素") == 1
    assert tier(table, "诺和益", "司美格鲁肽") == 1


def test_overlapping_classes_that_are_no_duplicates_are_t2(table: ConflictTable) -> None:
    assert tier(table, "利格列汀片", "利拉鲁肽") == 2
    assert tier(table, "雷贝拉唑", "法莫替丁") == 2
    assert tier(table, "格列美脲", "瑞格列奈") == 2


def test_a_whitelisted_duplicate_is_warned_not_masked(table: ConflictTable) -> None:
    found = table.between("碳酸钙D3片", "维生素D滴剂")
    assert found is not None
    assert found.tier == 2
    assert {reason.kind for reason in found.reasons} == {"same_ingredient", "whitelist"}


def test_standard_care_that_no_source_warns_of_is_noted_and_never_silent(table: ConflictTable) -> None:
    assert tier(table, "缬沙坦胶囊", "氨氯地平片") == 3
    assert [reason.kind for reason in table.reasons("缬沙坦胶囊", "氨氯地平片")] == ["whitelist"]


def test_among_lists_each_conflict_once_the_gravest_first(table: ConflictTable) -> None:
    found = table.among(["阿司匹林肠溶片", "氯吡格雷", "波立维", "甲钴胺", "氯吡格雷"])
    assert [(one.a, one.b, one.tier) for one in found] == [
        ("氯吡格雷", "波立维", 1),
        ("阿司匹林肠溶片", "氯吡格雷", 2),
        ("阿司匹林肠溶片", "波立维", 2),
    ]


def test_a_label_that_is_not_in_the_vocabulary_is_a_key_error(table: ConflictTable) -> None:
    with pytest.raises(KeyError):
        table.between("没有这种药", "氯吡格雷")


def test_drugs_without_data_are_listed(table: ConflictTable, vocabulary: Vocabulary) -> None:
    silent = set(table.no_data())
    assert {"非奈利酮", "达格列净片", "恩格列净片", "司美格鲁肽", "罗沙司他胶囊", "依帕司他", "瑞巴派特片"} <= silent
    assert "复方丹参滴丸" in silent
    assert not {"阿司匹林肠溶片", "华法林钠片", "二甲双胍", "甘精胰岛素", "碳酸钙片"} & silent
    assert {drug.label for drug in vocabulary.drugs if not drug.ingredients} <= silent


def test_every_label_of_one_generic_and_one_action_conflicts_with_the_others(
    table: ConflictTable, vocabulary: Vocabulary
) -> None:
    by_generic: dict[tuple[str, str], list[int]] = {}
    for number, drug in enumerate(vocabulary.drugs):
        by_generic.setdefault((drug.generic, drug.route), []).append(number)
    groups = [members for members in by_generic.values() if len(members) > 1]
    assert len(groups) > 50
    for members in groups:
        assert all(table.tiers[a, b] == 1 for a in members for b in members if a != b)


def test_another_vocabulary_gets_its_own_table(tmp_path: Path, table: ConflictTable) -> None:
    path = tmp_path / "list.txt"
    path.write_text("氯吡格雷\n奥美拉唑肠溶胶囊\n阿司匹林肠溶片\n没见过的药\n", encoding="utf-8")
    vocabulary = load_vocabulary(path)
    small = load_conflicts(vocabulary)
    assert small.tiers.shape == (4, 4)
    assert tier(small, "氯吡格雷", "奥美拉唑肠溶胶囊") == 2
    assert "没见过的药" in small.no_data()
    assert small.version != table.version


def test_two_names_of_a_drug_that_the_bundled_table_does_not_know_cite_the_list_they_stand_in(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("无名清片\n无名清胶囊\n氯吡格雷\n波立维\n", encoding="utf-8")
    own = load_conflicts(load_vocabulary(path))
    (strange,) = own.reasons("无名清片", "无名清胶囊")
    assert (strange.kind, strange.source) == ("same_ingredient", str(path))
    assert {reason.source for reason in own.reasons("氯吡格雷", "波立维")} == {"yaofang: drugs.tsv"}


def test_the_version_follows_the_tables(tmp_path: Path, vocabulary: Vocabulary, table: ConflictTable) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes((TABLES / name).read_bytes())
    assert load_conflicts(vocabulary, tmp_path).version == table.version
    with (tmp_path / "whitelist.tsv").open("a", encoding="utf-8") as handle:
        handle.write("class:doac\tclass:doac\t测试\tTEST: test\n")
    changed = load_conflicts(vocabulary, tmp_path)
    assert changed.version != table.version
    assert tier(changed, "利伐沙班片", "阿哌沙班片") == 2


@pytest.mark.parametrize(
    ("file", "row", "field"),
    [
        ("pairs.tsv", "class:nothing\twarfarin\tmajor\t测试\tFDA: test", "a"),
        ("pairs.tsv", "warfarin\tdigoxin\tterrible\t测试\tFDA: test", "level"),
        ("pairs.tsv", "warfarin\tdigoxin\tmajor\t测试\tno issuer", "source"),
        ("same_class.tsv", "class:statin\taction:nothing\tnever\t测试\tWHO: test", "b"),
        ("ansm_substances.tsv", "n'existe pas\twarfarin", "ansm"),
        ("ansm_reviewed.tsv", "warfarine\tn'existe pas\tmajor\t测试", "a, b"),
    ],
)
def test_a_wrong_row_is_named_by_file_line_and_field(
    file: str, row: str, field: str, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes((TABLES / name).read_bytes())
    lines = (TABLES / file).read_text(encoding="utf-8").splitlines()
    (tmp_path / file).write_text("\n".join([*lines, row]) + "\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_conflicts(vocabulary, tmp_path)
    assert caught.value.line == len(lines) + 1
    assert caught.value.field == field
    assert file in str(caught.value)


def test_the_tier_is_decided_by_levels_sources_and_the_whitelist() -> None:
    cases = {
        # contraindicated, majors, moderate, minor, twice, whitelisted -> tier
        (0, 0, 0, 0, 0, 0): 0,
        (1, 0, 0, 0, 0, 0): 1,
        (0, 1, 0, 0, 0, 0): 2,
        (0, 2, 0, 0, 0, 0): 1,
        (0, 0, 1, 1, 0, 0): 2,
        (0, 0, 0, 1, 0, 0): 3,
        (0, 0, 0, 0, 1, 0): 1,
        (1, 0, 0, 0, 0, 1): 2,
        (0, 2, 0, 0, 0, 1): 2,
        (0, 0, 0, 0, 1, 1): 2,
        (0, 0, 0, 1, 0, 1): 3,
        (0, 0, 0, 0, 0, 1): 3,
    }
    columns = np.array(list(cases)).T
    flags = [column.astype(np.bool_) for column in columns]
    found = tier_of(flags[0], columns[1].astype(np.uint8), *flags[2:])
    assert found.tolist() == list(cases.values())


def test_two_rows_of_one_issuer_are_one_source(tmp_path: Path, vocabulary: Vocabulary) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes((TABLES / name).read_bytes())
    with (tmp_path / "pairs.tsv").open("a", encoding="utf-8") as handle:
        handle.write("acarbose\tepalrestat\tmajor\t测试\tFDA: one\nacarbose\tepalrestat\tmajor\t测试\tFDA: two\n")
        handle.write("acarbose\trebamipide\tmajor\t测试\tFDA: one\nacarbose\trebamipide\tmajor\t测试\tEMA: one\n")
    table = load_conflicts(vocabulary, tmp_path)
    assert tier(table, "阿卡波糖", "依帕司他") == 2
    assert tier(table, "阿卡波糖", "瑞巴派特片") == 1


def test_class_members_written_out_agree_with_the_atc_codes_of_the_vocabulary(vocabulary: Vocabulary) -> None:
    terms = load_terms(TABLES)
    for drug in vocabulary.drugs:
        units = terms.units(drug)
        if len(units) != 1 or not drug.atc or units[0].action:
            continue
        for name, prefixes in terms.prefixes.items():
            excepted = units[0].ingredient in terms.exceptions[name]
            if prefixes and drug.atc.startswith(prefixes) and not excepted:
                assert {units[0].ingredient, units[0].moiety} & terms.classes[name], (drug.label, name)


SOLD_ELSEWHERE = set(
    [
        "azelnidipine",
        "cyclobenzaprine",
        "dofetilide",
        "fexuprazan",
        "lenacapavir",
        "nelfinavir",
        "opicapone",
        "ramelteon",
        "suvorexant",
        "topiroxostat",
        "udenafil",
        "youkenafil",
    ]
) | {"glycopyrronium bromide", "potassium bromide", "sodium bromide", "dioscorea bulbifera"}
"""Substances of rows that no drug of the lexicon holds: sold elsewhere, or too new."""


def test_every_inn_of_our_own_rows_is_spelt_as_a_table_of_drugs_spells_it() -> None:
    terms = load_terms(TABLES)
    lexicon = load_lexicon()
    known = {name for entries in lexicon.entries.values() for entry in entries for name in entry.ingredients}
    known |= {row["inn"] for _, row in read_table(TABLES / "ansm_substances.tsv")}
    known |= {row["inn"] for _, row in read_table(TABLES / "lexicon" / "herbs.tsv")}
    known |= set(terms.spelling) | set(terms.moiety.values()) | SOLD_ELSEWHERE
    for name in TABLES_OF_ROWS:
        for number, row in read_table(TABLES / name):
            for term in (row["a"], row["b"]):
                assert ":" in term or term.partition("@")[0] in known, (name, number, term)
