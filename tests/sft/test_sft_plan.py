from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Glm4Config, GlmConfig

from yaofang.glm.masks import attention_mask
from yaofang.glm.tiny import random_tiny
from yaofang.sft.memory.benchmark import CASES, measure
from yaofang.sft.memory.job import GIB, Job, Sizes, Zero
from yaofang.sft.memory.plan import longest, make_job, model_sizes, plan_config, read_zero, suggestions
from yaofang.sft.memory.step import ITEMS, adapter, kept, peak
from yaofang.sft.parts import Hardware
from yaofang.sft.recipe import RECIPES, load_recipe
from yaofang.vocab.errors import InputError

TOKENS = 96
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
CARDS = ["glm4-9b-lora", "glm4-9b-lora-2x48gb", "glm4-9b-lora-8k", "glm4-9b-qlora-1x24gb"]
CARDS += ["glm4-9b-full-8x80gb-zero3", "glm4-0414-9b-lora"]


def saved_by_autograd(model: Any, *, autocast: bool, mask: Tensor | None) -> list[int]:
    """Bytes that autograd keeps of each layer, weights left out, every storage once."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    layers: list[dict[int, Tensor]] = [{} for _ in base.model.layers]
    place = [-1]
    seen: set[int] = set() if mask is None else {mask.untyped_storage().data_ptr()}

    def pack(tensor: Tensor) -> Tensor:
        where = tensor.untyped_storage().data_ptr()
        if 0 <= place[0] < len(layers) and where not in weights and where not in seen:
            seen.add(where)
            layers[place[0]][where] = tensor
        return tensor

    def enter(number: int) -> Any:
        return lambda *_: place.__setitem__(0, number)

    for number, layer in enumerate(base.model.layers):
        layer.register_forward_pre_hook(enter(number))
    base.model.norm.register_forward_pre_hook(enter(-1))
    ids = torch.arange(TOKENS)[None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", enabled=autocast):
        base.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return [sum(tensor.untyped_storage().nbytes() for tensor in layer.values()) for layer in layers]


@pytest.mark.parametrize(
    ("architecture", "lora", "dropout", "dtype", "autocast", "masked"),
    [
        ("glm", False, 0.0, torch.float32, False, False),
        ("glm", False, 0.0, torch.float32, True, False),
        ("glm", False, 0.0, torch.bfloat16, False, False),
        ("glm4", False, 0.0, torch.float32, False, False),
        ("glm", True, 0.05, torch.float32, False, False),
        ("glm", True, 0.05, torch.bfloat16, True, False),
        ("glm", True, 0.05, torch.float32, True, False),
        ("glm", True, 0.0, torch.float32, False, False),
        ("glm4", True, 0.05, torch.float32, False, False),
        ("glm", False, 0.0, torch.float32, False, True),
        ("glm", True, 0.05, torch.float32, False, True),
    ],
)
def test_the_count_of_a_layer_is_what_autograd_keeps_of_it_byte_by_byte(
    architecture: Any, lora: bool, dropout: float, dtype: torch.dtype, autocast: bool, masked: bool
) -> None:
    model = random_tiny(architecture=architecture).model.to(dtype).train()
    sizes = Sizes.of(model.config.to_dict())
    if lora:
        settings = LoraConfig(r=8, lora_dropout=dropout, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        model = get_peft_model(model, settings).train()
    job = Job(
        batch=1,
        length=TOKENS,
        labelled=8,
        device="cpu",
        weight_bytes=dtype.itemsize,
        autocast=autocast,
        rank=8 if lora else None,
        targets=TARGETS if lora else (),
        dropout=dropout,
        mask=masked,
    )
    found = saved_by_autograd(model, autocast=autocast, mask=attention_mask(TOKENS) if masked else None)
    assert found == [kept(sizes, job, first=True), kept(sizes, job)]


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
@pytest.mark.parametrize("rank", [None, 8])
def test_parameters_are_counted_as_the_model_has_them(architecture: Any, rank: int | None) -> None:
    model = random_tiny(architecture=architecture).model
    sizes = Sizes.of(model.config.to_dict())
    assert sizes.parameters == model.num_parameters()
    if rank is not None:
        made = get_peft_model(model, LoraConfig(r=rank, target_modules=list(TARGETS)))
        job = Job(1, TOKENS, 8, rank=rank, targets=TARGETS)
        assert sizes.layers * adapter(sizes, job) == made.get_nb_trainable_parameters()[0]


def test_the_sizes_without_a_folder_are_those_of_transformers_default_which_is_glm_4_9b() -> None:
    assert Sizes() == Sizes.of(GlmConfig().to_dict())
    assert Sizes.of(Glm4Config().to_dict()).norms == 4
    assert Sizes().parameters == 9_399_951_360


def test_sizes_are_read_from_the_models_folder_and_from_a_fresh_models_part(tmp_path: Path) -> None:
    made = random_tiny(hidden=64, layers=3)
    made.model.config.save_pretrained(tmp_path)
    recipe = load_recipe("glm4-9b-lora", [f"model.path={tmp_path}"])
    assert model_sizes(recipe) == (Sizes.of(made.model.config.to_dict()), str(tmp_path / "config.json"))
    assert "there is no folder" in model_sizes(load_recipe("glm4-9b-lora"))[1]
    tiny = model_sizes(load_recipe("tiny"))[0]
    assert (tiny.hidden, tiny.layers, tiny.vocabulary % 64, tiny.tied) == (320, 2, 0, True)


@pytest.mark.parametrize("name", CARDS)
def test_a_recipe_made_for_cards_fits_on_them_and_on_none_of_a_quarter_of_their_memory(name: str) -> None:
    hardware = load_recipe(name).hardware
    assert hardware is not None
    assert plan_config(name).fits
    small = Hardware(cards=hardware.cards, memory_gb=hardware.memory_gb / 4)
    assert not plan_config(name, hardware=small).fits


def test_the_recipes_for_real_cards_keep_what_their_comments_promise() -> None:
    eight = load_recipe("glm4-9b-lora-8k")
    assert eight.data.max_length - eight.data.answer_tokens >= 8095 + 200
    two = load_recipe("glm4-9b-lora-2x48gb")
    assert (two.data.max_length, two.training.sequence_parallel_size) == (4096, 2)
    for name in CARDS:
        recipe = load_recipe(name)
        assert recipe.hardware is not None
        readers = recipe.hardware.cards // recipe.training.sequence_parallel_size
        assert readers * recipe.training.batch_size * recipe.training.accumulation == 16


@pytest.mark.parametrize(
    ("change", "item"),
    [
        ("training.gradient_checkpointing=true", "activations"),
        ("data.max_length=1024", "activations"),
        ("training.sequence_parallel_size=2", "activations"),
        ("model.quantize=4bit", "weights"),
        ("lora.r=4", "optimizer"),
    ],
)
def test_what_saves_memory_saves_it_where_it_should(change: str, item: str) -> None:
    start = ["training.gradient_checkpointing=false", "training.sequence_parallel_size=1"]
    before = plan_config("glm4-9b-lora-2x48gb", start)
    after = plan_config("glm4-9b-lora-2x48gb", [*start, change])
    assert after.items[item] < 0.8 * before.items[item]
    assert after.total < before.total


def test_zero_stages_share_out_the_states_then_the_weights() -> None:
    sizes, plain = Sizes(), Job(1, 2048, 320, checkpointing=True, cards=8)
    two = peak(sizes, Job(1, 2048, 320, checkpointing=True, cards=8, zero=Zero(2, 10**8, 10**8)))[1]
    three = peak(sizes, Job(1, 2048, 320, checkpointing=True, cards=8, zero=Zero(3, 10**8, 10**8, 10**9)))[1]
    assert two["weights"] == pytest.approx(8 * three["weights"])
    assert two["optimizer"] == pytest.approx(12 * sizes.parameters / 8)
    assert sum(three.values()) < sum(two.values()) < sum(peak(sizes, plain)[1].values())


def test_each_suggestion_fits_when_it_is_followed() -> None:
    large = ["training.gradient_checkpointing=false", "training.batch_size=4"]
    hardware = load_recipe("glm4-9b-lora-8k").hardware
    found = suggestions("glm4-9b-lora-8k", large, hardware)
    assert ["training.gradient_checkpointing=true"] in found
    assert all(plan_config("glm4-9b-lora-8k", [*large, *change], hardware).fits for change in found)


def test_changes_are_taken_together_where_none_is_enough_alone() -> None:
    hardware = Hardware(cards=1, memory_gb=16)
    large = ["training.sequence_parallel_size=1", "training.gradient_checkpointing=false"]
    found = suggestions("glm4-9b-lora-8k", large, hardware)
    assert found[0] == ["training.gradient_checkpointing=true", "model.quantize=4bit"]


def test_the_longest_length_fits_and_the_next_does_not() -> None:
    hardware = Hardware(cards=1, memory_gb=24)
    length = longest("glm4-9b-lora", [], hardware)
    assert length is not None
    assert plan_config("glm4-9b-lora", [f"data.max_length={length}"], hardware).fits
    assert not plan_config("glm4-9b-lora", [f"data.max_length={length + 64}"], hardware).fits
    assert longest("glm4-9b-lora", [], Hardware(cards=1, memory_gb=12)) is None


def test_an_item_of_a_plan_is_never_nothing_and_stands_in_order() -> None:
    found = list(plan_config("glm4-9b-full-8x80gb-zero3").items)
    assert found == [item for item in ITEMS if item in found]
    assert min(plan_config("glm4-9b-full-8x80gb-zero3").items.values()) > 0


def test_a_deepspeed_file_is_read_with_auto_and_defaults_and_its_offload_moves_states_to_the_host(tmp_path: Path) -> None:
    assert read_zero(Path("zero3.json"), Sizes()).reduce_bucket == 4096**2
    assert read_zero(Path("zero2.json"), Sizes()).stage == 2
    body = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    (tmp_path / "own.json").write_text(json.dumps(body))
    found = plan_config("glm4-9b-full-8x80gb-zero3", [f"training.deepspeed={tmp_path / 'own.json'}"])
    assert "optimizer" not in found.items
    assert found.host == 16 * found.sizes.parameters


def test_bad_deepspeed_files_and_sizes_of_sequence_parallelism_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no DeepSpeed configuration"):
        plan_config("glm4-9b-full-8x80gb-zero3", ["training.deepspeed=nowhere.json"])
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(InputError, match="no DeepSpeed configuration"):
        plan_config("glm4-9b-full-8x80gb-zero3", [f"training.deepspeed={tmp_path / 'bad.json'}"])
    with pytest.raises(InputError, match="3 processes to a sequence"):
        plan_config("glm4-9b-lora-2x48gb", ["training.sequence_parallel_size=3"])


def test_without_cards_a_plan_gives_no_verdict(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    value = yaml.safe_load((RECIPES / "glm4-9b-lora.yaml").read_text(encoding="utf-8"))
    del value["hardware"]
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    found = plan_config(str(file))
    assert found.fits is None
    assert found.total > 18 * GIB


def test_every_case_of_the_benchmark_is_a_recipe_that_can_be_planned() -> None:
    for case in CASES.values():
        job = make_job(case.recipe(), cards=case.processes, device="cpu", autocast=False)
        assert (job.length, job.labelled, job.weight_bytes) == (case.length, case.labelled, 4)


def test_a_recipe_of_pretraining_is_planned_with_every_token_labelled() -> None:
    found = plan_config("glm4-9b-pretrain-lora")
    assert found.job.scored == found.job.length == 4096
    assert found.fits
    with pytest.raises(InputError, match=r"data\.nothing"):
        plan_config("glm4-9b-lora", ["data.nothing=1"])


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["full", "lora_checkpointing", "shared_full"])
def test_a_training_processs_peak_is_predicted_within_15_percent(name: str) -> None:
    assert abs(measure([name])["cases"][name]["error"]) < 0.15
