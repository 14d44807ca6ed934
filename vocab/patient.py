"""Which drugs must not, or should only with care, be given to a patient, from facts of that patient.

Knows the tables patient_rules.tsv, conditions.tsv and allergies.tsv, and how a drug answers to their terms. Knows neither
records nor models, and nothing of doses; so a herb in a patent medicine asks for care where its ingredient as a drug would
be contraindicated. A fact that is not given is never taken as normal, and a drug without a warning
is not thereby safe.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from yaofang.vocab.drugs import Drug
from yaofang.vocab.errors import InputError
from yaofang.vocab.evidence import HERB, SYSTEMIC, Terms, Unit, load_terms
from yaofang.vocab.files import read_table
from yaofang.vocab.matching import meaning

TABLES = Path(__file__).parent / "default"
FILES = ("patient_rules.tsv", "conditions.tsv", "allergies.tsv")
LEVELS = ("contraindicated", "caution")
STAGES = {"dialysis": 8.0, "ckd5": 10.0, "ckd4": 22.0, "ckd3b": 37.0, "ckd3": 45.0, "ckd3a": 52.0}
"""A diagnosed stage of kidney disease stands for this eGFR where none is known (KDIGO 2024 stages; mL/min/1.73 m²)."""

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_NUMBER = re.compile(r"(egfr|age|potassium)\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)")
_BESIDE_ASCII = re.compile(r"\s+(?=[0-9a-z?(])|(?<=[0-9a-z])\s+")
_BETWEEN = re.compile(r"[\s,、;。]+")
_DOUBT = re.compile(r"\?|疑|待排|除外|排除|可能(?!性?大)|家族史")


MOST_NAMED = 1 << 14
"""Diagnoses whose conditions, and allergies whose drugs, are remembered."""


@dataclass(frozen=True, slots=True)
class PatientFacts:
    """What is known of one patient. None or empty is `not known`, never `normal`."""

    age: float | None = None
    """Years."""
    sex: Literal["male", "female"] | None = None
    egfr: float | None = None
    """mL/min/1.73 m²."""
    pregnant: bool = False
    allergies: tuple[str, ...] = ()
    """What the record says the patient is allergic to, drugs only, in its words."""
    diagnoses: tuple[str, ...] = ()
    """Names of diagnoses as the hospital writes them."""
    potassium: float | None = None
    """Serum potassium, mmol/L."""


@dataclass(frozen=True, slots=True)
class PatientWarning:
    """Why a drug asks for care in a patient, and who says so."""

    kind: str
    """Always `patient`."""
    level: str
    """`contraindicated` or `caution`."""
    text: str
    source: str
    """`issuer: document`."""
    condition: str
    """The condition of the rule, as the table writes it."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """How a condition or an allergy is recognised in a text."""

    names: tuple[str, ...]
    excludes: tuple[str, ...] = ()

    def fits(self, text: str) -> bool:
        """Whether a normalised text names it."""
        return any(name in text for name in self.names) and not any(name in text for name in self.excludes)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a condition: `not` turns it round; `value` is an ID, a sex or, with `compare`, a number."""

    kind: str
    value: str = ""
    compare: str = ""
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of patient_rules.tsv, or what an allergy of allergies.tsv covers."""

    drugs: tuple[str, ...]
    parts: tuple[Part, ...]
    warning: PatientWarning
    is_allergy: bool
    """Then it holds for local forms too."""


@dataclass(frozen=True, slots=True)
class DrugTerms:
    """The terms by which a drug is found in the rules."""

    systemic: frozenset[str]
    """For every rule; a local form has only `INN@route`."""
    anywhere: frozenset[str]
    """For rules of an allergy, whatever the route."""
    herbal: frozenset[str]
    """Of the herbs of a patent medicine, whose dose is not known: never more than a caution."""
    names: tuple[str, ...] = ()
    """Its own names, normalised, by which an allergy may call it."""

    def level(self, rule: Rule) -> str | None:
        """The level at which the rule speaks of the drug, or None."""
        if not (self.anywhere if rule.is_allergy else self.systemic).isdisjoint(rule.drugs):
            return rule.warning.level
        return None if self.herbal.isdisjoint(rule.drugs) else "caution"


@dataclass(frozen=True, slots=True)
class Patient:
    """Facts with the conditions and allergies that they name."""

    facts: PatientFacts
    conditions: frozenset[str]
    allergies: frozenset[str]

    def holds(self, part: Part) -> bool:
        """Whether a part of a condition is true; what is not known makes it false, before any `not`."""
        return self._is(part) != part.is_negated

    def _is(self, part: Part) -> bool:
        if part.kind == "diagnosis":
            return part.value in self.conditions
        if part.kind == "allergy":
            return part.value in self.allergies
        if part.kind == "pregnant":
            return self.facts.pregnant
        if part.kind == "sex":
            return self.facts.sex == part.value
        number = {"egfr": self.egfr, "age": self.facts.age, "potassium": self.facts.potassium}[part.kind]
        return number is not None and _COMPARE[part.compare](number, float(part.value))

    @property
    def egfr(self) -> float | None:
        """The eGFR, or that of a diagnosed stage of kidney disease where none is known and no kidney was transplanted."""
        if self.facts.egfr is not None or "kidney_transplant" in self.conditions:
            return self.facts.egfr
        return min((value for name, value in STAGES.items() if name in self.conditions), default=None)


class PatientRules:
    """The rules of the tables, asked about a patient and a drug; by several threads at once if need be."""

    def __init__(
        self, terms: Terms, rules: Sequence[Rule], conditions: Mapping[str, Pattern], allergies: Mapping[str, Pattern]
    ) -> None:
        self.rules = tuple(rules)
        self._terms = terms
        self._conditions = conditions
        self._allergies = allergies
        self._known: dict[Drug, DrugTerms] = {}
        self._spoken: dict[Drug, tuple[tuple[int, str], ...]] = {}
        self._named: dict[str, frozenset[str]] = {}
        self._last: tuple[PatientFacts, frozenset[int]] | None = None
        self._parts = tuple(dict.fromkeys(part for rule in self.rules for part in rule.parts))
        number = {part: at for at, part in enumerate(self._parts)}
        self._needed = [frozenset(number[part] for part in rule.parts) for rule in self.rules]
        """The parts of each rule, by their places in `_parts`: many rules share one."""
        self._meant: dict[str, tuple[str, Drug]] = {}

    def conditions(self, facts: PatientFacts) -> frozenset[str]:
        """IDs of conditions.tsv that the patient's diagnoses name; a diagnosis in doubt names none."""
        return frozenset[str]().union(*map(self._named_by, facts.diagnoses))

    def _named_by(self, diagnosis: str) -> frozenset[str]:
        """The conditions that one diagnosis names; diagnoses come again, so they are looked up once."""
        found = self._named.get(diagnosis)
        if found is None:
            if len(self._named) >= MOST_NAMED:
                self._named.clear()
            texts = list(_statements(diagnosis))
            named = (name for name, pattern in self._conditions.items() if any(map(pattern.fits, texts)))
            found = self._named[diagnosis] = frozenset(named)
        return found

    def allergies(self, facts: PatientFacts) -> frozenset[str]:
        """IDs of allergies.tsv that the patient's allergies name."""
        texts = [name for text in facts.allergies for name in (self._means(text)[0], _plain(self._means(text)[1].generic))]
        return frozenset(name for name, pattern in self._allergies.items() if any(map(pattern.fits, texts)))

    def warnings(self, facts: PatientFacts, drug: Drug) -> tuple[PatientWarning, ...]:
        """What the tables say of this drug in this patient, the gravest first; empty is `no entry`, never `safe`."""
        terms, active = self._terms_of(drug), self._active(facts)
        found = [_at_level(self.rules[at].warning, level) for at, level in self._speaking_of(drug) if at in active]
        if any(_names(terms, name) or _same_substance(drug, other) for name, other in map(self._means, facts.allergies)):
            found.append(_own_allergy(drug))
        once = {(warning.level, warning.text, warning.source): warning for warning in reversed(found)}
        return tuple(sorted(reversed(once.values()), key=lambda warning: LEVELS.index(warning.level)))

    def contraindicated(self, facts: PatientFacts, drugs: Iterable[Drug]) -> tuple[int, ...]:
        """Places, from 0, of the drugs that must not be given to this patient: what a mask of a vocabulary needs."""
        active = (self.rules[at] for at in self._active(facts))
        rules = [rule for rule in active if rule.warning.level == "contraindicated"]
        systemic = {term for rule in rules if not rule.is_allergy for term in rule.drugs}
        anywhere = {term for rule in rules if rule.is_allergy for term in rule.drugs}
        texts = [_plain(text) for text in facts.allergies]
        return tuple(
            place
            for place, drug in enumerate(drugs)
            if not (self._terms_of(drug).systemic.isdisjoint(systemic) and self._terms_of(drug).anywhere.isdisjoint(anywhere))
            or any(_names(self._terms_of(drug), text) for text in texts)
        )

    def _active(self, facts: PatientFacts) -> frozenset[int]:
        """Places of the rules whose condition this patient fulfils; kept for the next drug of the same patient."""
        last = self._last
        if last is None or last[0] != facts:
            patient = Patient(facts, self.conditions(facts), self.allergies(facts))
            true = {at for at, part in enumerate(self._parts) if patient.holds(part)}
            # Another thread may ask about another patient meanwhile: what is answered is never read back from `_last`.
            last = self._last = facts, frozenset(at for at, needed in enumerate(self._needed) if needed <= true)
        return last[1]

    def _speaking_of(self, drug: Drug) -> tuple[tuple[int, str], ...]:
        """Places of the rules that speak of a drug, in their order, and at which level."""
        if drug not in self._spoken:
            terms = self._terms_of(drug)
            self._spoken[drug] = tuple((at, level) for at, rule in enumerate(self.rules) if (level := terms.level(rule)))
        return self._spoken[drug]

    def _means(self, text: str) -> tuple[str, Drug]:
        """An allergy's text normalised, and the drug that it means; allergies come again, so they are looked up once."""
        found = self._meant.get(text)
        if found is None:
            if len(self._meant) >= MOST_NAMED:
                self._meant.clear()
            found = self._meant[text] = _plain(text), meaning(text).drug
        return found

    def _terms_of(self, drug: Drug) -> DrugTerms:
        if drug not in self._known:
            self._known[drug] = _terms_of(drug, self._terms)
        return self._known[drug]


def load_patient_rules(folder: str | Path | None = None) -> PatientRules:
    """The bundled rules, or those of the tables in `folder` (with the tables of `load_terms` beside them).

    Raises InputError, naming file, line and field, for a row that cannot be used.
    """
    return _bundled() if folder is None else _load(Path(folder))


@cache
def _bundled() -> PatientRules:
    return _load(TABLES)


def _load(folder: Path) -> PatientRules:
    terms = load_terms(folder)
    conditions = _patterns(folder / "conditions.tsv", "condition")
    allergies = _patterns(folder / "allergies.tsv", "allergy")
    known = {"diagnosis": set(conditions), "allergy": set(allergies), "class": set(terms.classes)}
    rules = _rules(folder / "patient_rules.tsv", known) + _covered(folder / "allergies.tsv", known)
    return PatientRules(terms, rules, conditions, allergies)


def _patterns(file: Path, key: str) -> dict[str, Pattern]:
    found: dict[str, Pattern] = {}
    for line, row in read_table(file):
        if row[key] in found:
            raise InputError(f"{row[key]} is there twice", file=file, line=line, field=key, way_out="Keep one row.")
        names = _cells(row["names"])
        if not names:
            raise InputError("no name", file=file, line=line, field="names", way_out="Give at least one pattern.")
        found[row[key]] = Pattern(tuple(map(_plain, names)), tuple(map(_plain, _cells(row.get("excludes", "-")))))
    return found


def _rules(file: Path, known: Mapping[str, set[str]]) -> list[Rule]:
    rules: list[Rule] = []
    first: dict[tuple[str, str], int] = {}
    for line, row in read_table(file):
        drugs, parts = _cells(row["drug"]), tuple(_part(text) for text in row["condition"].split("&"))
        problem = _problem(row, drugs, parts, known) or _repeated(row["condition"], drugs, first)
        if problem:
            raise InputError(problem[1], file=file, line=line, field=problem[0], way_out="Correct this row.")
        first.update({(drug, row["condition"]): line for drug in drugs})
        warning = PatientWarning("patient", row["level"], row["text"], row["source"], row["condition"])
        is_allergy = any(part is not None and part.kind == "allergy" for part in parts)
        rules.append(Rule(drugs, tuple(part for part in parts if part), warning, is_allergy))
    return rules


def _covered(file: Path, known: Mapping[str, set[str]]) -> list[Rule]:
    """One rule an allergy: what it covers is contraindicated."""
    rules = []
    for line, row in read_table(file):
        name, drugs = row["allergy"], _cells(row["drugs"])
        problem = _drug_problem(drugs, known)
        if problem:
            raise InputError(problem, file=file, line=line, field="drugs", way_out="Correct this row.")
        text = f"病历记有{row['names'].partition(',')[0]}类过敏，本药在其范围内"
        warning = PatientWarning("patient", "contraindicated", text, "yaofang: allergies.tsv", f"allergy:{name}")
        rules.append(Rule(drugs, (Part("allergy", name),), warning, True))
    return rules


def _part(text: str) -> Part | None:
    """A part of a condition, or None for what the language does not know."""
    text = text.strip()
    bare = text.removeprefix("not ").strip()
    is_negated = bare != text
    if bare == "pregnant":
        return Part("pregnant", is_negated=is_negated)
    if bare in ("sex=female", "sex=male"):
        return Part("sex", bare.partition("=")[2], is_negated=is_negated)
    if number := _NUMBER.fullmatch(bare):
        return Part(number[1], number[3], number[2], is_negated)
    kind, _, name = bare.partition(":")
    return Part(kind, name, is_negated=is_negated) if kind in ("diagnosis", "allergy") and name else None


def _problem(
    row: Mapping[str, str], drugs: Sequence[str], parts: Sequence[Part | None], known: Mapping[str, set[str]]
) -> tuple[str, str] | None:
    """(field, what is wrong) of a row of rules, or None."""
    if drug_problem := _drug_problem(drugs, known):
        return "drug", drug_problem
    for text, part in zip(row["condition"].split("&"), parts, strict=True):
        if part is None:
            return "condition", f"{text.strip()!r} is no condition"
        if part.kind in known and part.value not in known[part.kind]:
            return "condition", f"there is no {part.kind} {part.value!r}"
    if row["level"] not in LEVELS:
        return "level", f"{row['level']!r} is none of {', '.join(LEVELS)}"
    if row["text"] in ("", "-"):
        return "text", "is blank"
    issuer, _, document = row["source"].partition(": ")
    return None if issuer and document else ("source", "a source is written `issuer: document`")


def _drug_problem(drugs: Sequence[str], known: Mapping[str, set[str]]) -> str | None:
    if not drugs:
        return "no drug"
    for term in drugs:
        kind, colon, name = term.partition(":")
        if kind == "class" and name not in known["class"]:
            return f"there is no class {name!r}"
        if not term or (colon and (kind not in ("class", "atc", "generic") or not name)):
            return f"{term!r} is neither an INN nor class:, atc: or generic:"
    return None


def _repeated(condition: str, drugs: Sequence[str], first: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    again = next((drug for drug in drugs if (drug, condition) in first), None)
    return None if again is None else ("drug", f"{again} has this condition already on line {first[again, condition]}")


def _at_level(warning: PatientWarning, level: str) -> PatientWarning:
    return warning if level == warning.level else replace(warning, level=level, text=f"所含中药成分：{warning.text}")


def _same_substance(drug: Drug, other: Drug) -> bool:
    """Whether an allergy, by a brand or another name, is to a drug that shares an ingredient with this one."""
    return not set(other.ingredients).isdisjoint(drug.ingredients)


def _terms_of(drug: Drug, terms: Terms) -> DrugTerms:
    units = terms.units(drug)
    named = [unit for unit in units if unit.action != HERB]
    codes = [drug.atc] if drug.atc and len(named) == 1 else []
    prefixes = frozenset(f"atc:{drug.atc[:size]}" for size in (1, 3, 4, 5, 7)) if drug.atc else frozenset()
    whole = prefixes | {f"generic:{drug.generic}"}
    is_systemic = any(unit.place == SYSTEMIC for unit in named) if named else terms.is_systemic(drug.route, "*")
    return DrugTerms(
        _own(terms, named, codes) | (whole if is_systemic else frozenset()),
        _own(terms, [replace(unit, place=SYSTEMIC) for unit in named], codes) | whole,
        _own(terms, [unit for unit in units if unit.action == HERB], ()),
        tuple(_plain(name) for name in (drug.generic, drug.label) if len(name) > 1),
    )


def _own(terms: Terms, units: Iterable[Unit], codes: Sequence[str]) -> frozenset[str]:
    return frozenset(term for unit in units for term in terms.own(unit, codes))


def _statements(name: str) -> list[str]:
    """The parts of a diagnosis, normalised, without those in doubt; several may stand in one, with blanks between."""
    text = _BESIDE_ASCII.sub("", unicodedata.normalize("NFKC", name).casefold().strip())
    return [part for part in _BETWEEN.split(text) if part and not _DOUBT.search(part)]


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text).casefold())


def _names(terms: DrugTerms, allergy: str) -> bool:
    """Whether a normalised allergy names this drug itself."""
    return any(name in allergy for name in terms.names)


def _own_allergy(drug: Drug) -> PatientWarning:
    text = f"病历记有{drug.generic}过敏"
    return PatientWarning("patient", "contraindicated", text, "yaofang: 病历过敏史", f"allergy:{drug.generic}")


def _cells(text: str) -> tuple[str, ...]:
    return () if text in ("", "-") else tuple(cell.strip() for cell in text.split(","))
