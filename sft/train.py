"""Supervised fine-tuning with TRL's SFTTrainer, from a recipe to a run folder that `yaofang predict --model RUN` loads.

A run folder holds the weights (an adapter, or a whole model), the tokenizer, `recipe.yaml`, `checkpoints/` with TensorBoard
logs, and `run.json`, written last: versions, git hash, data hash and the final metrics.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import GenerationConfig
from trl import SFTConfig, SFTTrainer

from yaofang.data.answer import drug_frequency
from yaofang.data.prompts import build_prompt
from yaofang.data.provenance import provenance
from yaofang.data.records import Record, read_records
from yaofang.data.ward.simulate import simulate
from yaofang.decoding.processors import answer_ids
from yaofang.eval.baselines.choice import usable_training
from yaofang.glm.loading import (
    TRAINED,
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
from yaofang.sft.examples import Example, build_examples, prompt_budget
from yaofang.sft.optimizer import muon
from yaofang.sft.recipe import Fresh, Recipe, dump_recipe, load_recipe
from yaofang.sft.trainer import PartLoss, StopAt, autocast, trainer_class
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of, whole_file

log = logging.getLogger(__name__)
TOKENIZER_RECORDS = 20_000
"""A fresh model's tokenizer learns from so many records at most, spread over all."""


@dataclass(frozen=True)
class Start:
    """What training starts from."""

    model: Any
    template: ChatTemplate


def train(
    recipe: Recipe, out: Path, *, resume: bool = False, skip_bad: bool = False, command: str = "yaofang sft"
) -> dict[str, Any]:
    """Run the recipe and write the run folder `out`; returns the final metrics.

    Raises InputError for bad data, a label outside the vocabulary, or a run folder that is already there. With `skip_bad`
    records that cannot be trained on are left out and listed in the log.
    """
    _check_out(out, resume)
    if resume:
        _check_same(recipe, out)
    vocabulary = load_vocabulary(recipe.data.vocabulary)
    records = good_records(recipe, vocabulary, skip_bad)
    start = start_from(recipe, records, vocabulary)
    canonical = recipe.data.drug_order == "canonical"
    answer_ids(start.template)
    plan = recipe.data
    examples = build_examples(records, start.template, plan.max_length, answer_tokens=plan.answer_tokens, canonical=canonical)
    _log_sizes(examples)
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "recipe.yaml") as handle:
        handle.write(dump_recipe(recipe))
    trainer = build_trainer(recipe, start, examples, out)
    result = trainer.train(resume_from_checkpoint=last_checkpoint(out) if resume else None)
    trainer.save_model(str(out))
    if not trainer.is_world_process_zero():
        return dict(result.metrics)
    start.template.tokenizer.save_pretrained(out)
    _name_base(recipe, out)
    prompt_tokens = prompt_budget(start.template, plan.max_length, plan.answer_tokens)
    with whole_file(out / TRAINED) as handle:
        json.dump(trained_on(records, prompt_tokens), handle, ensure_ascii=False)
    metrics = {**result.metrics, "records": len(records), "cut": sum(bool(e.cuts) for e in examples)}
    body = {
        "provenance": provenance(command),
        "data": data_hash(records),
        "vocabulary": vocabulary.version,
        "metrics": metrics,
    }
    with whole_file(out / "run.json") as handle:
        json.dump(body, handle, ensure_ascii=False, indent=1)
    return metrics


def trained_on(records: Sequence[Record], prompt_tokens: int) -> dict[str, Any]:
    """What decoding has to know of a training: how long its prompts were, and how often it saw each drug."""
    return {"prompt_tokens": prompt_tokens, "drug_counts": dict(drug_frequency(records).most_common())}


def last_checkpoint(out: Path) -> str | None:
    """The newest whole checkpoint of a run folder; one torn by a kill lacks its last file."""
    whole = [path.parent for path in (out / "checkpoints").glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _check_out(out: Path, resume: bool) -> None:
    if int(os.environ.get("RANK", "0")):
        return  # another rank's files may be there already
    if out.is_file():
        raise InputError("this is a file", file=out, way_out="Give a folder with --out.")
    if out.exists() and any(out.iterdir()) and not resume:
        raise InputError(
            "the run folder is not empty", file=out, way_out="Go on with --resume, or give another folder with --out."
        )


def _check_same(recipe: Recipe, out: Path) -> None:
    """Refuse to go on with another recipe; how long to train and how often to log and save may change."""
    file = out / "recipe.yaml"
    if not file.exists():
        return
    free = {"training": {"epochs", "max_steps", "stop_at", "log_every", "save_every"}}
    if load_recipe(str(file)).model_dump(exclude=free) != recipe.model_dump(exclude=free):
        way_out = "Give the same recipe, or another folder with --out."
        raise InputError("the run in this folder was started with another recipe", file=file, way_out=way_out)


def good_records(recipe: Recipe, vocabulary: Vocabulary, skip_bad: bool) -> list[Record]:
    """The recipe's records that can be trained on. Raises the first error unless bad records are skipped."""
    if recipe.data.train is None:
        assert recipe.data.ward is not None
        records, errors = simulate(recipe.data.ward.patients, recipe.data.ward.seed).train, []
    else:
        read = read_records(recipe.data.train, skip_bad=skip_bad)
        records, errors = read.records, read.skipped
    good, unusable = usable_training(records, vocabulary, recipe.data.train)
    if unusable and not (skip_bad and good):
        raise unusable[0]
    for error in [*errors, *unusable]:
        log.warning("skipped: %s", error)
    return good


def data_hash(records: Sequence[Record]) -> str:
    """Twelve hex digits over the training records."""
    return sha256_of(*(record.model_dump_json(by_alias=True) for record in records))[:12]


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


def build_trainer(recipe: Recipe, start: Start, examples: Sequence[Example], out: Path) -> SFTTrainer:
    """TRL's trainer over ready ids: it neither tokenises nor truncates anything."""
    plan, cuda = recipe.training, torch.cuda.is_available()
    bf16, precision = autocast(plan.bf16)
    log.info("%s", precision)
    args = SFTConfig(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=plan.epochs,
        max_steps=plan.max_steps,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.schedule,
        warmup_steps=plan.warmup,
        weight_decay=plan.weight_decay,
        adam_beta2=plan.adam_beta2,
        max_grad_norm=plan.max_grad_norm,
        bf16=bf16,
        gradient_checkpointing=plan.gradient_checkpointing,
        deepspeed=None if plan.deepspeed is None else str(plan.deepspeed),
        seed=plan.seed,
        data_seed=plan.seed,
        logging_steps=plan.log_every,
        save_steps=plan.save_every,
        save_total_limit=2,
        report_to=["tensorboard"],
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        max_length=None,
        packing=False,
        completion_only_loss=True,
        train_sampling_strategy="group_by_length" if plan.group_by_length else "random",
    )
    columns = {
        "input_ids": [e.input_ids for e in examples],
        "completion_mask": [e.completion_mask for e in examples],
    }
    kind, reason = trainer_class()
    log.info("%s", reason)
    trainer = kind(
        model=start.model,
        args=args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=start.template.tokenizer,
        peft_config=_lora(recipe),
        callbacks=[] if plan.stop_at is None else [StopAt(plan.stop_at)],
        compute_loss_func=_loss(recipe, start.template),
        optimizer_cls_and_kwargs=_optimizer(recipe),
    )
    assert len(trainer.train_dataset) == len(examples), "an example was lost"
    start.model.generation_config = GenerationConfig(
        eos_token_id=list(start.template.stop_ids), pad_token_id=start.template.pad_id
    )
    return trainer


def _loss(recipe: Recipe, template: ChatTemplate) -> PartLoss | None:
    weight = recipe.training.diagnosis_weight
    return None if weight == 1 else PartLoss(answer_ids(template).newline, weight)


def _optimizer(recipe: Recipe) -> Any:
    """As the trainer takes it: a factory of the optimiser's maker, and its arguments; None is the trainer's AdamW."""
    plan = recipe.training
    if plan.optimizer == "adamw":
        return None
    settings = {"lr": plan.learning_rate, "betas": (0.9, plan.adam_beta2), "weight_decay": plan.weight_decay}
    return (lambda: muon), settings


def _lora(recipe: Recipe) -> LoraConfig | None:
    if recipe.lora is None:
        return None
    part = recipe.lora
    return LoraConfig(
        r=part.r,
        lora_alpha=part.alpha,
        lora_dropout=part.dropout,
        target_modules=list(part.targets),
        task_type="CAUSAL_LM",
    )


def _name_base(recipe: Recipe, out: Path) -> None:
    """Write the base model's absolute path into the adapter, so that the run loads from any folder."""
    file = out / "adapter_config.json"
    if recipe.model.path is None or not file.exists():
        return
    value = json.loads(file.read_text(encoding="utf-8"))
    value["base_model_name_or_path"] = str(recipe.model.path.resolve())
    with whole_file(file) as handle:
        json.dump(value, handle, ensure_ascii=False, indent=1)


def _log_sizes(examples: Sequence[Example]) -> None:
    lengths = sorted(len(e.input_ids) for e in examples)
    cut = sum(bool(e.cuts) for e in examples)
    middle = lengths[len(lengths) // 2]
    log.info("%d examples, median %d tokens, longest %d, %d fitted by cuts", len(lengths), middle, lengths[-1], cut)
