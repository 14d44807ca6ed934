"""`yaofang evaluate`: score a submission, or anyone's answers.

    yaofang evaluate --records gold.jsonl --predictions sub.json
    yaofang evaluate --gold gold.json --predictions sub.json --level generic
    yaofang evaluate --records gold.jsonl --predictions sub.json --train train.jsonl --compare other.json

Knows options; `evaluation_job` reads the files and scores, `evaluation_tables` prints.
"""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yaofang.app.cmb import cmb
from yaofang.app.tables import say
from yaofang.vocab.errors import InputError

if TYPE_CHECKING:
    from yaofang.app.evaluation_job import Outcome


class Level(StrEnum):
    """What is compared."""

    label = "label"
    generic = "generic"
    atc4 = "atc4"


Vocab = Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")]


evaluation = typer.Typer(name="evaluate", invoke_without_command=True)
evaluation.command("cmb")(cmb)


@evaluation.callback()
def evaluate(
    context: typer.Context,
    predictions: Annotated[
        Path | None,
        typer.Option(help='Submission: [{"ID": ..., "prediction": [...]}, ...]; or a CSV, {ID: [names]}, {"ID", "text"}.'),
    ] = None,
    records: Annotated[Path | None, typer.Option(help="Gold records with 出院带药列表.")] = None,
    gold: Annotated[
        Path | None, typer.Option(help="Gold of another shape, {ID: [names]}, in place of the records' drugs.")
    ] = None,
    level: Annotated[Level, typer.Option(help="Compare labels, generic names, or ATC-4 classes on both sides.")] = Level.label,
    vocab: Vocab = None,
    details: Annotated[
        Path | None, typer.Option(help="What predict wrote with --details: how diagnoses came about, and p_include.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="The training records: scores by frequency of a drug and by rare diagnoses.")
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(help="In place of --train: a model's folder or yaofang.json, which counts its training drugs."),
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="A second submission, scored beside, with a paired test.")] = None,
    compare_details: Annotated[Path | None, typer.Option(help="The details of the second submission.")] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Link a submission's names to labels; the competition takes them as they stand.")
    ] = False,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of patients.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the result, with provenance, to this JSON file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write one self-contained HTML page.")] = None,
    card: Annotated[Path | None, typer.Option(help="Also write a model card in Markdown.")] = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Score drug lists: Jaccard, F1, board score, conflicts, ranking, strata and subgroups, all with 95% intervals."""
    from yaofang.app.evaluation_job import Files, run
    from yaofang.vocab.files import check_place

    if context.invoked_subcommand is not None:
        if predictions or records or gold:
            raise InputError("evaluate cmb takes its own options", way_out="Write them behind cmb.")
        return
    if predictions is None:
        raise InputError("there are no predictions", way_out="Give --predictions FILE.")
    for place in (out, report, card):
        check_place(place)
    given = Files(predictions, records, gold, vocab, details, train, counts, compare, compare_details)
    outcome = run(given, level=level.value, link=link, resamples=resamples, seed=seed, skip_bad=skip_bad)
    options = {"records": records, "gold": gold, "predictions": predictions, "level": level, "vocab": vocab}
    more = {"train": train, "counts": counts, "compare": compare, "compare_details": compare_details, "link": link}
    command = _command("evaluate", **options, details=details, **more, resamples=resamples, seed=seed, skip_bad=skip_bad)
    _write(outcome, command, out, report, card)
    _say(outcome, command, as_json=as_json)


def _say(outcome: Outcome, command: str, *, as_json: bool) -> None:
    """The tables, or JSON alone, on stdout; remarks on stderr."""
    from yaofang.app.evaluation_tables import print_tables, remarks
    from yaofang.app.tables import print_json
    from yaofang.data.provenance import provenance

    if as_json:
        print_json({"provenance": provenance(command), **outcome.to_json()})
    else:
        print_tables(outcome)
    for remark in remarks(outcome):
        say(remark)


def _write(outcome: Outcome, command: str, out: Path | None, report: Path | None, card: Path | None) -> None:
    """The files that were asked for."""
    from yaofang.data.provenance import provenance, write_result

    if out is not None:
        write_result(out, command, outcome.to_json())
    if report is None and card is None:
        return
    result = {"provenance": provenance(command), **outcome.to_json()}
    value = json.loads(json.dumps(result, ensure_ascii=False))  # as it would be read from a result file
    if report is not None:
        from yaofang.reports.page import write_page

        write_page(value, report)
    if card is not None:
        from yaofang.reports.card import write_card

        write_card(value, card)


def _command(verb: str, **options: object) -> str:
    """The command line that repeats this run; a flag that is off is left out."""
    words = ["yaofang", verb]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)
