"""Each merged matrix against base + adapter, by what it makes of fixed random vectors.

Logits tell whether the model as a whole says the same; in half precision the adapter's effect on them through one layer may
drown in rounding. A matrix is compared with the sum of base and change rounded once, as merging does it, so a layer that was
left out shows whatever the format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from yaofang.sft.merging.adapter import PREFIX
from yaofang.vocab.errors import InputError

VECTORS = 4
TOLERANCE = 0.05
"""Of the change's own effect on the vectors. Merging does the same sum: the difference is zero where nothing went wrong."""


@dataclass(frozen=True)
class Product:
    """(W + scale BA) x for the vectors x, [outputs, vectors], and the length of scale BA x alone."""

    merged: Tensor
    change: float


@torch.inference_mode()
def products(model: Any) -> dict[str, Product]:
    """Of each matrix that an adapter changes, by its name in the base. `model` is a PeftModel with LoRA."""
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().weight
            vectors = _vectors(weight)
            for adapter in module.active_adapters:
                change = module.get_delta_weight(adapter)
                merged = (weight + change.to(weight.dtype)).float() @ vectors
                found[name.removeprefix(PREFIX)] = Product(merged, float((change.float() @ vectors).norm()))
    return found


@torch.inference_mode()
def check_products(model: Any, wanted: dict[str, Product]) -> None:
    """Raise InputError that names the first matrix of a merged model that is not base + adapter."""
    for name, product in wanted.items():
        weight = model.get_submodule(name).weight
        distance = float((weight.float() @ _vectors(weight) - product.merged.to(weight.device)).norm())
        if distance > TOLERANCE * product.change:
            problem = f"the merged {name} is off by {distance:.1e}, where the adapter's change is {product.change:.1e}"
            raise InputError(problem, way_out="Report this: it is a defect.")


def _vectors(weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(weight.shape[1])
    return torch.randn(weight.shape[1], VECTORS, generator=generator).to(weight.device)
