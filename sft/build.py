"""TRL's trainer, built from a recipe over ready ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import GenerationConfig
from trl import SFTConfig, SFTTrainer

from yaofang.decoding.processors import answer_ids
from yaofang.glm.template import ChatTemplate
from yaofang.sft.examples import Example
from yaofang.sft.optimizer import muon
from yaofang.sft.parts import Recipe
from yaofang.sft.start import Start
from yaofang.sft.trainer import PartLoss, StopAt, autocast, trainer_class

log = logging.getLogger(__name__)


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
