"""The CPU's trainer against TRL's own: the same loss and the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from yaofang.glm.tiny import random_tiny
from yaofang.sft.trainer import CpuTrainer, autocast, trainer_class


def trainer(kind: type[SFTTrainer], folder: Path) -> SFTTrainer:
    made = random_tiny()
    examples = [made.template.example([{"role": "user", "content": "高血压" * n}], ["阿卡波糖", "、"] * n) for n in (1, 4, 9)]
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
    return kind(model=made.model, args=args, train_dataset=data, processing_class=made.template.tokenizer)


@pytest.mark.parametrize("items", [None, 50])
def test_loss_and_gradients_equal_trl_on_rows_of_unequal_length(items: int | None, tmp_path: Path) -> None:
    found = []
    for kind in (SFTTrainer, CpuTrainer):
        made = trainer(kind, tmp_path)
        batch = next(iter(made.get_train_dataloader()))
        made.model.train()
        loss = made.compute_loss(made.model, batch, num_items_in_batch=None if items is None else torch.tensor(items))
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in made.model.parameters()]))
    (one, first), (two, second) = found
    assert one == pytest.approx(two, rel=1e-6)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_the_choice_of_trainer_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_class()[0] is CpuTrainer
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    kind, reason = trainer_class()
    assert kind is SFTTrainer
    assert "several processes" in reason


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
