from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from yaofang.app.inspect import inspect
from yaofang.data.recommendation import Blocked, Diagnosis, Drug, Recommendation
from yaofang.vocab.errors import InputError

RECORDS = [
    {
        "患者序号": 1,
        "就诊标识": "1-1",
        "现病史": "2型糖尿病5年，口服二甲双胍。",
        "出院诊断": ["2型糖尿病", "高尿酸血症"],
        "出院带药列表": ["二甲双胍", "阿卡波糖"],
    },
    {"患者序号": 2, "就诊标识": "2-1", "主诉": "头晕1天", "出院诊断": ["高血压"]},
]
FOUND = [
    Recommendation(
        "1-1",
        (Diagnosis("2型糖尿病", "given"), Diagnosis("高尿酸血症", "given")),
        (Drug("二甲双胍", "二甲双胍", "A10BA02", 0.75, 0.5, 0.0), Drug("雷贝拉唑", "雷贝拉唑", "A02BC04", 0.25, None, 0.0)),
        blocked=(Blocked("格列齐特片", "二甲双胍", "T1", 0.125),),
        versions={"model": "another"},
    ),
    Recommendation("2-1", (Diagnosis("高血压", "given"),), (), versions={"model": "another"}),
]


def run(*arguments: object) -> None:
    """As the command line does, with InputError as it is raised."""
    app = typer.Typer()
    app.command()(inspect)
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    records, details = tmp_path / "records.jsonl", tmp_path / "details.jsonl"
    records.write_text("".join(json.dumps(one) + "\n" for one in RECORDS), encoding="utf-8")
    details.write_text("".join(json.dumps(one.to_json()) + "\n" for one in FOUND), encoding="utf-8")
    return records, details


def test_a_record_on_the_terminal_shows_wrong_and_missed_drugs_first_with_their_reasons(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    records, details = files
    run("--records", records, "--predictions", details, "--record", "1-1")
    lines = capsys.readouterr().out.splitlines()
    drugs = [line for line in lines if line.strip().startswith(("误列", "漏列", "正确"))]
    assert [next(word for word in ("雷贝拉唑", "阿卡波糖", "二甲双胍") if word in line) for line in drugs] == [
        "雷贝拉唑",
        "阿卡波糖",
        "二甲双胍",
    ]
    assert "本例诊断中没有" in drugs[0]
    assert "无指征用药" in drugs[0]
    assert all(part in drugs[2] for part in ("0.750", "0.500", "2型糖尿病"))
    assert any("有指征未用药" in line and "高尿酸血症" in line for line in lines)
    assert any(all(part in line for part in ("格列齐特片", "T1", "0.125")) for line in lines)
    assert any("就诊标识 1-1" in line and "Jaccard 0.333" in line for line in lines)
    (text,) = (line for line in lines if line.startswith("现病史"))
    assert text == "现病史：⟦2型糖尿病⟧(漏1、1)5年，口服⟦二甲双胍⟧(1)。"
    assert "不是处方" in lines[-1]


def test_a_report_of_given_predictions_needs_no_model_and_holds_every_record(files: tuple[Path, Path], tmp_path: Path) -> None:
    records, details = files
    out = tmp_path / "report.html"
    run("--records", records, "--predictions", details, "--out", out)
    html = out.read_text(encoding="utf-8")
    assert html.count("<article") == 2
    assert "没有实际出院带药可核对" in html
    assert "模型：another" in html
    run("--records", records, "--predictions", details, "--out", out, "--limit", 1)
    assert out.read_text(encoding="utf-8").count("<article") == 1


def test_gold_of_another_file_stands_in_place_of_the_records_own(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, details = files
    gold = tmp_path / "gold.json"
    gold.write_text(json.dumps({"1-1": ["二甲双胍", "雷贝拉唑"], "2-1": []}), encoding="utf-8")
    run("--records", records, "--predictions", details, "--gold", gold, "--record", "1-1")
    assert "Jaccard 1.000" in capsys.readouterr().out


def test_without_predictions_the_bundled_model_recommends_and_its_evidence_can_be_asked_for(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run("--records", files[0], "--record", "1-1", "--counterfactuals", "--put-in", "冠心病", "--device", "cpu")
    out = capsys.readouterr().out
    assert "出院带药" in out
    assert "模型依据（反事实）" in out
    changed = [line for line in out.splitlines() if "加上诊断" in line]
    assert changed
    assert all("冠心病" in line for line in changed)


def test_evidence_of_another_model_than_the_one_that_wrote_the_lists_is_refused(files: tuple[Path, Path]) -> None:
    records, details = files
    with pytest.raises(InputError, match="its lists are of model another"):
        run("--records", records, "--predictions", details, "--record", "1-1", "--counterfactuals", "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to show"),
        (("--record", "7-7"), "no record has 就诊标识 7-7"),
        (("--out", "report.pdf"), "the report is a page"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_any_work(
    arguments: tuple[str, ...], message: str, files: tuple[Path, Path]
) -> None:
    with pytest.raises(InputError, match=message):
        run("--records", files[0], "--predictions", files[1], *arguments)


def test_a_record_without_a_recommendation_is_named(files: tuple[Path, Path]) -> None:
    records, details = files
    details.write_text(json.dumps(FOUND[0].to_json()) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="such as 2-1"):
        run("--records", records, "--predictions", details, "--out", details.with_suffix(".html"))
