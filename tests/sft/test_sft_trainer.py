"""TRL's trainer with the training forward against TRL's trainer as it is: the same loss and the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from trl import SFTConfig, SFTTrainer

from yaofang.data.answer import Answer, pieces
from yaofang.decoding.processors import answer_ids
from yaofang.glm.tiny import random_tiny
from yaofang.sft.forward import wrap_trainer
from yaofang.sft.objective import Objective, PartWeights
from yaofang.sft.trainer import autocast


def trainer(folder: Path, weights: PartWeights | None, wrapped: bool) -> SFTTrainer:
    made = random_tiny()
    answers = [pieces(Answer(("高血压",) * n, ("阿卡波糖", "二甲双胍")[:n])) for n in (1, 2, 2)]
    examples = [
        made.template.example([{"role": "user", "content": "高血压\n" * n}], answer)
        for n, answer in zip((1, 4, 9), answers, strict=True)
    ]
    data = Dataset.from_dict({"input_ids": [e[0] for e in examples], "completion_mask": [e[1] for e in examples]})
    args = SFTConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        completion_only_loss=True,
        per_device_train_batch_size=3,
        report_to=[],
    )

    def weighted(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        assert weights is not None
        following = labels[:, 1:]
        losses = cross_entropy(outputs.logits[:, :-1].transpose(1, 2), following, reduction="none")
        items = (following != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return (losses * weights(labels, torch.zeros_like(labels))[:, 1:]).sum() / items

    found = SFTTrainer(
        model=made.model,
        args=args,
        train_dataset=data,
        processing_class=made.template.tokenizer,
        compute_loss_func=None if wrapped or weights is None else weighted,
    )
    if wrapped:
        wrap_trainer(found, objective=Objective(weights))
    return found


@pytest.mark.parametrize(("items", "weight"), [(None, None), (50, None), (None, 0.3), (50, 0.3)])
def test_loss_and_gradients_equal_trl_on_rows_of_unequal_length(
    items: int | None, weight: float | None, tmp_path: Path
) -> None:
    weights = None if weight is None else PartWeights(answer_ids(random_tiny().template), weight, 1.5)
    found = []
    for wrapped in (False, True):
        made = trainer(tmp_path, weights, wrapped)
        batch = next(iter(made.get_train_dataloader()))
        made.model.train()
        loss = made.compute_loss(made.model, batch, num_items_in_batch=None if items is None else torch.tensor(items))
        loss.backward()
        metrics = {name: values[-1] for name, values in made._metrics["train"].items()}
        found.append((loss.item(), [p.grad.clone() for p in made.model.parameters()], metrics))
    (one, first, said), (two, second, says) = found
    assert one == pytest.approx(two, rel=1e-6)
    assert says == pytest.approx(said, rel=1e-5)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("able", "expected"), [({"avx2": True}, False), ({"avx2": True, "avx512_bf16": True}, True), ({}, False)]
)
def test_bfloat16_is_used_only_where_the_processor_computes_in_it(
    able: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert autocast(True)[0] is expected
    assert autocast(False)[0] is False
    assert autocast(True)[1]
