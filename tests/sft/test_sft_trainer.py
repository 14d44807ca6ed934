"""The CPU's trainer against TRL's own: the same loss and the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from yaofang.data.answer import Answer, pieces
from yaofang.decoding.processors import answer_ids
from yaofang.glm.tiny import random_tiny
from yaofang.sft.trainer import CpuTrainer, PartLoss, autocast, trainer_class


def trainer(kind: type[SFTTrainer], folder: Path, diagnosis_weight: float | None = None) -> SFTTrainer:
    made = random_tiny()
    answers = [pieces(Answer(("高血压",) * n, ("阿卡波糖", "二甲双胍")[:n])) for n in (1, 2, 2)]
    examples = [
        made.template.example([{"role": "user", "content": "高血压\n" * n}], answer)
        for n, answer in zip((1, 4, 9), answers, strict=True)
    ]
    newline = answer_ids(made.template).newline
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
    return kind(
        model=made.model,
        args=args,
        train_dataset=data,
        processing_class=made.template.tokenizer,
        compute_loss_func=None if diagnosis_weight is None else PartLoss(newline, diagnosis_weight),
    )


@pytest.mark.parametrize(("items", "weight"), [(None, None), (50, None), (None, 0.3), (50, 0.3)])
def test_loss_and_gradients_equal_trl_on_rows_of_unequal_length(
    items: int | None, weight: float | None, tmp_path: Path
) -> None:
    found = []
    for kind in (SFTTrainer, CpuTrainer):
        made = trainer(kind, tmp_path, weight)
        batch = next(iter(made.get_train_dataloader()))
        made.model.train()
        loss = made.compute_loss(made.model, batch, num_items_in_batch=None if items is None else torch.tensor(items))
        loss.backward()
        found.append((loss.item(), [p.grad.clone() for p in made.model.parameters()]))
    (one, first), (two, second) = found
    assert one == pytest.approx(two, rel=1e-6)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_only_the_diagnoses_are_weighted() -> None:
    template = random_tiny().template
    answer = pieces(Answer(("高血压", "2型糖尿病"), ("阿卡波糖",)))
    ids, mask = template.example([{"role": "user", "content": "主诉\n\n现病史"}], answer)
    labels = torch.tensor([[token if bit else -100 for token, bit in zip(ids, mask, strict=True)]])
    weights = PartLoss(answer_ids(template).newline, 0.25).weights(labels)
    first = labels[weights == 1].tolist()
    assert template.decode(first[:-1]) == "\n出院带药：阿卡波糖"
    light = labels[(weights == 0.25) & (labels != -100)].tolist()
    assert template.decode(light) == "\n出院诊断：高血压；2型糖尿病"


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
