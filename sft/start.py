"""What training starts from: a fresh model with its own tokenizer, or the weights of a folder in training form."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yaofang.data.prompts import build_prompt
from yaofang.data.records import Record
from yaofang.glm.loading import (
    check_folder,
    choose_attention,
    choose_device,
    load_tokenizer,
    quantization,
    read_config,
    read_weights,
)
from yaofang.glm.template import ChatTemplate
from yaofang.glm.tiny import new_model, tiny_config, train_tokenizer
from yaofang.sft.parts import Fresh, Recipe
from yaofang.vocab.drugs import Vocabulary

log = logging.getLogger(__name__)
TOKENIZER_RECORDS = 20_000
"""A fresh model's tokenizer learns from so many records at most, spread over all."""


@dataclass(frozen=True)
class Start:
    """What training starts from."""

    model: Any
    template: ChatTemplate


def start_from(recipe: Recipe, records: Sequence[Record], vocabulary: Vocabulary) -> Start:
    """A fresh model with its own tokenizer, or the weights of a folder in training form."""
    if recipe.model.fresh is not None:
        return _fresh(recipe.model.fresh, records, vocabulary, recipe.training.seed)
    assert recipe.model.path is not None
    folder = recipe.model.path
    check_folder(folder)
    device, _ = choose_device("auto")
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    # Adam needs full precision for the weights that it trains: half precision is for a frozen base under an adapter.
    dtype = named.get(recipe.model.dtype, torch.bfloat16 if recipe.lora and device.type == "cuda" else torch.float32)
    attention, reason = choose_attention(recipe.model.attention, device, dtype)
    log.info("%s", reason)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    options |= quantization(recipe.model.quantize, torch.bfloat16, device)
    return Start(read_weights(folder, read_config(folder)["model_type"], options), ChatTemplate(load_tokenizer(folder)))


def _fresh(fresh: Fresh, records: Sequence[Record], vocabulary: Vocabulary, seed: int) -> Start:
    texts = [text for record in records[:: -(-len(records) // TOKENIZER_RECORDS)] for text in _texts(record)]
    # Labels the training records never hold must still have short codes, so each label is shown to the BPE as a word.
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
