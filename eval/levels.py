"""The levels at which drug lists are compared: labels as they stand, generics, and ATC-4 classes.

Knows vocabulary and lexicon, which turn a name into a generic or a class; knows nothing of records and scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from yaofang.vocab.drugs import Drug, Vocabulary
from yaofang.vocab.matching import generic_of, link, match

Level = Literal["label", "generic", "atc4"]
LEVELS: tuple[Level, ...] = ("label", "generic", "atc4")
CLASS = 5
"""Characters of a WHO code that name its fourth level, the chemical subgroup: A10BA of A10BA02."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Names as they are compared at one level. Each distinct name is looked up once."""

    level: Level
    vocabulary: Vocabulary
    _known: dict[str, str] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """What a name counts as: itself, its generic root, or its class (`class_of`)."""
        if self.level == "label":
            return name
        if name not in self._known:
            self._known[name] = generic_of(name) if self.level == "generic" else class_of(self._drug(name))
        return self._known[name]

    def keys(self, names: Iterable[str]) -> set[str]:
        """The distinct keys of a list."""
        return {self.key(name) for name in names}

    def counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts of labels summed by key; a record with two labels of one key counts twice."""
        found: dict[str, int] = {}
        for name, count in counts.items():
            found[self.key(name)] = found.get(self.key(name), 0) + count
        return found

    def _drug(self, name: str) -> Drug:
        return self.vocabulary.drug(name) if name in self.vocabulary else link(name)


def class_of(drug: Drug) -> str:
    """The ATC-4 class of a drug: the first five characters of its WHO code (WHO Collaborating Centre, ATC/DDD index).

    A combination product, a drug without a code and one whose code is shorter are a class of their own, their generic: the WHO
    puts combinations by their partner, so that their class would hide what they hold. A provisional class (`~A10BX`) stays.
    """
    if drug.atc is None or len(drug.ingredients) > 1:
        return drug.generic
    if drug.atc.startswith("~"):
        return drug.atc
    return drug.atc[:CLASS] if len(drug.atc) >= CLASS else drug.generic


def linked(names: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Each name's label by `matching.match`, or the name itself where it links to none."""
    found = (None if name in vocabulary else match(name, vocabulary).drug for name in names)
    return [name if drug is None else drug.label for name, drug in zip(names, found, strict=True)]
