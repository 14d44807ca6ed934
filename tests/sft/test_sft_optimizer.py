"""Muon: the orthogonal factor against the singular value decomposition, and which weights it moves."""

from __future__ import annotations

import pytest
import torch

from yaofang.glm.tiny import random_tiny
from yaofang.sft.optimizer import SCALE, muon, orthogonalized
from yaofang.sft.parts import Recipe


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_the_update_has_the_singular_vectors_of_the_momentum(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonalized(matrix) @ right.T
    off = found - torch.diag(found.diagonal())
    assert off.abs().max() < 1e-4
    big = values > 0.05 * values.max()
    assert ((found.diagonal()[big] > 0.6) & (found.diagonal()[big] < 1.3)).all()
    torch.testing.assert_close(orthogonalized(matrix * 1e3), orthogonalized(matrix), rtol=1e-3, atol=1e-4)


def test_gram_steps_equal_the_published_iteration() -> None:
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(2))
    plain = matrix / matrix.norm()
    for _ in range(5):
        gram = plain @ plain.T
        plain = 3.4445 * plain + (-4.7750 * gram + 2.0315 * gram @ gram) @ plain
    torch.testing.assert_close(orthogonalized(matrix), plain, rtol=1e-3, atol=1e-4)


def test_linear_layers_move_by_muon_and_the_rest_by_adamw() -> None:
    model = random_tiny().model
    made = muon(model, lr=1e-2, weight_decay=0.0)
    moved = {id(p) for group in made.param_groups if group["orthogonal"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in moved}
    assert all(name.endswith("_proj.weight") for name in names)
    assert len(names) == 6 * 2
    every = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in model.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.arange(40).reshape(2, 20)
    model(input_ids=ids, labels=ids).loss.backward()
    made.step()
    for name, p in model.named_parameters():
        change = (p.detach() - before[name]).square().mean().sqrt()
        if name in names:  # an orthogonal matrix has n singular values of about 1: root mean square 1 / sqrt(longer side)
            assert 0.6e-2 * SCALE < change < 1.3e-2 * SCALE, name
        elif name.endswith(("norm.weight", "embed_tokens.weight")):
            assert change > 0, name


def test_muon_under_deepspeed_is_refused() -> None:
    value = {"model": {"path": "x"}, "data": {"train": "y"}, "training": {"optimizer": "muon", "deepspeed": "z.json"}}
    with pytest.raises(ValueError, match="DeepSpeed shards"):
        Recipe.model_validate(value)
