"""Training in several processes, through the real command line under torchrun on gloo."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from test_sft_runs import others
from test_sft_train import FRESH, records

from yaofang.data.records import write_records
from yaofang.glm.loading import load_model
from yaofang.glm.tiny import random_tiny
from yaofang.sft.recipe import load_recipe
from yaofang.sft.train import train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="one process on a CUDA device is no reference for gloo")
LONGEST = 600
"""Seconds that a launch may take; its processes are killed then."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes `full.yaml` and `lora.yaml` with their data and base, and DeepSpeed files beside them."""
    folder = tmp_path_factory.mktemp("torchrun")
    write_records(folder / "train.jsonl", records())
    write_records(folder / "validation.jsonl", others())
    made = random_tiny()
    made.model.save_pretrained(folder / "base")
    made.template.tokenizer.save_pretrained(folder / "base")
    training = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "save_every": 2, "bf16": False}
    common: dict[str, Any] = {
        "data": {"train": str(folder / "train.jsonl"), "max_length": 512},
        "training": training,
        "validation": {"records": str(folder / "validation.jsonl"), "every": 2},
    }
    base = {"path": str(folder / "base")}
    parts = {"full": {"model": {"fresh": FRESH}}, "lora": {"model": base, "lora": {"dropout": 0.0}}}
    for name, part in parts.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | part), encoding="utf-8")
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    for stage in (0, 1):
        value = {**dict.fromkeys(auto, "auto"), "zero_optimization": {"stage": stage}}
        (folder / f"zero{stage}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def started(processes: int, *arguments: str | Path) -> subprocess.Popen[str]:
    """`yaofang sft` in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    line = [*command, "-m", "yaofang.app.cli", "sft", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the launcher and its processes, which have sessions of their own."""
    if process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def launch(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it to its end; nothing of it is left when this returns."""
    with started(processes, *arguments) as process:
        try:
            out, err = process.communicate(timeout=LONGEST)
        finally:
            kill(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def trajectory(out: Path, key: str = "loss") -> list[float]:
    """This figure of each step, as far as it was logged: DeepSpeed tells no gradient norm without ZeRO."""
    state = json.loads((out / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))
    return [row[key] for row in state["log_history"] if "loss" in row and key in row]


def curve(out: Path) -> Any:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))["validation"]


def weights(out: Path) -> str:
    (file,) = out.glob("*.safetensors")
    return sha256(file.read_bytes()).hexdigest()


def alone(place: Path, name: str, overrides: Sequence[str]) -> Path:
    """The folder of the same run in one process."""
    out = place / f"alone-{name}-{'-'.join(overrides)}".replace("/", "_")
    if not out.exists():
        train(load_recipe(str(place / f"{name}.yaml"), overrides), out)
    return out


HALVES = ("training.batch_size=1", "training.accumulation=2", "training.gradient_checkpointing=true")
"""Two processes of these see the batch of 4 of one process."""
PACKED = "data.packing=true"
NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("name", "processes", "overrides", "same"),
    [
        ("lora", 2, (*HALVES, "training.deepspeed=zero2.json"), ()),
        pytest.param("full", 2, HALVES, (), marks=NIGHTLY),
        pytest.param("lora", 2, HALVES, (), marks=NIGHTLY),
        pytest.param("full", 2, ("training.batch_size=1", PACKED), ("training.batch_size=2", PACKED), marks=NIGHTLY),
        pytest.param("full", 2, (*HALVES, "training.deepspeed=zero0.json"), (), marks=NIGHTLY),
        pytest.param("full", 2, (*HALVES, "training.deepspeed=zero1.json"), (), marks=NIGHTLY),
        pytest.param("full", 2, (*HALVES, "training.deepspeed=zero2.json"), (), marks=NIGHTLY),
        pytest.param("full", 2, (*HALVES, "training.deepspeed=zero3.json"), (), marks=NIGHTLY),
        pytest.param("lora", 2, (*HALVES, "training.deepspeed=zero3.json"), (), marks=NIGHTLY),
        pytest.param("lora", 2, ("training.sequence_parallel_size=2", PACKED), (PACKED,), marks=NIGHTLY),
        pytest.param("full", 4, ("training.batch_size=1",), (), marks=NIGHTLY),
        pytest.param("full", 4, ("training.batch_size=1", "training.deepspeed=zero3.json"), (), marks=NIGHTLY),
    ],
)
def test_several_processes_train_as_one_does_and_leave_a_run_that_loads(
    name: str, processes: int, overrides: Sequence[str], same: Sequence[str], place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = launch(processes, "--config", place / f"{name}.yaml", "--out", out, *sets(*overrides))
    assert done.returncode == 0, done.stderr[-4000:]
    expected = alone(place, name, same)
    assert trajectory(out) == pytest.approx(trajectory(expected), rel=1e-5)
    norms = trajectory(out, "grad_norm")
    assert norms == pytest.approx(trajectory(expected, "grad_norm")[: len(norms)], rel=1e-4)
    assert len(norms) == (0 if "training.deepspeed=zero0.json" in overrides else 4)
    assert curve(out) == curve(expected)
    ids = torch.tensor([[5, 6, 7]])
    one, two = (load_model(folder, device="cpu").model(ids).logits for folder in (out, expected))
    torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)


@NIGHTLY
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("full", ()),
        ("lora", ("training.deepspeed=zero2.json",)),
        ("full", ("training.deepspeed=zero3.json",)),
        ("lora", ("training.deepspeed=zero3.json",)),
    ],
)
def test_a_resumed_run_of_two_processes_ends_bit_equal(
    name: str, overrides: Sequence[str], place: Path, tmp_path: Path
) -> None:
    common = ["--config", str(place / f"{name}.yaml"), *sets("training.batch_size=2", *overrides)]
    for line in (
        [*common, "--out", tmp_path / "whole"],
        [*common, "--out", tmp_path / "broken", *sets("training.stop_at=3")],
    ):
        done = launch(2, *line)
        assert done.returncode == 0, done.stderr[-4000:]
    assert not (tmp_path / "broken" / "checkpoints" / "checkpoint-4").exists()
    # What a kill leaves of a checkpoint is passed over by all processes.
    marker = tmp_path / "broken" / "checkpoints" / "checkpoint-3" / "whole.json"
    marker.unlink()
    done = launch(2, *common, "--out", tmp_path / "broken", "--resume")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "checkpoint-3 was not saved whole" in done.stderr
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")


@NIGHTLY
@pytest.mark.parametrize(
    ("name", "overrides"),
    [("full", ()), ("lora", ("training.deepspeed=zero2.json",)), ("full", ("training.deepspeed=zero3.json",))],
)
def test_two_processes_killed_while_they_save_go_on_and_end_bit_equal(
    name: str, overrides: Sequence[str], place: Path, tmp_path: Path
) -> None:
    common = ["--config", str(place / f"{name}.yaml"), *sets("training.batch_size=2", "training.save_every=1", *overrides)]
    assert launch(2, *common, "--out", tmp_path / "whole").returncode == 0
    out, begun = tmp_path / "broken", time.monotonic()
    with started(2, *common, "--out", out) as process:
        while not (out / "checkpoints" / "checkpoint-3").exists() and time.monotonic() < begun + LONGEST:
            time.sleep(0.005)
        kill(process)
        process.communicate()
    assert not (out / "run.json").exists()
    done = launch(2, *common, "--out", out, "--resume")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "going on from" in done.stderr
    assert weights(out) == weights(tmp_path / "whole")
    assert curve(out) == curve(tmp_path / "whole")


@NIGHTLY
def test_an_adapter_on_a_base_in_four_bits_trains_in_two_processes(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    common = ["--config", place / "lora.yaml", "--out", tmp_path / "run", *sets("model.quantize=4bit")]
    done = launch(2, *common, *sets("training.batch_size=2"))
    assert done.returncode == 0, done.stderr[-4000:]
    losses = trajectory(tmp_path / "run")
    assert losses[-1] < losses[0]
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


@NIGHTLY
def test_bad_input_is_said_once_and_ends_all_processes(place: Path, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    done = launch(2, "--config", place / "full.yaml", "--out", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("the run folder is not empty") == 1
    assert "exitcode  : 2" in done.stderr


@NIGHTLY
def test_bad_data_that_each_process_finds_for_itself_is_said_once(place: Path, tmp_path: Path) -> None:
    short = sets("data.max_length=100", "data.answer_tokens=90")
    done = launch(2, "--config", place / "full.yaml", "--out", tmp_path / "run", *short)
    assert done.returncode != 0
    assert done.stderr.count("Make data.max_length larger") == 1
    assert "exitcode  : 2" in done.stderr
