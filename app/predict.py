"""`yaofang predict`: discharge drugs for a file of records, as a submission file.

yaofang predict --records records.jsonl --out submission.json --details details.jsonl
torchrun --nproc-per-node 4 -m yaofang.app.predict --records records.jsonl --out submission.json --model glm-4-9b

The surface only: the work is in `prediction_job`.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Diagnoses(StrEnum):
    """Where the diagnoses of an answer come from."""

    auto = "auto"
    given = "given"
    generated = "generated"


class Quantize(StrEnum):
    """Weights in fewer bits, for a small card (extra `qlora`)."""

    eight = "8bit"
    four = "4bit"


def predict(
    records: Annotated[Path, typer.Option(help="Records: JSON lines, a JSON array, or one JSON object.")],
    out: Annotated[Path, typer.Option(help="Submission file to write.")],
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Model or run folder; several (given again and again) vote. Default: the bundled model."),
    ] = None,
    vocab: Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")] = None,
    diagnoses: Annotated[
        Diagnoses,
        typer.Option(help="auto: the record's own 出院诊断 where it has them; generated: never look at them."),
    ] = Diagnoses.auto,
    details: Annotated[Path | None, typer.Option(help="Also write one Recommendation a line.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Records generated at once.")] = 8,
    mask_patient: Annotated[
        bool,
        typer.Option("--mask-patient", help="Keep drugs out that are contraindicated in the patient; else they are warned of."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the journal of a run that was stopped.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantize: Annotated[Quantize | None, typer.Option(help="Load the weights in 8 or 4 bits.")] = None,
) -> None:
    """Recommend discharge drugs for every record of a file."""
    from yaofang.app.prediction_job import Job, run

    run(
        Job(
            records=records,
            out=out,
            models=tuple(model or ()),
            vocab=vocab,
            diagnoses=diagnoses.value,
            details=details,
            batch_size=batch_size,
            mask_patient=mask_patient,
            resume=resume,
            skip_bad=skip_bad,
            device=device,
            dtype=dtype,
            quantize=quantize.value if quantize else None,
        )
    )


if __name__ == "__main__":
    from yaofang.app.cli import main

    main(["predict", *sys.argv[1:]])
