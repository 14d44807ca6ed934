"""`yaofang predict` from the command line, with models of random weights: what it writes is always valid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from yaofang.app.cli import main

LABELS = [
    "阿托伐他汀钙片",
    "瑞舒伐他汀",
    "二甲双胍",
    "阿卡波糖",
    "氨氯地平片",
    "硝苯地平控释片",
    "贝那普利",
    "缬沙坦",
    "依帕司他",
]


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def record(number: int, **changes: Any) -> dict[str, Any]:
    value = {"患者序号": number, "就诊标识": f"{number}-1", "性别": "男", "主诉": "口干多饮" * (number % 5 + 1), "BMI": 24.5}
    value |= {"现病史": f"血糖升高{number}年", "出院诊断": ["2型糖尿病", "高血压3级（极高危）"] if number % 2 else []}
    return value | changes


def write(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of one architecture and tokenizer, as folds are."""
    import torch

    from yaofang.glm.tiny import new_model, random_tiny

    torch.set_num_threads(1)
    loaded = random_tiny([*LABELS, "2型糖尿病"], context=1024)
    folders = [tmp_path_factory.mktemp(f"fold{seed}") for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        new_model(loaded.model.config, seed).save_pretrained(folder)
        loaded.template.tokenizer.save_pretrained(folder)
    return folders


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with records.jsonl (5 records) and vocab.json."""
    write(tmp_path / "records.jsonl", [record(number) for number in range(5)])
    (tmp_path / "vocab.json").write_text(json.dumps(LABELS, ensure_ascii=False), encoding="utf-8")
    return tmp_path


def predict(folder: Path, models: list[Path], *more: str | Path, records: str = "records.jsonl") -> int:
    out, vocab = folder / "sub.json", folder / "vocab.json"
    chosen = [word for model in models for word in ("--model", model)]
    if "--strategy" not in more:
        more = (*more, "--strategy", "greedy")  # sampled lists have tests of their own, and take longer
    return run("predict", "--records", folder / records, "--out", out, "--vocab", vocab, "--device", "cpu", *chosen, *more)


def left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {"records.jsonl", "vocab.json"}


def assert_valid(submission: Path, ids: list[str]) -> None:
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary

    vocabulary = load_vocabulary(submission.parent / "vocab.json")
    conflicts = load_conflicts(vocabulary)
    entries = json.loads(submission.read_text(encoding="utf-8"))
    assert [entry["ID"] for entry in entries] == ids
    for entry in entries:
        assert len(set(entry["prediction"])) == len(entry["prediction"])
        assert set(entry["prediction"]) <= set(LABELS)
        for a, b in combinations(entry["prediction"], 2):
            assert conflicts.tiers[vocabulary.index(a), vocabulary.index(b)] != 1


def test_predict_writes_a_valid_submission_and_details_in_the_order_of_the_records(
    files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from yaofang.data.recommendation import Recommendation

    assert predict(files, models[:1], "--details", files / "details.jsonl") == 0
    assert_valid(files / "sub.json", [f"{number}-1" for number in range(5)])
    details = [json.loads(line) for line in (files / "details.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [Recommendation.from_json(value) for value in details]
    entries = json.loads((files / "sub.json").read_text(encoding="utf-8"))
    assert [(one.id, one.labels) for one in found] == [(entry["ID"], entry["prediction"]) for entry in entries]
    assert [{diagnosis.source for diagnosis in one.diagnoses} for one in found][1::2] == [{"given"}, {"given"}]
    assert left(files) == {"sub.json", "details.jsonl"}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "predict 5/5" in captured.err
    assert "diagnoses given for 2, generated for 3" in captured.err


def test_two_model_folders_vote_and_their_lists_are_valid(files: Path, models: list[Path]) -> None:
    assert predict(files, models, "--diagnoses", "generated", "--batch-size", "3", "--details", files / "d.jsonl") == 0
    assert_valid(files / "sub.json", [f"{number}-1" for number in range(5)])
    versions = json.loads((files / "d.jsonl").read_text(encoding="utf-8").splitlines()[0])["versions"]
    assert len(set(versions["model"].split("+"))) == 2


def test_a_journal_in_the_way_is_refused_and_resume_refuses_one_of_other_settings(
    files: Path, models: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        predict_unguarded(files, models[:1])
    assert left(files) == {"sub.json.journal"}
    monkeypatch.undo()
    assert predict(files, models[:1]) == 2
    assert "--resume" in capsys.readouterr().err
    assert predict(files, models[:1], "--resume", "--diagnoses", "generated") == 2
    assert "other settings: diagnoses" in capsys.readouterr().err
    assert predict(files, models[:1], "--resume") == 0
    assert_valid(files / "sub.json", [f"{number}-1" for number in range(5)])
    assert left(files) == {"sub.json"}


def stop_after(monkeypatch: pytest.MonkeyPatch, records: int) -> None:
    """Interrupt the run when so many records are in the journal."""
    from yaofang.data.journal import Journal

    append = Journal.append

    def until(self: Journal, record_id: str, value: dict[str, Any]) -> None:
        if len(self.done()) >= records:
            raise KeyboardInterrupt
        append(self, record_id, value)

    monkeypatch.setattr(Journal, "append", until)


def predict_unguarded(folder: Path, models: list[Path]) -> None:
    from yaofang.app.prediction_job import Job, run
    from yaofang.decoding.settings import Settings

    settings = Settings(strategy="greedy")
    run(Job(folder / "records.jsonl", folder / "sub.json", tuple(models), folder / "vocab.json", settings, device="cpu"))


def test_shares_of_several_ranks_are_disjoint_and_merge_into_what_one_process_writes(
    files: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ranks in this process, one after the other: waiting is left out, so the first must come last."""
    from yaofang.app.shards import Shard

    assert predict(files, models[:1], "--batch-size", "1") == 0
    alone = (files / "sub.json").read_text(encoding="utf-8")
    monkeypatch.setattr(Shard, "wait", lambda self: None)
    monkeypatch.setattr("yaofang.app.prediction_job.joined", lambda: share)
    from contextlib import nullcontext

    share = nullcontext(Shard(1, 2))
    assert predict(files, models[:1], "--batch-size", "1") == 0
    second = (files / "sub.json.journal.1-of-2").read_text(encoding="utf-8")
    assert 0 < len(second.splitlines()) - 1 < 5
    (files / "sub.json").unlink()
    share = nullcontext(Shard(0, 2))
    assert predict(files, models[:1], "--batch-size", "1", "--resume") == 0
    assert (files / "sub.json").read_text(encoding="utf-8") == alone
    assert left(files) == {"sub.json"}


def test_every_record_belongs_to_exactly_one_share() -> None:
    from yaofang.app.shards import Shard

    ids = [f"{patient}-{visit}" for patient in range(200) for visit in (1, 2)]
    shares = [{record_id for record_id in ids if Shard(rank, 4).holds(record_id)} for rank in range(4)]
    assert sum(map(len, shares)) == len(set().union(*shares)) == len(ids)
    assert min(map(len, shares)) > 60
    assert all(Shard().holds(record_id) for record_id in ids)


def command(folder: Path, model: Path) -> list[str]:
    paths = ["--records", folder / "records.jsonl", "--out", folder / "sub.json", "--vocab", folder / "vocab.json"]
    options = ["--model", str(model), "--device", "cpu", "--batch-size", "2", "--strategy", "greedy"]
    return ["-m", "yaofang.app.predict", *map(str, paths), *options]


def test_after_kill_9_resume_loses_and_repeats_nothing(files: Path, models: list[Path]) -> None:
    write(files / "records.jsonl", [record(number) for number in range(120)])
    journal = files / "sub.json.journal"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command(files, models[0])], stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left(files) == {"sub.json.journal"}
    kept = [json.loads(line)["id"] for line in journal.read_bytes().split(b"\n")[1:-1]]
    assert 3 <= len(kept) < 120
    with journal.open("ab") as torn:
        torn.write(b'{"id": "119-1", "val')
    assert predict(files, models[:1], "--resume", "--batch-size", "32") == 0
    assert_valid(files / "sub.json", [f"{number}-1" for number in range(120)])
    assert left(files) == {"sub.json"}


@pytest.mark.nightly
def test_torchrun_with_two_processes_writes_what_one_process_writes(files: Path, models: list[Path]) -> None:
    write(files / "records.jsonl", [record(number) for number in range(12)])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command(files, models[0])], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    together = json.loads((files / "sub.json").read_text(encoding="utf-8"))
    assert left(files) == {"sub.json"}
    assert predict(files, models[:1]) == 0
    assert json.loads((files / "sub.json").read_text(encoding="utf-8")) == together


SHARED = Path(__file__).resolve().parents[3] / "shared"
REAL = SHARED / "real" / "shanghai_t1dm.jsonl"
SPECIFICATION = sorted((SHARED / "specification").glob("000_*.txt"))


@pytest.mark.skipif(not REAL.exists(), reason="../shared/real/shanghai_t1dm.jsonl is absent")
def test_real_stays_give_a_valid_submission(tmp_path: Path, models: list[Path]) -> None:
    out = tmp_path / "sub.json"
    assert run("predict", "--records", REAL, "--out", out, "--model", models[0], "--device", "cpu") == 0
    assert run("data", "check-submission", out, "--records", REAL) == 0
    assert len(json.loads(out.read_text(encoding="utf-8"))) == 16


@pytest.mark.skipif(not SPECIFICATION, reason="../shared/specification is absent")
def test_the_sample_record_of_the_specification_gives_a_valid_submission_once_it_is_valid_json(
    tmp_path: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = SPECIFICATION[0].read_text(encoding="utf-8")
    place = text.index('"就诊标识"')
    sample = text[text.rindex("{", 0, place) : text.index("}", place) + 1]
    records, out = tmp_path / "sample.json", tmp_path / "sub.json"
    command = ("predict", "--records", records, "--out", out, "--model", models[0], "--device", "cpu")
    records.write_text(sample, encoding="utf-8")
    assert run(*command) == 2
    assert f"{records}, line 14: broken JSON" in capsys.readouterr().err
    records.write_text(sample.replace(",...]", "],"), encoding="utf-8")
    assert run(*command) == 0
    assert run("data", "check-submission", out, "--records", records) == 0
    assert json.loads(out.read_text(encoding="utf-8"))[0]["ID"] == "2-1"


BROKEN = '{"患者序号": 9, "就诊标识": "9-1", "主诉": "口干"\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (BROKEN, "line 6: broken JSON"),
        ("[1, 2]\n", "line 6: a record must be an object"),
        ('{"患者序号": 9}\n', "line 6, field 就诊标识: is missing"),
        ('{"患者序号": 9, "就诊标识": "3-1"}\n', "line 6, field 就诊标识: 3-1 is already on line 4"),
        ('{"患者序号": "九", "就诊标识": "9-1"}\n', "line 6, field 患者序号: must be a whole number"),
    ],
)
def test_a_bad_line_ends_predict_with_exit_code_2_and_skip_bad_goes_on_without_it(
    line: str, message: str, files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with (files / "records.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(line)
    assert predict(files, models[:1]) == 2
    error = capsys.readouterr().err
    assert f"{files / 'records.jsonl'}, {message}" in error
    assert left(files) == set()
    assert predict(files, models[:1], "--skip-bad", "--batch-size", "5") == 0
    assert f"skipped: {files / 'records.jsonl'}, {message}" in capsys.readouterr().err
    assert_valid(files / "sub.json", [f"{number}-1" for number in range(5)])


def test_a_record_longer_than_the_context_ends_predict_before_anything_is_written(
    files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """现病史 is cut to fit, and the cut is reported; the demographics are never cut."""
    long = [record(0, 现病史="多饮多尿乏力" * 2000), record(1, 民族="汉族" * 6000), record(2)]
    write(files / "records.jsonl", long)
    assert predict(files, models[:1]) == 2
    error = capsys.readouterr().err
    assert f"{files / 'records.jsonl'}, line 2, field 民族: record 1-1" in error
    assert "--skip-bad" in error
    assert left(files) == set()
    assert predict(files, models[:1], "--skip-bad", "--details", files / "d.jsonl") == 0
    assert "skipped: " in capsys.readouterr().err
    assert_valid(files / "sub.json", ["0-1", "2-1"])
    first = json.loads((files / "d.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert [cut["section"] for cut in first["cuts"]] == ["现病史"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files, folder: (files / "records.jsonl").write_text(""), "the file is empty"),
        (lambda files, folder: (files / "records.jsonl").unlink(), "there is no such file"),
        (lambda files, folder: (files / "vocab.json").write_text('["阿卡波糖", "阿卡波糖"]', encoding="utf-8"), "阿卡波糖"),
        (lambda files, folder: (files / "vocab.json").write_text('["阿卡波糖", " "]', encoding="utf-8"), "vocab.json"),
        (lambda files, folder: (files / "vocab.json").write_text('["阿卡、波糖"]', encoding="utf-8"), "、"),
        (lambda files, folder: (files / "vocab.json").write_text('["阿卡\\n波糖"]', encoding="utf-8"), "vocab.json"),
        (lambda files, folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda files, folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda files, folder: (folder / "config.json").write_text('{"model_type": "chatglm"}'), "glm-4-9b-chat-hf"),
    ],
)
def test_a_bad_file_ends_predict_with_exit_code_2_and_nothing_written(
    spoil: Any, message: str, files: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = files.parent / f"{files.name}-model"
    shutil.copytree(models[0], folder)
    spoil(files, folder)
    assert predict(files, [folder]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("yaofang: ")
    assert left(files) == set()


@pytest.mark.parametrize("out", ["records.jsonl", "no-folder/sub.json", "."])
def test_an_output_that_would_overwrite_the_records_or_cannot_be_written_is_refused(
    out: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (files / "records.jsonl").read_bytes()
    assert run("predict", "--records", files / "records.jsonl", "--out", files / out) == 2
    assert "yaofang: " in capsys.readouterr().err
    assert (files / "records.jsonl").read_bytes() == before
