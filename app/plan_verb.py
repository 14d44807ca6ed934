"""The verb `plan`: what a recipe will need on each card, before anything is loaded.

yaofang plan --config glm4-9b-lora-2x48gb
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yaofang.sft.memory.plan import Plan
    from yaofang.sft.parts import Hardware, Recipe

MEANING = {
    "weights": "the model, in {weight_bytes} bytes a weight{quantize}",
    "adapter": "LoRA's own weights",
    "optimizer": "states of {optimizer}",
    "gradients": "of {trained:,} trained weights",
    "activations": "kept for the backward{checkpointing}",
    "layer": "the layer at work, and its gradients on the way",
    "mask": "attention mask of {length:,} x {length:,}",
    "head": "scores of {scored:,} labelled positions over {vocabulary:,} tokens",
    "buffers": "DeepSpeed's buckets and gathered weights",
    "context": "CUDA and libraries; assumed, not measured",
    "margin": "lost between blocks; assumed, not measured",
}


def plan(
    config: Annotated[str, typer.Option("--config", help="Recipe: a name of sft/recipes or a YAML file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: data.max_length=4096.")] = None,
    cards: Annotated[int | None, typer.Option("--cards", min=1, help="Cards. Default: the recipe's `hardware`.")] = None,
    memory_gb: Annotated[
        float | None, typer.Option("--memory-gb", min=1, help="Memory of one card. Default: the recipe's `hardware`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Predict a training run's memory on each card, and whether it fits (exit code 1 if not), before anything is loaded."""
    from yaofang.app.tables import show
    from yaofang.sft.memory.job import GIB
    from yaofang.sft.memory.plan import load_planned, longest, plan_config, suggestions

    overrides = set_ or []
    hardware = _hardware(load_planned(config, overrides)[0], cards, memory_gb)
    found = plan_config(config, overrides, hardware)
    length = None if hardware is None else longest(config, overrides, hardware)
    changes = suggestions(config, overrides, hardware) if found.fits is False else []
    rows = [(name, value / GIB, _meaning(name, found)) for name, value in found.items.items()]
    rows.append(("all", found.total / GIB, f"at the highest moment: {found.moment}"))
    notes = [f"sizes: {found.source}; 1 GB is 2^30 bytes here", *_verdict(found, length, changes)]
    data = _data(found, length, changes)
    show(f"{config}: memory of each card", ("item", "GB", "what"), rows, as_json=as_json, data=data, notes=notes)
    if found.fits is False:
        raise typer.Exit(1)


def _hardware(recipe: Recipe, cards: int | None, memory_gb: float | None) -> Hardware | None:
    """The recipe's cards with what the command line says of them; None where nobody says how large a card is."""
    from yaofang.sft.parts import Hardware
    from yaofang.vocab.errors import InputError

    own = recipe.hardware
    memory = memory_gb if memory_gb is not None or own is None else own.memory_gb
    if memory is None and cards is not None:
        way_out = "Give --memory-gb too, or the part `hardware` in the recipe."
        raise InputError("--cards without the memory of a card", way_out=way_out)
    if memory is None:
        return None
    return Hardware(cards=cards or (own.cards if own else 1), memory_gb=memory)


def _meaning(name: str, found: Plan) -> str:
    from yaofang.sft.memory.step import trained

    job = found.job
    return MEANING[name].format(
        weight_bytes=job.weight_bytes,
        quantize=f", the layers' matrices in {job.quantize}" if job.quantize else "",
        optimizer="AdamW" if job.optimizer == "adamw" else "Muon and AdamW",
        trained=trained(found.sizes, job),
        checkpointing=": the layers' inputs" if job.checkpointing else "",
        length=job.length,
        scored=job.scored,
        vocabulary=found.sizes.vocabulary,
    )


def _verdict(found: Plan, length: int | None, changes: list[list[str]]) -> list[str]:
    """What the table means for the user, in sentences."""
    from yaofang.sft.memory.job import GIB

    host = [f"the machine's own memory, for what is offloaded: {found.host / GIB:.0f} GB"] if found.host else []
    if found.hardware is None or found.usable is None:
        return [*host, "whether it fits: give --memory-gb, or the part `hardware` in the recipe"]
    cards = f"{found.hardware.cards} x {found.hardware.memory_gb:g} GB"
    room = f"{found.total / GIB:.1f} of {found.usable / GIB:.1f} GB that a program gets of a card"
    tokens = "no length fits" if length is None else f"the longest data.max_length that fits is {length:,} tokens"
    if found.fits:
        return [*host, f"fits on {cards}: {room}", tokens]
    ways = [" ".join(f"--set {change}" for change in option) for option in changes]
    return [*host, f"does not fit on {cards}: {room}", tokens, *(f"would fit: {way}" for way in ways)]


def _data(found: Plan, length: int | None, changes: list[list[str]]) -> dict[str, Any]:
    from yaofang.sft.memory.job import GIB

    hardware = found.hardware
    return {
        "sizes": found.source,
        "parameters": found.sizes.parameters,
        "cards": None if hardware is None else hardware.cards,
        "memory_gb": None if hardware is None else hardware.memory_gb,
        "usable_gb": None if found.usable is None else found.usable / GIB,
        "moment": found.moment,
        "items_gb": {name: value / GIB for name, value in found.items.items()},
        "total_gb": found.total / GIB,
        "host_gb": found.host / GIB,
        "fits": found.fits,
        "longest": length,
        "would_fit": changes,
    }
