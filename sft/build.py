"""TRL's trainer, built from a recipe over ready ids."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import GenerationConfig
from trl import SFTConfig, SFTTrainer

from yaofang.glm.loading import read_config
from yaofang.glm.masks import PrefixLM
from yaofang.sft import ranks
from yaofang.sft.checkpoints import WholeCheckpoints
from yaofang.sft.examples import Example
from yaofang.sft.forward import wrap_trainer
from yaofang.sft.objective import Objective
from yaofang.sft.optimizer import muon
from yaofang.sft.parts import Recipe
from yaofang.sft.recipe import find_deepspeed
from yaofang.sft.sequence_parallel import check_size, parallel_trainer, sequence_group
from yaofang.sft.start import Start
from yaofang.sft.trainer import StopAt, autocast
from yaofang.sft.validation import METRIC, Validate, ValidatingTrainer
from yaofang.vocab.errors import InputError

log = logging.getLogger(__name__)


class RunTrainer(ValidatingTrainer):
    """The trainer of a run folder, which says in `run.json` how it was made."""

    def _run_epoch(self, *args: Any, **settings: Any) -> Any:
        """No step more where a resumed run has done them all: transformers looks only after a step."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **settings)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL would write one with every checkpoint."""


def training_arguments(recipe: Recipe, out: Path) -> SFTConfig:
    """TRL's arguments. To be made before a model is loaded: ZeRO-3 parts the weights while they are read.

    Raises InputError for what several processes cannot do, or one alone.
    """
    plan, cuda = recipe.training, torch.cuda.is_available()
    bf16, precision = autocast(plan.bf16)
    log.info("%s", precision)
    _check_processes(recipe)
    return SFTConfig(
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
        deepspeed=None if plan.deepspeed is None else deepspeed_settings(plan.deepspeed),
        seed=plan.seed,
        data_seed=plan.seed,
        logging_steps=plan.log_every,
        save_steps=plan.save_every,
        save_total_limit=None,  # older checkpoints are deleted by WholeCheckpoints
        metric_for_best_model=None if recipe.validation is None else METRIC,
        ddp_find_unused_parameters=False,  # every weight is used in every step
        greater_is_better=None if recipe.validation is None else True,
        report_to=["tensorboard"],
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        max_length=recipe.data.max_length if recipe.data.packing else None,
        packing=recipe.data.packing,
        packing_strategy="bfd",
        completion_only_loss=True,
        train_sampling_strategy="group_by_length" if plan.group_by_length and not recipe.data.packing else "random",
    )


def build_trainer(
    recipe: Recipe,
    start: Start,
    examples: Sequence[Example],
    args: SFTConfig,
    *,
    objective: Objective | None = None,
    shuffle: bool = True,
) -> SFTTrainer:
    """TRL's trainer over ready ids: it neither tokenises nor truncates anything, and no example is lost (asserted).

    Its model scores labelled positions alone, weighted by the objective, under the recipe's masks and sequence parallelism
    (`sft.forward`). Without `shuffle` the examples are taken in their order. Raises InputError for a size of sequence
    parallelism that the processes or the heads do not allow.
    """
    plan, part, config = recipe.training, recipe.validation, start.model.config
    group = sequence_group(plan.sequence_parallel_size, config.num_attention_heads, config.num_key_value_heads)
    if not shuffle:
        args.train_sampling_strategy = "sequential"
    stop = [] if plan.stop_at is None else [StopAt(plan.stop_at)]
    validate = [] if part is None else [Validate(part.every, part.patience)]
    columns = {
        "input_ids": [e.input_ids for e in examples],
        "completion_mask": [e.completion_mask for e in examples],
    }
    trainer = parallel_trainer(RunTrainer, group)(
        model=start.model,
        args=args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=start.template.tokenizer,
        peft_config=_lora(recipe),
        callbacks=[*stop, *validate, WholeCheckpoints()],
        optimizer_cls_and_kwargs=_optimizer(recipe),
    )
    _check_complete(trainer.train_dataset, examples)
    prefix = PrefixLM.of(start.template) if recipe.model.prefix_lm else None
    wrap_trainer(trainer, objective=objective, prefix=prefix, group=group)
    start.model.generation_config = GenerationConfig(
        eos_token_id=list(start.template.stop_ids), pad_token_id=start.template.pad_id
    )
    return trainer


def deepspeed_settings(file: Path) -> dict[str, Any]:
    """The DeepSpeed JSON, with ZeRO-3's weights gathered on saving: a run folder holds a whole model. DeepSpeed is connected.

    Raises InputError if it is no JSON object.
    """
    found = find_deepspeed(file)
    try:
        value: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        value.setdefault("zero_optimization", {})["stage3_gather_16bit_weights_on_model_save"] = True
    except (ValueError, TypeError, AttributeError) as error:
        way_out = "See sft/recipes/zero2.json."
        raise InputError(f"no DeepSpeed configuration ({error})", file=found, way_out=way_out) from error
    import deepspeed

    # Before a model is read under ZeRO-3: the configuration is checked against the number of processes there.
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    return value


def _check_processes(recipe: Recipe) -> None:
    plan = recipe.training
    if plan.optimizer == "muon" and ranks.world() > 1:
        problem = f"muon is for one process, here are {ranks.world()}"
        raise InputError(problem, field="training.optimizer", way_out="Take adamw, or start without torchrun.")
    if plan.deepspeed is not None and not torch.distributed.is_torchelastic_launched():
        way_out = "Start with torchrun --nproc-per-node N -m yaofang.app.cli sft ..., N may be 1."
        raise InputError("DeepSpeed needs torchrun", field="training.deepspeed", way_out=way_out)
    if torch.cuda.device_count() > 1 and not torch.distributed.is_torchelastic_launched():
        problem = f"{torch.cuda.device_count()} cards are visible and there is one process"
        way_out = "Start with torchrun --nproc-per-node N -m yaofang.app.cli sft ..., or show one card: CUDA_VISIBLE_DEVICES=0."
        raise InputError(problem, way_out=way_out)
    if plan.sequence_parallel_size > 1 and (heads := _heads(recipe)):
        check_size(plan.sequence_parallel_size, ranks.world(), *heads)  # once more when the model is there


def _heads(recipe: Recipe) -> tuple[int, int] | None:
    """Attention heads and key-value heads, before any weights are read; None for an adapter, whose base has them."""
    if recipe.model.fresh is not None:
        return recipe.model.fresh.heads, recipe.model.fresh.kv_heads
    if recipe.model.path is None or not (recipe.model.path / "config.json").exists():
        return None
    config = read_config(recipe.model.path)
    return int(config["num_attention_heads"]), int(config["num_key_value_heads"])


def _check_complete(dataset: Dataset, examples: Sequence[Example]) -> None:
    """Assert that what is trained on has every example whole, packed or not."""
    lengths = dataset["seq_lengths"] if "seq_lengths" in dataset.column_names else [[len(ids)] for ids in dataset["input_ids"]]
    found = sorted(length for row in lengths for length in row)
    assert found == sorted(len(e.input_ids) for e in examples), "an example was lost or cut"
    trained = sum(label != -100 for row in dataset["labels"] for label in row)
    assert trained == sum(map(sum, (e.completion_mask for e in examples))), "a trained token was lost"


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
