"""Which labels must not, should better not, or may with care go together: the tiers T1, T2, T3 with their reasons.

A label is its units (ingredients by place of action); rows of all sources speak about units; `tier_of` turns what they
say into a tier; a pair of labels has the highest tier of its pairs of units. Interactions act between systemic units
unless a row names a local form. No entry means that no source here says anything: never that a pair is safe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yaofang.vocab.ansm import Ansm, load_ansm
from yaofang.vocab.drugs import Drug, Vocabulary
from yaofang.vocab.evidence import LEVELS, NEVER, SYSTEMIC, WHITELIST, Row, Terms, Unit, load_rows, load_terms
from yaofang.vocab.files import sha256_of

TABLES = Path(__file__).parent / "default"
FILES = (
    "ansm_index.tsv",
    "ansm_substances.tsv",
    "ansm_classes.tsv",
    "ansm_rules.tsv",
    "ansm_reviewed.tsv",
    "classes.tsv",
    "moieties.tsv",
    "routes.tsv",
    "insulin_actions.tsv",
    "same_class.tsv",
    "pairs.tsv",
    "whitelist.tsv",
)
KINDS = ("contraindicated", "same_ingredient", "same_class", "major", "moderate", "minor", "whitelist")
CHINESE = {
    "contraindicated": "禁忌",
    "major": "不推荐合用",
    "moderate": "须调整剂量或监测",
    "minor": "注意",
    "same_class": "同类重复",
    "whitelist": "标准治疗",
}
SEVERITY = np.array([0.0, 1.0, 0.5, 0.2])
"""By tier: none, T1, T2, T3. The matrix A of the specification, as a number in [0, 1]."""

Bools = NDArray[np.bool_]
Tiers = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why two drugs conflict, and who says so."""

    kind: str
    """contraindicated | major | moderate | minor | same_ingredient | same_class | whitelist"""
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two labels, their tier (1 to 3) and every reason, the gravest first."""

    a: str
    b: str
    tier: int
    reasons: tuple[Reason, ...]


def tier_of(contraindicated: Bools, majors: Tiers, moderate: Bools, minor: Bools, twice: Bools, whitelisted: Bools) -> Tiers:
    """The tier of each pair of units: the only place that decides it.

    T1: contraindicated, or major in two independent sources (`majors` counts issuers), or one ingredient or class
    `twice`. T2: any other major, or a dose change or monitoring is asked for, or a T1 that is whitelisted as standard
    care. T3: to be noted. 0: no source says anything.
    """
    masked = contraindicated | (majors >= 2) | twice
    warned = (majors >= 1) | moderate | (masked & whitelisted)
    return np.select([masked & ~whitelisted, warned, minor], [1, 2, 3], 0).astype(np.uint8)


class ConflictTable:
    """The conflicts of a vocabulary: a matrix of tiers and, on demand, the reasons of a pair."""

    def __init__(self, vocabulary: Vocabulary, terms: Terms, ansm: Ansm, rows: Sequence[Row], version: str) -> None:
        self.vocabulary = vocabulary
        self.version = version
        self._ansm = ansm
        self._units = [terms.units(drug) for drug in vocabulary.drugs]
        self._places = [_place(drug, units, terms) for drug, units in zip(vocabulary.drugs, self._units, strict=True)]
        self._terms = _terms_of_units(vocabulary, self._units, terms, ansm)
        self._rows = _by_terms(rows)
        self.tiers: Tiers = self._matrix()

    @cached_property
    def severity(self) -> NDArray[np.float64]:
        """The matrix A in [0, 1], [D, D]: T1 1.0, T2 0.5, T3 0.2, no entry 0."""
        return np.asarray(SEVERITY[self.tiers], dtype=np.float64)

    def between(self, a: str, b: str) -> Conflict | None:
        """The conflict of two labels, or None where no source has an entry (which is not `safe`)."""
        tier = int(self.tiers[self.vocabulary.index(a), self.vocabulary.index(b)])
        return Conflict(a, b, tier, self.reasons(a, b)) if tier else None

    def among(self, labels: Sequence[str]) -> list[Conflict]:
        """Every conflict within a list, the gravest first."""
        found = (self.between(a, b) for a, b in combinations(dict.fromkeys(labels), 2))
        return sorted((conflict for conflict in found if conflict), key=lambda conflict: conflict.tier)

    def reasons(self, a: str, b: str) -> tuple[Reason, ...]:
        """All that is said of two labels, the gravest first; a whitelist row alone gives a reason but no tier."""
        first, second = self.vocabulary.index(a), self.vocabulary.index(b)
        found: dict[Reason, None] = {}
        for units in product(self._units[first], self._units[second]):
            for reason in self._unit_reasons(*units):
                found.setdefault(reason)
        is_named = any(reason.kind == "same_ingredient" for reason in found)
        if not is_named and (min(first, second), max(first, second)) in self._two_names:
            found[Reason("same_ingredient", f"同一药物的两个名称：{a}、{b}", self._list_of(a, b))] = None
        return tuple(sorted(found, key=lambda reason: KINDS.index(reason.kind)))

    def _list_of(self, a: str, b: str) -> str:
        """Where it is written that both are one drug: in the bundled table, unless it does not know one of them."""
        known = all(self.vocabulary.drug(label).kind != "unlinked" for label in (a, b))
        return "yaofang: drugs.tsv" if known else self.vocabulary.source

    def no_data(self) -> tuple[str, ...]:
        """Labels with an ingredient (or all of the drug) outside the thesaurus' index: unknown, never `safe`."""
        return tuple(
            label
            for label, units in zip(self.vocabulary.labels, self._units, strict=True)
            if not units or not all(self._ansm.knows(unit.ingredient) or self._ansm.knows(unit.moiety) for unit in units)
        )

    def _matrix(self) -> Tiers:
        units = list(self._terms)
        tiers = _unit_tiers(units, self._terms, self._rows)
        place = {unit: number for number, unit in enumerate(units)}
        holds = np.zeros((len(self._units), len(units)), np.float32)
        for label, own in enumerate(self._units):
            holds[label, [place[unit] for unit in own]] = 1
        result = np.zeros((len(holds), len(holds)), np.uint8)
        for tier in (3, 2, 1):
            result[holds @ (tiers == tier).astype(np.float32) @ holds.T > 0] = tier
        for first, second in self._two_names:
            result[first, second] = result[second, first] = 1
        np.fill_diagonal(result, 0)
        return result

    @cached_property
    def _two_names(self) -> frozenset[tuple[int, int]]:
        """Labels of one drug: one generic, or the same ingredients, at one place of action."""
        groups: dict[tuple[object, str], list[int]] = defaultdict(list)
        for number, drug in enumerate(self.vocabulary.drugs):
            place = self._places[number]
            moieties = frozenset(unit.moiety for unit in self._units[number])
            for name in {drug.generic, moieties} - {"", "-", frozenset()}:
                groups[name, place].append(number)
        return frozenset(pair for members in groups.values() for pair in combinations(members, 2))

    def _unit_reasons(self, a: Unit, b: Unit) -> Iterator[Reason]:
        if _one_ingredient(a, b):
            yield Reason("same_ingredient", f"同一成分：{a.moiety}", "yaofang: drugs.tsv")
        for terms in product(self._terms[a], self._terms[b]):
            for row in self._rows.get(_key(*terms), ()):
                if a == b and row.level != WHITELIST:
                    continue
                kind = "same_class" if row.level == NEVER else row.level
                detail = row.text if not row.text or row.text.startswith("（") else f"，{row.text}"
                yield Reason(kind, f"{CHINESE[kind]}：{a.ingredient} × {b.ingredient}{detail}", row.source)


def load_conflicts(vocabulary: Vocabulary, tables: Path = TABLES) -> ConflictTable:
    """Build the conflicts of a vocabulary from the committed tables (651 labels: about a second)."""
    terms, ansm = load_terms(tables), load_ansm(tables)
    version = sha256_of(vocabulary.version, *(tables / name for name in FILES))[:12]
    return ConflictTable(vocabulary, terms, ansm, load_rows(tables, terms, ansm), version)


def _key(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)


def _by_terms(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[_key(row.a, row.b)].append(row)
    return dict(found)


def _one_ingredient(a: Unit, b: Unit) -> bool:
    return a.key == b.key and a.place == b.place == SYSTEMIC


def _place(drug: Drug, units: Sequence[Unit], terms: Terms) -> str:
    """Where a drug acts, with an insulin's action: names of one drug share it."""
    actions = sorted({unit.action for unit in units})
    systemic = any(unit.place == SYSTEMIC for unit in units) if units else terms.is_systemic(drug.route, "*")
    return f"{SYSTEMIC if systemic else drug.route} {' '.join(actions)}"


def _terms_of_units(
    vocabulary: Vocabulary, units: Sequence[Sequence[Unit]], terms: Terms, ansm: Ansm
) -> dict[Unit, frozenset[str]]:
    """Each unit of the vocabulary with every term it answers to."""
    codes: dict[str, set[str]] = defaultdict(set)
    for drug, own in zip(vocabulary.drugs, units, strict=True):
        if len(own) == 1 and drug.atc:
            codes[own[0].ingredient].add(drug.atc)
    return {unit: terms.own(unit, codes[unit.ingredient]) | _thesaurus_terms(unit, ansm) for own in units for unit in own}


def _thesaurus_terms(unit: Unit, ansm: Ansm) -> frozenset[str]:
    name = unit.ingredient if ansm.knows(unit.ingredient) else unit.moiety
    return frozenset(f"ansm:{term}" for term in ansm.names(name, None if unit.place == SYSTEMIC else unit.place))


def _unit_tiers(
    units: Sequence[Unit], terms: Mapping[Unit, frozenset[str]], rows: Mapping[tuple[str, str], Sequence[Row]]
) -> Tiers:
    """The tiers of all pairs of units, [U, U]: one boolean matrix a level and, for majors, a source."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, unit in enumerate(units):
        for term in terms[unit]:
            members[term].append(number)
    size = (len(units), len(units))
    marks: dict[tuple[str, str], Bools] = defaultdict(lambda: np.zeros(size, np.bool_))
    for (a, b), found in rows.items():
        if a not in members or b not in members:
            continue
        where = np.ix_(members[a], members[b])
        for row in found:
            marks[row.level, row.issuer][where] = True
    for mark in marks.values():
        mark |= mark.T
    return _tiers_from_marks(units, marks)


def _tiers_from_marks(units: Sequence[Unit], marks: Mapping[tuple[str, str], Bools]) -> Tiers:
    """Add up the marks by level; a unit beside itself has no interaction, but may be one ingredient twice."""
    size = (len(units), len(units))
    apart = ~np.eye(len(units), dtype=np.bool_)
    said: dict[str, NDArray[np.uint8]] = {level: np.zeros(size, np.uint8) for level in (*LEVELS, NEVER, WHITELIST)}
    for (level, _), mark in marks.items():
        said[level] += mark
    keys = {unit.key: number for number, unit in enumerate(units)}
    numbers = np.array([keys[unit.key] if unit.place == SYSTEMIC else -1 for unit in units], dtype=np.int64)
    same = (numbers[:, None] == numbers[None, :]) & (numbers[:, None] >= 0)
    # One issuer that calls a pair contraindicated in one row and major in another is still one source.
    return tier_of(
        contraindicated=(said["contraindicated"] > 0) & apart,
        majors=np.where(apart, said["major"], 0).astype(np.uint8),
        moderate=(said["moderate"] > 0) & apart,
        minor=(said["minor"] > 0) & apart,
        twice=((said[NEVER] > 0) & apart) | same,
        whitelisted=said[WHITELIST] > 0,
    )
