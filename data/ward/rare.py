"""Places the labels that chance would not: those seen exactly once in training, those that only the test board has, and those
that must be seen at least twice.

A label takes the place of another of its group that was newly prescribed at a patient's last visit, so that no later record
speaks of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from yaofang.data.ward.patients import Patient, Stay
from yaofang.data.ward.rules import Facts
from yaofang.data.ward.tables import Tables
from yaofang.data.ward.therapy import Prescribed, Prescriber

FULL = 1910
"""Patients of the published training set, for which the popularities are counts."""
TEST = 320
"""Patients of the published test board A, for 1,910 in training."""
COMMON = 12
"""A label gives up its place only if 1,910 patients have it this often."""


@dataclass(slots=True)
class Draft:
    """A visit with its list, before it is written."""

    patient: Patient
    stay: Stay
    home: tuple[Prescribed, ...]
    considered: frozenset[tuple[str, str]]
    gap: int
    """Months since the visit before, 0 at the first."""
    drugs: list[Prescribed]


def place_rare(train: list[Draft], test: list[Draft], patients: int, prescriber: Prescriber, seed: int) -> None:
    """Change the lists of some last visits so that rare labels are as often there as they should be."""
    rng = np.random.default_rng([seed, 0, 3])
    tables = prescriber.tables
    times = max(1, round(patients / FULL))
    once = [(label.label, label.group) for label in tables.labels if label.note == "once"]
    unseen = [(label.label, label.group) for label in tables.labels if label.note == "test_only"]
    _Places(train, prescriber, rng).place(once, dict.fromkeys((name for name, _ in once), times))
    _Places(test, prescriber, rng).place(unseen, dict.fromkeys((name for name, _ in unseen), times))
    if patients >= FULL:
        _top_up(train, tables, prescriber, rng)


def _top_up(train: list[Draft], tables: Tables, prescriber: Prescriber, rng: np.random.Generator) -> None:
    counts = Counter(drug.label for draft in train for drug in draft.drugs)
    scarce = {label.label: label.group for label in tables.labels if label.note == "-" and counts[label.label] < 2}
    _Places(train, prescriber, rng).place(list(scarce.items()), {name: 2 - counts[name] for name in scarce})


class _Places:
    """Last visits of patients, and what stands in them."""

    def __init__(self, drafts: list[Draft], prescriber: Prescriber, rng: np.random.Generator) -> None:
        self.prescriber = prescriber
        self.rng = rng
        self.counts = Counter(drug.label for draft in drafts for drug in draft.drugs)
        last = {draft.patient.number: draft for draft in drafts}
        self.drafts = [last[number] for number in sorted(last)]
        self.common = max(2.0, COMMON * len(self.drafts) / FULL)
        self.spare = max(1, len(self.drafts) // 10)
        self.rare = {label.label for label in prescriber.tables.labels if label.note != "-"}
        self.free = [draft for draft in self.drafts if not any(drug.label in self.rare for drug in draft.drugs)]

    def place(self, labels: list[tuple[str, str]], times: dict[str, int]) -> None:
        """Place each label so many times, as far as there is room for it; first those that few visits can take."""
        room = {label: sum(self._fits(label, draft, None) for draft in self.free) for label, _ in labels}
        for label, group in sorted(labels, key=lambda row: room[row[0]]):
            for _ in range(times[label]):
                self._instead(label, group) or self._beside(label, group) or self._anywhere(label, group)

    def _fits(self, label: str, draft: Draft, without: str | None) -> bool:
        breaks = self.prescriber.breaks
        others = [drug.label for drug in draft.drugs if drug.label != without]
        return (
            label not in others
            and not breaks.contraindicated(label, draft.stay.facts)
            and not breaks.broken(label, others, draft.stay.facts)
        )

    def _instead(self, label: str, group: str) -> bool:
        for draft in self._shuffled():
            for place, drug in enumerate(draft.drugs):
                plain = drug.group == group and drug.cause != "earlier drug" and drug.rule_broken is None
                if plain and self.counts[drug.label] >= self.common and self._fits(label, draft, drug.label):
                    self._put(draft, place, replace(drug, label=label))
                    return True
        return False

    def _beside(self, label: str, group: str) -> bool:
        """Add the label where a row of the tables would give its group and no drug of the group is in the list."""
        for draft in self._shuffled():
            if len(draft.drugs) >= 15 or any(drug.group == group for drug in draft.drugs):
                continue
            facts = Facts(draft.stay.facts.sex, draft.stay.facts.numbers, draft.stay.facts.present)
            for offer in self.prescriber.case(facts, draft.stay.team).offers:
                fits = offer.row.group == group and offer.row.cause and not offer.asks_drugs
                if fits and self._fits(label, draft, None):
                    self._put(draft, None, Prescribed(label, group, offer.kind, offer.row.cause))
                    return True
        return False

    def _anywhere(self, label: str, group: str) -> bool:
        """As a habit, beside whatever is given; at most in one patient of ten, so that small wards keep their shape."""
        if self.spare == 0:
            return False
        short = [draft for draft in self._shuffled() if len(draft.drugs) < 15]
        draft = next((draft for draft in short if self._fits(label, draft, None)), None)
        broken = None
        if draft is None and len(self.drafts) >= TEST:
            # A full ward must have every label: here the doctor breaks the label's own rule, and the truth says so.
            breaks = self.prescriber.breaks
            fit = (d for d in short if not breaks.broken(label, [drug.label for drug in d.drugs], d.stay.facts))
            draft, broken = next(fit, None), f"patient: {label} without its indication"
        if draft is None:
            return False
        self._put(draft, None, Prescribed(label, group, "habit", "", broken))
        self.spare -= 1
        return True

    def _shuffled(self) -> list[Draft]:
        return [self.free[i] for i in self.rng.permutation(len(self.free))]

    def _put(self, draft: Draft, place: int | None, drug: Prescribed) -> None:
        if place is None:
            draft.drugs.append(drug)
        else:
            self.counts[draft.drugs[place].label] -= 1
            draft.drugs[place] = drug
        self.counts[drug.label] += 1
        self.free = [other for other in self.free if other is not draft]
