"""Writes 主诉, 现病史 and 既往史: complaints, course of the diseases, and what the patient takes at home.

Knows the visit before anything is prescribed; never sees the discharge list.
"""

from __future__ import annotations

import numpy as np

from yaofang.data.ward.patients import Condition, Stay
from yaofang.data.ward.tables import Tables
from yaofang.data.ward.therapy import Prescribed
from yaofang.data.ward.writing import Section, count, duration, one, plain, some

METABOLIC = "内分泌"
CONTRADICTED = {"htn1", "htn2", "htn3", "hypertension", "cad", "pci", "stroke_old"}


class History:
    """Words for what was before the visit."""

    def __init__(self, tables: Tables, generics: dict[str, str]) -> None:
        self.tables = tables
        self.words = tables.wording
        self.generics = generics
        self.vague = {group: name for name, groups in self.words["vague"].items() for group in groups}

    def complaint(self, stay: Stay, rng: np.random.Generator) -> str:
        """The complaint of the main disease, without a closing mark."""
        phrase = one(stay.main.disease.complaints, rng)
        return phrase.replace("{dur}", self._since(stay.main, stay, rng)).rstrip("。")

    def _months(self, condition: Condition, stay: Stay) -> int:
        return condition.months + stay.months_in if condition.visit != stay.number else 0

    def _since(self, condition: Condition, stay: Stay, rng: np.random.Generator) -> str:
        return duration(self._months(condition, stay), self.words["durations"], rng)

    def present(self, stay: Stay, home: tuple[Prescribed, ...], gap: int, rng: np.random.Generator) -> Section:
        """现病史: the last stay, the main disease, then what is taken for it, then the rest."""
        section = Section("现病史")
        said = self.words["home"]
        main = stay.main
        if gap:
            names = "，".join(c.name for c in stay.conditions if c.visit < stay.number)[:60] or main.name
            section.fill(one(said["again"], rng), {"gap": f"{gap}月", "names": names})
            self._drugs(section, home, rng)
        else:
            self._sentence(section, main, stay, rng)
            if home:
                section.add(one(said["main"], rng))
                self._drugs(section, home, rng)
            else:
                section.add(one(said["none"], rng))
        if gap:
            self._sentence(section, main, stay, rng)
        self._rest(section, stay, rng)
        return section

    def continued(self, home: tuple[Prescribed, ...], rng: np.random.Generator) -> Section:
        """The sentence of 诊疗过程描述 that names what is taken on during the stay, in most records."""
        section = Section("诊疗过程描述")
        words = self.words["course"]
        if home and rng.random() < words["continued_chance"]:
            section.add(one(words["continued"], rng))
            for place, drug in enumerate(home):
                section.add("、" if place else "")
                section.add(drug.label, f"drug:{drug.label}")
            section.end()
        return section

    def _rest(self, section: Section, stay: Stay, rng: np.random.Generator) -> None:
        words, length = self.words["present"], stay.length
        others = [c for c in stay.conditions if c is not stay.main and c.disease.present]
        for condition in some(others, count(2.2 * length, rng), rng):
            self._sentence(section, condition, stay, rng)
        values = self._values(stay, rng)
        for sentence in some(words["course"], count(1.6 * length, rng), rng):
            section.fill(sentence, values)
        for sentence in some(words["denial"], count(2.6 * length, rng), rng):
            section.add(sentence)
        values["name"] = stay.main.name
        if rng.random() < 0.75:
            section.fill(one(words["closing"], rng), values)
        if rng.random() < min(1.0, 0.8 * length):
            section.fill(one(words["state"], rng), values)

    def _values(self, stay: Stay, rng: np.random.Generator) -> dict[str, str]:
        numbers = stay.facts.numbers
        low, pressure = numbers["fpg"], numbers["sbp"]
        return {
            "low": plain(max(3.5, low - 1.5), 1),
            "high": plain(low + 2, 1),
            "top": plain(numbers["ppg"] + 2, 1),
            "hba1c": plain(max(4.8, numbers["hba1c"] + rng.normal(0, 0.5)), 1),
            "sbp": plain(pressure - 6, 0),
            "sbp2": plain(pressure + 15, 0),
            "dbp": plain(numbers["dbp"] - 4, 0),
            "dbp2": plain(numbers["dbp"] + 10, 0),
            "kg": str(int(rng.integers(1, 9))),
        }

    def _sentence(self, section: Section, condition: Condition, stay: Stay, rng: np.random.Generator) -> None:
        if condition.disease.present:
            text = one(condition.disease.present, rng).replace("{dur}", self._since(condition, stay, rng))
            section.add(text.replace("{years}", str(max(1, self._months(condition, stay) // 12))))
            section.end()

    def past(self, stay: Stay, home: tuple[Prescribed, ...], rng: np.random.Generator) -> Section:
        """既往史: other diseases with what is taken for them, then what is denied."""
        section = Section("既往史")
        left = list(home)
        for condition in stay.conditions:
            if condition is stay.main or not condition.disease.past:
                continue
            own = [drug for drug in left if drug.why == condition.disease.id]
            if own or condition.disease.id in stay.unlisted or rng.random() < 0.45 * min(stay.length, 1.6):
                self._disease(section, condition, stay, own, rng)
                left = [drug for drug in left if drug not in own]
        if left:
            section.add(one(self.words["home"]["other"], rng))
            self._drugs(section, tuple(left), rng)
        self._denials(section, stay, rng)
        return section

    def _disease(
        self, section: Section, condition: Condition, stay: Stay, own: list[Prescribed], rng: np.random.Generator
    ) -> None:
        years = self._months(condition, stay) // 12
        phrases = [p for p in condition.disease.past if years or "{years}" not in p]
        phrase = one(phrases, rng) if phrases else f"有{condition.name}病史"
        if condition.disease.id in stay.unlisted:
            section.add(f"有{condition.name}，", f"disease:{condition.disease.id}")
        section.add(phrase.replace("{years}", str(years)).replace("{dur}", self._since(condition, stay, rng)).rstrip("。"))
        if own:
            section.add("，" + one(self.words["home"]["other"], rng))
            self._drugs(section, tuple(own), rng)
        section.end()

    def _denials(self, section: Section, stay: Stay, rng: np.random.Generator) -> None:
        words = self.words["past"]
        if not section.text:
            section.add(one(words["otherwise"], rng))
        years = str(int(rng.integers(3, 40)))
        present = stay.facts.present
        sentences = [s for s in words["denial"] if not (("否认高血压" in s or "否认冠心病" in s) and present & CONTRADICTED)]
        for sentence in some(sentences, 1 + count(5.0 * stay.length, rng), rng):
            section.add(sentence.replace("{years}", years))

    def _drugs(self, section: Section, drugs: tuple[Prescribed, ...], rng: np.random.Generator) -> None:
        """Name the drugs, each marked; those named vaguely share a phrase."""
        said = self.words["home"]
        named: list[tuple[str, list[str]]] = []
        vague: dict[str, list[str]] = {}
        for drug in drugs:
            text = self._named(drug, self._mode(rng))
            if text is None:
                vague.setdefault(self._vaguely(drug, rng), []).append(f"drug:{drug.label}")
            else:
                named.append((text, [f"drug:{drug.label}"]))
        for place, (text, marks) in enumerate([*named, *vague.items()]):
            section.add(one(said["between"], rng) if place else "")
            section.add(text, *marks)
            section.add(one(said["frequency"], rng) if place < len(named) else "")
        section.add(one(said["after"], rng))
        section.end()

    def _mode(self, rng: np.random.Generator) -> str:
        left = rng.random()
        for mode, chance in self.words["home"]["modes"].items():
            left -= chance
            if left < 0:
                return str(mode)
        return "label"

    def _named(self, drug: Prescribed, mode: str) -> str | None:
        generic = self.generics.get(drug.label, drug.label)
        if mode == "vague":
            return None
        if mode == "generic":
            return generic
        if mode == "brand":
            return str(self.words["brands"].get(generic, drug.label))
        return drug.label

    def _vaguely(self, drug: Prescribed, rng: np.random.Generator) -> str:
        return str(self.vague.get(drug.group) or one(self.words["vague_otherwise"], rng))
