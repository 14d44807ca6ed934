"""What training starts from: a fresh model with its own tokenizer, or the weights of a folder in training form.

The folder may be that of a run with LoRA: its adapter is merged into its base's weights in memory, and what is trained (or the
new adapter) comes on top of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from yaofang.data.prompts import build_prompt
from yaofang.data.records import Record
from yaofang.glm.loading import (
    check_folder,
    choose_attention,
    choose_device,
    load_model,
    load_tokenizer,
    quantization,
    read_config,
    read_weights,
)
from yaofang.glm.template import ChatTemplate
from yaofang.glm.tiny import new_model, tiny_config, train_tokenizer
from yaofang.sft.parts import Fresh, Recipe
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

log = logging.getLogger(__name__)
Item = TypeVar("Item")
TOKENIZER_RECORDS = 20_000
"""A fresh model's tokenizer learns from so many records at most, and so many other texts, spread over all."""
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Start:
    """What training starts from."""

    model: Any
    template: ChatTemplate


def start_from(recipe: Recipe, records: Sequence[Record], vocabulary: Vocabulary, texts: Sequence[str] = ()) -> Start:
    """A fresh model with its own tokenizer, or the weights of a folder in training form.

    The tokenizer learns from the records, the labels and `texts`. Raises InputError for a folder without a model, and for an
    adapter that cannot be merged in memory.
    """
    if recipe.model.fresh is not None:
        words = [*(text for record in _spread(records) for text in _texts(record)), *_spread(texts)]
        return _fresh(recipe.model.fresh, words, vocabulary, recipe.training.seed)
    assert recipe.model.path is not None
    folder = recipe.model.path
    check_folder(folder)
    device, _ = choose_device("auto")
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    # Adam needs full precision for the weights that it trains: half precision is for a frozen base under an adapter.
    dtype = named.get(recipe.model.dtype, torch.bfloat16 if recipe.lora and device.type == "cuda" else torch.float32)
    attention, reason = choose_attention(recipe.model.attention, device, dtype)
    log.info("%s", reason)
    if (folder / ADAPTER).exists():
        return _merged(recipe, dtype, attention)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    options |= quantization(recipe.model.quantize, torch.bfloat16, device)
    return Start(read_weights(folder, read_config(folder)["model_type"], options), ChatTemplate(load_tokenizer(folder)))


def _merged(recipe: Recipe, dtype: torch.dtype, attention: str) -> Start:
    """The weights of an adapter's base with the adapter in them, to be trained or to carry another adapter."""
    folder = recipe.model.path
    way_out = f"Merge it first: yaofang merge --model {folder} --out FOLDER, then --set model.path=FOLDER."
    if recipe.model.quantize is not None:
        problem = f"this is an adapter, which cannot be merged into a base in {recipe.model.quantize}"
        raise InputError(problem, file=folder, field="model.quantize", way_out=way_out)
    if is_deepspeed_zero3_enabled():
        problem = "this is an adapter, which cannot be merged into weights that ZeRO-3 has parted"
        raise InputError(problem, file=folder, field="training.deepspeed", way_out=way_out)
    loaded = load_model(folder, device="cpu", dtype=str(dtype).removeprefix("torch."), attention=attention)
    if hasattr(loaded.model.get_base_model(), "hf_quantizer"):
        raise InputError("the adapter's base is stored quantised", file=folder, way_out=way_out)
    model = loaded.model.merge_and_unload()
    model.requires_grad_(True)  # an adapter freezes its base
    log.info("%s: its adapter is merged into the weights that training starts from", folder)
    return Start(model, loaded.template)


def _spread(items: Sequence[Item], most: int = TOKENIZER_RECORDS) -> Sequence[Item]:
    return items[:: -(-len(items) // most) or 1]


def _fresh(fresh: Fresh, texts: Sequence[str], vocabulary: Vocabulary, seed: int) -> Start:
    # Labels the texts never hold must still have short codes, so each label is shown to the BPE as a word.
    labels = [label for label in vocabulary.labels for _ in range(5)]
    # The answer's separators must be one token each, however rare they are in the records.
    fixed = ["\n出院诊断：；", "\n出院带药：、"] * 100
    template = ChatTemplate(train_tokenizer([*texts, *labels, *fixed], fresh.tokenizer_size))
    config = tiny_config(
        template,
        architecture=fresh.architecture,
        hidden=fresh.hidden,
        layers=fresh.layers,
        heads=fresh.heads,
        kv_heads=fresh.kv_heads,
        intermediate=fresh.intermediate,
        context=fresh.context,
    )
    return Start(new_model(config, seed), template)


def _texts(record: Record) -> list[str]:
    """All that a tokenizer will meet: the whole prompt, with the names of its sections, and the answer."""
    turns = [turn["content"] for turn in build_prompt(record).messages]
    return [*turns, *record.diagnoses, *record.drugs]
