"""Recipes: what a training run does, as a YAML file found by name or path, with every key checked.

`--config NAME|PATH` finds the file (a name is looked up in this folder's `recipes/`), `--set key=value` overrides a field
(`--set training.epochs=2`, the value is read as YAML) and an unknown key is an error. Knows nothing of models or data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from yaofang.vocab.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
TINY = "tiny"
"""The recipe of the bundled model."""


class Part(BaseModel):
    """A part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Fresh(Part):
    """A new model of GLM-4's architecture with random weights, and its tokenizer."""

    architecture: Literal["glm", "glm4"] = "glm"
    hidden: int = Field(256, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(8, gt=0)
    kv_heads: int = Field(2, gt=0)
    intermediate: int = Field(640, gt=0)
    context: int = Field(4096, gt=0)
    """Positions the model is made for; training may use fewer."""
    tokenizer_size: int = Field(4096, ge=512)
    """Ranks of the byte-level BPE, trained on the training records and the vocabulary's labels."""


class Model(Part):
    """Which weights to start from: a folder, or a fresh model."""

    path: Path | None = None
    """Folder of a GLM-4 model in the -hf format."""
    fresh: Fresh | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: str = "auto"
    quantize: Literal["8bit", "4bit"] | None = None
    """Load the frozen base in 8 or 4 bits (needs bitsandbytes and lora)."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.fresh is None):
            raise ValueError("give exactly one of model.path and model.fresh")
        return self


class Ward(Part):
    """Training patients from the simulated ward."""

    patients: int = Field(gt=0)
    seed: int = 1


class Data(Part):
    """What to train on: a file of records with drugs, or the simulated ward."""

    train: Path | None = None
    ward: Ward | None = None
    vocabulary: Path | None = None
    """List of labels; None is the bundled one."""
    max_length: int = Field(2048, gt=64)
    """Tokens of prompt, answer and stop id together; longer records are fitted section by section."""
    answer_tokens: int = Field(256, gt=0)
    """Part of `max_length` kept free for the answer, so that prediction can fit records to what training saw."""
    drug_order: Literal["canonical", "as_written"] = "canonical"
    """`canonical`: training frequency, then label."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.ward is None):
            raise ValueError("give exactly one of data.train and data.ward")
        if self.answer_tokens >= self.max_length:
            raise ValueError("data.answer_tokens leaves no room for the record: make data.max_length larger")
        return self


class Lora(Part):
    """A LoRA adapter on GLM-4's linear layers; without this part all weights are trained."""

    r: int = Field(8, gt=0)
    alpha: int = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


class Training(Part):
    """Optimisation, as transformers names it."""

    epochs: float = Field(3, gt=0)
    max_steps: int = -1
    """Stop after this many optimiser steps; -1 trains all epochs."""
    stop_at: int | None = Field(None, gt=0)
    """Stop after this many steps with the learning rate's schedule still that of the whole length; another run goes on."""
    batch_size: int = Field(1, gt=0)
    """Examples a device and forward."""
    accumulation: int = Field(1, gt=0)
    group_by_length: bool = False
    """Batches of examples of like length: less padding, but less of a mixture in a batch."""
    diagnosis_weight: float = Field(1.0, ge=0)
    """Weight of the diagnoses' tokens in the loss; that of the drug list's is 1."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: for a model that is trained from nothing in one process (`sft/optimizer.py`)."""
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: float = Field(0.03, ge=0)
    """Share of the steps (below 1) or number of steps."""
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    bf16: bool = True
    """bfloat16 autocast where the processor has it, else float32. Never float16: it overflows in preference training."""
    gradient_checkpointing: bool = False
    deepspeed: Path | None = None
    """A DeepSpeed JSON file, for runs under torchrun."""
    seed: int = 0
    log_every: int = Field(10, gt=0)
    save_every: int = Field(200, gt=0)

    @model_validator(mode="after")
    def _muon_needs_whole_matrices(self) -> Self:
        if self.optimizer == "muon" and self.deepspeed is not None:
            raise ValueError("training.optimizer muon needs whole matrices: DeepSpeed shards them, take adamw")
        return self


class Recipe(Part):
    """One training run."""

    model: Model
    data: Data
    training: Training = Training()
    lora: Lora | None = None

    @model_validator(mode="after")
    def _quantized_needs_lora(self) -> Self:
        if self.model.quantize and self.lora is None:
            raise ValueError("model.quantize needs the part lora: quantized weights cannot be trained")
        if self.model.fresh and self.lora:
            raise ValueError("lora on a fresh model would leave random weights untrained: remove one of the two")
        return self


def wards(names: Sequence[str] = (TINY,)) -> list[tuple[int, int]]:
    """Patients and seed of the wards that these recipes train on."""
    parts = [load_recipe(name).data.ward for name in names]
    return [(part.patients, part.seed) for part in parts if part is not None]


def find_recipe(name: str) -> Path:
    """The file of a recipe given by name or path. Raises InputError with the names there are."""
    for path in (RECIPES / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise InputError(f"there is no recipe {name}", way_out=f"Give a YAML file or one of: {known}.")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with the overrides applied. Raises InputError naming the file and the key."""
    path = find_recipe(name)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"no valid YAML ({error})", file=path, way_out="Correct the file.") from error
    if not isinstance(value, dict):
        raise InputError("a recipe is a mapping of parts", file=path, way_out="See sft/recipes/tiny.yaml.")
    for override in overrides:
        _set(value, override)
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or None
        raise InputError(first["msg"], file=path, field=key, way_out="See `--print-config` of a recipe that works.") from error


def _set(value: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise InputError(f"--set {override}: not key=value", way_out="For example --set training.epochs=2.")
    *parents, last = key.split(".")
    for parent in parents:
        child = value.get(parent)
        if child is None:
            child = value[parent] = {}
        if not isinstance(child, dict):
            raise InputError(f"--set {override}: {parent} has no fields", way_out="See `--print-config`.")
        value = child
    try:
        value[last] = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: no valid YAML value", way_out="For example --set training.epochs=2.") from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
