"""When a training stops, and in which precision it computes.

The loss is TRL's own: what is special in a forward is in `sft.forward`, in several processes in `sft.sequence_parallel`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback


class StopAt(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Ends training after `step` optimiser steps; the schedule is not shortened."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by the trainer before every epoch, a resumed one too."""
        return self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by the trainer after every step."""
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step
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
