"""What a recipe will need on each card, said before anything is loaded: `sft.memory.step`'s prediction for a recipe.

The model's sizes come from config.json of `model.path`; where that folder is not there they are GLM-4-9B's, and the plan says
so. What would fit is found by trying overrides in the same predictor. Knows nothing of tensors: torch is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from yaofang.sft.memory.job import FLOAT, GIB, HALF, Job, Sizes, Zero
from yaofang.sft.memory.step import peak, trained, weight_bytes
from yaofang.sft.parts import Fresh, Hardware, Recipe
from yaofang.sft.pretraining.recipe import load_pretrain_recipe
from yaofang.sft.recipe import find_deepspeed, find_recipe, load_recipe
from yaofang.vocab.errors import InputError

USABLE = 0.93
"""Share of a card's memory that a program gets: 48 GB cards with error correction report 45 GiB."""
RECORD_TOKENS = 1422
"""Median of a training record of CDrugRed in GLM-4's tokens: so many records lie in a packed row."""
CONTEXT = 131072
"""Positions of GLM-4-9B; no suggestion goes beyond."""
STEP = 64
"""The longest `max_length` is told in steps of so many tokens."""


@dataclass(frozen=True)
class Plan:
    """The prediction for one card. Bytes; `items` in the order of `step.ITEMS`."""

    sizes: Sizes
    source: str
    """Where the sizes come from."""
    job: Job
    hardware: Hardware | None
    moment: str
    """The highest moment of a step."""
    items: dict[str, float]
    host: float
    """Bytes of the machine's own memory that DeepSpeed's offload takes, all cards together; 0 without."""

    @property
    def total(self) -> float:
        """Bytes of one card at the highest moment."""
        return sum(self.items.values())

    @property
    def usable(self) -> float | None:
        """Bytes of one card that a program gets; None where no card was named."""
        return None if self.hardware is None else USABLE * self.hardware.memory_gb * GIB

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where no card was named."""
        return None if self.usable is None else self.total <= self.usable


def plan_recipe(recipe: Recipe, hardware: Hardware | None = None, *, beside: Path = Path(), all_labelled: bool = False) -> Plan:
    """The prediction for a recipe on `hardware` (None: the recipe's own part, or one card of unknown size).

    `beside` is the recipe's folder, where its DeepSpeed file may lie; `all_labelled` is pretraining. Raises InputError for a
    model folder or a DeepSpeed file that cannot be read, and for sequence parallelism that the cards or the heads do not allow.
    """
    hardware = hardware or recipe.hardware
    sizes, source = model_sizes(recipe)
    job = make_job(recipe, cards=1 if hardware is None else hardware.cards, beside=beside)
    _check_shards(job, sizes)
    if all_labelled:
        job = replace(job, labelled=job.length)
    moment, items = peak(sizes, job)
    return Plan(sizes, source, job, hardware, moment, items, host_bytes(sizes, job))


def model_sizes(recipe: Recipe) -> tuple[Sizes, str]:
    """The model's sizes, and where they come from."""
    if recipe.model.fresh is not None:
        return _fresh_sizes(recipe.model.fresh), "model.fresh"
    assert recipe.model.path is not None
    folder = recipe.model.path
    if not folder.is_dir():
        return Sizes(), f"GLM-4-9B's sizes: there is no folder {folder} here"
    from yaofang.glm.loading import read_config

    adapter = folder / "adapter_config.json"
    if adapter.exists():
        named = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path", "")
        folder = next((base for base in (folder / named, Path(named)) if base.is_dir()), folder)
    return Sizes.of(read_config(folder)), f"{folder / 'config.json'}"


def _fresh_sizes(fresh: Fresh) -> Sizes:
    from yaofang.glm.template import SPECIAL

    return Sizes(
        vocabulary=-(-(fresh.tokenizer_size + len(SPECIAL)) // 64) * 64,
        hidden=fresh.hidden,
        layers=fresh.layers,
        heads=fresh.heads,
        kv_heads=fresh.kv_heads,
        head_dim=fresh.hidden // fresh.heads,
        intermediate=fresh.intermediate,
        rotary=fresh.hidden // fresh.heads // 2,
        norms=4 if fresh.architecture == "glm4" else 2,
        tied=True,
    )


def make_job(
    recipe: Recipe,
    *,
    cards: int,
    beside: Path = Path(),
    device: Literal["cuda", "cpu"] = "cuda",
    autocast: bool | None = None,
) -> Job:
    """One process of a recipe on `cards` cards. `autocast` None is the recipe's `bf16`: a CUDA device has it."""
    plan, data, part = recipe.training, recipe.data, recipe.lora
    zero = None if plan.deepspeed is None else read_zero(plan.deepspeed, model_sizes(recipe)[0], beside)
    half = plan.bf16 if autocast is None else autocast
    rows = -(-data.max_length // RECORD_TOKENS) if data.packing else 1
    return Job(
        batch=plan.batch_size,
        length=data.max_length,
        labelled=data.answer_tokens * rows,
        device=device,
        weight_bytes=_weight_bytes(recipe, device, zero, half),
        autocast=half,
        quantize=recipe.model.quantize,
        rank=None if part is None else part.r,
        targets=() if part is None else part.targets,
        dropout=0.0 if part is None else part.dropout,
        checkpointing=plan.gradient_checkpointing,
        accumulation=plan.accumulation,
        optimizer=plan.optimizer,
        cards=cards,
        shards=plan.sequence_parallel_size,
        zero=zero,
        attention="eager" if recipe.model.attention == "eager" else "fused",
        mask=recipe.model.prefix_lm,
        tiled=recipe.tail.conflict_penalty == 0,
    )


def _weight_bytes(recipe: Recipe, device: str, zero: Zero | None, half: bool) -> int:
    """As `sft.start` loads them; DeepSpeed under bf16 turns them all to bfloat16."""
    if recipe.model.quantize or (zero is not None and half):
        return HALF
    if recipe.model.dtype == "auto":
        return HALF if recipe.lora is not None and device == "cuda" else FLOAT
    return FLOAT if recipe.model.dtype == "float32" else HALF


def read_zero(file: Path, sizes: Sizes, beside: Path = Path()) -> Zero:
    """A DeepSpeed JSON's ZeRO part; `auto` and what is left out as transformers and DeepSpeed fill them.

    Raises InputError if there is no such file or it is no DeepSpeed configuration.
    """
    found = find_deepspeed(file, beside)
    try:
        part: dict[str, Any] = json.loads(found.read_text(encoding="utf-8")).get("zero_optimization", {})
        stage = int(part.get("stage", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"no DeepSpeed configuration ({error})", file=found, way_out="See sft/recipes/zero2.json.") from error
    square = sizes.hidden**2
    ahead = ("stage3_prefetch_bucket_size", 50_000_000, 0.9 * square)
    return Zero(
        stage=stage,
        reduce_bucket=_number(part, "reduce_bucket_size", 500_000_000, square),
        gather_bucket=_number(part, *(ahead if stage == 3 else ("allgather_bucket_size", 500_000_000, square))),
        live=_number(part, "stage3_max_live_parameters", 1_000_000_000, 1_000_000_000) if stage == 3 else 0,
        overlap=bool(part.get("overlap_comm", stage == 3)),
        offload_optimizer=_offloads(part, "offload_optimizer"),
        offload_weights=_offloads(part, "offload_param"),
    )


def _number(part: dict[str, Any], key: str, default: float, auto: float) -> int:
    value = part.get(key, default)
    return int(auto if value == "auto" else value)


def _offloads(part: dict[str, Any], key: str) -> bool:
    return bool((part.get(key) or {}).get("device", "none") != "none")


def host_bytes(sizes: Sizes, job: Job) -> float:
    """The machine's own memory under offload: float32 weights, two states and gradients (16 bytes a trained parameter), and
    the weights themselves if they are offloaded (DeepSpeed's `estimate_zero3_model_states_mem_needs`, without its factor 1.5).
    """
    if job.zero is None:
        return 0
    states = 4 * FLOAT * trained(sizes, job) if job.zero.offload_optimizer else 0
    return states + (weight_bytes(sizes, job) if job.zero.offload_weights and job.zero.stage == 3 else 0)


def _check_shards(job: Job, sizes: Sizes) -> None:
    shards = job.shards
    fits = sizes.heads % shards == 0 and (sizes.kv_heads % shards == 0 or shards % sizes.kv_heads == 0)
    if job.cards % shards == 0 and fits:
        return
    problem = f"{shards} processes to a sequence, with {job.cards} cards, {sizes.heads} heads, {sizes.kv_heads} key-value heads"
    way_out = "Take a divisor of the cards and of the heads."
    raise InputError(problem, field="training.sequence_parallel_size", way_out=way_out)


def plan_config(config: str, overrides: Sequence[str] = (), hardware: Hardware | None = None) -> Plan:
    """`plan_recipe` for a recipe by name or path, with overrides; of `sft` or of `pretrain`."""
    recipe, all_labelled = load_planned(config, overrides)
    return plan_recipe(recipe, hardware, beside=find_recipe(config).parent, all_labelled=all_labelled)


def load_planned(config: str, overrides: Sequence[str] = ()) -> tuple[Recipe, bool]:
    """A recipe of `sft`, or that of `pretrain` as the trainer gets it; and whether all its tokens are labelled.

    Raises InputError, that of an `sft` recipe where the file is neither.
    """
    try:
        return load_recipe(config, overrides), False
    except InputError as error:
        try:
            return load_pretrain_recipe(config, overrides).blocks(), True
        except InputError:
            raise error from None


def longest(config: str, overrides: Sequence[str], hardware: Hardware | None) -> int | None:
    """The longest `data.max_length` that fits, in steps of 64 tokens and at most GLM-4's context; None if none does."""

    def fits(steps: int) -> bool:
        return bool(plan_config(config, [*overrides, f"data.max_length={steps * STEP}"], hardware).fits)

    recipe, _ = load_planned(config, overrides)
    low = max(recipe.data.answer_tokens // STEP + 1, 2)
    high = CONTEXT // STEP
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low * STEP


def suggestions(config: str, overrides: Sequence[str], hardware: Hardware | None) -> list[list[str]]:
    """Lists of `--set` values with which it would fit, each tried in the predictor.

    Every change that is enough alone; where none is, the changes taken together in turn until they are, mildest first.
    """
    options = _options(load_planned(config, overrides)[0], hardware)
    alone = [option for option in options if _tried(config, [*overrides, *option], hardware)]
    if not alone:
        together: list[str] = []
        for option in options:
            together += option
            if _tried(config, [*overrides, *together], hardware):
                alone = [together]
                break
    length = longest(config, overrides, hardware)
    return alone + ([] if length is None else [[f"data.max_length={length}"]])


def _options(recipe: Recipe, hardware: Hardware | None) -> list[list[str]]:
    """Changes that save memory, the mildest first; those that cannot be are sorted out when they are tried."""
    plan, cards = recipe.training, 1 if hardware is None else hardware.cards
    found: list[list[str]] = []
    if not plan.gradient_checkpointing:
        found.append(["training.gradient_checkpointing=true"])
    if plan.batch_size > 1:
        found.append(["training.batch_size=1", f"training.accumulation={plan.accumulation * plan.batch_size}"])
    found += [
        [f"training.sequence_parallel_size={size}"] for size in (2, 4, 8, 16) if plan.sequence_parallel_size < size <= cards
    ]
    if cards > 1 and plan.optimizer == "adamw" and recipe.model.quantize is None:
        found += [[f"training.deepspeed={name}"] for name in ("zero2.json", "zero3.json") if _more(plan.deepspeed, name)]
    if recipe.model.fresh is None:
        adapter = ["lora.r=8"] if recipe.lora is None else []
        whole = [] if plan.deepspeed is None else ["training.deepspeed="]
        found += [adapter] if adapter else []
        found += [] if recipe.model.quantize == "4bit" else [[*adapter, *whole, "model.quantize=4bit"]]
    return found


def _more(present: Path | None, name: str) -> bool:
    return present is None or (name == "zero3.json" and present.name != name)


def _tried(config: str, overrides: Sequence[str], hardware: Hardware | None) -> bool:
    try:
        return bool(plan_config(config, overrides, hardware).fits)
    except InputError:
        return False
