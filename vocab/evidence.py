"""What speaks for or against two ingredients together: rows from every source, in one shape.

A row links two terms. A term is an INN, `class:ID` (classes.tsv), `action:ID` (insulin_actions.tsv), `INN@route` or
`class:ID@route` for a local form, or `ansm:NAME` for a name of the thesaurus. Knows the tables and which terms a unit answers
to; knows neither labels nor tiers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from yaofang.vocab.ansm import EDITION, Ansm
from yaofang.vocab.drugs import Drug
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import read_table
from yaofang.vocab.lexicon import load_lexicon

SYSTEMIC = "systemic"
LEVELS = ("contraindicated", "major", "moderate", "minor")
NEVER = "never"
WHITELIST = "whitelist"
HERB = "herb"
INFERRED = "inferred"
"""Issuer of rows that no source states: a class's interaction carried over to a drug that the sources do not list."""
TABLES_OF_ROWS = ("same_class.tsv", "pairs.tsv", "herb_pairs.tsv", "inferred.tsv", "whitelist.tsv")


@dataclass(frozen=True, slots=True)
class Row:
    """One statement of one source about two terms."""

    a: str
    b: str
    level: str
    """One of LEVELS, `never` (two of one class) or `whitelist`."""
    text: str
    source: str
    """`issuer: document`; two rows of one issuer are one source."""
    table: str = "user"
    """The column of sources.tsv that it stands in."""

    @property
    def issuer(self) -> str:
        """The regulator or society that stands behind the row."""
        return self.source.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Unit:
    """One ingredient as one drug brings it: the smallest thing that interacts."""

    ingredient: str
    moiety: str
    place: str
    """`systemic`, or the local route."""
    action: str
    """An insulin's action; `herb` for a herb inside a Chinese patent medicine; else empty."""

    @property
    def key(self) -> tuple[str, str]:
        """Two systemic units with one key are one ingredient twice, but for herbs."""
        return self.moiety, self.action

    @property
    def is_herb(self) -> bool:
        """One herb in two patent medicines is everyday care, not one drug twice."""
        return self.action == HERB


@dataclass(frozen=True, slots=True)
class Terms:
    """The tables that turn a drug into units and a unit into terms."""

    spelling: Mapping[str, str]
    moiety: Mapping[str, str]
    routes: Mapping[tuple[str, str], bool]
    """(route, ingredient or `*`) -> systemic."""
    actions: Mapping[str, str]
    """ATC prefix or insulin's INN -> action."""
    classes: Mapping[str, frozenset[str]]
    """Class -> ingredients."""
    prefixes: Mapping[str, tuple[str, ...]]
    """Class -> ATC prefixes."""
    exceptions: Mapping[str, frozenset[str]]
    """Class -> ingredients that its prefixes do not mean."""
    inferred: Mapping[str, frozenset[str]]
    """Ingredient -> `class:ID` of which it is a member by inference: no source lists it there."""

    def units(self, drug: Drug) -> tuple[Unit, ...]:
        """The drug's ingredients, each with its place and, for an insulin, its action; then the herbs inside."""
        names = [self.spelling.get(name, name) for name in drug.ingredients]
        insulins = sum(name.startswith("insulin") for name in names)
        found = [
            Unit(
                name,
                self.moiety.get(name, name),
                SYSTEMIC if self.is_systemic(drug.route, name) else drug.route,
                self._action(name, drug.atc, insulins) if name.startswith("insulin") else "",
            )
            for name in dict.fromkeys(names)
        ]
        place = SYSTEMIC if self.is_systemic(drug.route, "*") else drug.route
        herbs = [herb for herb in load_lexicon().herbs.get(drug.generic, ()) if herb not in names]
        return (*found, *(Unit(herb, self.moiety.get(herb, herb), place, HERB) for herb in herbs))

    def is_systemic(self, route: str, ingredient: str) -> bool:
        """Whether the ingredient reaches the whole body by this route; an unknown route does."""
        return self.routes.get((route, ingredient), self.routes.get((route, "*"), True))

    def own(self, unit: Unit, atc_codes: Iterable[str]) -> frozenset[str]:
        """The unit's terms in the project's own tables; a local form answers only to `INN@route` and `class:ID@route`."""
        names = {unit.ingredient, unit.moiety}
        codes = tuple(atc_codes)
        classes = {f"class:{name}" for name in self.classes if self._belongs(name, names, codes)}
        if unit.place != SYSTEMIC:
            return frozenset(f"{name}@{unit.place}" for name in names | classes)
        actions = {f"action:{unit.action}"} if unit.action in self.actions.values() else set()
        return frozenset(names | classes | actions)

    def _belongs(self, name: str, ingredients: set[str], codes: tuple[str, ...]) -> bool:
        if ingredients & self.classes[name]:
            return True
        by_code = any(code.startswith(self.prefixes[name]) for code in codes) if self.prefixes[name] else False
        return by_code and not ingredients & self.exceptions[name]

    def _action(self, name: str, atc: str | None, insulins: int) -> str:
        for length in (5, 4):
            if atc and atc[:length] in self.actions:
                return self.actions[atc[:length]]
        return "premixed" if insulins > 1 else self.actions.get(name, "prandial")


def load_terms(folder: Path) -> Terms:
    """Read moieties.tsv, routes.tsv, insulin_actions.tsv and classes.tsv."""
    names = [row for _, row in read_table(folder / "moieties.tsv")]
    classes = [row for _, row in read_table(folder / "classes.tsv")]
    return Terms(
        {row["ingredient"]: row["is"] for row in names if row["kind"] == "spelling"},
        {row["ingredient"]: row["is"] for row in names if row["kind"] == "moiety"},
        {(row["route"], row["ingredient"]): row["systemic"] == "yes" for _, row in read_table(folder / "routes.tsv")},
        {
            row["atc"] if row["atc"] != "-" else row["ingredient"]: row["action"]
            for _, row in read_table(folder / "insulin_actions.tsv")
        },
        {row["class"]: frozenset(_cells(row["ingredients"])) for row in classes},
        {row["class"]: _cells(row["atc"]) for row in classes},
        {row["class"]: frozenset(_cells(row["except"])) for row in classes},
        _inferred_members(folder, {row["class"] for row in classes}),
    )


def _inferred_members(folder: Path, classes: set[str]) -> dict[str, frozenset[str]]:
    file = folder / "inferred_members.tsv"
    found: dict[str, set[str]] = {}
    for line, row in read_table(file):
        if row["class"] not in classes:
            way_out = "Name a class of classes.tsv."
            raise InputError(f"there is no class {row['class']!r}", file=file, line=line, field="class", way_out=way_out)
        found.setdefault(row["ingredient"], set()).add(f"class:{row['class']}")
    return {ingredient: frozenset(names) for ingredient, names in found.items()}


def load_rows(folder: Path, terms: Terms, ansm: Ansm) -> tuple[Row, ...]:
    """Every row of `TABLES_OF_ROWS` and of the thesaurus."""
    return (
        *_table(folder / "same_class.tsv", "reason", (NEVER, *LEVELS), terms, "same_class"),
        *_table(folder / "pairs.tsv", "mechanism", LEVELS, terms, "own"),
        *_table(folder / "herb_pairs.tsv", "mechanism", LEVELS, terms, "own"),
        *_table(folder / "inferred.tsv", "mechanism", LEVELS, terms, INFERRED),
        *_table(folder / "whitelist.tsv", "reason", (WHITELIST,), terms, WHITELIST),
        *(_from_thesaurus(ansm)),
    )


def _table(file: Path, text: str, levels: tuple[str, ...], terms: Terms, table: str) -> list[Row]:
    rows = []
    for number, cells in read_table(file):
        row = Row(cells["a"], cells["b"], cells.get("level", WHITELIST), cells[text], cells["source"], table)
        problem = _problem(row, levels, terms)
        if problem:
            raise InputError(problem[1], file=file, line=number, field=problem[0], way_out="Correct this row.")
        rows.append(row)
    return rows


def _problem(row: Row, levels: tuple[str, ...], terms: Terms) -> tuple[str, str] | None:
    """(field, what is wrong) of a row, or None."""
    if row.level not in levels:
        return "level", f"{row.level!r} is none of {', '.join(levels)}"
    for field, term in (("a", row.a), ("b", row.b)):
        kind, colon, name = term.partition("@")[0].partition(":")
        known = terms.classes if kind == "class" else set(terms.actions.values())
        if colon and name not in known:
            return field, f"there is no {kind} {name!r}"
    if ":" not in row.source:
        return "source", "a source is written `issuer: document`"
    return None


def _from_thesaurus(ansm: Ansm) -> list[Row]:
    return [
        Row(
            f"ansm:{rule.a}",
            f"ansm:{rule.b}",
            rule.level,
            rule.mechanism + (f"（{rule.condition}）" if rule.condition else ""),
            EDITION,
            "ansm",
        )
        for rule in ansm.rules
    ]


def _cells(text: str) -> tuple[str, ...]:
    return () if text == "-" else tuple(cell.strip() for cell in text.split(","))
