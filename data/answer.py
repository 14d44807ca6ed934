"""The answer as text: diagnoses first, then drugs, in pieces that are encoded one by one, and its parser.

    出院诊断：2型糖尿病；糖尿病酮症
    出院带药：阿卡波糖、瑞格列奈

Knows separators and headers, and that a separator may merge with the mark before it when text is tokenised whole, so
every piece is to be encoded alone. Does not know tokenizers, vocabularies or conflicts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from yaofang.data.records import Record

OPENING = "\n出院诊断："
DIAGNOSIS_SEPARATOR = "；"
HEADER = "\n出院带药："
DRUG_SEPARATOR = "、"

_LINE_BREAK = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_REWRITTEN = str.maketrans({DIAGNOSIS_SEPARATOR: "，", ";": ","})


@dataclass(frozen=True, slots=True)
class Answer:
    """Diagnoses and drugs, in order."""

    diagnoses: tuple[str, ...]
    drugs: tuple[str, ...]


def clean_diagnosis(name: str) -> str:
    """The name with separators and line breaks rewritten, so that it can stand in an answer."""
    return _LINE_BREAK.sub(" ", name.translate(_REWRITTEN)).strip()


def diagnosis_pieces(diagnoses: Iterable[str]) -> list[str]:
    """The answer up to and with the header of the drugs; names are cleaned, blank ones left out."""
    names = [clean for name in diagnoses if (clean := clean_diagnosis(name))]
    return ["\n", OPENING[1:], *_separated(names, DIAGNOSIS_SEPARATOR), "\n", HEADER[1:]]


def pieces(answer: Answer) -> list[str]:
    """The whole answer. Raises ValueError for a drug that holds a separator or a line break."""
    for drug in answer.drugs:
        if DRUG_SEPARATOR in drug or _LINE_BREAK.search(drug):
            raise ValueError(f"a drug's name holds a separator: {drug!r}")
    return [*diagnosis_pieces(answer.diagnoses), *_separated(answer.drugs, DRUG_SEPARATOR)]


def _separated(names: Sequence[str], separator: str) -> list[str]:
    return [piece for name in names for piece in (separator, name)][1:]


def render(answer: Answer) -> str:
    """The answer as one text."""
    return "".join(pieces(answer))


def parse(text: str) -> Answer:
    """The inverse of `render` for cleaned names. Where a header is missing its part is empty.

    Text before the drugs' header counts as diagnoses even without their header, which may stand in the prompt. Drugs
    end with their line; repeats stay.
    """
    head, header, tail = ("\n" + text.lstrip("\n")).partition(HEADER)
    before, opening, named = head.partition(OPENING)
    diagnoses = named if opening else before if header else ""
    return Answer(_names(diagnoses, DIAGNOSIS_SEPARATOR), _names(tail, DRUG_SEPARATOR))


def _names(text: str, separator: str) -> tuple[str, ...]:
    line = text.strip("\n").partition("\n")[0]
    return tuple(name for part in line.split(separator) if (name := part.strip()))


def drug_frequency(records: Iterable[Record]) -> Counter[str]:
    """In how many records each label is prescribed."""
    return Counter(label for record in records for label in record.drugs)


def canonical_order(drugs: Iterable[str], frequency: Mapping[str, int]) -> tuple[str, ...]:
    """The one order of training targets: most frequent in training first, then by label."""
    return tuple(sorted(drugs, key=lambda label: (-frequency.get(label, 0), label)))
