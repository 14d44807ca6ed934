"""Muon for the linear layers of a model that is trained from nothing, AdamW for the rest of it.

Muon (Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon/) moves a matrix by the orthogonal factor of its
momentum, by five Newton-Schulz steps. With the scale 0.2 * sqrt(longer side) (Moonshot AI, arXiv 2502.16982) its updates are
as large as AdamW's, so that both take one learning rate. `torch.optim.Muon` is not used because it iterates in bfloat16,
which a processor without bfloat16 arithmetic emulates. Knows nothing of recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

MOMENTUM = 0.95
STEPS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of one step aX + b(XX')X + c(XX')(XX')X, from Jordan's page."""
SCALE = 0.2


def orthogonalized(matrix: Tensor) -> Tensor:
    """About U V' of the singular value decomposition U S V' of `matrix` [m, n]: its singular values come near 1.

    The steps are polynomials in XX', so they are taken on the smaller Gram matrix, and X is multiplied once at the end.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = (matrix.T if tall else matrix).float()
    wide = wide / (wide.norm() + 1e-7)
    gram, whole = wide @ wide.T, torch.eye(len(wide), device=wide.device)
    a, b, c = QUINTIC
    for _ in range(STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        gram, whole = factor @ gram @ factor, factor @ whole
    found: Tensor = whole @ wide
    return (found.T if tall else found).to(matrix.dtype)


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `orthogonal: True` hold matrices that are moved by Muon instead."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all groups; `closure` as in torch."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._move(group)
        return loss

    @torch.no_grad()
    def _move(self, group: dict[str, Any]) -> None:
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:  # a step is what AdamW looks for in every state that it loads
                state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(matrix))
            state["step"] += 1
            momentum = state["momentum"]
            momentum.lerp_(matrix.grad, 1 - MOMENTUM)
            update = orthogonalized(matrix.grad.lerp(momentum, MOMENTUM))
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update, alpha=-group["lr"] * SCALE * max(matrix.shape) ** 0.5)


def muon(model: Module, **settings: Any) -> Muon:
    """Muon over the matrices of the model's linear layers; AdamW with `settings` over embeddings, head, norms and biases.

    As in transformers' trainer, norms and biases do not decay.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    tables = {id(weight) for weight in _tables(model)}
    inner = [weight for _, weight in named if weight.ndim == 2 and id(weight) not in tables]
    outer = [weight for _, weight in named if id(weight) in tables]
    flat = [weight for _, weight in named if weight.ndim != 2 and id(weight) not in tables]
    decay = settings.pop("weight_decay", 0.0)
    groups = [
        {"params": inner, "orthogonal": True, "weight_decay": decay},
        {"params": outer, "orthogonal": False, "weight_decay": decay},
        {"params": flat, "orthogonal": False, "weight_decay": 0.0},
    ]
    return Muon([group for group in groups if group["params"]], **settings)


def _tables(model: Any) -> Iterable[Tensor]:
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            yield module.weight
