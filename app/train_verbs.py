"""The verb `sft`: supervised fine-tuning from a recipe.

yaofang sft --config tiny --out runs/tiny
torchrun --nproc-per-node 2 -m yaofang.app.cli sft --config glm4-9b-lora-2x48gb --out runs/lora
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def sft(
    config: Annotated[str, typer.Option("--config", help="Recipe: a name of sft/recipes or a YAML file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: training.epochs=2.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")] = Path("runs/sft"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")] = False,
    sequence_parallel_size: Annotated[
        int | None, typer.Option(min=1, help="Processes that share one long record, under torchrun.")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the recipe as it stands and stop.")] = False,
) -> None:
    """Train a model on records with drugs (SFT)."""
    from yaofang.sft.recipe import dump_recipe, find_recipe, load_recipe, with_deepspeed_file

    overrides = list(set_ or [])
    if sequence_parallel_size is not None:
        overrides.append(f"training.sequence_parallel_size={sequence_parallel_size}")
    recipe = load_recipe(config, overrides)
    if print_config:
        sys.stdout.write(dump_recipe(recipe))
        return
    import logging

    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("yaofang").setLevel(logging.INFO if first else logging.WARNING)
    from yaofang.sft.train import train

    recipe = with_deepspeed_file(recipe, find_recipe(config).parent)
    with contextlib.redirect_stdout(sys.stderr):  # the trainer's progress is for people, stdout is for data
        metrics = train(recipe, out, resume=resume, skip_bad=skip_bad, command="yaofang " + " ".join(sys.argv[1:]))
    if first:
        typer.echo(f"{out}: loss {metrics['train_loss']:.4f} after {metrics['train_runtime']:.0f} s", err=True)


def calibrate(
    records: Annotated[Path, typer.Option(help="Records with drugs, of patients that the model did not train on.")],
    model: Annotated[Path | None, typer.Option(help="Model or run folder; the curve is written into it.")] = None,
    vocab: Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Lists drawn a record, as predict will draw.")] = 24,
    batch_size: Annotated[int, typer.Option(min=1, help="Records at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Calibrate a model's p_include on records with drugs: calibration.json in the model's folder."""
    from yaofang.app.progress import progress
    from yaofang.app.tables import show
    from yaofang.data.records import read_records
    from yaofang.decoding.recommender import Recommender
    from yaofang.eval.calibration import calibrate as learn
    from yaofang.glm.loading import BUNDLED

    read = read_records(records).records
    folder = model or BUNDLED
    recommender = Recommender.from_pretrained(folder, vocab, device=device, strategy="expected", samples=samples, audit=False)
    with progress("calibrate", len(read)) as advance:
        curve, judged = learn(recommender, read, batch_size, advance)
    written = curve.write(folder)
    rows = [("records, patients", f"{curve.about['records']}, {curve.about['patients']}")]
    rows += [
        (f"{name}: {key}, on the other half of the patients", f"{value[key]:.4f}")
        for name, value in judged.items()
        for key in ("ece", "brier")
    ]
    data = {"file": str(written), "version": curve.version, "judged": judged}
    show(f"{written}: calibration {curve.version}", ("figure", "value"), rows, as_json=as_json, data=data)
