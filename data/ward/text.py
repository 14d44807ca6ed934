"""Puts a visit's record together from its sections, and finds the evidence of each drug's cause in it.

The record is written from what was known before prescribing; drugs are added as a list, the truth apart from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yaofang.data.records import Record
from yaofang.data.ward.course import Course
from yaofang.data.ward.history import METABOLIC, History
from yaofang.data.ward.patients import Patient, Stay
from yaofang.data.ward.tables import Tables
from yaofang.data.ward.therapy import Prescribed

Evidence = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Truth:
    """Why one drug of one record was prescribed. Written beside the records, never in them.

    `evidence` is (section, start, end): characters of that section's text, or, for 出院诊断, the place of the diagnosis in the
    list and the place after it.
    """

    id: str
    label: str
    cause: str
    evidence: Evidence
    rule_broken: str | None

    def to_json(self) -> dict[str, object]:
        """One line of the truth file."""
        return {
            "ID": self.id,
            "label": self.label,
            "cause": self.cause,
            "evidence": list(self.evidence),
            "rule_broken": self.rule_broken,
        }


@dataclass(frozen=True, slots=True)
class Written:
    """A record without drugs, and where its facts stand."""

    record: Record
    marks: dict[str, Evidence]


class Writer:
    """The ward's note takers."""

    def __init__(self, tables: Tables, generics: dict[str, str]) -> None:
        self.tables = tables
        self.omit = tables.wording["omit"]
        self.history = History(tables, generics)
        self.course = Course(tables)

    def write(self, patient: Patient, stay: Stay, home: tuple[Prescribed, ...], gap: int, rng: np.random.Generator) -> Written:
        """The record of one visit. `gap`: months since the visit before, 0 at the first."""
        complaint = self.history.complaint(stay, rng)
        early, late = self._divided(stay, home, bool(gap), rng)
        bmi = None if rng.random() < self.omit["bmi"] else stay.facts.numbers["bmi"]
        sections = [
            self.course.course(stay, self.history.continued(home, rng), rng),
            self.course.admission(stay, complaint, stay.facts.numbers["bmi"], rng),
            self.history.present(stay, early, gap, rng),
            self.history.past(stay, late, rng),
        ]
        if not sections[3].marks and rng.random() < self.omit["past_history"]:
            sections[3].text = ""
        diagnoses, marks = self._diagnoses(stay, rng)
        # The history is better evidence of a home drug than the sentence that it was taken on during the stay.
        for section in (sections[0], sections[3], sections[2], sections[1]):
            marks |= {mark: (section.name, start, end) for mark, (start, end) in section.marks.items()}
        texts = {section.name: section.text for section in sections}
        record = Record.model_validate(
            {
                **self._person(patient, stay, rng),
                **texts,
                "BMI": bmi,
                "主诉": "" if rng.random() < self.omit["chief_complaint"] else complaint + "。",
                "出院诊断": diagnoses,
                "出院带药列表": [],
            }
        )
        return Written(record, marks)

    def _person(self, patient: Patient, stay: Stay, rng: np.random.Generator) -> dict[str, object]:
        return {
            "患者序号": patient.number,
            "就诊标识": f"{patient.number}-{stay.number}",
            "性别": patient.sex,
            "出生日期": None if rng.random() < self.omit["birth"] else f"{patient.birth[0]}-{patient.birth[1]:02}",
            "民族": None if rng.random() < self.omit["ethnicity"] else patient.ethnicity,
            "就诊时间": f"{stay.date[0]}-{stay.date[1]:02}",
        }

    def _divided(
        self, stay: Stay, home: tuple[Prescribed, ...], again: bool, rng: np.random.Generator
    ) -> tuple[tuple[Prescribed, ...], tuple[Prescribed, ...]]:
        """Drugs for 现病史 and drugs for 既往史: after an earlier stay mostly all in the first."""
        if again and rng.random() < 0.7:
            return home, ()
        systems = {c.disease.id: c.disease.system for c in stay.conditions}
        early = {d.label for d in home if d.why == stay.main.disease.id or systems.get(d.why) == METABOLIC}
        return tuple(d for d in home if d.label in early), tuple(d for d in home if d.label not in early)

    def _diagnoses(self, stay: Stay, rng: np.random.Generator) -> tuple[list[str], dict[str, Evidence]]:
        """Main disease first, the others roughly in the order of the table; each once."""
        listed = [c for c in stay.conditions if c is not stay.main and c.disease.id not in stay.unlisted]
        keys = {c.disease.id: place + rng.normal(0, 2.0) for place, c in enumerate(listed)}
        listed.sort(key=lambda c: keys[c.disease.id])
        names: list[str] = []
        marks: dict[str, Evidence] = {}
        for condition in (stay.main, *listed):
            if condition.name not in names:
                names.append(condition.name)
            place = names.index(condition.name)
            marks[f"disease:{condition.disease.id}"] = ("出院诊断", place, place + 1)
        return names, marks

    def evidence(self, drug: Prescribed, written: Written) -> Evidence:
        """Where the record shows the drug's cause."""
        marks = written.marks
        if drug.cause == "earlier drug":
            return marks[f"drug:{drug.label}"]
        if drug.cause == "diagnosis":
            return marks[f"disease:{drug.why}"]
        if drug.cause == "finding":
            for number in sorted(self.tables.findings[drug.why].numbers):
                if f"number:{number}" in marks:
                    return marks[f"number:{number}"]
            return marks["disease:" + next(i for i in sorted(self.tables.findings[drug.why].ids("has")))]
        return marks["team"]
