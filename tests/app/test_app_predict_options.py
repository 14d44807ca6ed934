"""The options of `yaofang predict` that say how lists are decoded, on random models and through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_app_predict import LABELS, assert_valid, files, models, predict, record, run, write

__all__ = ["files", "models"]
IDS = [f"{number}-1" for number in range(5)]


def lists(folder: Path) -> list[list[str]]:
    return [entry["prediction"] for entry in json.loads((folder / "sub.json").read_text(encoding="utf-8"))]


def put(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return folder / name


def test_a_formulary_is_all_that_is_prescribed(files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    own = LABELS[2:5]
    assert predict(files, models[:1], "--formulary", put(files, "formulary.json", own)) == 0
    assert {label for one in lists(files) for label in one} <= set(own)
    bad = put(files, "bad.json", [*own, "不存在的药"])
    assert predict(files, models[:1], "--formulary", bad) == 2
    assert "不存在的药 is not in the vocabulary" in capsys.readouterr().err


def test_bans_hold_for_their_record_alone(files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(files, models[:1]) == 0
    free = lists(files)
    banned = {IDS[1]: free[1]}
    assert predict(files, models[:1], "--ban", put(files, "ban.json", banned)) == 0
    after = lists(files)
    assert not set(after[1]) & set(free[1])
    assert [one for at, one in enumerate(after) if at != 1] == [one for at, one in enumerate(free) if at != 1]
    assert predict(files, models[:1], "--ban", put(files, "bad.json", {"1-1": "阿卡波糖"})) == 2
    assert "not an object of lists of labels" in capsys.readouterr().err
    assert predict(files, models[:1], "--ban", put(files, "misspelt.json", {"1_1": ["阿卡波糖"]})) == 2
    assert "no record has 就诊标识 1_1" in capsys.readouterr().err


def test_least_and_most_drugs(files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    details = files / "d.jsonl"
    assert predict(files, models[:1], "--min-drugs", "3", "--max-drugs", "4", "--details", details) == 0
    found = [json.loads(line) for line in details.read_text(encoding="utf-8").splitlines()]
    assert all(3 <= len(one["drugs"]) <= 4 or one["below_minimum"] for one in found)
    assert not any(one["below_minimum"] for one in found)
    only = put(files, "formulary.json", LABELS[:2])
    more = ("--min-drugs", "3", "--formulary", only, "--details", details)
    assert predict(files, models[:1], *more) == 0
    short = [json.loads(line) for line in details.read_text(encoding="utf-8").splitlines()]
    assert all(one["below_minimum"] and len(one["drugs"]) < 3 for one in short), "two labels cannot make three drugs"
    assert predict(files, models[:1], "--min-drugs", "5", "--max-drugs", "4") == 2
    assert "--max-drugs" in capsys.readouterr().err


def test_diagnoses_bound_to_a_list(files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    names = ["2型糖尿病", "高血压3级（极高危）", "2型糖尿病性周围神经病变", "肺炎；胸腔积液"]
    details = files / "d.jsonl"
    bound = put(files, "icd.json", names)
    assert predict(files, models[:1], "--diagnoses", "generated", "--diagnosis-list", bound, "--details", details) == 0
    for line in details.read_text(encoding="utf-8").splitlines():
        found = [diagnosis["name"] for diagnosis in json.loads(line)["diagnoses"]]
        assert found
        assert set(found) <= {*names[:-1], "肺炎，胸腔积液"}, "a separator inside a name is rewritten"
        assert len(set(found)) == len(found)
    whole_text = put(files, "text.json", [*names, "患者因口干多饮十年入院。" * 30])
    assert predict(files, models[:1], "--diagnoses", "generated", "--diagnosis-list", whole_text) == 2
    assert "患者因口干多饮十年入院。患者因口干多饮十… takes" in capsys.readouterr().err


def test_expected_lists_are_valid_repeatable_and_say_how_likely_each_drug_is(files: Path, models: list[Path]) -> None:
    details = files / "d.jsonl"
    more = ("--strategy", "expected", "--samples", "6", "--details", details)
    assert predict(files, models[:1], *more) == 0
    assert_valid(files / "sub.json", IDS)
    first = lists(files)
    for line in details.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        for drug in found["drugs"]:
            assert 0 < drug["p_include"] <= 1
            assert 0 < drug["p_step"] <= 1
        others = {other["label"]: other["p_include"] for other in found["considered"]}
        assert others
        assert not set(others) & {drug["label"] for drug in found["drugs"]}
        assert list(others.values()) == sorted(others.values(), reverse=True)
        assert min(others.values()) >= 0.001
    assert predict(files, models[:1], *more, "--batch-size", "2") == 0
    assert lists(files) == first, "the same draws, whatever the batch"
    assert predict(files, models, *more, "--metric", "f1", "--diagnoses", "generated") == 0
    assert_valid(files / "sub.json", IDS)


def test_prior_correction_needs_a_model_that_knows_its_counts(
    files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(files, models[:1], "--prior-correction", "0.5") == 2
    assert "does not say how often it saw each drug" in capsys.readouterr().err
    known = models[0] / "yaofang.json"
    rare = LABELS[-1]
    counts = {label: 1000 for label in LABELS if label != rare}
    known.write_text(json.dumps({"prompt_tokens": 300, "drug_counts": counts}, ensure_ascii=False), encoding="utf-8")
    try:
        assert predict(files, models[:1], "--max-drugs", "2") == 0
        before = sum(rare in one for one in lists(files))
        assert predict(files, models[:1], "--max-drugs", "2", "--prior-correction", "3") == 0
        assert all(rare in one for one in lists(files)), "a label never seen in training is produced"
        assert before < 5
    finally:
        known.unlink()


def test_a_t2_penalty_lists_fewer_warned_pairs(tmp_path: Path, models: list[Path]) -> None:
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary

    labels = ["氯吡格雷", "阿司匹林肠溶片", "螺内酯", "缬沙坦", "吲达帕胺片", "二甲双胍", "阿卡波糖", "依帕司他", "甲钴胺"]
    vocabulary = load_vocabulary(put(tmp_path, "vocab.json", labels))
    tiers = load_conflicts(vocabulary).tiers
    write(tmp_path / "records.jsonl", [record(number) for number in range(12)])

    def warned() -> int:
        places = [[vocabulary.index(label) for label in one] for one in lists(tmp_path)]
        return sum(int((tiers[one][:, one] == 2).sum()) // 2 for one in places)

    limits = ("--min-drugs", "5", "--max-drugs", "5")
    assert predict(tmp_path, models[:1], *limits) == 0
    before = warned()
    assert predict(tmp_path, models[:1], *limits, "--t2-penalty", "50") == 0
    assert warned() < before


def test_calibrate_writes_a_curve_that_predict_uses(
    tmp_path: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = models[1]
    put(tmp_path, "vocab.json", LABELS)
    known = [
        record(number) | {"出院带药列表": LABELS[number % 3 : number % 3 + 3], "出院诊断": ["2型糖尿病"]}
        for number in range(44)
    ]
    write(tmp_path / "known.jsonl", known)
    write(tmp_path / "records.jsonl", known[:5])
    command = ("calibrate", "--records", tmp_path / "known.jsonl", "--model", folder, "--vocab", tmp_path / "vocab.json")
    try:
        assert run(*command, "--samples", "4", "--device", "cpu", "--json") == 0
        judged = json.loads(capsys.readouterr().out)["judged"]
        assert judged["calibrated"]["ece"] < judged["raw"]["ece"], "a random model is badly calibrated"
        details = tmp_path / "d.jsonl"
        assert predict(tmp_path, [folder], "--strategy", "expected", "--samples", "4", "--details", details) == 0
        found = [json.loads(line) for line in details.read_text(encoding="utf-8").splitlines()]
        assert all("calibration" in one["versions"] for one in found)
    finally:
        (folder / "calibration.json").unlink(missing_ok=True)
    few = write(tmp_path / "few.jsonl", known[:3])
    assert run("calibrate", "--records", few, "--model", folder, "--vocab", tmp_path / "vocab.json") == 2
    assert "at least 20" in capsys.readouterr().err
