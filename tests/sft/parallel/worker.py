"""What the tests of sequence parallelism compare: forwards and trainings, in one process or in several that torchrun starts.

torchrun --standalone --nproc-per-node 2 tests/sft/parallel/worker.py OUT SIZE CASE...
writes what each case found to OUT as JSON; the same functions called in one process give what must come out.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, distributed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from yaofang.glm.loading import LoadedModel
from yaofang.glm.masks import PrefixLM
from yaofang.glm.tiny import Architecture, new_model, random_tiny, tiny_config
from yaofang.sft.forward import wrap_forward, wrap_trainer
from yaofang.sft.objective import Objective, Sparse
from yaofang.sft.sequence_parallel import IMPLEMENTATION, SequenceGroup, parallel_trainer, sequence_group

TEXTS = ["出院诊断：2型糖尿病；高血压", "出院带药：阿卡波糖、二甲双胍、缬沙坦"] * 50
HEADS = 4


@cache
def tiny() -> LoadedModel:
    return random_tiny(TEXTS)


def model(architecture: Architecture = "glm", kv_heads: int = 2, seed: int = 0) -> Any:
    config = tiny_config(
        tiny().template,
        architecture=architecture,
        hidden=32,
        layers=2,
        heads=HEADS,
        kv_heads=kv_heads,
        intermediate=48,
        context=256,
    )
    made = new_model(config, seed)
    with torch.no_grad():
        made.model.norm.weight.mul_(8.0)  # probabilities far from uniform
    return made


def rows(lengths: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and labels of examples of these many characters of record."""
    found = [
        tiny().template.example(
            [{"role": "system", "content": "药师"}, {"role": "user", "content": ("烦渴多饮头晕" * 20)[:length]}],
            ["\n出院带药：", "阿卡波糖" if length % 2 else "缬沙坦", *["、二甲双胍"] * (length % 3)],
        )
        for length in lengths
    ]
    ids = [ids for ids, _ in found]
    return ids, [[i if bit else -100 for i, bit in zip(*pair, strict=True)] for pair in found]


def padded(values: list[list[int]], fill: int) -> Tensor:
    width = max(map(len, values))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in values])


class Odd:
    """An objective that depends on the token, its place in its example and its neighbours."""

    def __call__(self, labels: Tensor, documents: Tensor) -> Tensor:
        return 1 + (labels.clamp(min=0) % 5 + documents).float() / 4

    @staticmethod
    def penalty(labels: Tensor, documents: Tensor) -> Sparse:
        flat = labels.flatten()
        places = (flat != -100).nonzero().flatten().repeat(2)
        tokens = (flat[places] + torch.arange(len(places))) % 900
        return Sparse(places, tokens, (tokens % 7).float() / 7)


@dataclass(frozen=True)
class Forward:
    architecture: Architecture = "glm"
    kv_heads: int = 2
    lengths: tuple[int, ...] = (23, 9)
    packed: bool = False
    prefix: bool = False
    checkpointing: bool = False
    objective: bool = False
    left: bool = False

    def batch(self) -> dict[str, Tensor]:
        ids, labels = rows(list(self.lengths))
        if self.packed:
            positions = [range(len(row)) for row in ids]
            named = {"input_ids": ids, "labels": labels, "position_ids": positions}
            batch = {name: [list(chain.from_iterable(value))] for name, value in named.items()}
            return {name: torch.tensor(value) for name, value in batch.items()}
        present, pad = [[1] * len(row) for row in ids], tiny().template.pad_id
        flip = (lambda rows: [row[::-1] for row in rows]) if self.left else (lambda rows: rows)
        found = [padded(flip(value), fill) for value, fill in ((ids, pad), (labels, -100), (present, 0))]
        found = [tensor.flip(1) if self.left else tensor for tensor in found]
        return dict(zip(("input_ids", "labels", "attention_mask"), found, strict=True))

    def wrapped(self, group: SequenceGroup | None) -> Any:
        made = model(self.architecture, self.kv_heads).train()
        if self.checkpointing:
            made.gradient_checkpointing_enable({"use_reentrant": False})
        add_fused_lm_head(made)
        objective = Objective(Odd(), Odd.penalty, 0.7) if self.objective else None
        wrap_forward(made, objective=objective, prefix=PrefixLM.of(tiny().template) if self.prefix else None, group=group)
        return made

    def run(self, group: SequenceGroup | None) -> dict[str, list[float]]:
        """The loss, each token's score and every gradient, averaged over the processes as engines do."""
        made = self.wrapped(group)
        found = made(**self.batch(), fused_lm_head=True)
        found.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in made.parameters()])
        if group is not None:
            distributed.all_reduce(gradients)
            gradients /= distributed.get_world_size()
        fields = {name: found[name].float().flatten().tolist() for name in ("log_probs", "entropy", "is_top1", "mean_logits")}
        return {"loss": [found.loss.item()], **fields, "gradients": gradients.tolist()}


FORWARDS = {
    "two key-value heads": Forward(),
    "one key-value head": Forward(kv_heads=1),
    "four key-value heads": Forward(kv_heads=4),
    "the 0414 architecture": Forward("glm4"),
    "a length that the size does not divide": Forward(lengths=(24, 8)),
    "packed": Forward(packed=True, lengths=(11, 7, 18)),
    "prefix-LM": Forward(prefix=True),
    "prefix-LM packed": Forward(prefix=True, packed=True, lengths=(11, 8, 18)),
    "checkpointing": Forward(checkpointing=True, packed=True, prefix=True),
    "weights and a penalty": Forward(objective=True),
    "weights and a penalty packed": Forward("glm4", objective=True, packed=True, lengths=(11, 8, 18)),
    "left padding": Forward(left=True),
}


def engine(stage: int | None) -> dict[str, Any] | None:
    """DeepSpeed's settings of a ZeRO stage; None is DDP."""
    if stage is None:
        return None
    return {
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


@dataclass(frozen=True)
class Run:
    """A training by TRL; what it logs is compared."""

    stage: int | None = None
    preferences: bool = False
    packed: bool = False
    prefix: bool = False
    batch: int = 2
    lengths: tuple[int, ...] = (5, 17, 11, 8, 25, 14, 3)
    """Characters of each record; half of them are evaluated on."""

    def settings(self, folder: str, accumulation: int) -> dict[str, Any]:
        return {
            "output_dir": folder,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": True,
            "per_device_train_batch_size": self.batch,
            "per_device_eval_batch_size": self.batch,
            "gradient_accumulation_steps": accumulation,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "max_grad_norm": 1.0,
            "logging_steps": 1,
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "deepspeed": engine(self.stage),
            "ddp_find_unused_parameters": False,
        }

    def run(self, size: int, *, readers: int = 1) -> dict[str, list[float]]:
        """What is logged; `readers` are the groups that read other batches, and accumulation makes up for them."""
        with tempfile.TemporaryDirectory() as folder:
            made = (self._preferences if self.preferences else self._answers)(self.settings(folder, 2 // readers), size)
            made.train()
            assert made.is_deepspeed_enabled == (self.stage is not None)
        logs = made.state.log_history
        names = ("loss", "grad_norm", "eval_loss", "mean_token_accuracy", "entropy", "num_tokens", "rewards/margins")
        return {name: [float(log[name]) for log in logs if name in log] for name in names if any(name in log for log in logs)}

    def _answers(self, settings: dict[str, Any], size: int) -> Any:
        args = SFTConfig(**settings, max_length=64 if self.packed else None, packing=self.packed, completion_only_loss=True)
        group = sequence_group(size, HEADS, 2)
        ids, labels = rows(list(self.lengths))
        masks = [[int(label != -100) for label in row] for row in labels]
        data = Dataset.from_dict({"input_ids": ids, "completion_mask": masks})
        made = parallel_trainer(SFTTrainer, group)(
            model=model(),
            args=args,
            train_dataset=data,
            eval_dataset=data.select(range(len(ids) // 2)),
            processing_class=tiny().template.tokenizer,
        )
        wrap_trainer(made, prefix=PrefixLM.of(tiny().template) if self.prefix else None, group=group)
        return made

    def _preferences(self, settings: dict[str, Any], size: int) -> Any:
        args = DPOConfig(**settings, max_length=None)
        group = sequence_group(size, HEADS, 2)
        ids, labels = rows(list(self.lengths))
        prompts = [row[: sum(label == -100 for label in own)] for row, own in zip(ids, labels, strict=True)]
        chosen = [row[len(prompt) :] for row, prompt in zip(ids, prompts, strict=True)]
        rejected = [[*row[:3], *row[2:]] for row in chosen]
        data = Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected})
        policy = model()
        made = parallel_trainer(ReadyPairs, group)(
            model=policy,
            ref_model=deepcopy(policy),
            args=args,
            train_dataset=data,
            eval_dataset=data.select(range(len(ids) // 2)),
            processing_class=tiny().template.tokenizer,
        )
        wrap_trainer(made, group=group)
        reference = made.accelerator.unwrap_model(made.ref_model)
        assert reference.config._attn_implementation == ("sdpa" if group is None else IMPLEMENTATION)
        return made


class ReadyPairs(DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *args: Any, **settings: Any) -> Dataset:
        return dataset


EIGHT = (5, 17, 11, 8, 25, 14, 3, 20)
RUNS = {
    "answers, DDP": Run(),
    "answers, ZeRO-2": Run(stage=2),
    "answers, ZeRO-3": Run(stage=3),
    "packed prefix-LM, DDP": Run(packed=True, prefix=True, batch=1),
    "preferences, DDP": Run(preferences=True),
    "preferences, ZeRO-2": Run(stage=2, preferences=True),
    "preferences, ZeRO-3": Run(stage=3, preferences=True),
    "answers of two readers, DDP": Run(lengths=EIGHT),
    "answers of two readers, ZeRO-3": Run(stage=3, lengths=EIGHT),
    "preferences of two readers, ZeRO-2": Run(stage=2, preferences=True, lengths=EIGHT),
}


def expected(case: str) -> dict[str, list[float]]:
    """What one process finds without sequence parallelism."""
    return alone(FORWARDS[case] if case in FORWARDS else replace(RUNS[case], stage=None))


@cache
def alone(case: Forward | Run) -> dict[str, list[float]]:
    return case.run(None) if isinstance(case, Forward) else case.run(1)


def found(case: str, size: int) -> dict[str, list[float]]:
    """What a case finds with `size` processes a sequence, in all the processes there are."""
    if case in FORWARDS:
        return FORWARDS[case].run(sequence_group(size, HEADS, FORWARDS[case].kv_heads))
    return RUNS[case].run(size, readers=distributed.get_world_size() // size)


def main(out: str, size: str, *cases: str) -> None:
    from accelerate.state import AcceleratorState

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    results = {}
    for case in cases:
        results[case] = found(case, int(size))
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    if distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(results), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
