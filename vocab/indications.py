"""Which diagnosis carries which drug: the knowledge behind "why is this drug here".

`diagnoses.tsv` names diagnoses as clinicians write them, with synonyms and an ICD-10 code; `indications.tsv` ties each to
generics or ATC groups with a strength and a source. A diagnosis of a record is recognised by its longest known wording. That a
pair is not in the table means that nothing is known, not that the drug is wrong. The simulated ward does not use these tables.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from yaofang.vocab.drugs import ATC, Drug
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import read_table
from yaofang.vocab.lexicon import load_lexicon
from yaofang.vocab.matching import link

TABLES = Path(__file__).parent / "default"
STRENGTHS = ("first_line", "common", "adjunct")
"""From a guideline's first choice to what is added for symptoms; Chinese patent medicines are at most `adjunct`."""

_DOUBT = re.compile(r"[?？]|待[排查]|可能|疑似|可疑|除外|排除|否认|家族史|^无")
_NOISE = re.compile(r"[\s（）()【】\[\],，.。:：\-—/]")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A row of diagnoses.tsv."""

    name: str
    synonyms: tuple[str, ...]
    icd10: str | None


@dataclass(frozen=True, slots=True)
class Indication:
    """One diagnosis carries one drug."""

    diagnosis: str
    """As in diagnoses.tsv."""
    drug: str
    """A generic, or `atc:PREFIX`."""
    strength: str
    source: str


@dataclass(frozen=True)
class Indications:
    """Both tables."""

    diagnoses: dict[str, Diagnosis]
    rows: dict[str, tuple[Indication, ...]]
    """By diagnosis."""

    def recognise(self, written: str) -> tuple[str, ...]:
        """The diagnoses of the table that a written one names, the longest wording first; a part of another is left out.

        A diagnosis in doubt, denied or of the family (待排, ？, 否认, 家族史) names none.
        """
        return () if _DOUBT.search(written) else _recognise(_wordings(self), _plain(written))

    def carries(self, diagnosis: str, generic: str | Drug) -> Indication | None:
        """The strongest row by which a written diagnosis carries a generic (or a drug), or None: nothing known."""
        drug = link(generic) if isinstance(generic, str) else generic
        found = [row for name in self.recognise(diagnosis) for row in self.rows.get(name, ()) if _names(row.drug, drug)]
        return min(found, key=lambda row: STRENGTHS.index(row.strength), default=None)

    def carried_by(self, diagnosis: str) -> tuple[Indication, ...]:
        """Every row of a written diagnosis, first-line first."""
        found = [row for name in self.recognise(diagnosis) for row in self.rows.get(name, ())]
        return tuple(sorted(found, key=lambda row: STRENGTHS.index(row.strength)))


def carries(diagnosis: str, generic: str | Drug) -> Indication | None:
    """`Indications.carries` of the bundled tables."""
    return load_indications().carries(diagnosis, generic)


@cache
def load_indications(folder: Path = TABLES) -> Indications:
    """Read both tables. Raises InputError that names file, line and field for a name that no other table knows."""
    diagnoses = {}
    for _, row in read_table(folder / "diagnoses.tsv"):
        synonyms = () if row["synonyms"] == "-" else tuple(name.strip() for name in row["synonyms"].split(","))
        diagnoses[row["diagnosis"]] = Diagnosis(row["diagnosis"], synonyms, None if row["icd10"] == "-" else row["icd10"])
    file = folder / "indications.tsv"
    rows: dict[str, list[Indication]] = {}
    for line, row in read_table(file):
        problem = _problem(row, diagnoses)
        if problem:
            raise InputError(problem[1], file=file, line=line, field=problem[0], way_out="Correct this row.")
        found = Indication(row["diagnosis"], row["drug"], row["strength"], row["source"])
        rows.setdefault(found.diagnosis, []).append(found)
    return Indications(diagnoses, {name: tuple(found) for name, found in rows.items()})


def _problem(row: dict[str, str], diagnoses: dict[str, Diagnosis]) -> tuple[str, str] | None:
    if row["diagnosis"] not in diagnoses:
        return "diagnosis", f"{row['diagnosis']!r} is not in diagnoses.tsv"
    if row["strength"] not in STRENGTHS:
        return "strength", f"{row['strength']!r} is none of {', '.join(STRENGTHS)}"
    code = row["drug"].removeprefix("atc:")
    if code != row["drug"] and not ATC.fullmatch(code):
        return "drug", f"{code!r} is no ATC code"
    if code == row["drug"] and code not in load_lexicon().entries:
        return "drug", f"{code!r} is no generic of the lexicon"
    return None if ":" in row["source"] else ("source", "a source is written `issuer: document`")


def _names(term: str, drug: Drug) -> bool:
    if not term.startswith("atc:"):
        return term == drug.generic
    return drug.atc is not None and drug.atc.removeprefix("~").startswith(term.removeprefix("atc:"))


@lru_cache(maxsize=2)
def _wordings_of(diagnoses: tuple[Diagnosis, ...]) -> tuple[tuple[str, str], ...]:
    pairs = {(_plain(name), one.name) for one in diagnoses for name in (one.name, *one.synonyms)}
    return tuple(sorted(pairs, key=lambda pair: (-len(pair[0]), pair)))


def _wordings(tables: Indications) -> tuple[tuple[str, str], ...]:
    return _wordings_of(tuple(tables.diagnoses.values()))


@lru_cache(maxsize=20_000)
def _recognise(wordings: tuple[tuple[str, str], ...], plain: str) -> tuple[str, ...]:
    """Wordings found in the text, longest first; characters that one took are not given to another."""
    exact = [name for wording, name in wordings if wording == plain]
    if exact:
        return tuple(exact)
    left, found = plain, []
    for wording, name in wordings:
        if wording and wording in left:
            found.append(name)
            left = left.replace(wording, "\0")
    return tuple(dict.fromkeys(found))


_ROMAN_TYPE = re.compile(r"(?<![A-Z])(I{1,3})型", re.IGNORECASE)
"""Type I to III in Roman numerals; NFKC has made Ⅱ two letters."""


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", name)
    text = _ROMAN_TYPE.sub(lambda found: f"{len(found[1])}型", text).replace("二型", "2型").replace("一型", "1型")
    return _NOISE.sub("", text).upper()
