import csv
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from yaofang.vocab.drugs import COLUMNS, KINDS, TABLE, Drug, Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import read_table
from yaofang.vocab.naming import ROUTES

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ROOT / "data" / "ward" / "tables" / "groups.tsv"
WHO = ROOT.parent / "shared" / "reference" / "who_atc_2026.csv"

MOST_FREQUENT_NAMES = (
    "阿托伐他汀钙片 阿司匹林肠溶片 阿卡波糖 二甲双胍 碳酸钙片 甘精胰岛素 硝苯地平控释片 氨氯地平片 甲钴胺 门冬胰岛素 "
    "瑞巴派特片 依帕司他 雷贝拉唑 美托洛尔缓释片 兰索拉唑 阿法骨化醇 瑞舒伐他汀 氯吡格雷 银杏叶软胶囊 左甲状腺素钠片"
)
COUNTS = [1298, 991, 884, 609, 517, 500, 479, 478, 470, 381, 374, 373, 369, 338, 307, 306, 296, 286, 267, 253]
MOST_FREQUENT = dict(zip(MOST_FREQUENT_NAMES.split(), COUNTS, strict=True))
SEEN_ONCE_NAMES = (
    "脑脉利颗粒 富马酸福伏诺拉生片 非奈利酮 拉坦前列素滴眼液 尼洛替尼 美西律片 甲硫咪唑 安脑丸 洛芬待因片 福辛普利 "
    "头孢克肟 硫必利片 孢克洛缓释片 干扰素凝胶 卡马西平 坦索罗欣胶囊 美金刚 艾曲波帕 艾拉莫德 参仙升脉口服液"
)
SEEN_ONCE = SEEN_ONCE_NAMES.split()
# Combination codes name a class instead of the second substance, a few codes cover more than one substance.
WHO_NAMES_OTHERWISE = {
    "A10BX17": "carfloglitazar",  # chiglitazar
    "C09BA04": "perindopril and diuretics",
    "C09DA01": "losartan and diuretics",
    "C09DA03": "valsartan and diuretics",
    "C09DA04": "irbesartan and diuretics",
    "C02LA51": "reserpine and diuretics, combinations with other drugs",
    "N04BA02": "levodopa and decarboxylase inhibitor",
    "N06CA02": "melitracen and psycholeptics",
    "A12AX": "calcium, combinations with vitamin d and/or other drugs",
    "A11CB": "vitamin a and d in combination",
    "A11EA": "vitamin b-complex, plain",
    "V03AE01": "polystyrene sulfonate",
    "L04AA06": "mycophenolic acid",
    "L01BC53": "tegafur, combinations",
    "A07FA01": "lactic acid producing organisms",
    "A09AA02": "multienzymes (lipase, protease etc.)",
    "A05BA03": "silymarin",
    "H05BA01": "calcitonin (salmon synthetic)",
    "A10AB01": "insulin (human)",
    "A10AC01": "insulin (human)",
    "A10AD01": "insulin (human)",
}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary()


def groups() -> list[dict[str, str]]:
    return [row for _, row in read_table(GROUPS)]


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_vocabulary(path)
    assert caught.value.file == str(path)
    assert caught.value.way_out
    return caught.value


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_bundled_list_has_651_labels_and_holds_the_40_published_ones(vocabulary: Vocabulary) -> None:
    assert len(vocabulary) == len(set(vocabulary.labels)) == 651
    assert [label for label in [*MOST_FREQUENT, *SEEN_ONCE] if label not in vocabulary] == []


def test_labels_have_the_lengths_and_characters_of_the_candidate_list(vocabulary: Vocabulary) -> None:
    assert all(2 <= len(label) <= 15 for label in vocabulary.labels)
    assert not [label for label in vocabulary.labels if re.search(r"[，、,；;\s]", label)]
    assert sum(map(len, vocabulary.labels)) / 651 == pytest.approx(5.3, abs=0.2)
    assert sum(bool(re.search(r"[A-Za-z0-9]", label)) for label in vocabulary.labels) > 20


def test_exactly_one_label_is_a_strict_prefix_of_another(vocabulary: Vocabulary) -> None:
    labels = vocabulary.labels
    pairs = [(a, b) for a in labels for b in labels if a != b and b.startswith(a)]
    assert pairs == [("聚乙二醇", "聚乙二醇洛塞那肽")]


def test_every_column_keeps_to_its_domain(vocabulary: Vocabulary) -> None:
    for drug in vocabulary:
        assert drug.generic.strip(), drug
        assert drug.route in ROUTES, drug
        assert drug.kind in KINDS, drug
        assert drug.kind != "unlinked", drug
        assert drug.atc is None or re.fullmatch(r"[A-Z]\d\d[A-Z][A-Z](\d\d)?|~[A-Z]\d\d[A-Z][A-Z]", drug.atc), drug
        assert drug.atc or drug.kind == "patent_medicine", drug
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9 ()'-]*", name) for name in drug.ingredients), drug
        assert drug.kind == "patent_medicine" or drug.ingredients, drug
        assert drug.form is None or drug.label.endswith(drug.form), drug
    assert 100 <= sum(drug.kind == "patent_medicine" for drug in vocabulary) <= 130


def test_labels_of_one_generic_have_the_same_ingredients(vocabulary: Vocabulary) -> None:
    for drug in vocabulary:
        assert {other.ingredients for other in vocabulary.with_generic(drug.generic)} == {drug.ingredients}
    assert len(vocabulary.with_generic("氯吡格雷")) >= 3
    assert len(vocabulary.with_generic("氨氯地平")) >= 5


@pytest.mark.skipif(not WHO.exists(), reason="../shared/reference/who_atc_2026.csv is absent")
def test_every_atc_code_exists_and_bears_the_name_of_the_ingredients(vocabulary: Vocabulary) -> None:
    with WHO.open(encoding="utf-8", newline="") as handle:
        names: dict[str, set[str]] = {}
        for row in csv.DictReader(handle):
            names.setdefault(row["atc_code"], set()).add(row["atc_name"].lower())
    for drug in vocabulary:
        if drug.atc is None:
            continue
        assert drug.atc.removeprefix("~") in names, drug
        if drug.atc.startswith("~"):
            own = [code for code, found in names.items() if set(drug.ingredients) == found and code[0] == drug.atc[1]]
            assert own == [], drug
            continue
        if drug.atc in WHO_NAMES_OTHERWISE:
            assert WHO_NAMES_OTHERWISE[drug.atc] in names[drug.atc], drug
        else:
            assert all(any(i in name for name in names[drug.atc]) for i in drug.ingredients), (drug, names[drug.atc])


def test_the_groups_cover_every_label_with_the_published_counts(vocabulary: Vocabulary) -> None:
    rows = groups()
    assert {row["label"] for row in rows} == set(vocabulary.labels)
    counts = {row["label"]: int(row["popularity"]) for row in rows}
    assert {label: counts[label] for label in MOST_FREQUENT} == MOST_FREQUENT
    assert {row["note"] for row in rows if row["label"] in SEEN_ONCE} == {"once"}
    assert len({(row["label"], row["popularity"], row["note"]) for row in rows}) == 651


def test_the_groups_follow_the_published_shares_of_head_middle_and_tail() -> None:
    label_rows = {row["label"]: row for row in groups()}.values()
    notes = Counter(row["note"] for row in label_rows)
    assert (notes["once"], notes["test_only"], notes["-"]) == (59, 65, 527)
    counts = sorted((int(row["popularity"]) for row in label_rows if row["note"] == "-"), reverse=True)
    assert sum(counts[:58]) / 58 == pytest.approx(260.7, abs=0.05)
    assert sum(counts[58:]) / 469 == pytest.approx(14.3, abs=0.05)
    assert counts[-1] >= 2


def test_every_group_keeps_a_label_that_is_neither_rare_nor_held_back() -> None:
    rows = groups()
    assert {row["group"] for row in rows} == {row["group"] for row in rows if row["note"] == "-"}


def test_positions_follow_the_order_of_the_list(vocabulary: Vocabulary) -> None:
    assert [vocabulary.index(label) for label in vocabulary.labels] == list(range(651))
    assert vocabulary.drug("诺和灵30R").generic == "人胰岛素30R"
    with pytest.raises(KeyError):
        vocabulary.index("不在表中")


def test_the_version_changes_with_a_row_and_not_with_the_path(vocabulary: Vocabulary, tmp_path: Path) -> None:
    copy = written(tmp_path, "copy.tsv", TABLE.read_text(encoding="utf-8"))
    assert load_vocabulary(copy).version == vocabulary.version
    changed = written(tmp_path, "changed.tsv", TABLE.read_text(encoding="utf-8").replace("A10BF01", "A10BF03", 1))
    assert load_vocabulary(changed).version != vocabulary.version


def test_a_vocabulary_in_memory_refuses_a_label_twice() -> None:
    drug = Drug("阿卡波糖", "阿卡波糖", ("acarbose",), "A10BF01", None, "oral", "drug")
    with pytest.raises(ValueError, match="twice"):
        Vocabulary((drug, drug))


@pytest.mark.parametrize("suffix", ["json", "txt", "tsv"])
def test_a_list_of_ones_own_is_tied_to_generics_in_each_format(tmp_path: Path, suffix: str) -> None:
    names = ["阿卡波糖", "瑞舒伐他汀钙片", "诺和灵50R", "折麦布片", "格列净片"]
    texts = {
        "json": json.dumps(names, ensure_ascii=False),
        "txt": "\r\n".join(names) + "\r\n",
        "tsv": "code\tlabel\n" + "".join(f"{i}\t{name}\n" for i, name in enumerate(names)),
    }
    loaded = load_vocabulary(written(tmp_path, f"list.{suffix}", texts[suffix]))
    assert loaded.labels == tuple(names)
    assert [drug.generic for drug in loaded] == ["阿卡波糖", "瑞舒伐他汀", "人胰岛素50R", "依折麦布", "格列净"]
    assert loaded.drug("瑞舒伐他汀钙片").ingredients == ("rosuvastatin",)
    assert loaded.drug("瑞舒伐他汀钙片").form == "片"
    assert loaded.drug("折麦布片").ingredients == ("ezetimibe",)
    assert loaded.unlinked == ("格列净片",)
    assert loaded.drug("格列净片").ingredients == ()


def test_an_external_ointment_keeps_its_ingredient_but_not_the_tablets_code(tmp_path: Path) -> None:
    drug = load_vocabulary(written(tmp_path, "l.txt", "左氧氟沙星乳膏\n左氧氟沙星胶囊\n")).drugs
    assert (drug[0].route, drug[0].ingredients, drug[0].atc) == ("topical", ("levofloxacin",), None)
    assert (drug[1].route, drug[1].atc) == ("oral", "J01MA12")


def test_a_name_listed_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    error = refused(written(tmp_path, "l.txt", "阿卡波糖\n二甲双胍\n阿卡波糖\n"))
    assert (error.line, error.field) == (3, "name")
    assert "line 1" in error.problem
    error = refused(written(tmp_path, "l.json", '["阿卡波糖",\n "二甲双胍",\n "阿卡波糖"]'))
    assert (error.line, error.field) == (3, "[2]")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("l.txt", "阿卡波糖\n\n二甲双胍\n", 2),
        ("l.json", '["阿卡波糖",\n"  "]', 2),
        ("l.tsv", "label\tx\n阿卡波糖\t1\n\t2\n", 3),
    ],
)
def test_a_blank_name_is_refused(tmp_path: Path, name: str, text: str, line: int) -> None:
    error = refused(written(tmp_path, name, text))
    assert "blank name" in error.problem
    assert error.line == line


@pytest.mark.parametrize("bad", ["阿卡波糖、二甲双胍", "阿卡\\n波糖", "阿卡波糖；", "阿卡\\t波糖", " 阿卡波糖"])
def test_a_name_that_an_answer_could_not_hold_is_refused(tmp_path: Path, bad: str) -> None:
    error = refused(written(tmp_path, "l.json", f'["二甲双胍",\n "{bad}"]'))
    assert (error.line, error.field) == (2, "[1]")


@pytest.mark.parametrize(
    ("text", "line"),
    [('{"drugs": ["阿卡波糖"]}', 1), ('"阿卡波糖"', 1), ('["阿卡波糖",\n 3]', 2), ('["阿卡波糖",\n ["二甲双胍"]]', 2)],
)
def test_json_of_another_shape_is_refused(tmp_path: Path, text: str, line: int) -> None:
    error = refused(written(tmp_path, "l.json", text))
    assert "expected" in error.problem
    assert error.line == line


def test_broken_json_is_refused_with_its_line(tmp_path: Path) -> None:
    error = refused(written(tmp_path, "l.json", '["阿卡波糖"\n "二甲双胍"]'))
    assert "broken JSON" in error.problem
    assert error.line == 2


@pytest.mark.parametrize(("name", "text"), [("l.txt", ""), ("l.json", " \n"), ("l.json", "[]"), ("l.tsv", "label\n")])
def test_an_empty_list_is_refused(tmp_path: Path, name: str, text: str) -> None:
    assert refused(written(tmp_path, name, text)).problem in {
        "the file is empty",
        "the list holds no name",
        "the table has no row",
    }


def test_a_table_without_a_label_column_is_refused(tmp_path: Path) -> None:
    assert refused(written(tmp_path, "l.tsv", "name\n阿卡波糖\n")).field == "label"


@pytest.mark.parametrize(
    ("column", "value"), [("route", "mouth"), ("kind", "herb"), ("atc", "A1"), ("generic", "-"), ("ingredients", "a++b")]
)
def test_a_full_table_with_a_value_outside_its_domain_is_refused(tmp_path: Path, column: str, value: str) -> None:
    row = dict(zip(COLUMNS, ("阿卡波糖", "阿卡波糖", "acarbose", "A10BF01", "-", "oral", "drug"), strict=True))
    row[column] = value
    error = refused(written(tmp_path, "l.tsv", "\t".join(row) + "\n" + "\t".join(row.values()) + "\n"))
    assert (error.line, error.field) == (2, column)


def test_a_file_that_is_missing_a_folder_not_utf8_or_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.txt")
    (tmp_path / "d.txt").mkdir()
    refused(tmp_path / "d.txt")
    (tmp_path / "gbk.txt").write_bytes("阿卡波糖\n二甲双胍\n".encode("gbk"))
    assert refused(tmp_path / "gbk.txt").line == 1
    refused(written(tmp_path, "list.docx", "阿卡波糖"))


def test_loading_is_fast_and_imports_no_heavy_library() -> None:
    code = (
        "import sys, time; from yaofang.vocab import matching, drugs; began = time.process_time(); "
        "drugs.load_vocabulary(); print(time.process_time() - began); "
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    began = time.monotonic()
    seconds = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert seconds < 0.05, f"{seconds} s of CPU; the whole run took {time.monotonic() - began} s"
