"""How fast GLM-4-9B trains with LoRA on an accelerator: tokens a second, memory, share of the chip's peak, longest record.

    yaofang bench training --speed --device cuda

The model is randomly initialised, the ids are random, a record makes a step: the training forward (`sft/forward.py`), backward,
AdamW on the adapter, with and without gradient checkpointing. The useful arithmetic of a step is `flops_a_token`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GlmConfig
from trl.trainer.utils import add_fused_lm_head

from yaofang.glm.loading import ARCHITECTURES, choose_attention, choose_device
from yaofang.sft.forward import wrap_forward
from yaofang.sft.parts import Lora

LENGTHS = (4096, 8192, 16384, 32768)
ANSWER = 256
"""Labelled tokens at the end of an accelerator's record."""
GRAIN = 1024
"""The longest record that fits is found to so many tokens."""
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L20": 119.5e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
}
"""bfloat16 operations a second without sparsity, from NVIDIA's data sheets, by what the device's name contains; first match."""
Report = Callable[[str], None]


def flops_a_token(config: Any, length: int, *, scored: float = 1.0, full: bool = False) -> float:
    """Useful floating-point operations of one token in a training step, at `length` tokens a record.

    A weight of a matrix costs 2 operations a token forwards, 2 for the gradient of its input, and 2 for its own gradient
    (Kaplan et al. 2020, arXiv 2001.08361: 6N in all). Under LoRA the base is frozen and has no gradient of its own: 4N; the
    adapter's own part is below a percent and left out. Scores and their use cost 4 x width x length a layer and token
    forwards and twice that backwards (PaLM, arXiv 2204.02311, appendix B: 12 a layer in all), of which causal attention needs
    half, as FlashAttention-2 counts (arXiv 2307.08691). What gradient checkpointing computes again is not useful and not
    counted (PaLM: MFU, not HFU).

    `scored` is the share of positions whose logits are computed. `full` trains all weights.
    """
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = hidden * (2 * width + 2 * keys) + 3 * hidden * config.intermediate_size
    weights = config.num_hidden_layers * layer + scored * hidden * config.vocab_size
    attention = 4 * width * length / 2 * 3
    return float((6 if full else 4) * weights + config.num_hidden_layers * attention)


def peak_of(name: str) -> float | None:
    """A device's bfloat16 operations a second by its name; None where it is not in the list."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def measure(
    device: str = "cuda",
    config: Any = None,
    *,
    lengths: Sequence[int] = LENGTHS,
    steps: int = 3,
    grain: int = GRAIN,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """A randomly initialised model (None: GLM-4-9B) with LoRA, one record a step, with and without gradient checkpointing.

    A row is None where memory was not enough. `share_of_peak` is None for a device whose peak is not known.
    """
    where, _ = choose_device(device)
    config = config or GlmConfig()
    model, attention = _adapted(config, where)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    rows: dict[str, dict[str, float | None] | None] = {}
    longest: dict[str, int] = {}
    for kind in ("plain", "checkpointing"):
        _set_checkpointing(model, kind == "checkpointing")
        for length in lengths:
            rows[f"{length} {kind}"] = row = _timed(model, config, where, length, steps, peak_of(name))
            report(f"{length} tokens, {kind}: {row or 'out of memory'}")
        fits = [length for length in lengths if rows[f"{length} {kind}"] is not None]
        longest[kind] = longest_that_fits(
            lambda length: _timed(model, config, where, length, 1, None) is not None,
            max(fits, default=0),
            config.max_position_embeddings,
            grain,
        )
        report(f"{kind}: the longest record that fits has {longest[kind]} tokens")
    return {
        "title": f"{config.model_type}, {model.num_parameters() / 1e9:.2f} B parameters, LoRA, on {name}",
        "columns": ["tokens_a_second", "peak_gb", "share_of_peak"],
        "notes": [f"longest record that fits, {kind}: {length} tokens" for kind, length in longest.items()],
        "device": {"name": name, "bf16_peak": peak_of(name), "attention": attention},
        "rows": rows,
        "longest": longest,
    }


def _adapted(config: Any, device: torch.device) -> tuple[Any, str]:
    """A random model made on the device in bfloat16 (float32 on a CPU), frozen under LoRA as the recipes have it."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    attention, reason = choose_attention("auto", device, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            base = ARCHITECTURES[config.model_type]._from_config(config, attn_implementation=attention)
    finally:
        torch.set_default_dtype(before)
    base.config.use_cache = False
    lora = Lora()
    made = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=list(lora.targets), task_type="CAUSAL_LM")
    model = get_peft_model(base, made)
    add_fused_lm_head(model.get_base_model())  # what TRL's trainers do before
    wrap_forward(model.get_base_model())
    return model.train(), reason


def _set_checkpointing(model: Any, wanted: bool) -> None:
    if wanted:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def _timed(
    model: Any, config: Any, device: torch.device, length: int, steps: int, peak: float | None
) -> dict[str, float | None] | None:
    """Tokens a second over `steps` steps after one that is not counted, and the peak memory; None where it is not enough."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    answer = min(ANSWER, length // 2)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    try:
        _step(model, optimizer, device, length, answer)
        _wait(device)
        begun = perf_counter()
        for _ in range(steps):
            _step(model, optimizer, device, length, answer)
        _wait(device)
    except torch.OutOfMemoryError:
        model.zero_grad(set_to_none=True)
        return None
    rate = steps * length / (perf_counter() - begun)
    return {
        "tokens_a_second": rate,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if cuda else None,
        "share_of_peak": None if peak is None else rate * flops_a_token(config, length, scored=answer / length) / peak,
    }


def _step(model: Any, optimizer: torch.optim.Optimizer, device: torch.device, length: int, answer: int) -> None:
    ids = torch.randint(model.config.vocab_size, (1, length), device=device)
    labels = torch.full_like(ids, -100)
    labels[:, -answer:] = ids[:, -answer:]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        scored = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
    (-scored.log_probs.sum() / answer).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def longest_that_fits(fits: Callable[[int], bool], known: int, most: int, grain: int) -> int:
    """The longest length, to `grain` tokens, for which `fits` holds, given that it holds for `known`; at most `most`.

    Doubles while it fits, then halves what is left; `fits` must hold for everything shorter than what it holds for.
    """
    low, high = known, max(2 * known, grain)
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > grain:
        middle = (low + high) // 2 // grain * grain
        if middle <= low:
            middle = low + grain
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
