"""Which labels must not, should better not, or may with care go together: the tiers T1, T2, T3 with their reasons.

A label is its units (ingredients by place of action); rows of all sources speak about units; `tiers.tier_of` turns what they
say into a tier; a pair of labels has the highest tier of its pairs of units. Interactions act between systemic units
unless a row names a local form. No entry means that no source here says anything: never that a pair is safe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yaofang.vocab import ansm, conflict_cache, evidence, tiers
from yaofang.vocab.ansm import Ansm, load_ansm
from yaofang.vocab.drugs import Drug, Vocabulary
from yaofang.vocab.evidence import (
    INFERRED,
    NEVER,
    SYSTEMIC,
    TABLES_OF_ROWS,
    WHITELIST,
    Row,
    Terms,
    Unit,
    load_rows,
    load_terms,
)
from yaofang.vocab.files import sha256_of
from yaofang.vocab.lexicon import files_version, load_lexicon
from yaofang.vocab.tiers import Tiers, unit_tiers

TABLES = Path(__file__).parent / "default"
FILES = (
    "ansm_index.tsv",
    "ansm_substances.tsv",
    "ansm_classes.tsv",
    "ansm_rules.tsv",
    "ansm_reviewed.tsv",
    "classes.tsv",
    "inferred_members.tsv",
    "moieties.tsv",
    "routes.tsv",
    "insulin_actions.tsv",
    *TABLES_OF_ROWS,
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


@dataclass(frozen=True, slots=True)
class Reason:
    """Why two drugs conflict, and who says so."""

    kind: str
    """contraindicated | major | moderate | minor | same_ingredient | same_class | whitelist"""
    text: str
    source: str
    column: str = "own"
    """The column of sources.tsv that it stands in."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two labels, their tier (1 to 3) and every reason, the gravest first."""

    a: str
    b: str
    tier: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Sources:
    """What the tables of a folder, and rows that a user adds, say of ingredients."""

    terms: Terms
    ansm: Ansm
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Units:
    """The units of a vocabulary and what they answer to."""

    of_label: list[tuple[Unit, ...]]
    places: list[str]
    terms: dict[Unit, frozenset[str]]
    rows: dict[tuple[str, str], list[Row]]
    ansm: Ansm
    inferred: Mapping[str, frozenset[str]]
    """Unit's ingredient -> terms that it answers to by inference."""


class ConflictTable:
    """The conflicts of a vocabulary: a matrix of tiers and, on demand, the reasons of a pair."""

    def __init__(
        self, vocabulary: Vocabulary, sources: Callable[[], Sources], version: str, tiers: Tiers | None = None
    ) -> None:
        """`sources` is called when reasons are asked for, or at once to compute the tiers [D, D] where they are not given."""
        self.vocabulary = vocabulary
        self.version = version
        self._sources = sources
        self.tiers: Tiers = self._matrix() if tiers is None else tiers
        self._said: dict[tuple[str, str], tuple[Reason, ...]] = {}

    @cached_property
    def _units(self) -> _Units:
        found = self._sources()
        of_label = [found.terms.units(drug) for drug in self.vocabulary.drugs]
        return _Units(
            of_label,
            [_place(drug, units, found.terms) for drug, units in zip(self.vocabulary.drugs, of_label, strict=True)],
            _terms_of_units(self.vocabulary, of_label, found.terms, found.ansm),
            _by_terms(found.rows),
            found.ansm,
            found.terms.inferred,
        )

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
        """All that is said of two labels, the gravest first. Pairs come again, so they are looked up once."""
        if (a, b) not in self._said:
            self._said[a, b] = self._reasons(a, b)
        return self._said[a, b]

    def _reasons(self, a: str, b: str) -> tuple[Reason, ...]:
        first, second = self.vocabulary.index(a), self.vocabulary.index(b)
        found: dict[Reason, None] = {}
        for units in product(self._units.of_label[first], self._units.of_label[second]):
            for reason in self._unit_reasons(*units):
                found.setdefault(reason)
        is_named = any(reason.kind == "same_ingredient" for reason in found)
        if not is_named and (min(first, second), max(first, second)) in self._two_names:
            text = f"同一药物的两个名称：{a}、{b}"
            found[Reason("same_ingredient", text, self._list_of(a, b), "same_ingredient")] = None
        return tuple(sorted(found, key=lambda reason: (KINDS.index(reason.kind), reason.source, reason.text)))

    def _list_of(self, a: str, b: str) -> str:
        """Where it is written that both are one drug: in the bundled table, unless it does not know one of them."""
        known = all(self.vocabulary.drug(label).kind != "unlinked" for label in (a, b))
        return "yaofang: drugs.tsv" if known else self.vocabulary.source

    def columns(self) -> Iterator[dict[str, str]]:
        """Every pair with an entry as {a, b, tier, and the gravest level of each column of sources.tsv}."""
        for first, second in np.argwhere(np.triu(self.tiers > 0)):
            a, b = self.vocabulary.labels[first], self.vocabulary.labels[second]
            said: dict[str, str] = {}
            for reason in self._reasons(a, b):
                said.setdefault(reason.column, reason.kind)
            yield {"a": a, "b": b, "tier": f"T{self.tiers[first, second]}", **said}

    def no_data(self) -> tuple[str, ...]:
        """Labels with an ingredient (or all of the drug) outside the thesaurus' index: unknown, never `safe`."""
        thesaurus, unknown = self._units.ansm, load_lexicon().unknown_formula
        return tuple(
            drug.label
            for drug, units in zip(self.vocabulary.drugs, self._units.of_label, strict=True)
            if not units
            or drug.generic in unknown
            or not all(thesaurus.knows(unit.ingredient) or thesaurus.knows(unit.moiety) for unit in units)
        )

    def _matrix(self) -> Tiers:
        found = self._units
        units = list(found.terms)
        tiers = unit_tiers(units, found.terms, found.rows)
        place = {unit: number for number, unit in enumerate(units)}
        holds = np.zeros((len(found.of_label), len(units)), np.float32)
        for label, own in enumerate(found.of_label):
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
            place = self._units.places[number]
            moieties = frozenset(unit.moiety for unit in self._units.of_label[number] if not unit.is_herb)
            for name in {drug.generic, moieties} - {"", "-", frozenset()}:
                groups[name, place].append(number)
        return frozenset(pair for members in groups.values() for pair in combinations(members, 2))

    def _unit_reasons(self, a: Unit, b: Unit) -> Iterator[Reason]:
        if _one_ingredient(a, b):
            yield Reason("same_ingredient", f"同一成分：{a.moiety}", "yaofang: drugs.tsv", "same_ingredient")
        for terms in product(self._units.terms[a], self._units.terms[b]):
            inferred = terms[0] in self._units.inferred.get(a.ingredient, ()) or terms[1] in self._units.inferred.get(
                b.ingredient, ()
            )
            for row in self._units.rows.get(_key(*terms), ()):
                local = row.level == NEVER and a.place != SYSTEMIC
                if a == b and row.level != WHITELIST and not a.is_herb and not local:
                    continue
                yield _reason(a, b, row, inferred)


def load_conflicts(vocabulary: Vocabulary, tables: Path = TABLES, extra: Sequence[Row] = ()) -> ConflictTable:
    """The conflicts of a vocabulary from the committed tables and rows of the user's own (`importers`).

    The tiers are computed once (651 labels: under a second) and read from the user's cache folder afterwards.
    """

    def sources() -> Sources:
        terms, thesaurus = load_terms(tables), load_ansm(tables)
        return Sources(terms, thesaurus, (*load_rows(tables, terms, thesaurus), *extra))

    code = tuple(Path(str(module.__file__)) for module in (ansm, evidence, tiers))
    rows = "\n".join(f"{row.a}\t{row.b}\t{row.level}\t{row.text}\t{row.source}" for row in extra)
    lexicon = files_version()
    version = sha256_of(vocabulary.version, *(tables / name for name in FILES), lexicon, rows)[:12]
    key = sha256_of(version, Path(__file__), *code)[:16]
    cached = conflict_cache.read(key, len(vocabulary))
    table = ConflictTable(vocabulary, sources, version, cached)
    # A lexicon that this process read before its files were edited must not be kept under the edited files' hash.
    if cached is None and load_lexicon().version == lexicon:
        conflict_cache.write(key, table.tiers)
    return table


def _reason(a: Unit, b: Unit, row: Row, inferred: bool) -> Reason:
    kind = "same_class" if row.level == NEVER else row.level
    detail = row.text if not row.text or row.text.startswith("（") else f"，{row.text}"
    mark = "（按同类推断）" if inferred or row.issuer == INFERRED else ""
    column = row.table if row.table != "own" or not mark else INFERRED
    return Reason(kind, f"{CHINESE[kind]}：{a.ingredient} × {b.ingredient}{detail}{mark}", row.source, column)


def _key(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)


def _by_terms(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[_key(row.a, row.b)].append(row)
    return dict(found)


def _one_ingredient(a: Unit, b: Unit) -> bool:
    return a.key == b.key and a.place == b.place == SYSTEMIC and not a.is_herb


def _place(drug: Drug, units: Sequence[Unit], terms: Terms) -> str:
    """Where a drug acts, with an insulin's action: names of one drug share it."""
    actions = sorted({unit.action for unit in units if not unit.is_herb})
    own = [unit for unit in units if not unit.is_herb]
    systemic = any(unit.place == SYSTEMIC for unit in own) if own else terms.is_systemic(drug.route, "*")
    return f"{SYSTEMIC if systemic else drug.route} {' '.join(actions)}"


def _terms_of_units(
    vocabulary: Vocabulary, units: Sequence[Sequence[Unit]], terms: Terms, thesaurus: Ansm
) -> dict[Unit, frozenset[str]]:
    """Each unit of the vocabulary with every term it answers to."""
    codes: dict[str, set[str]] = defaultdict(set)
    listed = [(drug.ingredients, drug.atc) for drug in vocabulary.drugs]
    known = [(entry.ingredients, entry.atc) for entries in load_lexicon().entries.values() for entry in entries]
    for ingredients, atc in (*listed, *known):
        if len(ingredients) == 1 and atc:
            codes[terms.spelling.get(ingredients[0], ingredients[0])].add(atc.removeprefix("~"))
    return {unit: terms.own(unit, codes[unit.ingredient]) | _thesaurus_terms(unit, thesaurus) for own in units for unit in own}


def _thesaurus_terms(unit: Unit, thesaurus: Ansm) -> frozenset[str]:
    name = unit.ingredient if thesaurus.knows(unit.ingredient) else unit.moiety
    return frozenset(f"ansm:{term}" for term in thesaurus.names(name, None if unit.place == SYSTEMIC else unit.place))
