"""The verb `pretrain`: continued pretraining on plain text, from a recipe.

yaofang pretrain --config tiny-pretrain --out runs/pretrain
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    config: Annotated[str, typer.Option("--config", help="Recipe: a name of sft/recipes or a YAML file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a field: data.corpus=[texts].")] = None,
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")] = Path("runs/pretrain"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad files and rows out and list them.")] = False,
    sequence_parallel_size: Annotated[
        int | None, typer.Option("--sequence-parallel-size", min=1, help="Processes that share one block, under torchrun.")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the recipe as it stands and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Go on pretraining a model on plain text, and measure its perplexity on held-out text."""
    from yaofang.sft.pretraining.recipe import load_pretrain_recipe
    from yaofang.sft.recipe import dump_recipe, find_recipe, with_deepspeed_file

    shared = [] if sequence_parallel_size is None else [f"training.sequence_parallel_size={sequence_parallel_size}"]
    recipe = load_pretrain_recipe(config, [*(set_ or []), *shared])
    if print_config:
        sys.stdout.write(dump_recipe(recipe))
        return
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    first = os.environ.get("RANK", "0") == "0"
    logging.getLogger("yaofang").setLevel(logging.INFO if first else logging.WARNING)
    from yaofang.app.tables import show
    from yaofang.sft.pretraining.pretrain import pretrain as run

    training = with_deepspeed_file(recipe.blocks(), find_recipe(config).parent).training
    recipe = recipe.model_copy(update={"training": training})
    with contextlib.redirect_stdout(sys.stderr):  # the trainer's progress is for people, stdout is for data
        body = run(recipe, out, resume=resume, skip_bad=skip_bad, command="yaofang " + " ".join(sys.argv[1:]))
    if not first:
        return
    corpus, held_out = body["corpus"], body["held_out"]
    title = f"{out}: {corpus['tokens']:,} tokens of {corpus['documents']:,} documents in {corpus['blocks']:,} blocks"
    names = ("perplexity_per_token", "perplexity_per_character", "bits_per_byte")
    rows = [] if held_out is None else [(name, held_out["before"][name], held_out["after"][name]) for name in names]
    show(title, ("held-out text", "before", "after"), rows, as_json=as_json, data=body)
