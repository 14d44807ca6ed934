"""A section of a record under construction: text, and where in it the things stand that a drug's cause points to.

Knows characters and marks; knows no medicine. Spans are [start, end) in characters of the finished section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(slots=True)
class Section:
    """Text grown piece by piece. A mark is set once: the first place where a thing is written is its evidence."""

    name: str
    text: str = ""
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, text: str, *marks: str) -> None:
        """Append text; `marks` name what it is evidence of."""
        start = len(self.text)
        self.text += text
        for mark in marks:
            self.marks.setdefault(mark, (start, len(self.text)))

    def fill(self, template: str, values: dict[str, str], marks: dict[str, str] | None = None) -> None:
        """Append a template whose `{key}` are replaced; a key of `marks` is marked by its value there."""
        rest = template
        while "{" in rest:
            before, _, rest = rest.partition("{")
            key, _, rest = rest.partition("}")
            self.add(before)
            self.add(values[key], *([marks[key]] if marks and key in marks else []))
        self.add(rest)

    def end(self, mark: str = "。") -> None:
        """Close the sentence, if it is not closed."""
        self.text = self.text.rstrip("，、；：")
        if self.text and self.text[-1] not in "。！？；":
            self.add(mark)


def one(choices: Sequence[T], rng: np.random.Generator) -> T:
    """One of several wordings."""
    return choices[int(rng.random() * len(choices))]


def some(choices: Sequence[T], number: int, rng: np.random.Generator) -> list[T]:
    """`number` of the wordings at most, in their own order."""
    number = min(number, len(choices))
    return [choices[i] for i in sorted(rng.permutation(len(choices))[:number])]


def count(mean: float, rng: np.random.Generator) -> int:
    """A Poisson number, 0 for a mean of 0 or less."""
    return int(rng.poisson(mean)) if mean > 0 else 0


def duration(months: int, settings: dict[str, list[str]], rng: np.random.Generator) -> str:
    """`5年`, `3月`, or, for a disease just found, `2周`."""
    if months <= 0:
        return one(settings["new"], rng)
    if months < 12:
        return f"{months}{settings['unit_month']}"
    return f"{months // 12}{one(settings['unit_year'], rng)}"


def plain(number: float, decimals: int) -> str:
    """A number as a laboratory prints it."""
    return f"{number:.{decimals}f}"
