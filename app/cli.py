"""`yaofang`: the one command line. It lists the verbs and turns bad input into a message and exit code 2.

    yaofang --help

The verbs' modules import what is heavy inside their functions, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from yaofang import __version__
from yaofang.app import bench_verbs, data_verbs, vocab_verbs
from yaofang.app.baseline import baseline
from yaofang.app.env import env
from yaofang.app.evaluate import evaluation
from yaofang.app.inspect import inspect
from yaofang.app.merge_verb import merge
from yaofang.app.plan_verb import plan
from yaofang.app.predict import predict
from yaofang.app.pretrain_verb import pretrain
from yaofang.app.show import show
from yaofang.app.tables import say
from yaofang.app.train_verbs import calibrate, sft
from yaofang.vocab.errors import InputError

# No pretty tracebacks: they print local variables, and those hold patients' text.
app = typer.Typer(
    name="yaofang",
    help="药方 Yaofang: from a Chinese inpatient EMR to diagnoses and a safe discharge drug list. "
    "Research software: no output is a prescription.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"yaofang {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """药方 Yaofang: from a Chinese inpatient EMR to diagnoses and a safe discharge drug list."""


app.command()(predict)
app.command()(show)
app.command()(inspect)
app.add_typer(evaluation)
app.command()(baseline)
app.command()(plan)
app.command()(pretrain)
app.command()(sft)
app.command()(merge)
app.command()(calibrate)
app.add_typer(data_verbs.app)
app.add_typer(vocab_verbs.app)
app.add_typer(bench_verbs.app, name="bench")
app.command()(env)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line (default: this process's) and exit: 0, 2 for bad input or usage, else what failed."""
    try:
        app(args=None if arguments is None else list(arguments))
    except InputError as error:
        say(f"yaofang: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
