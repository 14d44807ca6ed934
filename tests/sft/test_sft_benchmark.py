"""Speed of training: the comparison's cases, the arithmetic of the accelerator's figures, and its code on a CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GlmConfig

from yaofang.data.records import Record
from yaofang.sft.recipe import load_recipe
from yaofang.sft.speed import accelerator, benchmark
from yaofang.sft.speed.accelerator import flops_a_token, longest_that_fits, measure, peak_of
from yaofang.sft.speed.benchmark import CASES, Case


def test_cases_differ_in_what_they_name_alone() -> None:
    made = {case.name: load_recipe("ablation", case.settings(Path("t.jsonl"), 2560)) for case in CASES}
    plain = made["padding"].model_dump()
    packed = made["packing"].model_dump()
    assert packed["data"].pop("packing")
    assert packed["training"].pop("batch_size") == 3
    assert not plain["data"].pop("packing")
    assert plain["training"].pop("batch_size") == 8
    assert packed == plain
    for processes in (2, 4):
        parallel = made[f"sequence_parallel_{processes}"].model_dump()
        assert parallel["training"].pop("sequence_parallel_size") == processes
        assert parallel["training"]["optimizer"] == "adamw"


def test_the_flops_of_glm_4_9b_are_four_a_weight_under_lora_and_six_in_full_training() -> None:
    config, length = GlmConfig(), 4096
    with torch.device("meta"):
        from transformers import GlmForCausalLM

        model = GlmForCausalLM(config)
    matrices = sum(w.numel() for name, w in model.named_parameters() if w.ndim == 2 and "embed" not in name)
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length / 2
    assert flops_a_token(config, length, full=True) == pytest.approx(6 * matrices + attention)
    assert flops_a_token(config, length) == pytest.approx(4 * matrices + attention)
    head = config.hidden_size * config.vocab_size
    assert flops_a_token(config, length, scored=0) == pytest.approx(4 * (matrices - head) + attention)
    assert flops_a_token(config, 2 * length) - flops_a_token(config, length) == pytest.approx(attention)


def test_the_peak_is_the_named_devices_or_not_known() -> None:
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA A10") == 125e12
    assert peak_of("CPU") is None


@pytest.mark.parametrize(
    ("known", "true", "found"), [(4096, 11_300, 11_264), (0, 500, 0), (0, 1024, 1024), (4096, 10**6, 32_768)]
)
def test_the_longest_record_is_found_to_a_grain(known: int, true: int, found: int) -> None:
    tried: list[int] = []

    def fits(length: int) -> bool:
        tried.append(length)
        return length <= true

    assert longest_that_fits(fits, known, 32_768, 1024) == found
    assert len(tried) == len(set(tried)) < 12


def small_config(layers: int) -> GlmConfig:
    return GlmConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=[1],
    )


def test_the_accelerators_code_runs_on_a_cpu_with_and_without_checkpointing() -> None:
    small = small_config(layers=2)
    found = measure("cpu", small, lengths=(16, 32), steps=1, grain=16)
    assert set(found["rows"]) == {"16 plain", "32 plain", "16 checkpointing", "32 checkpointing"}
    assert all(row["tokens_a_second"] > 0 and row["share_of_peak"] is None for row in found["rows"].values())
    assert found["longest"] == {"plain": 64, "checkpointing": 64}


def test_only_the_adapter_learns_in_a_step() -> None:
    small = small_config(layers=1)
    model, _ = accelerator._adapted(small, torch.device("cpu"))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(2):  # an adapter's first matrix moves once its second is no longer zero
        accelerator._step(model, optimizer, torch.device("cpu"), 16, 4)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_memory_that_is_not_enough_is_a_row_without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(accelerator, "_step", full)
    empty = SimpleNamespace(parameters=lambda: [torch.nn.Parameter(torch.zeros(1))], zero_grad=lambda **_: None)
    assert accelerator._timed(empty, GlmConfig(), torch.device("cpu"), 16, 1, None) is None


def test_a_row_has_the_slowest_processs_time_and_the_largest_ones_memory() -> None:
    first = {"seconds": 2.0, "records": 8, "tokens": 800, "steps": 4, "peak_mb": 50.0, "cut": 0}
    row = benchmark._row([first, {**first, "seconds": 4.0, "peak_mb": 70.0}])
    assert (row["records_a_second"], row["tokens_a_second"], row["peak_mb"]) == (2, 200, 70)
    slow = {**row, "records_a_second": 1.0}
    gain = "packing over padding: 2.00 times the records a second"
    assert benchmark._notes({"packing": row, "padding": slow}) == ["records that were shortened: 0", gain]
    assert benchmark._notes({"packing": None, "padding": {**slow, "cut": 3}}) == ["records that were shortened: 3"]


def test_precision_that_the_processor_would_emulate_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(benchmark, "autocast", lambda wanted: (False, "no arithmetic for it"))
    found = benchmark.speed(cases=[Case("padding_bfloat16", bf16=True)], records=[one_record(1)], report=said.append)
    assert found["rows"] == {"padding_bfloat16": None}
    assert said == ["padding_bfloat16: not measured (no arithmetic for it)"]


def one_record(number: int) -> Record:
    return Record.model_validate(
        {
            "患者序号": number,
            "就诊标识": f"{number}-1",
            "主诉": "烦渴、多饮5年。",
            "现病史": "血糖控制不佳，" * (5 * (number % 5) + 5),
            "出院诊断": ["2型糖尿病"],
            "出院带药列表": ["阿卡波糖", "二甲双胍"],
        }
    )


@pytest.mark.nightly
def test_every_case_is_measured_by_real_training() -> None:
    tiny = ("model.fresh.hidden=32", "model.fresh.intermediate=48", "model.fresh.tokenizer_size=700")
    cases = [Case(case.name, (*case.overrides, *tiny), case.processes, case.bf16) for case in CASES]
    found = benchmark.speed(cases=cases, records=[one_record(n) for n in range(1, 25)], length=512)
    for name, row in found["rows"].items():
        assert row is None or (row["records_a_second"] > 0 and row["steps"] > 0), name
    assert found["packing_over_padding"] > 0
