"""The verb `merge`: a run's adapter into its base, as a folder that needs neither.

yaofang merge --model runs/lora --out models/merged
"""

from __future__ import annotations

import contextlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class DType(StrEnum):
    """Formats of the merged weights."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def merge(
    model: Annotated[Path, typer.Option(help="Run folder with a LoRA adapter.")],
    out: Annotated[Path, typer.Option(help="New folder to write, whole or not at all.")],
    base: Annotated[Path | None, typer.Option(help="The base model, where it has moved since the training.")] = None,
    dtype: Annotated[
        DType, typer.Option(help="Format of the weights. auto: the base's own; bfloat16 for a base trained on in 4 or 8 bits.")
    ] = DType.auto,
    records: Annotated[
        Path | None, typer.Option(help="Records to compare on: the first 4. Default: the bundled samples.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Merge a run's adapter into its base, and check that the merged model says the same."""
    from yaofang.app.tables import show

    with contextlib.redirect_stdout(sys.stderr):  # what libraries print while they load is for people, stdout is for data
        from yaofang.sft.merging.merge import merge as run_merge

        body = run_merge(
            model,
            out,
            base=base,
            dtype=dtype.value,
            device=device,
            records=records,
            max_shard_size=max_shard_size,
            command="yaofang " + " ".join(sys.argv[1:]),
        )
    show(f"{out}: model {body['version']}", ("figure", "value"), _rows(body), as_json=as_json, data=body, notes=body["notes"])


def _rows(body: dict[str, Any]) -> list[tuple[str, str]]:
    check = body["check"]
    rows = [
        ("adapter, base", f"{body['adapter']['version']}, {body['base']['version']}"),
        ("dtype", body["dtype"]),
        ("records, positions compared", f"{check['records']}, {check['positions']:,}"),
        ("spread of the logits", f"{check['spread']:.4g}"),
        ("largest difference allowed", f"{check['tolerance']:.3g} ({check['tolerance_reason']})"),
    ]
    found = [
        ("merged", check["merged"]),
        ("loaded again", check["reloaded"]),
        ("the adapter's own effect", check["adapter_effect"]),
    ]
    if body["quantised"] and body["quantised"]["difference"]:
        found.append((f"on the {body['quantised']['bits']} base", body["quantised"]["difference"]))
    for name, value in found:
        rows.append((f"{name}: largest difference", f"{value['largest']:.3g}"))
        rows.append((f"{name}: same likeliest id", f"{value['same_argmax']:.2%}"))
    parted = check["reloaded"]["answers_parting_at_a_tie"]
    rows.append(("answers equal", f"{check['reloaded']['answers'] - parted} of {check['reloaded']['answers']}"))
    return [*rows, ("calibration", body["calibration"])]
