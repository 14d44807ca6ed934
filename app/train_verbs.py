"""The verb `sft`: supervised fine-tuning from a recipe.

yaofang sft --config tiny --out runs/tiny
"""

from __future__ import annotations

import contextlib
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
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the recipe as it stands and stop.")] = False,
) -> None:
    """Train a model on records with drugs (SFT)."""
    from yaofang.sft.recipe import dump_recipe, load_recipe

    recipe = load_recipe(config, set_ or [])
    if print_config:
        sys.stdout.write(dump_recipe(recipe))
        return
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("yaofang").setLevel(logging.INFO)
    from yaofang.sft.train import train

    with contextlib.redirect_stdout(sys.stderr):  # the trainer's progress is for people, stdout is for data
        metrics = train(recipe, out, resume=resume, skip_bad=skip_bad, command="yaofang " + " ".join(sys.argv[1:]))
    typer.echo(f"{out}: loss {metrics['train_loss']:.4f} after {metrics['train_runtime']:.0f} s", err=True)
