"""Reads and checks the ward's tables. Knows their formats and how they refer to each other; draws nothing, writes no text.

A clinician corrects the ward by editing `tables/`; a wrong reference is an InputError that names file and line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from yaofang.data.ward.rules import When, parse
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import read_table, sha256_of

FOLDER = Path(__file__).parent / "tables"
AGES = ("18-44", "45-59", "60-74", "75+")
NUMBERS = ("age", "bmi", "sbp", "dbp", "hr", "temp")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Disease:
    """One row of diseases.yaml."""

    id: str
    names: dict[str, float]
    system: str
    prevalence: tuple[float, float, float, float]
    sex: dict[str, float]
    requires: tuple[str, ...]
    excludes: tuple[str, ...]
    links: dict[str, float]
    onset: float
    chronic: bool
    labs: dict[str, tuple[float, float]]
    vitals: dict[str, tuple[float, float]]
    complaints: tuple[str, ...]
    present: tuple[str, ...]
    past: tuple[str, ...]
    signs: tuple[str, ...]
    exams: tuple[str, ...]
    course: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lab:
    """One laboratory value: how it is distributed in those whom no disease moves it, and how it is written."""

    id: str
    names: tuple[str, ...]
    unit: str
    mean: float
    sd: float
    low: float
    high: float
    decimals: int
    panel: str
    range: tuple[float, float]
    grade: bool


@dataclass(frozen=True, slots=True)
class Therapy:
    """A group that is prescribed with chance `p` for `cause` where `when` holds. A habit has no cause."""

    cause: str
    group: str
    p: float
    when: When
    causes: tuple[str, ...] = ()
    """For habits: the ids that `when` asks for."""


@dataclass(frozen=True, slots=True)
class RuleBreak:
    """A pair that doctors prescribe against a rule. For kind `patient`, `b` is a condition of the patient."""

    kind: str
    a: str
    b: str
    when: When


@dataclass(frozen=True, slots=True)
class Label:
    """A name of the candidate list in the ward: its therapy group and how often a training set of 3,602 records has it."""

    label: str
    group: str
    popularity: float
    note: str


@dataclass(frozen=True, slots=True)
class Tables:
    """All tables, checked against each other."""

    diseases: tuple[Disease, ...]
    labs: dict[str, Lab]
    findings: dict[str, When]
    finding_texts: dict[str, str]
    therapy: tuple[Therapy, ...]
    habits: tuple[Therapy, ...]
    contraindications: dict[str, tuple[When, ...]]
    rule_breaks: tuple[RuleBreak, ...]
    labels: tuple[Label, ...]
    shifts: dict[str, float]
    """Log-odds added to every chance of a group, fitted so that the group is as frequent as its labels should be."""
    weights: dict[str, float]
    """Weight of a label inside its group, fitted likewise."""
    ward: dict[str, Any]
    """Settings of ward.yaml."""
    wording: dict[str, Any]
    version: str

    @property
    def by_id(self) -> dict[str, Disease]:
        """Diseases by id."""
        return {disease.id: disease for disease in self.diseases}


@cache
def load_tables(folder: Path = FOLDER) -> Tables:
    """Read the tables of `folder`. Raises InputError on the first wrong row."""
    labs = {i: _lab(i, row) for i, row in _yaml(folder / "labs.yaml").items()}
    diseases = tuple(_disease(folder / "diseases.yaml", row) for row in _yaml(folder / "diseases.yaml"))
    findings = {row["id"]: when for row, when in _ruled(folder / "findings.tsv", "expr")}
    tables = Tables(
        diseases=diseases,
        labs=labs,
        findings=findings,
        finding_texts={row["id"]: row["text"] for _, row in read_table(folder / "findings.tsv")},
        therapy=_therapy(folder / "therapy.tsv"),
        habits=_therapy(folder / "habits.tsv"),
        contraindications=_contraindications(folder / "contraindications.tsv"),
        rule_breaks=_rule_breaks(folder / "rule_breaks.tsv"),
        labels=_labels(folder / "groups.tsv"),
        shifts=_fitted(folder / "group_shifts.tsv", "group", "shift"),
        weights=_fitted(folder / "label_weights.tsv", "label", "weight"),
        ward=_yaml(folder / "ward.yaml"),
        wording=_yaml(folder / "wording.yaml"),
        version=sha256_of(*sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".tsv")))[:12],
    )
    check(tables, folder)
    return tables


def _yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(f"not valid YAML: {error}", file=path, line=mark.line + 1 if mark else None) from error


def _ruled(path: Path, column: str) -> list[tuple[dict[str, str], When]]:
    rows = []
    for number, row in read_table(path):
        rows.append((row, _checked(path, number, column, partial(parse, row[column]))))
    return rows


def _checked(path: Path, line: int, column: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=path, line=line, field=column) from error


def _therapy(path: Path) -> tuple[Therapy, ...]:
    numbers = [number for number, _ in read_table(path)]
    rows = []
    for (row, when), number in zip(_ruled(path, "when"), numbers, strict=True):
        p = _checked(path, number, "p", partial(float, row["p"]))
        if not 0 < p < 1.0001:
            raise InputError(f"{p} is no chance", file=path, line=number, field="p")
        rows.append(Therapy(row.get("cause", ""), row["group"], min(p, 0.995), when, tuple(sorted(when.ids("has")))))
    return tuple(rows)


def _contraindications(path: Path) -> dict[str, tuple[When, ...]]:
    found: dict[str, list[When]] = {}
    for row, when in _ruled(path, "when"):
        found.setdefault(row["group_or_label"], []).append(when)
    return {name: tuple(rules) for name, rules in found.items()}


def _rule_breaks(path: Path) -> tuple[RuleBreak, ...]:
    rows = []
    for number, row in read_table(path):
        if row["kind"] not in ("T1-like", "T2-like", "patient"):
            raise InputError(f"unknown kind {row['kind']!r}", file=path, line=number, field="kind")
        text = row["b"] if row["kind"] == "patient" else "-"
        when = _checked(path, number, "b", partial(parse, text))
        rows.append(RuleBreak(row["kind"], row["a"], row["b"], when))
    return tuple(rows)


def _labels(path: Path) -> tuple[Label, ...]:
    rows = []
    for number, row in read_table(path):
        popularity = _checked(path, number, "popularity", partial(float, row["popularity"]))
        rows.append(Label(row["label"], row["group"], popularity, row["note"]))
    return tuple(rows)


def _fitted(path: Path, key: str, value: str) -> dict[str, float]:
    return {row[key]: float(row[value]) for _, row in read_table(path)} if path.exists() else {}


def _pair(value: Any) -> tuple[float, float]:
    mean, sd = value
    return float(mean), float(sd)


def _lab(identity: str, row: dict[str, Any]) -> Lab:
    numbers = {name: float(row[name]) for name in ("mean", "sd", "low", "high")}
    return Lab(
        id=identity,
        names=tuple(row["names"]),
        unit=row["unit"],
        decimals=int(row["decimals"]),
        panel=row["panel"],
        range=_pair(row["range"]),
        grade=bool(row.get("grade", False)),
        **numbers,
    )


def _disease(path: Path, row: dict[str, Any]) -> Disease:
    try:
        return Disease(
            id=row["id"],
            names={str(name): float(weight) for name, weight in row["names"].items()},
            system=row["system"],
            prevalence=tuple(float(row["prevalence"][age]) for age in AGES),  # type: ignore[arg-type]
            sex={"男": 1.0, "女": 1.0, **(row.get("sex") or {})},
            requires=tuple(row.get("requires") or ()),
            excludes=tuple(row.get("excludes") or ()),
            links={i: float(odds) for i, odds in (row.get("links") or {}).items()},
            onset=float(row.get("onset") or 0.0),
            chronic=bool(row["chronic"]),
            labs={i: _pair(v) for i, v in (row.get("labs") or {}).items()},
            vitals={i: _pair(v) for i, v in (row.get("vitals") or {}).items()},
            **{part: tuple(row.get(part) or ()) for part in ("complaints", "present", "past", "signs", "exams", "course")},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"disease {row.get('id')!r} cannot be read: {error!r}", file=path) from error


def check(tables: Tables, folder: Path) -> None:
    """Raise InputError for a reference to something that no table has."""
    ids = {disease.id for disease in tables.diseases}
    groups = {label.group for label in tables.labels} | {label.label for label in tables.labels}
    known = ids | set(tables.findings)
    numbers = set(tables.labs) | set(NUMBERS)
    for disease in tables.diseases:
        named = {*disease.requires, *disease.excludes, *disease.links}
        _known(folder / "diseases.yaml", disease.id, named, ids)
        _known(folder / "diseases.yaml", disease.id, set(disease.labs), set(tables.labs))
        _known(folder / "diseases.yaml", disease.id, set(disease.vitals), set(NUMBERS))
    for name, rows in (("therapy.tsv", tables.therapy), ("habits.tsv", tables.habits)):
        for row in rows:
            _known(folder / name, f"{row.cause} {row.group}", {row.group}, groups)
            _known(folder / name, f"{row.cause} {row.group}", {row.cause} - {""}, known)
            _known_in(folder / name, f"{row.cause} {row.group}", row.when, known, groups, numbers)
    for group, rules in tables.contraindications.items():
        _known(folder / "contraindications.tsv", group, {group}, groups)
        for rule in rules:
            _known_in(folder / "contraindications.tsv", group, rule, known, groups, numbers)
    for broken in tables.rule_breaks:
        _known(folder / "rule_breaks.tsv", broken.kind, {broken.a} if broken.when.tests else {broken.a, broken.b}, groups)
        _known_in(folder / "rule_breaks.tsv", broken.a, broken.when, known, groups, numbers)


def _known_in(path: Path, row: str, rule: When, known: set[str], groups: set[str], numbers: set[str]) -> None:
    _known(path, row, rule.ids("has", "not"), known)
    _known(path, row, rule.ids("drug", "nodrug"), groups)
    _known(path, row, rule.numbers, numbers)


def _known(path: Path, row: str, named: set[str], known: set[str]) -> None:
    for name in sorted(named - known):
        raise InputError(f"row {row}: nothing is called {name!r}", file=path, way_out="Correct the name or add its row.")
