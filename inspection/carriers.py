"""Which diagnoses of a record carry which drugs, and the two flags that follow: 无指征用药 and 有指征未用药.

    carriers = Carriers(load_vocabulary())
    carriers.of(drug, record.diagnoses)          # the diagnoses that carry it, by the indications table
    carriers.knowledge(drug, record.diagnoses)   # carried, uncarried, or no_data
    carriers.untreated(record.diagnoses, drugs)  # diagnoses that usually get a drug and got none

Knows the tables of `vocab.indications`; no text of a record and no model. The tables are incomplete by nature: where they
say nothing the answer is `no_data`, which is not "no indication", and raises no flag. A flag is a question to the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from yaofang.vocab.drugs import UNKNOWN, Drug, Vocabulary
from yaofang.vocab.indications import STRENGTHS, Indication, Indications, load_indications
from yaofang.vocab.matching import link

UNINDICATED = "无指征用药"
UNTREATED = "有指征未用药"
FLAGS = (UNINDICATED, UNTREATED)
NO_DATA = "无数据"
PRESSURE = "C02/C03/C07/C08/C09"
"""Drugs that lower the blood pressure or unload the heart: one class here, since one of them is treatment."""
SYSTEMIC = ("oral", "sublingual", "injection")
Knowledge = Literal["carried", "uncarried", "no_data"]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A diagnosis of the record that carries a drug."""

    diagnosis: str
    """As it is written."""
    indication: Indication


@dataclass(frozen=True, slots=True)
class Flag:
    """A question to the reader."""

    kind: str
    """One of `FLAGS`."""
    subject: str
    """The label of 无指征用药; the written diagnosis of 有指征未用药."""
    reason: str


class Carriers:
    """The indications of a vocabulary's drugs, asked record by record; what has been looked up is kept."""

    def __init__(self, vocabulary: Vocabulary, tables: Indications | None = None) -> None:
        self.tables = tables or load_indications()
        self.vocabulary = vocabulary
        self._rows: dict[str, list[Indication]] = {}
        for row in (row for rows in self.tables.rows.values() for row in rows):
            self._rows.setdefault(row.drug, []).append(row)
        self._recognised: dict[str, tuple[str, ...]] = {}
        self._indications: dict[Drug, dict[str, Indication]] = {}
        self._classes: dict[str, dict[str, tuple[str, ...]]] = {}

    def drug(self, label: str) -> Drug:
        """The drug of a label; of one that is not in the vocabulary, what its name tells."""
        return self.vocabulary.drug(label) if label in self.vocabulary else link(label)

    def recognise(self, written: str) -> tuple[str, ...]:
        """The diagnoses of the table that a written one names (`Indications.recognise`)."""
        if written not in self._recognised:
            self._recognised[written] = self.tables.recognise(written)
        return self._recognised[written]

    def indications(self, drug: Drug) -> dict[str, Indication]:
        """Every diagnosis of the table that carries the drug, each with its strongest row; empty is `no data`."""
        if drug not in self._indications:
            rows = [row for term, named in self._rows.items() if _names(term, drug) for row in named]
            # Of two rows of one diagnosis the stronger is written last and stays.
            weakest_first = sorted(rows, key=lambda row: -STRENGTHS.index(row.strength))
            found = {row.diagnosis: row for row in weakest_first}
            self._indications[drug] = dict(sorted(found.items(), key=lambda one: STRENGTHS.index(one[1].strength)))
        return self._indications[drug]

    def of(self, drug: Drug, diagnoses: Sequence[str]) -> tuple[Carrier, ...]:
        """The written diagnoses that carry the drug, in their order, each with the strongest row."""
        known, found = self.indications(drug), []
        for diagnosis in diagnoses:
            rows = [known[name] for name in self.recognise(diagnosis) if name in known]
            if rows:
                found.append(Carrier(diagnosis, min(rows, key=lambda row: STRENGTHS.index(row.strength))))
        return tuple(found)

    def knowledge(self, drug: Drug, diagnoses: Sequence[str]) -> Knowledge:
        """What the tables say. `uncarried` takes a drug whose indications they know and a diagnosis that they recognise."""
        if self.of(drug, diagnoses):
            return "carried"
        known = bool(self.indications(drug)) and any(map(self._is_known, diagnoses))
        return "uncarried" if known else "no_data"

    def unindicated(self, drug: Drug, diagnoses: Sequence[str], *, is_supported: bool) -> Flag | None:
        """The flag of a listed drug that no diagnosis carries and that nothing in the text supports."""
        if is_supported or self.knowledge(drug, diagnoses) != "uncarried":
            return None
        usual = "、".join(list(self.indications(drug))[:4])
        reason = f"表中该药用于{usual}等；本例诊断均不在其中，病历文字中也未见该药或其适应证的依据。"
        strangers = [name for name in diagnoses if not self._is_known(name)]
        more = f"以下诊断在表中{NO_DATA}，未参与判断：{'、'.join(strangers)}。" if strangers else ""
        return Flag(UNINDICATED, drug.label, reason + more)

    def _is_known(self, written: str) -> bool:
        """Whether the tables have a drug for a written diagnosis; some of those that they recognise have no row."""
        return any(name in self.tables.rows for name in self.recognise(written))

    def untreated(self, diagnoses: Sequence[str], drugs: Sequence[Drug]) -> tuple[Flag, ...]:
        """The flags of diagnoses that have first-line drugs in the table, of which classes the list has none.

        The table does not say which first-line drugs are taken together and which instead of one another: a drug of any of
        their classes is treatment, and so is any drug that the diagnosis carries as more than an adjunct. Where a listed label
        is tied to no generic it may be any drug, and nothing is flagged.
        """
        if any(drug.kind in UNKNOWN for drug in drugs):
            return ()
        found: dict[str, Flag] = {}
        for written in diagnoses:
            for name in self.recognise(written):
                usual = self.first_line(name)
                if usual and name not in found and not self.treats(name, drugs):
                    classes = "；".join(f"{group} 类（如{'、'.join(generics[:3])}）" for group, generics in usual.items())
                    reason = f"表中{name}的首选药物属{classes}，清单中没有这些类别的药品，也没有表中用于它的其他药品。"
                    found[name] = Flag(UNTREATED, written, reason)
        return tuple(found.values())

    def treats(self, name: str, drugs: Sequence[Drug]) -> bool:
        """Whether a drug is of a first-line class of a table's diagnosis, or carried by it as more than an adjunct."""
        classes = self.first_line(name)
        rows = (self.indications(drug).get(name) for drug in drugs)
        return any(group_of(drug.atc) in classes for drug in drugs) or any(row and row.strength != "adjunct" for row in rows)

    def first_line(self, name: str) -> dict[str, tuple[str, ...]]:
        """Class (`group_of`) -> generics of the vocabulary that the first-line rows of a table's diagnosis name."""
        if name not in self._classes:
            found: dict[str, dict[str, None]] = {}
            for row in self.tables.rows.get(name, ()):
                for drug in self._members(row.drug) if row.strength == "first_line" else ():
                    if group := group_of(drug.atc):
                        found.setdefault(group, {})[drug.generic] = None
            self._classes[name] = {group: tuple(generics) for group, generics in found.items()}
        return self._classes[name]

    def _members(self, term: str) -> list[Drug]:
        """The vocabulary's drugs that a row's term names; of a generic, those for the whole body if there are any."""
        fitting = [drug for drug in self.vocabulary if _names(term, drug)]
        return fitting if term.startswith("atc:") else [drug for drug in fitting if drug.route in SYSTEMIC] or fitting


def group_of(atc: str | None) -> str | None:
    """The class of a code: its second level, or `PRESSURE`; None without a code."""
    group = (atc or "").removeprefix("~")[:3]
    return PRESSURE if group in PRESSURE.split("/") else group or None


def _names(term: str, drug: Drug) -> bool:
    """Whether a row's term, a generic or `atc:PREFIX`, names the drug."""
    if not term.startswith("atc:"):
        return term == drug.generic
    return drug.atc is not None and drug.atc.removeprefix("~").startswith(term.removeprefix("atc:"))
