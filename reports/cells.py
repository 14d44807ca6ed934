"""Cells and tables: a number of the JSON in its shown form, or the reason why there is none. Never an empty cell, never a 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yaofang.reports.words import NO_INTERVAL

SCORE = ".4f"
SHARE = ".2%"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell's text."""

    text: str
    is_missing: bool = False
    """The text is a reason."""
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; the first cell of a row is its name."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]] = field(default=())
    why_empty: str = ""
    """Shown in place of a table without rows."""
    note: str = ""


def text(value: object) -> Cell:
    """Words."""
    return Cell(str(value))


def missing(why: str) -> Cell:
    """The place of a figure that there is not, with the reason."""
    return Cell(f"无：{why}", is_missing=True)


def number(value: float | None, why: str, form: str = "") -> Cell:
    """A number of the JSON; a whole one has no `form`."""
    return missing(why) if value is None else Cell(f"{value:{form}}", is_number=True)


def interval(figure: Mapping[str, Any] | None, why: str, form: str = SCORE) -> Cell:
    """The 95% interval of a figure {value, low, high}."""
    if figure is None:
        return missing(why)
    if figure["low"] is None or figure["high"] is None:
        return missing(NO_INTERVAL)
    return Cell(f"{figure['low']:{form}} 至 {figure['high']:{form}}", is_number=True)


def figure(value: Mapping[str, Any] | None, why: str, form: str = SCORE) -> tuple[Cell, Cell]:
    """A figure's value and its interval."""
    return number(None if value is None else value["value"], why, form), interval(value, why, form)
