"""`yaofang data`: what each verb writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from yaofang.app.data_verbs import app
from yaofang.data.records import Record, read_records, write_records
from yaofang.data.submission import write_submission
from yaofang.vocab.errors import InputError

DRUGS = ("阿卡波糖", "二甲双胍", "阿托伐他汀钙片")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def as_json(*arguments: object, code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    file = tmp_path / "records.jsonl"
    found = [
        Record(patient=p, id=f"{p}-{v}", chief_complaint="a b c", drugs=DRUGS[: 1 + v]) for p in range(6) for v in range(3)
    ]
    write_records(file, found)
    return file


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_split_writes_folds_with_no_patient_in_two(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "folds"
    found = as_json("split", "--records", records, "--by", "patient", "--folds", 3, "--seed", 1, "--out", out)
    assert (found["records"], found["patients"], len(found["folds"])) == (18, 6, 3)
    valid_ids: list[str] = []
    for row in found["folds"]:
        train = read_records(out / f"fold{row['fold']}.train.jsonl").records
        valid = read_records(out / f"fold{row['fold']}.valid.jsonl").records
        assert (len(train), len(valid)) == (row["train_records"], row["valid_records"]) == (12, 6)
        assert not {record.patient for record in train} & {record.patient for record in valid}
        valid_ids += [record.id for record in valid]
    assert sorted(valid_ids) == sorted(record.id for record in read_records(records).records)
    assert "18 records in 3 folds" in run("split", "--records", records, "--folds", 3, "--out", out).stdout


def test_split_refuses_more_folds_than_patients_and_writes_nothing(records: Path, tmp_path: Path) -> None:
    result = run("split", "--records", records, "--folds", 7, "--out", tmp_path / "folds")
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "folds").exists()


def test_split_lists_what_it_skipped(records: Path, tmp_path: Path) -> None:
    with records.open("a") as handle:
        handle.write("{broken\n")
    arguments = ("split", "--records", records, "--folds", 2, "--out", tmp_path / "folds")
    assert isinstance(run(*arguments).exception, InputError)
    result = run(*arguments, "--skip-bad")
    assert result.exit_code == 0
    assert "skipped" in result.stderr
    assert "line 19" in result.stderr


def test_stats_prints_tables_and_the_same_as_json(records: Path, tokenizer: Path) -> None:
    found = as_json("stats", "--records", records, "--tokenizer", tokenizer)
    assert (found["records"], found["patients"], found["labels_seen"]) == (18, 6, 3)
    assert found["tokens"]["mean"] == 3
    assert found["drugs"]["mean"] == 2
    assert found["frequency"][0] == ["阿卡波糖", 18]
    printed = run("stats", "--records", records, "--tokenizer", tokenizer / "tokenizer.json").stdout
    for text in ("18 records of 6 patients", "P99", "阿卡波糖", "head", "tail", "12"):
        assert text in printed


def test_stats_without_a_tokenizer_says_what_to_give(records: Path, tmp_path: Path) -> None:
    result = run("stats", "--records", records, "--tokenizer", tmp_path)
    assert isinstance(result.exception, InputError)
    assert "--tokenizer" in str(result.exception)


def test_check_submission_accepts_a_good_file(records: Path, tmp_path: Path) -> None:
    file = tmp_path / "sub.json"
    write_submission(file, [(record.id, DRUGS[:2]) for record in read_records(records).records])
    found = as_json("check-submission", file, "--records", records)
    assert (found["valid"], found["entries"], found["problems"]) == (True, 18, [])
    printed = run("check-submission", file, "--records", records).stdout
    assert printed.split()[-4:] == ["valid", "18", "0", "0"]


def test_check_submission_lists_all_problems_and_exits_with_1(records: Path, tmp_path: Path) -> None:
    file = tmp_path / "sub.json"
    write_submission(file, [("0-0", ["没有这种药"]), ("x", DRUGS)])
    found = as_json("check-submission", file, "--records", records, code=1)
    assert not found["valid"]
    assert len(found["problems"]) == 2 + 17
    result = run("check-submission", file, "--records", records)
    assert result.exit_code == 1
    assert "problem: entry 1 (ID 0-0): '没有这种药' is not in the vocabulary" in result.stdout


def test_check_submission_refuses_an_unsafe_file(records: Path, tmp_path: Path) -> None:
    file = tmp_path / "sub.json"
    file.write_text(json.dumps([{"ID": "0-0", "prediction": [], "unsafe": True}]))
    assert isinstance(run("check-submission", file, "--records", records).exception, InputError)


def test_simulate_writes_records_a_board_without_drugs_its_gold_and_the_truth(tmp_path: Path) -> None:
    found = as_json("simulate", "--patients", 30, "--seed", 1, "--out", tmp_path / "ward.jsonl")
    lines = {Path(row["file"]).name: row["lines"] for row in found["files"]}
    assert set(lines) == {"ward.jsonl", "ward.test.jsonl", "ward.test.gold.jsonl", "ward.jsonl.truth.jsonl"}
    board = read_records(tmp_path / "ward.test.jsonl").records
    assert not any(record.drugs for record in board)
    assert len(board) == lines["ward.test.gold.jsonl"]


def test_split_into_a_file_is_an_error_and_leaves_it_alone(records: Path) -> None:
    before = records.read_bytes()
    error = run("split", "--records", records, "--out", records).exception
    assert isinstance(error, InputError)
    assert "this is a file" in str(error)
    assert records.read_bytes() == before


def test_a_submission_of_the_records_that_are_good_is_valid_with_skip_bad(records: Path, tmp_path: Path) -> None:
    write_submission(tmp_path / "sub.json", [(record.id, record.drugs) for record in read_records(records).records])
    with records.open("a", encoding="utf-8") as handle:
        handle.write("{broken\n")
    assert isinstance(run("check-submission", tmp_path / "sub.json", "--records", records).exception, InputError)
    found = as_json("check-submission", tmp_path / "sub.json", "--records", records, "--skip-bad")
    assert (found["valid"], found["entries"]) == (True, 18)
