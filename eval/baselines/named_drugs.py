"""Which drugs a record's text names: the spellings of the lexicon, looked up in it, and each told as a label of a data set.

Finds names that are written as some table has them, the longest first. Knows no doses and no grammar: whether a drug that is
named was given, refused or only thought of is not told, but for the plainest words beside it (`taken_before`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from yaofang.data.records import Record
from yaofang.vocab.lexicon import load_lexicon
from yaofang.vocab.matching import generic_of

SHORTEST = 3
"""Characters of a spelling: the brands of two (四神, 利比) are found inside other words. A label itself may be shorter."""

_CLAUSE = re.compile(r"[^，,。；;\n]+")
_NOT_TAKEN = re.compile(r"过敏|皮试|否认|停药|停用|停服|未服|未用|未应用")


class NamedDrugs:
    """Finds the drugs of a data set in text."""

    def __init__(self, ranked_labels: Iterable[tuple[str, int]]) -> None:
        """`ranked_labels`: the labels that may be told, with their counts, the most frequent first.

        A spelling that is no label itself is told as the most frequent label of its generic; one of two generics is not.
        """
        labels = [label for label, _ in ranked_labels]
        label_of: dict[str, str] = {}
        for label in labels:
            label_of.setdefault(generic_of(label), label)
        spelt = {
            _plain(spelling): label_of[next(iter(generics))]
            for spelling, generics in load_lexicon().spellings.items()
            if len(generics) == 1 and len(spelling) >= SHORTEST and next(iter(generics)) in label_of
        }
        spelt |= {_plain(label): label for label in reversed(labels) if len(label) > 1}
        self._by_start: Mapping[str, list[tuple[str, str]]] = _by_start(spelt)

    def find(self, text: str) -> tuple[str, ...]:
        """The labels of the drugs that a text names, in the order of their first mention."""
        plain, place = _plain(text), 0
        found: dict[str, None] = {}
        while place < len(plain) - 1:
            near = self._by_start.get(plain[place : place + 2], ())
            spelling, label = next(((s, label) for s, label in near if plain.startswith(s, place)), ("", ""))
            if label:
                found[label] = None
            place += len(spelling) or 1
        return tuple(found)

    def taken_before(self, record: Record) -> tuple[str, ...]:
        """The labels that 现病史 and 既往史 name, but in clauses on allergies, denials and drugs that were stopped."""
        text = f"{record.present_illness}\n{record.past_history}"
        clauses = [clause for clause in _CLAUSE.findall(text) if not _NOT_TAKEN.search(clause)]
        return self.find("\n".join(clauses))


def _by_start(spelt: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """The first two characters of a spelling -> (spelling, label), the longest spelling first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for spelling in sorted(spelt, key=lambda one: (-len(one), one)):
        found.setdefault(spelling[:2], []).append((spelling, spelt[spelling]))
    return found


def _plain(text: str) -> str:
    """Full-width letters as half-width ones, Latin letters as capitals."""
    return unicodedata.normalize("NFKC", text).upper()
