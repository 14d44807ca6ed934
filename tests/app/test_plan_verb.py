from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from yaofang.app.plan_verb import plan
from yaofang.data.ward.simulate import simulate
from yaofang.glm.loading import load_model
from yaofang.glm.tiny import random_tiny
from yaofang.vocab.errors import InputError

app = typer.Typer()
app.command()(plan)
runner = CliRunner()
TWO = ["--config", "glm4-9b-lora-2x48gb"]


def test_the_table_names_every_item_the_total_the_verdict_and_where_the_sizes_come_from() -> None:
    done = runner.invoke(app, TWO)
    assert done.exit_code == 0
    for words in ("weights", "activations", "fits on 2 x 48 GB", "the longest data.max_length", "GLM-4-9B's sizes"):
        assert words in done.stdout


def test_json_is_one_document_whose_items_add_up() -> None:
    done = runner.invoke(app, [*TWO, "--json"])
    body = json.loads(done.stdout)
    assert body["total_gb"] == pytest.approx(sum(body["items_gb"].values()))
    assert body["fits"] is True
    assert body["would_fit"] == []
    assert (body["cards"], body["memory_gb"]) == (2, 48)


def test_what_does_not_fit_ends_with_1_and_with_changes_that_fit_when_they_are_typed() -> None:
    small = [*TWO, "--memory-gb", "16", "--json"]
    done = runner.invoke(app, small)
    assert done.exit_code == 1
    changes = json.loads(done.stdout)["would_fit"]
    assert changes
    for change in changes:
        again = runner.invoke(app, [*small, *(word for value in change for word in ("--set", value))])
        assert again.exit_code == 0, change


def test_cards_of_the_command_line_stand_over_the_recipes_and_need_their_memory() -> None:
    found = json.loads(runner.invoke(app, [*TWO, "--cards", "4", "--memory-gb", "80", "--json"]).stdout)
    assert (found["cards"], found["memory_gb"]) == (4, 80)
    assert isinstance(runner.invoke(app, ["--config", "tiny", "--cards", "2"]).exception, InputError)


def test_a_recipe_without_cards_gets_figures_but_no_verdict() -> None:
    done = runner.invoke(app, ["--config", "tiny"])
    assert done.exit_code == 0
    assert "give --memory-gb" in done.stdout
    assert "fits on" not in done.stdout


def test_planning_imports_no_torch() -> None:
    imported = "import sys; from yaofang.sft.memory.plan import plan_config"
    code = f"{imported}; plan_config('glm4-9b-lora'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.nightly
def test_the_launch_line_of_the_recipes_trains_an_adapter_in_two_processes(tmp_path: Path) -> None:
    made = random_tiny()
    made.model.save_pretrained(tmp_path / "base")
    made.template.tokenizer.save_pretrained(tmp_path / "base")
    with (tmp_path / "train.jsonl").open("w", encoding="utf-8") as handle:
        for record in simulate(20, 3).train[:12]:
            handle.write(record.model_dump_json(by_alias=True) + "\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    verb = ["-m", "yaofang.app.cli", "sft", "--config", "glm4-9b-lora-2x48gb", "--out", str(tmp_path / "run")]
    values = [f"model.path={tmp_path / 'base'}", f"data.train={tmp_path / 'train.jsonl'}", "data.vocabulary="]
    values += ["model.dtype=float32", "training.max_steps=2", "training.accumulation=2"]
    sets = [word for value in values for word in ("--set", value)]
    done = subprocess.run(
        [*launch, *verb, *sets], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert load_model(tmp_path / "run", device="cpu").model.peft_config
