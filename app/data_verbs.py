"""`yaofang data`: split, describe, check and simulate records. The surface only; the work is in `yaofang.data`.

    yaofang data split --records records.jsonl --by patient --folds 5 --out folds
    yaofang data stats --records records.jsonl
    yaofang data check-submission submission.json --records records.jsonl
    yaofang data simulate --patients 1910 --seed 1 --out ward.jsonl

Knows options and tables, not how anything is counted or checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yaofang.data.records import Record
    from yaofang.data.statistics import LabelClass, Spread, Statistics

app = typer.Typer(name="data", help="Records: split, describe, check a submission, simulate.", no_args_is_help=True)

Records = Annotated[Path, typer.Option(help="Records: JSON lines, a JSON array, or one JSON object.")]
Vocab = Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")]

SHOWN = 20
"""Rows of a list that is long: the rest is in --json."""


class By(StrEnum):
    """What is kept together in a split. By record would leak: visits of a patient share their drugs."""

    patient = "patient"


@app.command()
def split(
    records: Records,
    out: Annotated[Path, typer.Option(help="Folder for fold1.train.jsonl, fold1.valid.jsonl, ...; made if absent.")],
    by: Annotated[By, typer.Option(help="All visits of a patient stay in one fold.")] = By.patient,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Write training and validation records of every fold, no patient in two folds."""
    from yaofang.app.tables import show
    from yaofang.data.records import write_records
    from yaofang.data.splits import folds as folds_of
    from yaofang.vocab.errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError("this is a file", file=out, way_out="Give --out a folder.")
    found = _read(records, skip_bad)
    fold = folds_of(found, folds, seed)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(folds):
        train = [record for record, own in zip(found, fold, strict=True) if own != k]
        valid = [record for record, own in zip(found, fold, strict=True) if own == k]
        write_records(out / f"fold{k + 1}.train.jsonl", train)
        write_records(out / f"fold{k + 1}.valid.jsonl", valid)
        rows.append((k + 1, len(train), _patients(train), len(valid), _patients(valid)))
    columns = ("fold", "train records", "train patients", "valid records", "valid patients")
    data = {
        "records": len(found),
        "patients": _patients(found),
        "by": by.value,
        "seed": seed,
        "out": str(out),
        "folds": [dict(zip((name.replace(" ", "_") for name in columns), row, strict=True)) for row in rows],
    }
    show(f"{len(found)} records in {folds} folds by patient", columns, rows, as_json=as_json, data=data)


@app.command()
def stats(
    records: Records,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json, or a folder with one. Default: the bundled model's.")
    ] = None,
    vocab: Vocab = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Tokens and drugs per record, label frequencies, the long tail, co-occurrence, visits."""
    from yaofang.app.tables import print_json
    from yaofang.data.statistics import statistics
    from yaofang.vocab.drugs import load_vocabulary

    count = _counter(tokenizer)
    labels = load_vocabulary(vocab).labels
    found = statistics(_read(records, skip_bad), count=count, vocabulary=labels)
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)


@app.command("check-submission")
def check_submission(
    submission: Annotated[Path, typer.Argument(help="The submission file.")],
    records: Records,
    vocab: Vocab = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Check shape, IDs, labels, repeats and T1 pairs. Exit code 1 if there is a problem."""
    from yaofang.app.tables import show
    from yaofang.data.submission import examine_submission
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary

    vocabulary = load_vocabulary(vocab)
    found = examine_submission(submission, _read(records, skip_bad), vocabulary, load_conflicts(vocabulary))
    data = {
        "submission": str(submission),
        "valid": not found.problems,
        "entries": found.entries,
        "problems": found.problems,
        "warnings": found.warnings,
    }
    verdict = "not valid" if found.problems else "valid"
    rows = [(verdict, found.entries, len(found.problems), len(found.warnings))]
    listed = [f"problem: {text}" for text in found.problems] + [f"warning: {text}" for text in found.warnings]
    columns = ("submission", "entries", "problems", "warnings")
    show(submission.name, columns, rows, as_json=as_json, data=data, notes=[*listed[:SHOWN], *_more(listed)])
    if found.problems:
        raise typer.Exit(1)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="File for the training records; the test board and truth lie beside it.")],
    patients: Annotated[int, typer.Option(min=1, help="Number of training patients.")] = 1910,
    seed: Annotated[int, typer.Option(help="The same seed gives the same ward.")] = 0,
    as_json: Json = False,
) -> None:
    """Write records of a simulated ward: no real patient is in them."""
    from yaofang.app.tables import show
    from yaofang.data.ward.simulate import simulate_to_files

    files = simulate_to_files(patients, seed, out)
    rows = [(str(file), file.read_bytes().count(b"\n")) for file in files]
    data = {"patients": patients, "seed": seed, "files": [{"file": file, "lines": lines} for file, lines in rows]}
    show(f"A simulated ward of {patients:,} patients", ("file", "lines"), rows, as_json=as_json, data=data)


def _read(path: Path, skip_bad: bool) -> list[Record]:
    """The records, with what was skipped listed on stderr."""
    from yaofang.app.tables import say
    from yaofang.data.records import read_records

    result = read_records(path, skip_bad=skip_bad)
    for error in result.skipped:
        say(f"skipped: {error}")
    return result.records


def _patients(records: Sequence[Record]) -> int:
    return len({record.patient for record in records})


def _counter(path: Path | None) -> Callable[[str], int]:
    """Tokens of a plain text. Raises InputError where there is no tokenizer."""
    from importlib.resources import files

    from tokenizers import Tokenizer

    from yaofang.vocab.errors import InputError

    place = Path(str(files("yaofang.glm") / "tiny")) if path is None else path
    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.is_file():
        raise InputError("there is no tokenizer.json", file=file, way_out="Give --tokenizer a folder that has one.")
    encoder = Tokenizer.from_file(str(file))
    return lambda text: len(encoder.encode(text, add_special_tokens=False).ids)


def _more(rows: Sequence[object]) -> list[str]:
    return [f"... and {len(rows) - SHOWN} more: see --json"] if len(rows) > SHOWN else []


def _show(found: Statistics) -> None:
    """The tables for people."""
    from yaofang.app.tables import show

    spreads = [("tokens", found.tokens), ("drugs", found.drugs), ("diagnoses", found.diagnoses)]
    rows = [_spread_row(f"{name} per record", value) for name, value in spreads if value is not None]
    rows.append(_spread_row("records per patient", found.visits))
    columns = ("", "n", "mean", "min", *found.visits.percentiles, "max")
    title = f"{found.records:,} records of {found.patients:,} patients"
    show(title, columns, rows, as_json=False, data=None)
    classes = [_class_row(name, getattr(found, name)) for name in ("head", "middle", "tail")]
    title = f"{found.labels_seen} labels seen, {len(found.labels_unseen or ())} of the vocabulary never"
    columns = ("class", "labels", "share %", "mean frequency")
    notes = [f"pairs of labels: together in {found.cooccurrence_mean:.2f} records on average, {found.cooccurrence_max} at most"]
    if found.labels_outside:
        notes.append(f"not in the vocabulary: {'、'.join(found.labels_outside[:SHOWN])}")
    show(title, columns, classes, as_json=False, data=None, notes=notes)
    half = found.frequency[:SHOWN], found.frequency[::-1][:SHOWN]
    rows_of_labels = [(place, *top, *bottom) for place, (top, bottom) in enumerate(zip(*half, strict=True), 1)]
    columns = ("rank", "most frequent", "records", "least frequent", "records")
    show("Labels by frequency", columns, rows_of_labels, as_json=False, data=None)


def _spread_row(name: str, value: Spread) -> tuple[str | int | float, ...]:
    return (name, value.count, round(value.mean, 2), int(value.min), *value.percentiles.values(), int(value.max))


def _class_row(name: str, value: LabelClass) -> tuple[str | int | float, ...]:
    return (name, value.labels, round(100 * value.share, 2), round(value.mean_frequency, 1))
