"""TRL's SFTTrainer, and what a CPU needs of it.

TRL scores the labelled positions only where Triton is there; elsewhere its fused head scores every position, three quarters
of them the record's. `CpuTrainer` takes the labelled positions' hidden states first, and leaves out the padding mask, which
right padding under causal attention does not need. The loss is the same number (a test holds them together).
It knows nothing of recipes or data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl import SFTTrainer


class PartLoss:
    """The answer's loss with a weight on its diagnoses, as `compute_loss_func` of transformers' trainer.

    `newline` is the id that opens the answer and, the second time, ends its diagnoses.
    """

    def __init__(self, newline: int, diagnosis_weight: float) -> None:
        self.newline = newline
        self.diagnosis_weight = diagnosis_weight

    def weights(self, labels: Tensor) -> Tensor:
        """Weight of each position of `labels` [batch, length]: 1 from the newline on that ends the diagnoses."""
        in_diagnoses = (labels == self.newline).cumsum(dim=1) < 2
        return torch.where(in_diagnoses, self.diagnosis_weight, 1.0)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Weighted sum of the negative log-likelihoods over the number of labelled tokens (or `num_items_in_batch`)."""
        logits, following = outputs.logits[:, :-1].float(), labels[:, 1:]
        losses = cross_entropy(logits.transpose(1, 2), following, reduction="none", ignore_index=-100)
        items = (following != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return (losses * self.weights(labels)[:, 1:]).sum() / torch.as_tensor(items)


class CpuTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """For one process on a CPU. Takes right-padded batches of `input_ids` and `labels`, both [batch, length].

    A `compute_loss_func` must be a `PartLoss`.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean (weighted) negative log-likelihood of the labelled tokens; over `num_items_in_batch` where it is given."""
        assert not return_outputs, "CpuTrainer keeps no logits"
        labels = inputs["labels"][:, 1:]
        answered = labels != -100
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = causal.model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        logits = causal.lm_head(hidden[answered]).float()
        losses = cross_entropy(logits, labels[answered], reduction="none")
        if self.compute_loss_func is not None:
            losses = losses * self.compute_loss_func.weights(inputs["labels"])[:, 1:][answered]
        right = (logits.argmax(-1) == labels[answered]).float().mean()
        self._metrics["train" if model.training else "eval"]["mean_token_accuracy"].append(right.item())
        return losses.sum() / torch.as_tensor(answered.sum() if num_items_in_batch is None else num_items_in_batch)


class StopAt(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Ends training after `step` optimiser steps; the schedule is not shortened."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by the trainer after every step."""
        control.should_training_stop = state.global_step >= self.step
        return control


def autocast(wanted: bool) -> tuple[bool, str]:
    """Whether to train under bfloat16 autocast, and the reason.

    A processor without bfloat16 arithmetic emulates it, many times slower than float32.
    """
    if not wanted:
        return False, "float32: the recipe says so"
    if torch.cuda.is_available():
        return True, "bfloat16 autocast: a CUDA device is here"
    able = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16") if able.get(name)]
    if found:
        return True, f"bfloat16 autocast: the processor has {found[0]}"
    return False, "float32: this processor has no bfloat16 arithmetic"


def trainer_class() -> tuple[type[SFTTrainer], str]:
    """TRL's own trainer on an accelerator or in several processes, else `CpuTrainer`; and the reason."""
    if torch.cuda.is_available():
        return SFTTrainer, "TRL's SFTTrainer: a CUDA device is here"
    if torch.distributed.is_torchelastic_launched():
        return SFTTrainer, "TRL's SFTTrainer: several processes"
    return CpuTrainer, "CpuTrainer: one process on a CPU, only labelled positions are scored"
