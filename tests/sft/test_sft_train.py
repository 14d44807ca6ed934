"""Training through the real trainer, on a few records and a model of some ten thousand parameters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from yaofang.data.answer import drug_frequency, parse
from yaofang.data.records import Record, write_records
from yaofang.glm.loading import load_model
from yaofang.glm.template import ChatTemplate
from yaofang.glm.tiny import random_tiny
from yaofang.sft.checkpoints import mark, whole_checkpoints
from yaofang.sft.examples import build_examples, prompt_budget
from yaofang.sft.parts import Recipe
from yaofang.sft.recipe import dump_recipe, load_recipe
from yaofang.sft.run_folder import check_data, last_checkpoint, open_folder, trained_on, write_start
from yaofang.sft.train import train
from yaofang.vocab.errors import InputError

FRESH = {
    "hidden": 32,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "intermediate": 48,
    "context": 1024,
    "tokenizer_size": 700,
}


def records(count: int = 8) -> list[Record]:
    drugs = [["阿卡波糖", "二甲双胍"], ["阿托伐他汀钙片"], ["甘精胰岛素", "阿卡波糖", "依帕司他"]]
    return [
        Record.model_validate(
            {
                "患者序号": n,
                "就诊标识": f"{n}-1",
                "性别": "女",
                "主诉": "烦渴、多饮5年。",
                "现病史": f"患者{n}年前出现烦渴，" + "血糖控制不佳，" * 40,
                "出院诊断": ["2型糖尿病", "高血压3级（极高危）"],
                "出院带药列表": drugs[n % 3],
            }
        )
        for n in range(1, count + 1)
    ]


def recipe(folder: Path, **changes: object) -> Recipe:
    file = folder / "train.jsonl"
    if not file.exists():
        write_records(file, records())
    value: dict[str, object] = {
        "model": {"fresh": FRESH},
        "data": {"train": str(file), "max_length": 512},
        "training": {
            "max_steps": 4,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "log_every": 1,
            "save_every": 2,
            "bf16": False,
        },
    }
    return Recipe.model_validate(value | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with training records and, in `run`, what `recipe` makes of them."""
    folder = tmp_path_factory.mktemp("finished")
    train(recipe(folder), folder / "run")
    return folder


def template() -> ChatTemplate:
    return random_tiny().template


def test_examples_fit_end_with_the_stop_id_and_tell_what_was_cut() -> None:
    examples = build_examples(records(), template(), 300)
    assert len(examples) == 8
    assert all(len(e.input_ids) <= 300 for e in examples)
    assert {cut.section for e in examples for cut in e.cuts} == {"现病史"}
    whole = build_examples(records(), template(), 4000)
    assert not any(e.cuts for e in whole)


def test_the_trained_part_is_the_answer_in_canonical_order() -> None:
    made = template()
    example = build_examples(records(), made, 600)[1]
    trained = [i for i, bit in zip(example.input_ids, example.completion_mask, strict=True) if bit]
    assert trained[-1] == made.stop_id
    answer = parse(made.decode(trained))
    assert answer.diagnoses == ("2型糖尿病", "高血压3级（极高危）")
    frequency = drug_frequency(records())
    assert list(answer.drugs) == sorted(answer.drugs, key=lambda label: (-frequency[label], label))
    assert answer.drugs[0] == "阿卡波糖"


def test_an_answer_that_cannot_fit_is_an_error_not_a_lost_example() -> None:
    with pytest.raises(InputError):
        build_examples(records(1), template(), 40)


def test_a_label_outside_the_vocabulary_is_refused_with_the_record(tmp_path: Path) -> None:
    bad = records(2)[0].model_copy(update={"drugs": ("不存在的药",)})
    write_records(tmp_path / "train.jsonl", [bad])
    with pytest.raises(InputError, match="'不存在的药' of training record 1-1 is not in the vocabulary"):
        train(recipe(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_records_are_left_out_and_listed_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = records()
    bad = good[0].model_copy(update={"id": "99-1", "patient": 99, "drugs": ("不存在的药",)})
    write_records(tmp_path / "train.jsonl", [bad, *good])
    with caplog.at_level("WARNING", logger="yaofang"):
        metrics = train(recipe(tmp_path), tmp_path / "run", skip_bad=True)
    assert metrics["records"] == len(good)
    assert "99-1" in caplog.text


def test_a_run_lowers_the_loss_and_loads_with_no_other_flag(tmp_path: Path) -> None:
    plan = {"max_steps": 12, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "save_every": 12, "bf16": False}
    metrics = train(recipe(tmp_path, training=plan), tmp_path / "run")
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("*/trainer_state.json")).read_text())
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["records"] == 8
    loaded = load_model(tmp_path / "run", device="cpu")
    assert set(loaded.model.generation_config.eos_token_id) == set(loaded.template.stop_ids)
    assert list((tmp_path / "run" / "checkpoints").rglob("events.out.tfevents*"))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["metrics"]["records"] == 8
    assert run["provenance"]["versions"]["trl"]


def test_a_resumed_run_with_muon_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    plan = recipe(tmp_path, training={**_short(), "max_steps": 4, "optimizer": "muon"})
    train(plan, tmp_path / "broken")
    # Take the run back to its checkpoint at step 2, as if it had been killed after it.
    last = tmp_path / "broken" / "checkpoints" / "checkpoint-4"
    kept = torch.load(last / "optimizer.pt")["state"].values()
    assert any("momentum" in state for state in kept)
    shutil.rmtree(last)
    one = load_model(tmp_path / "broken", device="cpu").model.state_dict()
    (tmp_path / "broken" / "model.safetensors").unlink()
    train(plan, tmp_path / "broken", resume=True)
    two = load_model(tmp_path / "broken", device="cpu").model.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def _short() -> dict[str, object]:
    return {"batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "save_every": 2, "bf16": False}


def test_a_run_folder_in_use_is_refused_without_resume(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").touch()
    with pytest.raises(InputError, match="--resume"):
        train(recipe(tmp_path), tmp_path / "run")


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_the_recipe_for_real_weights_trains_an_adapter_on_a_small_model_of_the_same_layout(
    architecture: str, tmp_path: Path
) -> None:
    made = random_tiny(architecture="glm" if architecture == "glm" else "glm4")
    made.model.save_pretrained(tmp_path / "base")
    made.template.tokenizer.save_pretrained(tmp_path / "base")
    write_records(tmp_path / "train.jsonl", records())
    files = [f"model.path={tmp_path / 'base'}", f"data.train={tmp_path / 'train.jsonl'}", "data.vocabulary="]
    plan = load_recipe("glm4-9b-lora", [*files, "training.max_steps=3", "training.accumulation=2", "training.log_every=1"])
    train(plan, tmp_path / "run")
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    assert not list((tmp_path / "run").glob("model*.safetensors"))
    loaded = load_model(tmp_path / "run", device="cpu")
    ids = torch.tensor([loaded.template.encode("高血压")])
    assert not torch.allclose(loaded.model(ids).logits, made.model(ids).logits)


def test_a_file_in_place_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match="this is a file"):
        train(recipe(tmp_path), tmp_path / "run")


def test_a_checkpoint_torn_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    for step, whole in ((2, True), (10, True), (12, False)):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").touch()
        if whole:
            mark(folder)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "checkpoint-10"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_a_run_stops_at_its_step_with_the_schedule_of_the_whole_length(tmp_path: Path) -> None:
    train(recipe(tmp_path, training={**_short(), "max_steps": 8, "stop_at": 4}), tmp_path / "run")
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert state["max_steps"] == 8
    assert state["log_history"][3]["learning_rate"] > 3e-3


def test_a_step_to_stop_at_beyond_the_end_changes_nothing(tmp_path: Path) -> None:
    train(recipe(tmp_path, training={**_short(), "max_steps": 3, "stop_at": 9}), tmp_path / "run")
    assert [folder.name for folder in whole_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-2", "checkpoint-3"]


def test_a_run_tells_decoding_how_it_was_trained(finished: Path) -> None:
    loaded = load_model(finished / "run", device="cpu")
    data = recipe(finished).data
    assert loaded.prompt_tokens == prompt_budget(loaded.template, data.max_length, data.answer_tokens)
    assert loaded.drug_counts == dict(drug_frequency(records()))
    plan = recipe(finished, model={"fresh": FRESH, "prefix_lm": True}, data=data.model_dump() | {"answer": "drugs_only"})
    said = trained_on(plan, drug_frequency(records()), 7)
    assert (said["prefix_lm"], said["answer"], said["prompt_tokens"]) == (True, "drugs_only", 7)
    assert (loaded.prefix_lm, loaded.answer) == (False, "diagnoses_and_drugs")


def test_a_run_is_not_resumed_with_another_recipe(finished: Path) -> None:
    with pytest.raises(InputError, match="another recipe"):
        train(recipe(finished, training={**_short(), "max_steps": 4, "seed": 7}), finished / "run", resume=True)


def test_a_run_is_not_resumed_with_other_rows(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    rows = (finished / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(rows[1:]), encoding="utf-8")
    same = recipe(finished, training={**_short(), "max_steps": 4})
    other = same.model_copy(update={"data": same.data.model_copy(update={"train": tmp_path / "train.jsonl"})})
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(other), encoding="utf-8")
    with pytest.raises(InputError, match="another training set"):
        train(other, tmp_path / "run", resume=True)


def test_what_a_run_was_started_with_is_named_where_it_is_another(tmp_path: Path) -> None:
    write_start(recipe(tmp_path), {"training set": "a", "validation set": "b"}, tmp_path / "run")
    check_data(tmp_path / "run", {"training set": "a", "validation set": "b"})
    with pytest.raises(InputError, match=r"another training set and another validation set"):
        check_data(tmp_path / "run", {"training set": "c", "validation set": "d"})
    (tmp_path / "run" / "data.json").unlink()
    check_data(tmp_path / "run", {"training set": "c"})
    assert open_folder(recipe(tmp_path), tmp_path / "run", resume=True) is None, "killed between the two files: begun anew"


def test_a_folder_that_holds_no_run_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds no run"):
        train(recipe(tmp_path), tmp_path, resume=True)


@pytest.mark.parametrize("last", ["max_steps", "stop_at"])
def test_a_run_that_ended_within_an_epoch_takes_no_further_step_when_resumed(last: str, tmp_path: Path) -> None:
    steps = {"max_steps": 8, **_short(), last: 3, "schedule": "constant_with_warmup"}
    plan = recipe(tmp_path, training=steps)
    train(plan, tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    before = file.read_bytes()
    train(plan, tmp_path / "run", resume=True)
    assert file.read_bytes() == before
    assert whole_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "checkpoint-3"
