"""Does one set of weights say what another says? Logits and constrained answers on sample records, with what rounding may do.

Knows models and records; writes nothing and merges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import yaofang.data
from yaofang.data.records import Record, read_records
from yaofang.decoding.preparation import Task
from yaofang.decoding.recommender import Recommender
from yaofang.glm.loading import LoadedModel
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

SAMPLES = 4
"""Records that are compared: their logits are held, 0.3 MB a position for GLM-4-9B in two bytes."""
AT_ONCE = 128
"""Positions compared at once in float32."""
ROUNDINGS = 16
"""Results of a layer that are rounded on the way to the logits: up to 4 norms, 4 projections, rotation, weights and context of
the attention, gate, product, output, two sums."""
SIGMAS = 6
"""The largest of some 1e8 normal numbers is near 6 standard deviations."""
FLOAT32 = 1e-4
MARGIN = 0.25
"""The difference may be this share of what the adapter does at most (root mean squares): a missing adapter gives 1."""


@dataclass(frozen=True)
class Tolerance:
    """The largest difference of logits that rounding explains, and the reason."""

    largest: float
    reason: str


def tolerance(dtype: torch.dtype, layers: int, spread: float, highest: float) -> Tolerance:
    """For logits of this spread (standard deviation over the ids), the highest of them `highest` from zero.

    float32: 1e-4 of the spread. Half precisions: each result is rounded with a standard deviation of at most u / sqrt(3), u
    the unit roundoff (2^-8 for bfloat16, 2^-11 for float16); two models of `layers` layers round 2 x 16 x layers results apart
    from each other, whose errors add as a random walk; the largest of all logits lies near 6 standard deviations. Last, the
    two logits themselves are rounded, by u times their size each.
    """
    if dtype == torch.float32:
        return Tolerance(FLOAT32 * spread, f"{FLOAT32:g} of the logits' spread: float32 sums in another order")
    unit = torch.finfo(dtype).eps / 2
    results = 2 * ROUNDINGS * layers
    walk = SIGMAS * unit / math.sqrt(3) * math.sqrt(results)
    name = str(dtype).removeprefix("torch.")
    return Tolerance(
        walk * spread + 2 * unit * highest,
        f"{walk:.2g} of the logits' spread: {SIGMAS} standard deviations of {results} roundings of {name} "
        f"(unit roundoff {unit:.2g}, {layers} layers); and the rounding of logits up to {highest:.3g}",
    )


@dataclass(frozen=True)
class Difference:
    """Between the logits of two models, over all positions and ids."""

    largest: float
    root_mean_square: float
    same_argmax: float
    """Share of positions whose likeliest id is the same."""
    positions: int


@dataclass(frozen=True)
class Sample:
    """One record under the reference: `ids` of prompt and answer, and the logits [ids, V] there."""

    record: Record
    prompt: int
    """Ids before the answer."""
    ids: list[int]
    logits: Tensor

    @property
    def answer(self) -> list[int]:
        """The constrained greedy answer's ids."""
        return self.ids[self.prompt :]


@dataclass(frozen=True)
class Reference:
    """What base and adapter say on the samples, and what the base alone would."""

    samples: tuple[Sample, ...]
    effect: Difference
    """Between base and adapter, and the base alone."""
    spread: float
    """Standard deviation of the logits over the ids, mean over positions."""
    allowed: Tolerance
    dtype: torch.dtype
    empty: bool
    """The adapter's file holds zeros: it changes nothing."""

    def facts(self) -> dict[str, Any]:
        """For a result file: sizes, tolerance with its reason, and the adapter's effect."""
        return {
            "records": len(self.samples),
            "positions": self.effect.positions,
            "spread": self.spread,
            "tolerance": self.allowed.largest,
            "tolerance_reason": self.allowed.reason,
            "adapter_effect": asdict(self.effect),
        }


def sample_records(file: Path | None) -> list[Record]:
    """The first records of a file, of the bundled samples for None. Raises InputError for a file without records."""
    source = Path(yaofang.data.__file__).parent / "samples" / "records.jsonl" if file is None else file
    found = read_records(source).records[:SAMPLES]
    if not found:
        raise InputError("no records to compare on", file=source, way_out="Give a file with records, or leave --records out.")
    return list(found)


def answers(loaded: LoadedModel, records: Sequence[Record]) -> list[tuple[Task, list[int]]]:
    """Each record's task and the ids of its constrained greedy answer. Raises InputError for logits that are not finite."""
    vocabulary = load_vocabulary()
    rx = Recommender([loaded], vocabulary, load_conflicts(vocabulary), strategy="greedy", audit=False)
    written = []
    for task in [rx.prepare(record) for record in records]:
        try:
            (row,) = rx.writer.greedy([task]).run()
        except ValueError as error:
            raise InputError(f"the model gives no answer ({error})", way_out=_other_dtype(loaded.dtype)) from error
        written.append((task, list(row.ids)))
    return written


def reference(loaded: LoadedModel, records: Sequence[Record], empty: bool) -> Reference:
    """The answers and logits of base and adapter. `loaded.model` is a PeftModel whose adapter is not merged yet."""
    samples, effect, spreads = [], _Sum(), []
    for record, (task, answer) in zip(records, answers(loaded, records), strict=True):
        ids = [*task.ids, *answer]
        own = logits_of(loaded, ids)
        with loaded.model.disable_adapter():
            effect.add(logits_of(loaded, ids), own)
        spreads += [part.float().std(dim=-1) for part in torch.split(own, AT_ONCE)]
        samples.append(Sample(record, len(task.ids), ids, own))
    layers, spread = int(loaded.model.config.num_hidden_layers), float(torch.cat(spreads).mean())
    highest = max(float(sample.logits.abs().max()) for sample in samples)
    allowed = tolerance(loaded.dtype, layers, spread, highest)
    return Reference(tuple(samples), effect.difference(), spread, allowed, loaded.dtype, empty)


def logits_of(loaded: LoadedModel, ids: Sequence[int]) -> Tensor:
    """[ids, V] on the CPU, in the model's format; V are the tokenizer's ids (rows beyond them were never trained)."""
    with torch.inference_mode():
        out = loaded.model(input_ids=torch.tensor([ids], device=loaded.device), use_cache=False).logits
    return out[0, :, : loaded.template.size].cpu()  # type: ignore[no-any-return]


class _Sum:
    """Differences added up over pairs of logits [positions, V]."""

    def __init__(self) -> None:
        self.largest = self.squares = 0.0
        self.same = self.positions = self.numbers = 0

    def add(self, one: Tensor, other: Tensor) -> None:
        for a, b in zip(torch.split(one, AT_ONCE), torch.split(other, AT_ONCE), strict=True):
            gap = a.float() - b.float()
            self.largest = max(self.largest, float(gap.abs().max())) if bool(gap.isfinite().all()) else math.inf
            self.squares += float(gap.double().square().sum())
            self.same += int((a.argmax(-1) == b.argmax(-1)).sum())
            self.positions += len(a)
            self.numbers += a.numel()

    def difference(self) -> Difference:
        return Difference(self.largest, math.sqrt(self.squares / self.numbers), self.same / self.positions, self.positions)


def difference(loaded: LoadedModel, held: Reference) -> Difference:
    """Between a model's logits and the reference's, on the reference's ids."""
    total = _Sum()
    for sample in held.samples:
        total.add(logits_of(loaded, sample.ids), sample.logits)
    return total.difference()


def check(found: Difference, held: Reference, what: str) -> None:
    """Raise InputError if the difference is above the tolerance or not far below what the adapter does."""
    allowed = held.allowed
    way_out = _other_dtype(held.dtype)
    if not found.largest <= allowed.largest:
        problem = (
            f"the logits of {what} differ from base + adapter by up to {found.largest:.3g}, allowed are {allowed.largest:.3g}"
        )
        raise InputError(f"{problem} ({allowed.reason})", way_out=way_out)
    if held.empty:
        return
    own = held.effect
    if found.root_mean_square > MARGIN * own.root_mean_square or found.largest >= own.largest:
        problem = (
            f"{what} cannot be told from a merge that lost the adapter: it differs from base + adapter by up to "
            f"{found.largest:.3g} (root mean square {found.root_mean_square:.3g}), the adapter's whole effect is "
            f"{own.largest:.3g} ({own.root_mean_square:.3g})"
        )
        raise InputError(problem, way_out=way_out)


def check_answers(loaded: LoadedModel, held: Reference, found: Difference) -> int:
    """Number of answers that part from the reference's at a tie; every other one has the same ids.

    A tie is a choice between two ids whose logits are nearer to each other than twice the largest difference `found`: no
    rounding can be expected to settle it alike. Raises InputError for an answer that differs elsewhere, or another prompt.
    """
    ties = 0
    records = [sample.record for sample in held.samples]
    for sample, (task, answer) in zip(held.samples, answers(loaded, records), strict=True):
        if task.ids != sample.ids[: sample.prompt]:
            raise InputError(f"record {sample.record.id} becomes another prompt with the files written", way_out=None)
        if answer == sample.answer:
            continue
        gap = _gap(sample, answer)
        if gap > 2 * found.largest:
            raise InputError(
                f"the answer to record {sample.record.id} differs from that of base + adapter, where their logits are "
                f"{gap:.3g} apart",
                way_out=_other_dtype(held.dtype),
            )
        ties += 1
    return ties


def _gap(sample: Sample, answer: Sequence[int]) -> float:
    """How far apart the reference's logits of the two ids are where the answers part."""
    for at, (own, other) in enumerate(zip(sample.answer, answer, strict=False)):
        if own != other:
            here = sample.logits[sample.prompt + at - 1].float()
            return float((here[own] - here[other]).abs())
    return math.inf


def _other_dtype(dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return "Do not use this merge; predict with the run folder itself, and report the adapter's settings."
    return "Rounding hides the adapter in this format: export with --dtype float32."
