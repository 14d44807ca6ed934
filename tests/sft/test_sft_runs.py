"""Runs that are killed, go on, are validated while they train, and pack their examples."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sft_train import FRESH, records
from transformers import TrainerState

from yaofang.app.cli import main
from yaofang.data.records import Record, write_records
from yaofang.decoding.recommender import Recommender
from yaofang.eval.metrics import jaccard
from yaofang.glm.tiny import random_tiny
from yaofang.sft.build import build_trainer, training_arguments
from yaofang.sft.checkpoints import is_whole, mark, whole_checkpoints
from yaofang.sft.examples import build_examples
from yaofang.sft.parts import Recipe
from yaofang.sft.recipe import find_deepspeed, with_deepspeed_file
from yaofang.sft.start import Start
from yaofang.sft.train import train
from yaofang.sft.validation import check_apart, hold_out, some_of
from yaofang.vocab.errors import InputError

STEPS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with training and validation records, and a small model as a base for adapters."""
    folder = tmp_path_factory.mktemp("runs")
    write_records(folder / "train.jsonl", records())
    write_records(folder / "validation.jsonl", others())
    base = random_tiny(hidden=32)
    base.model.save_pretrained(folder / "base")
    base.template.tokenizer.save_pretrained(folder / "base")
    return folder


def others(count: int = 3) -> list[Record]:
    return [record.model_copy(update={"patient": 100 + n, "id": f"{100 + n}-1"}) for n, record in enumerate(records(count))]


def recipe(place: Path, kind: str = "full", **training: Any) -> Recipe:
    model: dict[str, Any] = {"path": str(place / "base")} if kind == "lora" else {"fresh": dict(FRESH)}
    plan = {"max_steps": STEPS, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "save_every": 1, "bf16": False}
    value: dict[str, Any] = {
        "model": model,
        "data": {"train": str(place / "train.jsonl"), "max_length": 512},
        "training": plan | training,
        "lora": {"dropout": 0.1} if kind == "lora" else None,
    }
    if kind in ("validated", "prefix"):
        value["validation"] = {"records": str(place / "validation.jsonl"), "every": 2}
    if kind == "prefix":
        value["model"]["prefix_lm"] = True
        value["data"]["answer"] = "drugs_only"
    return Recipe.model_validate(value)


def weights(folder: Path) -> str:
    (file,) = folder.glob("*.safetensors")
    return sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def unbroken(place: Path) -> Callable[[str], Path]:
    """The folder of a run that nothing happened to, by its kind."""

    def of(kind: str) -> Path:
        out = place / f"unbroken-{kind}"
        if not out.exists():
            train(recipe(place, kind), out)
        return out

    return of


def killed_while_writing(plan: dict[str, Any], out: Path, moment: str) -> None:
    """Train in this process until it kills itself when half of the file `moment` of checkpoint 3 is written (or deleted)."""

    def half(file: str | Path) -> None:
        if Path(file).name == moment and Path(file).parent.name == "checkpoint-3":
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def after(write: Callable[..., Any], position: int) -> Callable[..., Any]:
        def written(*args: Any, **kwargs: Any) -> Any:
            found = write(*args, **kwargs)
            half(args[position])
            return found

        return written

    def replace(source: Any, target: Any, own: Callable[..., None] = os.replace) -> None:
        half_named = Path(target).name == moment == "whole.json" and Path(target).parent.name == "checkpoint-3"
        if half_named:
            os.kill(os.getpid(), signal.SIGKILL)
        own(source, target)

    def rmtree(folder: Any, *args: Any, own: Callable[..., None] = shutil.rmtree, **kwargs: Any) -> None:
        if Path(folder).name == moment:
            (Path(folder) / "optimizer.pt").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        own(folder, *args, **kwargs)

    import peft.peft_model
    import transformers.modeling_utils

    for module in (transformers.modeling_utils, peft.peft_model):
        module.safe_save_file = after(module.safe_save_file, 1)  # type: ignore[attr-defined]
    torch.save = after(torch.save, 1)
    TrainerState.save_to_json = after(TrainerState.save_to_json, 1)
    os.replace = replace  # type: ignore[assignment]
    shutil.rmtree = rmtree  # type: ignore[assignment]
    train(Recipe.model_validate(plan), out)


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        ("full", "model.safetensors"),
        ("full", "trainer_state.json"),
        ("full", "checkpoint-1"),
        ("lora", "adapter_model.safetensors"),
        ("validated", "whole.json"),
        pytest.param("full", "optimizer.pt", marks=pytest.mark.nightly),
        pytest.param("full", "scheduler.pt", marks=pytest.mark.nightly),
        pytest.param("full", "rng_state.pth", marks=pytest.mark.nightly),
        pytest.param("full", "whole.json", marks=pytest.mark.nightly),
        pytest.param("lora", "optimizer.pt", marks=pytest.mark.nightly),
        pytest.param("lora", "whole.json", marks=pytest.mark.nightly),
        pytest.param("validated", "model.safetensors", marks=pytest.mark.nightly),
    ],
)
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before_and_ends_bit_equal(
    kind: str, moment: str, place: Path, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    expected, plan, out = unbroken(kind), recipe(place, kind), tmp_path / "run"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["yaofang.sft.train"])
    child = context.Process(target=killed_while_writing, args=(plan.model_dump(mode="json"), out, moment))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    torn, left = (1, 3) if moment == "checkpoint-1" else (3, 2)
    assert (out / "checkpoints" / f"checkpoint-{torn}").is_dir()
    assert not is_whole(out / "checkpoints" / f"checkpoint-{torn}")
    assert whole_checkpoints(out / "checkpoints")[-1].name == f"checkpoint-{left}"
    assert not (out / "run.json").exists()
    train(plan, out, resume=True)
    assert weights(out) == weights(expected)
    one, two = (json.loads((folder / "run.json").read_text()).get("validation") for folder in (out, expected))
    assert one == two
    assert (one is None) == (kind != "validated")


def test_a_run_killed_while_its_folder_is_written_is_finished_without_another_step(
    place: Path, unbroken: Callable[[str], Path], tmp_path: Path
) -> None:
    expected, out = unbroken("full"), tmp_path / "run"
    shutil.copytree(expected, out)
    for name in ("run.json", "model.safetensors", "yaofang.json"):
        (out / name).unlink()
    metrics = train(recipe(place), out, resume=True)
    assert weights(out) == weights(expected)
    assert (out / "run.json").exists()
    state = json.loads((out / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert metrics["train_loss"] == pytest.approx(sum(losses) / STEPS)


def test_a_file_of_another_size_makes_a_checkpoint_torn(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    (folder / "global_step1").mkdir(parents=True)
    (folder / "global_step1" / "states.pt").write_bytes(b"12345")
    assert not is_whole(folder)
    mark(folder)
    assert is_whole(folder)
    (folder / "global_step1" / "states.pt").write_bytes(b"123")
    assert not is_whole(folder)


@pytest.mark.parametrize("kind", ["validated", "prefix"])
def test_the_validation_of_a_run_is_what_predict_scores_with_its_folder(kind: str, unbroken: Callable[[str], Path]) -> None:
    out = unbroken(kind)
    found = json.loads((out / "run.json").read_text(encoding="utf-8"))["validation"]
    assert [point["step"] for point in found["curve"]] == [2, 4]
    assert found["jaccard"] == max(point["jaccard"] for point in found["curve"])
    rx = Recommender.from_pretrained(out, device="cpu", strategy="greedy")
    lists = [{drug.label for drug in said.drugs} for said in rx.batch(others())]
    scores = [jaccard(set(record.drugs), drugs) for record, drugs in zip(others(), lists, strict=True)]
    assert found["jaccard"] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    assert found["records"] == len(scores)
    assert weights(out) == weights(out / "checkpoints" / f"checkpoint-{found['step']}")


def test_the_validations_are_in_tensorboard(unbroken: Callable[[str], Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = unbroken("validated")
    (events,) = (out / "checkpoints").rglob("events.out.tfevents*")
    logged = EventAccumulator(str(events))
    logged.Reload()
    curve = json.loads((out / "run.json").read_text(encoding="utf-8"))["validation"]["curve"]
    assert [(point.step, point.value) for point in logged.Scalars("eval/jaccard")] == [
        (point["step"], pytest.approx(point["jaccard"], abs=1e-6)) for point in curve
    ]


def test_a_run_without_progress_stops_early_and_holds_the_weights_of_the_first_of_equals(place: Path, tmp_path: Path) -> None:
    still = recipe(place, learning_rate=1e-9, max_steps=9, save_every=100, warmup=0)
    part = {"share": 0.3, "every": 1, "patience": 2}
    plan = Recipe.model_validate(still.model_dump() | {"validation": part})
    train(plan, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in found["validation"]["curve"]] == [1, 2, 3]
    assert found["validation"]["step"] == 1
    assert found["validation"]["records"] == 2
    assert found["metrics"]["records"] == 6
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [folder.name for folder in whole_checkpoints(checkpoints)] == ["checkpoint-1", "checkpoint-3"]
    assert weights(tmp_path / "run") == weights(checkpoints / "checkpoint-1") != weights(checkpoints / "checkpoint-3")
    (tmp_path / "run" / "run.json").unlink()
    train(plan, tmp_path / "run", resume=True)
    again = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert again["validation"] == found["validation"]


def test_patients_are_held_out_whole_and_the_same_ones_in_any_order() -> None:
    two_visits = [record.model_copy(update={"id": f"{record.patient}-{n}"}) for record in records(10) for n in (1, 2)]
    kept, out = hold_out(two_visits, 0.2)
    assert len(out) == 4
    assert not {record.patient for record in kept} & {record.patient for record in out}
    assert {record.id for record in hold_out(two_visits[::-1], 0.2)[1]} == {record.id for record in out}
    assert some_of(two_visits, 7) == some_of(two_visits, 7)
    assert len(some_of(two_visits, 7)) == 7
    with pytest.raises(InputError, match="none is left to train on"):
        hold_out(records(1), 0.5)


def test_a_record_that_is_trained_on_does_not_validate(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="record 3-1 is trained on too"):
        check_apart(records(8), records(3)[2:])
    with caplog.at_level("WARNING", logger="yaofang"):
        check_apart(records(8), [records(1)[0].model_copy(update={"id": "1-2"})])
    assert "1 numbers of patients" in caplog.text


def test_packed_examples_have_the_loss_and_gradient_of_the_padded_batch(place: Path, tmp_path: Path) -> None:
    logs = []
    for packing in (False, True):
        plan = recipe(place, batch_size=4 if packing else 8, max_steps=3, save_every=3)
        data = plan.data.model_copy(update={"packing": packing})
        out = tmp_path / str(packing)
        train(plan.model_copy(update={"data": data}), out)
        state = json.loads((out / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
        logs.append([(row["loss"], row["grad_norm"]) for row in state["log_history"] if "loss" in row])
    assert len(logs[0]) == 3
    for padded, packed in zip(*logs, strict=True):
        assert packed == pytest.approx(padded, rel=2e-5)


def test_an_example_that_packing_would_cut_is_never_trained_on(place: Path, tmp_path: Path) -> None:
    made = random_tiny()
    examples = build_examples(records(2), made.template, 512)
    plan = recipe(place)
    short = plan.model_copy(update={"data": plan.data.model_copy(update={"packing": True, "max_length": 100})})
    with pytest.raises(AssertionError, match="lost or cut"):
        build_trainer(short, Start(made.model, made.template), examples, training_arguments(short, tmp_path))


def test_muon_deepspeed_and_sequence_parallelism_say_which_processes_they_need(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "zero.json"
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="torchrun"):
        training_arguments(recipe(place, deepspeed=file), tmp_path)
    with monkeypatch.context() as cards:
        cards.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(InputError, match="2 cards are visible"):
            training_arguments(recipe(place), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="muon is for one process, here are 2"):
        training_arguments(recipe(place, optimizer="muon"), tmp_path)
    for kind in ("full", "lora"):
        with pytest.raises(InputError, match=r"over 3 processes: 2 were started.*With 2 processes use 1"):
            training_arguments(recipe(place, kind, sequence_parallel_size=3), tmp_path)


def test_a_deepspeed_file_is_found_beside_the_recipe_and_an_unknown_one_lists_the_known(place: Path, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("{}", encoding="utf-8")
    found = with_deepspeed_file(recipe(place, deepspeed="own.json"), tmp_path).training.deepspeed
    assert found == (tmp_path / "own.json").resolve()
    with pytest.raises(InputError, match=r"no DeepSpeed configuration none\.json.*zero2\.json"):
        find_deepspeed(Path("none.json"), tmp_path)


def test_the_size_of_sequence_parallelism_is_an_option_of_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sft", "--config", "tiny", "--sequence-parallel-size", "2", "--print-config"])
    assert ended.value.code == 0
    assert "sequence_parallel_size: 2" in capsys.readouterr().out
