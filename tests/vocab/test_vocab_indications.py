"""Which diagnosis carries which drug: recognition of written diagnoses, strengths, and that the tables hold together."""

from __future__ import annotations

from pathlib import Path

import pytest

from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.indications import STRENGTHS, TABLES, Indications, load_indications


@pytest.fixture(scope="module")
def tables() -> Indications:
    return load_indications()


def test_the_tables_have_the_size_that_the_documents_promise(tables: Indications) -> None:
    assert sum(bool(rows) for rows in tables.rows.values()) >= 300
    wordings = [name for one in tables.diagnoses.values() for name in (one.name, *one.synonyms)]
    assert len(set(wordings)) == len(wordings)
    assert sum(one.icd10 is not None for one in tables.diagnoses.values()) >= 0.9 * len(tables.diagnoses)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2型糖尿病", "2型糖尿病"),
        ("Ⅱ型糖尿病", "2型糖尿病"),
        ("高血压3级（极高危）", "高血压"),
        ("高血压病 3级", "高血压"),
        ("冠心病 不稳定型心绞痛", "不稳定型心绞痛"),
        ("T2DM", "2型糖尿病"),
    ],
)
def test_a_written_diagnosis_is_recognised(written: str, expected: str, tables: Indications) -> None:
    assert any(expected in name or name in expected for name in tables.recognise(written)), tables.recognise(written)


@pytest.mark.parametrize("written", ["脑梗死？", "高血压待排", "排除高血压", "否认高血压", "糖尿病家族史"])
def test_a_diagnosis_in_doubt_or_denied_names_none(written: str, tables: Indications) -> None:
    assert tables.recognise(written) == ()


def test_a_word_inside_a_longer_diagnosis_is_not_counted_again(tables: Indications) -> None:
    assert "贫血" not in tables.recognise("缺铁性贫血")
    assert tables.recognise("肾性贫血") != tables.recognise("缺铁性贫血")
    assert tables.recognise("没有这种诊断名") == ()


@pytest.mark.parametrize(
    ("diagnosis", "generic"),
    [
        ("2型糖尿病", "二甲双胍"),
        ("糖尿病周围神经病变", "甲钴胺"),
        ("高血压3级（极高危）", "氨氯地平"),
        ("高脂血症", "阿托伐他汀"),
        ("甲状腺功能减退症", "左甲状腺素"),
        ("骨质疏松症", "碳酸钙D3"),
        ("慢性肾脏病3期", "缬沙坦"),
        ("脑梗死", "氯吡格雷"),
        ("痛风", "非布司他"),
        ("缺铁性贫血", "琥珀酸亚铁"),
    ],
)
def test_a_diagnosis_carries_the_drug_that_it_is_treated_with(diagnosis: str, generic: str, tables: Indications) -> None:
    found = tables.carries(diagnosis, generic)
    assert found is not None
    assert found.strength in STRENGTHS
    assert ":" in found.source


@pytest.mark.parametrize(
    ("diagnosis", "generic"),
    [
        ("甲状腺功能减退症", "甲巯咪唑"),
        ("2型糖尿病", "左甲状腺素"),
        ("痛风", "二甲双胍"),
        ("癫痫", "阿卡波糖"),
        ("高血压", "舍曲林"),
    ],
)
def test_a_diagnosis_does_not_carry_a_drug_for_something_else(diagnosis: str, generic: str, tables: Indications) -> None:
    assert tables.carries(diagnosis, generic) is None


def test_nearly_every_drug_of_the_list_is_carried_by_some_diagnosis(tables: Indications) -> None:
    drugs = [drug for drug in load_vocabulary() if drug.kind == "drug"]
    names = [name for name in tables.rows]
    alone = [drug.label for drug in drugs if not any(tables.carries(name, drug) for name in names)]
    assert len(alone) <= 0.05 * len(drugs), alone


def test_a_patent_medicine_is_never_the_first_line(tables: Indications) -> None:
    generics = {drug.generic for drug in load_vocabulary() if drug.kind == "patent_medicine"}
    rows = [row for found in tables.rows.values() for row in found if row.drug in generics]
    assert rows
    assert {row.strength for row in rows} == {"adjunct"}


def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    (tmp_path / "diagnoses.tsv").write_text("diagnosis\tsynonyms\ticd10\n痛风\t-\tM10.9\n", encoding="utf-8")
    for row, field in {
        "通风\t非布司他\tcommon\t甲: 乙": "diagnosis",
        "痛风\t没有这种药\tcommon\t甲: 乙": "drug",
        "痛风\tatc:XX\tcommon\t甲: 乙": "drug",
        "痛风\t非布司他\toften\t甲: 乙": "strength",
        "痛风\t非布司他\tcommon\t甲": "source",
    }.items():
        (tmp_path / "indications.tsv").write_text(f"diagnosis\tdrug\tstrength\tsource\n{row}\n", encoding="utf-8")
        load_indications.cache_clear()
        with pytest.raises(InputError) as caught:
            load_indications(tmp_path)
        assert (caught.value.line, caught.value.field) == (2, field)
    assert (TABLES / "indications.tsv").exists()
