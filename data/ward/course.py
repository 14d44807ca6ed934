"""Writes 入院情况 and 诊疗过程描述: examination, laboratory values, imaging, ward rounds.

Knows the visit before anything is prescribed; never sees the discharge list, so no sentence here can give it away.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np

from yaofang.data.ward.patients import Stay
from yaofang.data.ward.tables import Lab, Tables
from yaofang.data.ward.writing import Section, count, one, plain, some


class Course:
    """Words for what was found and done during the visit."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.words = tables.wording
        self.panels: dict[str, list[Lab]] = {panel: [] for panel in self.words["panels"]}
        for lab in tables.labs.values():
            self.panels[lab.panel].append(lab)

    def team(self, stay: Stay) -> str:
        """The team's name; its department is always worded the same way."""
        return str(self.tables.ward["teams"][stay.team])

    def _doctor(self, stay: Stay, rng: np.random.Generator) -> str:
        """One of the team's two doctors."""
        doctors = self.words["course"]["doctors"]
        place = crc32(self.team(stay).encode()) + int(rng.random() * 2)
        return str(doctors[(2 * stay.team + place % 2) % len(doctors)])

    def admission(self, stay: Stay, complaint: str, bmi: float | None, rng: np.random.Generator) -> Section:
        """入院情况: how the patient came, vital signs, examination."""
        section, words, numbers = Section("入院情况"), self.words["admission"], stay.facts.numbers
        year, month = stay.date
        ward = one(self.words["department"], rng) + self.team(stay)
        opening = {"complaint": complaint, "date": f"{year}年{month}月", "ward": ward, "name": stay.main.name}
        section.fill(one(words["opening"], rng), opening, {"ward": "team"})
        section.add(one(words["examination"], rng))
        section.fill(one(words["temperature"], rng) + "，", {"temp": plain(numbers["temp"], 1)}, {"temp": "number:temp"})
        section.fill(one(words["pulse"], rng) + "，", {"hr": plain(numbers["hr"], 0)}, {"hr": "number:hr"})
        section.fill(one(words["breath"], rng) + "，", {"rr": str(int(rng.integers(16, 22)))})
        pressure = {"sbp": plain(numbers["sbp"], 0), "dbp": plain(numbers["dbp"], 0)}
        section.fill(one(words["pressure"], rng) + "，", pressure, {"sbp": "number:sbp", "dbp": "number:dbp"})
        if bmi is not None:
            self._size(section, stay, bmi, rng)
        section.end()
        self._examination(section, stay, rng)
        return section

    def _size(self, section: Section, stay: Stay, bmi: float, rng: np.random.Generator) -> None:
        height = round(float(rng.normal(169 if stay.facts.sex == "男" else 158, 5)))
        size = {"bmi": plain(bmi, 1), "height": str(height), "weight": plain(bmi * height**2 / 1e4, 1)}
        section.fill(one(self.words["admission"]["bmi"], rng), size, {"bmi": "number:bmi"})

    def _examination(self, section: Section, stay: Stay, rng: np.random.Generator) -> None:
        words, numbers = self.words["admission"], stay.facts.numbers
        signs = [one(c.disease.signs, rng) for c in stay.conditions if c.disease.signs]
        for sign in some(signs, 1 + count(2.2 * stay.length, rng), rng):
            section.add(sign.rstrip("。") + "。")
        waist = numbers["bmi"] * 2.4 + 30
        values = {
            "hr": plain(numbers["hr"], 0),
            "waist": plain(waist, 0),
            "hip": plain(waist + rng.integers(2, 12), 0),
            "glucose": plain(max(3.0, numbers["ppg"] + rng.normal(0, 2)), 1),
        }
        kept = [s for s in words["routine"] if rng.random() < min(0.97, 0.72 * stay.length)]
        for sentences in kept:
            section.fill(one(sentences, rng), values)
        if rng.random() < 0.3:
            section.fill(one(words["before"], rng), values)

    def course(self, stay: Stay, section: Section, rng: np.random.Generator) -> Section:
        """诊疗过程描述: after what `section` holds already, laboratory values, then imaging, glucose, what was done."""
        words = self.words["course"]
        people = {"team": self.team(stay), "doctor": self._doctor(stay, rng)}
        section.fill(one(words["opening"], rng), people, {"team": "team"})
        for panel, labs in self.panels.items():
            written = [lab for lab in labs if lab.id in stay.measured]
            if written:
                self._panel(section, panel, written, stay, rng)
        self._imaging(section, stay, rng)
        self._rounds(section, stay, rng)
        for sentence in some(
            [one(c.disease.course, rng) for c in stay.conditions if c.disease.course], 1 + count(1.5 * stay.length, rng), rng
        ):
            section.add(sentence.rstrip("。") + "。")
        section.add(one(words["advice"], rng) if rng.random() < 0.7 else "")
        section.add(one(words["closing"], rng) if rng.random() < 0.85 else "")
        return section

    def _panel(self, section: Section, panel: str, labs: list[Lab], stay: Stay, rng: np.random.Generator) -> None:
        section.add(one(self.words["panels"][panel]["titles"], rng))
        flags = one(self.words["signs_of_flags"]["low"], rng), one(self.words["signs_of_flags"]["high"], rng)
        for lab in labs:
            section.add(self._value(lab, stay.facts.numbers[lab.id], flags, rng), f"number:{lab.id}")
            section.add("，" if rng.random() < 0.9 else "、")
        section.end("。" if rng.random() < 0.8 else "；")

    def _value(self, lab: Lab, value: float, flags: tuple[str, str], rng: np.random.Generator) -> str:
        name = one(lab.names, rng)
        if lab.grade:
            grades = self.words["grades"]
            return f"{name}（{grades[min(max(round(value), 0), len(grades) - 1)]}）"
        flag = flags[0] if value < lab.low else flags[1] if value > lab.high else ""
        return f"{name}{plain(value, lab.decimals)}{lab.unit}{flag}"

    def _imaging(self, section: Section, stay: Stay, rng: np.random.Generator) -> None:
        words = self.words["course"]
        own = [one(c.disease.exams, rng) for c in stay.conditions if c.disease.exams]
        values = {
            "ef": str(int(rng.integers(52, 70))),
            "abi": plain(rng.uniform(0.92, 1.25), 2),
            "abi2": plain(rng.uniform(0.92, 1.25), 2),
            "upro24": plain(rng.uniform(0.02, 0.14), 2),
            "tscore": plain(rng.uniform(-0.9, 1.2), 1),
        }
        for sentence in some(own, 1 + count(2.2 * stay.length, rng), rng):
            section.add(sentence.rstrip("。") + "。")
        for sentence in some(words["exams"], count(2.6 * stay.length, rng), rng):
            section.fill(sentence, values)

    def _rounds(self, section: Section, stay: Stay, rng: np.random.Generator) -> None:
        """Glucose profiles and ward rounds, more of them in long records."""
        words, days = self.words["course"], count(self.words["length"]["days"] * (stay.length - 0.62), rng)
        style = one(words["profile"], rng)
        for day in range(days):
            when = f"入院第{day + 2}天"
            template = style if rng.random() < 0.55 else one(words["note"], rng)
            section.fill(template, {"day": when, **self._day(stay, day, rng)})

    def _day(self, stay: Stay, day: int, rng: np.random.Generator) -> dict[str, str]:
        numbers = stay.facts.numbers
        better = 0.6 + 0.4 * 0.75**day
        glucose = [numbers["fpg"], *(numbers["ppg"], numbers["fpg"] + 1) * 3]
        values = {f"g{i}": plain(max(3.2, g * better + rng.normal(0, 1.2)), 1) for i, g in enumerate(glucose)}
        values |= {"sbp": plain(numbers["sbp"] * (0.94 + 0.06 * better) + rng.normal(0, 4), 0), "hr": plain(numbers["hr"], 0)}
        values |= {"dbp": plain(numbers["dbp"] - 2, 0), "k": plain(max(3.5, numbers["k"]), 2), "na": plain(numbers["na"], 1)}
        return values | {"cl": plain(numbers["na"] - 37, 1)}
