"""Interactions that a user brings: DDInter's files, or a CSV of the user's own, as rows of evidence.

They stand beside the shipped sources, each under its own name, and `tiers.tier_of` weighs them with the rest. Nothing of them
is kept by the project; DDInter is CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from yaofang.vocab.ansm import load_ansm
from yaofang.vocab.errors import InputError
from yaofang.vocab.evidence import LEVELS, Row, load_terms
from yaofang.vocab.lexicon import load_lexicon
from yaofang.vocab.matching import meaning

DDINTER = {"Major": "major", "Moderate": "moderate", "Minor": "minor"}
"""Level of DDInter -> level of a row; `Unknown` says nothing and is left out."""
DDINTER_COLUMNS = ("Drug_A", "Drug_B", "Level")
TABLES = Path(__file__).parent / "default"
COLUMNS = ("a", "b", "level", "mechanism", "source")


def ddinter_rows(folder: str | Path) -> list[Row]:
    """Every rated pair of the `ddinter_downloads_code_*.csv` files (any `*.csv`) of a folder, by INN in lower case.

    Raises InputError for a folder without such files, a missing column or a level that DDInter does not have.
    """
    files = sorted(Path(folder).glob("*.csv")) if Path(folder).is_dir() else []
    if not files:
        way_out = "Give the folder that holds DDInter's ddinter_downloads_code_*.csv."
        raise InputError("no CSV file is here", file=Path(folder), way_out=way_out)
    found: dict[Row, None] = {}
    for file in files:
        for line, row in _rows(file, DDINTER_COLUMNS):
            level = row["Level"].strip()
            if level not in (*DDINTER, "Unknown"):
                way_out = f"DDInter's levels are {', '.join(DDINTER)} and Unknown."
                raise InputError(f"{level!r} is no level", file=file, line=line, field="Level", way_out=way_out)
            if level in DDINTER:
                a, b = sorted((_inn(row["Drug_A"]), _inn(row["Drug_B"])))
                found[Row(a, b, DDINTER[level], "", f"DDInter: {file.name}")] = None
    return list(found)


def interaction_rows(file: str | Path) -> list[Row]:
    """The rows of a CSV with the columns a, b, level, mechanism, source; UTF-8.

    a and b are INN (US names too), or Chinese names that the lexicon ties to one ingredient; level is contraindicated, major,
    moderate or minor; source is written `issuer: document`. Raises InputError that names line and field.
    """
    path = Path(file)
    rows = []
    for line, row in _rows(path, COLUMNS):
        level = row["level"].lower()
        if level not in LEVELS:
            way_out = f"Write one of {', '.join(LEVELS)} (and close every quotation mark of the file)."
            raise InputError(f"{row['level']!r} is no level", file=path, line=line, field="level", way_out=way_out)
        issuer, _, document = row["source"].partition(":")
        if not issuer.strip() or not document.strip():
            raise InputError("not `issuer: document`", file=path, line=line, field="source", way_out="Name who says so.")
        a, b = (_ingredient(row[side], path, line, side) for side in ("a", "b"))
        rows.append(Row(a, b, level, row["mechanism"], row["source"]))
    return rows


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                way_out = f"The first line names the columns {', '.join(columns)}."
                raise InputError(f"there is no column {missing[0]}", file=file, line=1, field=missing[0], way_out=way_out)
            for row in reader:
                yield reader.line_num, {column: (row[column] or "").strip() for column in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", file=file, way_out="Give a UTF-8 CSV file.") from None


def _inn(name: str) -> str:
    plain = name.strip().lower()
    return _spelling().get(plain, plain)


@cache
def _spelling() -> Mapping[str, str]:
    return load_terms(TABLES).spelling


@cache
def known_substances() -> frozenset[str]:
    """Every INN that a drug of the lexicon, the thesaurus or a class holds: a row about anything else has no effect."""
    terms = load_terms(TABLES)
    held = {name for entries in load_lexicon().entries.values() for entry in entries for name in entry.ingredients}
    listed = frozenset().union(*terms.classes.values())
    return frozenset({*held, *(terms.moiety.get(name, name) for name in held), *load_ansm(TABLES).links, *listed})


def _ingredient(name: str, file: Path, line: int, field: str) -> str:
    """An INN as it stands, or the one ingredient of a Chinese name."""
    if name and name.isascii():
        if _inn(name) in known_substances():
            return _inn(name)
        way_out = "Write the INN as the lexicon has it (yaofang vocab match 药名 --json shows ingredients)."
        raise InputError(f"{name!r} is no substance of the lexicon", file=file, line=line, field=field, way_out=way_out)
    found = meaning(name)
    entries = load_lexicon().entries.get(found.drug.generic, ()) if found.drug.ingredients else ()
    if len(found.drug.ingredients) != 1 or not entries:
        way_out = "Write the INN, or a Chinese name of one ingredient (yaofang vocab match shows what a name means)."
        raise InputError(f"{name!r} is not tied to one ingredient", file=file, line=line, field=field, way_out=way_out)
    return found.drug.ingredients[0]
