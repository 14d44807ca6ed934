"""The list of drugs that may be named: labels with generic, ingredients, ATC code, form, route and kind.

Loads the bundled table or any other list by path, and refuses a list that an answer could not be written with.
Knows nothing of interactions, models or records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from yaofang.vocab.errors import InputError
from yaofang.vocab.files import read_table, sha256_of
from yaofang.vocab.naming import ROUTES

TABLE = Path(__file__).parent / "default" / "drugs.tsv"
COLUMNS = ("label", "generic", "ingredients", "atc", "form", "route", "kind")
KINDS = ("drug", "patent_medicine", "not_a_drug", "unlinked")
UNKNOWN = ("not_a_drug", "unlinked")
"""Kinds of which no ingredient is known."""

_SEPARATOR = re.compile(r"[、；\r\n\t\u2028\u2029]")
ATC = re.compile(r"[A-Z]\d\d(?:[A-Z](?:[A-Z](?:\d\d)?)?)?|~[A-Z]\d\d[A-Z]{0,2}")
"""A WHO code or, after `~`, the class that a drug without a code would belong to."""
_JSON_ENTRY = re.compile(r'\s*[\[,]\s*("(?:[^"\\]|\\.)*")?')


@dataclass(frozen=True, slots=True)
class Drug:
    """One label and what is known of it."""

    label: str
    """As the hospital writes it: what a submission and an answer hold."""
    generic: str
    """Chinese name without salt or form; a Chinese patent medicine's own name."""
    ingredients: tuple[str, ...]
    """INN in lower case, one an active substance. Empty where none is known."""
    atc: str | None
    """WHO ATC code of this route; `~A10BX` is a provisional class of a drug that WHO gives no code; or None."""
    form: str | None
    """Pharmaceutical form in Chinese as the label says it, or None."""
    route: str
    """One of `naming.ROUTES`. A label without a form counts as given by the generic's usual systemic route."""
    kind: str
    """`drug`, `patent_medicine`, `not_a_drug` (a diagnosis, a device), or `unlinked`: could not be tied to a generic."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """An ordered list of drugs, each label once. Rows of a submission, columns of a conflict matrix follow its order."""

    drugs: tuple[Drug, ...]
    source: str = "memory"
    """Where the list came from, for messages and provenance."""
    labels: tuple[str, ...] = field(init=False, repr=False)
    version: str = field(init=False)
    """First 12 hex digits of the SHA-256 over all rows in their order."""
    unlinked: tuple[str, ...] = field(init=False, repr=False)
    """Labels that are tied to no generic, or are no drug: nothing is known of them, which is not the same as safe."""
    _positions: dict[str, int] = field(init=False, repr=False)
    _of_generic: dict[str, tuple[Drug, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels = tuple(drug.label for drug in self.drugs)
        positions = {label: place for place, label in enumerate(labels)}
        if len(positions) != len(labels):
            raise ValueError("a label occurs twice; load_vocabulary says which")
        of_generic: dict[str, tuple[Drug, ...]] = {}
        for drug in self.drugs:
            of_generic[drug.generic] = (*of_generic.get(drug.generic, ()), drug)
        values = {
            "labels": labels,
            "version": sha256_of(*("\t".join(_cells(drug)) for drug in self.drugs))[:12],
            "unlinked": tuple(drug.label for drug in self.drugs if drug.kind in UNKNOWN),
            "_positions": positions,
            "_of_generic": of_generic,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def index(self, label: str) -> int:
        """Place of a label, from 0. Raises KeyError if it is not in the list."""
        return self._positions[label]

    def drug(self, label: str) -> Drug:
        """The drug of a label. Raises KeyError if it is not in the list."""
        return self.drugs[self._positions[label]]

    def with_generic(self, generic: str) -> tuple[Drug, ...]:
        """Every drug of a generic, in the list's order; empty if there is none."""
        return self._of_generic.get(generic, ())

    def __contains__(self, label: object) -> bool:
        return label in self._positions

    def __len__(self) -> int:
        return len(self.drugs)

    def __iter__(self) -> Iterator[Drug]:
        return iter(self.drugs)


def load_vocabulary(path: str | Path | None = None) -> Vocabulary:
    """The bundled 651 labels, or the list at `path`.

    `path` is a `.json` file with one flat array of names (the competition's 候选药物列表.json), a `.txt` file with a name
    a line, or a `.tsv` table with a column `label`. Names are tied to generics by the bundled table; a table that brings
    every column of `COLUMNS` is taken as it stands. Raises InputError for a list that is empty, has another shape, or
    holds a name twice, a blank name, or a name with a separator of the answer in it.
    """
    return _bundled() if path is None else _load(Path(path))


@cache
def _bundled() -> Vocabulary:
    return _load(TABLE)


def _load(path: Path) -> Vocabulary:
    text = _read(path)
    if path.suffix == ".tsv":
        return _from_table(path)
    if path.suffix == ".json":
        names = _names_of_json(path, text)
    elif path.suffix == ".txt":
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        names = [(name, number, "name") for number, name in enumerate(lines, 1)]
    else:
        raise InputError(f"unknown kind of list {path.suffix!r}", file=path, way_out="Use .json, .txt or .tsv.")
    _check_names(path, names)
    return _linked(path, [name for name, _, _ in names])


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("there is no such file", file=path, way_out="Check the path of the drug list.") from None
    except IsADirectoryError:
        raise InputError("this is a folder", file=path, way_out="Give the path of a drug list.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError("not UTF-8 text", file=path, line=line, way_out="Save the list as UTF-8.") from None
    if not text.strip():
        raise InputError("the file is empty", file=path, way_out="Give a list with at least one drug name.")
    return text


def _names_of_json(path: Path, text: str) -> list[tuple[str, int, str]]:
    way_out = 'The list is one flat array of names: ["阿卡波糖", "二甲双胍"].'
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON: {error.msg}", file=path, line=error.lineno, way_out=way_out) from None
    if not isinstance(value, list):
        raise InputError(f"an array was expected, not {_shape(value)}", file=path, line=1, way_out=way_out)
    names: list[tuple[str, int, str]] = []
    place = 0
    for number, name in enumerate(value):
        found = _JSON_ENTRY.match(text, place)
        assert found  # json.loads read the same text: before each entry stands a bracket or a comma
        line = text.count("\n", 0, found.start(1) if found[1] else found.end()) + 1
        if not isinstance(name, str):
            problem = f"a name was expected, not {_shape(name)}"
            raise InputError(problem, file=path, line=line, field=f"[{number}]", way_out=way_out)
        names.append((name, line, f"[{number}]"))
        place = found.end()
    return names


def _shape(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _check_names(path: Path, names: Sequence[tuple[str, int, str]]) -> None:
    """Refuse what an answer could not hold. A name comes with its line and field."""
    if not names:
        raise InputError("the list holds no name", file=path, way_out="Give a list with at least one drug name.")
    first: dict[str, int] = {}
    for name, line, where in names:
        problem = way_out = None
        if not name.strip():
            problem, way_out = "a blank name", "Remove the entry or write the drug's name."
        elif found := _SEPARATOR.search(name):
            problem = f"{name!r} holds {found[0]!r}, which separates names in an answer"
            way_out = "Write one drug an entry, without 、 ； tab or newline."
        elif name != name.strip():
            problem, way_out = f"{name!r} begins or ends with a blank", "Remove the blank."
        elif name in first:
            problem, way_out = f"{name} is listed twice, first in line {first[name]}", "Keep one of the two."
        if problem:
            raise InputError(problem, file=path, line=line, field=where, way_out=way_out)
        first[name] = line


def _from_table(path: Path) -> Vocabulary:
    rows = read_table(path)
    if not rows:
        raise InputError("the table has no row", file=path, way_out="Give a list with at least one drug name.")
    if "label" not in rows[0][1]:
        way_out = "Name the column that holds the drug names `label` in the table's first line."
        raise InputError("there is no column label", file=path, line=1, field="label", way_out=way_out)
    _check_names(path, [(row["label"], line, "label") for line, row in rows])
    if any(column not in rows[0][1] for column in COLUMNS):
        return _linked(path, [row["label"] for _, row in rows])
    return Vocabulary(tuple(_drug_of_row(path, line, row) for line, row in rows), source=_source(path))


def _drug_of_row(path: Path, line: int, row: dict[str, str]) -> Drug:
    domains: dict[str, bool] = {
        "generic": bool(row["generic"]) and row["generic"] != "-",
        "ingredients": "" not in row["ingredients"].split("+"),
        "atc": row["atc"] == "-" or ATC.fullmatch(row["atc"]) is not None,
        "form": bool(row["form"]),
        "route": row["route"] in ROUTES,
        "kind": row["kind"] in KINDS,
    }
    for column, good in domains.items():
        if not good:
            way_out = f"Write `-` for nothing; route is one of {', '.join(ROUTES)}, kind one of {', '.join(KINDS)}."
            raise InputError(f"{row[column]!r} is no {column}", file=path, line=line, field=column, way_out=way_out)
    return Drug(
        label=row["label"],
        generic=row["generic"],
        ingredients=() if row["ingredients"] == "-" else tuple(row["ingredients"].split("+")),
        atc=None if row["atc"] == "-" else row["atc"],
        form=None if row["form"] == "-" else row["form"],
        route=row["route"],
        kind=row["kind"],
    )


def _linked(path: Path, names: Iterable[str]) -> Vocabulary:
    # Only a list of the user's own needs name matching, which itself stands on the bundled vocabulary of this module.
    from yaofang.vocab.matching import link

    return Vocabulary(tuple(link(name) for name in names), source=_source(path))


def _source(path: Path) -> str:
    return "bundled" if path == TABLE else str(path)


def _cells(drug: Drug) -> tuple[str, ...]:
    return (
        drug.label,
        drug.generic,
        "+".join(drug.ingredients) or "-",
        drug.atc or "-",
        drug.form or "-",
        drug.route,
        drug.kind,
    )
