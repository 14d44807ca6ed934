from __future__ import annotations

import json
from pathlib import Path

import pytest

from yaofang.app.cli import main
from yaofang.app.show import drug_rows
from yaofang.data.recommendation import Blocked, Cut, Diagnosis, Drug, KeptOut, Recommendation, Warning

FOUND = Recommendation(
    id="2-1",
    diagnoses=(Diagnosis("2型糖尿病", "given"), Diagnosis("高脂血症", "generated")),
    drugs=(
        Drug("阿托伐他汀钙片", "阿托伐他汀", "C10AA05", 0.8125, None, 0.01, (KeptOut("瑞舒伐他汀", "T1"),)),
        Drug("依帕司他", "依帕司他", "", 0.25, None, 0.0, (), (Warning("interaction", "T2", "监测血糖", "表"),)),
    ),
    blocked=(Blocked("瑞舒伐他汀", "阿托伐他汀钙片", "T1", 0.125),),
    cuts=(Cut("诊疗过程描述", 120),),
    truncated=True,
)


@pytest.fixture
def details(tmp_path: Path) -> Path:
    file = tmp_path / "details.jsonl"
    other = Recommendation(id="9-1", diagnoses=(), drugs=())
    file.write_text("".join(json.dumps(one.to_json()) + "\n" for one in (FOUND, other)), encoding="utf-8")
    return file


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_the_table_of_a_record_shows_diagnoses_drugs_and_what_was_kept_out(
    details: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", str(details)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("2型糖尿病" in line and "病历给出" in line for line in lines)
    assert any("高脂血症" in line and "模型生成" in line for line in lines)
    assert any("通用名" in line and "ATC" in line and "条件概率" in line and "入选概率" in line for line in lines)
    assert any(all(part in line for part in ("阿托伐他汀钙片", "C10AA05", "0.812")) for line in lines)
    assert any("依帕司他" in line and "[T2] 监测血糖" in line for line in lines)
    assert any(all(part in line for part in ("瑞舒伐他汀", "阿托伐他汀钙片", "T1", "0.125")) for line in lines)


def test_the_table_says_what_is_cut_and_that_it_is_no_prescription(details: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", str(details))
    out = capsys.readouterr().out
    assert "诊疗过程描述 120" in out
    assert "可能不完整" in out
    assert "不是处方" in out
    assert "不表示安全" in out


def test_show_with_json_prints_the_recommendation_alone(details: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", str(details), "--id", "2-1", "--json") == 0
    assert Recommendation.from_json(json.loads(capsys.readouterr().out)) == FOUND


def test_show_finds_a_record_by_its_id(details: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", str(details), "--id", "9-1") == 0
    assert "就诊标识 9-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, (), "there is no such file"),
        ("", (), "the file is empty"),
        ('{"id": "1-1"}\n', (), "line 1: the line is no Recommendation"),
        ("[]\n", (), "line 1: the line is no Recommendation"),
        ("{", (), "line 1: the line is no Recommendation"),
        (json.dumps(FOUND.to_json()), ("--id", "7-7"), "no record has 就诊标识 7-7"),
    ],
)
def test_show_refuses_another_kind_of_file_with_exit_code_2(
    content: str | None, arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "details.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert run("show", str(file), *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_line_break_in_a_given_diagnosis_does_not_break_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "details.jsonl"
    broken = Recommendation(id="3-1", diagnoses=(Diagnosis("慢性肾脏病\n 3期", "given"),), drugs=())
    file.write_text(json.dumps(broken.to_json()) + "\n", encoding="utf-8")
    assert run("show", str(file)) == 0
    assert any("慢性肾脏病 3期" in line and "病历给出" in line for line in capsys.readouterr().out.splitlines())


def test_a_provisional_class_is_marked() -> None:
    drug = Drug(label="依帕司他", generic="依帕司他", atc="~A10XX", p_step=0.5, p_include=None, masked_mass=0.0)
    found = Recommendation(id="1-1", diagnoses=(), drugs=(drug,))
    assert drug_rows(found)[0][3] == "A10XX（暂定）"


def test_the_probability_of_belonging_in_the_list_is_shown_with_where_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drug = Drug("依帕司他", "依帕司他", "", 0.25, 0.625, 0.0)
    for number, versions in enumerate(({"calibration": "abc"}, {})):
        found = Recommendation(id="2-1", diagnoses=(), drugs=(drug,), below_minimum=True, versions=versions)
        file = tmp_path / f"{number}.jsonl"
        file.write_text(json.dumps(found.to_json()) + "\n", encoding="utf-8")
        assert run("show", str(file)) == 0
        out = capsys.readouterr().out
        assert "0.625" in out
        assert ("未校准" in out) == (not versions)
        assert "少于要求的最少数" in out
