"""Conditions such as `egfr<60,has:cad,not:gout,drug:statin` of the ward's tables.

Knows facts of one visit, no text, no chance.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

NUMBER = re.compile(r"^([a-z0-9_]+)(<=|>=|<|>|=)(-?[0-9.]+)$")
SEX = re.compile(r"^sex=(男|女)$")
KINDS = ("has", "not", "drug", "nodrug")


@dataclass(slots=True)
class Facts:
    """What a rule may ask about a visit."""

    sex: str
    numbers: dict[str, float]
    """Laboratory values, `age`, `bmi` and vital signs by id."""
    present: set[str]
    """Ids of diseases and findings."""
    groups: set[str] = field(default_factory=set)
    """Therapy groups of the drugs chosen so far."""
    labels: set[str] = field(default_factory=set)
    """Labels of the drugs chosen so far."""


@dataclass(frozen=True, slots=True)
class When:
    """A conjunction. The empty one always holds."""

    text: str
    tests: tuple[tuple[str, str, float, tuple[str, ...]], ...]

    def holds(self, facts: Facts) -> bool:
        """Whether every conjunct is true; a number that the visit lacks makes its conjunct false."""
        return all(_true(kind, name, value, ids, facts) for kind, name, value, ids in self.tests)

    @property
    def numbers(self) -> set[str]:
        """Ids of the laboratory values and other numbers that the rule compares."""
        return {name for kind, name, _, _ in self.tests if kind in ("<", ">", "<=", ">=", "=")}

    def ids(self, *kinds: str) -> set[str]:
        """Ids named after `has:`, `not:`, `drug:` or `nodrug:`."""
        return {i for kind, _, _, ids in self.tests if kind in kinds for i in ids}


def parse(text: str) -> When:
    """Read one expression; `-` or nothing is the empty one, `a|b` after a colon means any of them. Raises ValueError."""
    parts = [] if text.strip() in ("", "-") else [part.strip() for part in text.split(",")]
    return When(text.strip(), tuple(_conjunct(part) for part in parts))


def _conjunct(part: str) -> tuple[str, str, float, tuple[str, ...]]:
    number = NUMBER.match(part)
    if number:
        return number[2], number[1], float(number[3]), ()
    sex = SEX.match(part)
    if sex:
        return "sex", sex[1], 0.0, ()
    kind, _, names = part.partition(":")
    if kind not in KINDS or not names:
        raise ValueError(f"{part!r} is no condition")
    return kind, "", 0.0, tuple(names.split("|"))


def _true(kind: str, name: str, value: float, ids: tuple[str, ...], facts: Facts) -> bool:
    if kind == "has":
        return any(i in facts.present for i in ids)
    if kind == "not":
        return not any(i in facts.present for i in ids)
    if kind == "drug":
        return _taken(ids, facts)
    if kind == "nodrug":
        return not _taken(ids, facts)
    if kind == "sex":
        return facts.sex == name
    number = facts.numbers.get(name)
    return number is not None and _compared(number, kind, value)


def _taken(ids: Collection[str], facts: Facts) -> bool:
    return any(i in facts.groups or i in facts.labels for i in ids)


def _compared(number: float, sign: str, value: float) -> bool:
    if sign == "<":
        return number < value
    if sign == ">":
        return number > value
    if sign == "<=":
        return number <= value
    if sign == ">=":
        return number >= value
    return number == value
