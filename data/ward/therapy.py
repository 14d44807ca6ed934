"""Prescribes: drugs of a visit from its diseases, findings, earlier drugs and the doctor's habits, each with its cause.

Knows the therapy tables and chance; writes no text. Called again with the same `Case` it draws another doctor's list, which is
how the ward's ceiling is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import exp, log
from zlib import crc32

import numpy as np

from yaofang.data.ward.breaks import Breaks
from yaofang.data.ward.labels import LabelChoice
from yaofang.data.ward.rules import Facts
from yaofang.data.ward.tables import Tables, Therapy


@dataclass(frozen=True, slots=True)
class Prescribed:
    """One drug of a list and why it is there."""

    label: str
    group: str
    cause: str
    """diagnosis, finding, earlier drug or habit."""
    why: str
    """Id of the disease, finding or (for a habit) empty; an earlier drug keeps the id for which it was first given."""
    rule_broken: str | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A row of the tables that may apply to a case."""

    row: Therapy
    kind: str
    """diagnosis, finding or habit."""
    p: float
    asks_drugs: bool
    """Its condition speaks of drugs of the list, so it must be asked again when its turn comes."""


@dataclass(slots=True)
class Case:
    """What a doctor knows before prescribing."""

    facts: Facts
    team: int
    home: tuple[Prescribed, ...]
    considered: frozenset[tuple[str, str]]
    """(cause, group) that were weighed for this patient before."""
    offers: list[Offer] = field(default_factory=list)
    """Rows that may apply, with their chances for this team; filled by `Prescriber.case`."""


class Prescriber:
    """The ward's doctors."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.ward = tables.ward
        self.choice = LabelChoice(tables)
        self.breaks = Breaks(tables, self.choice.groups_of)
        self.diseases = set(tables.by_id)
        self.by_cause: dict[str, list[tuple[Offer, ...]]] = {}
        for row in (*tables.therapy, *tables.habits):
            self.by_cause.setdefault(row.cause, []).append(self._offers(row))

    def case(
        self, facts: Facts, team: int, home: tuple[Prescribed, ...] = (), considered: frozenset[tuple[str, str]] = frozenset()
    ) -> Case:
        """A case with the rows that apply to it, in the order of the tables."""
        case = Case(facts, team, home, considered)
        for cause in (*(cause for cause in self.by_cause if cause in facts.present), ""):
            for offers in self.by_cause.get(cause, ()):
                offer = offers[team]
                if offer.asks_drugs or offer.row.when.holds(facts):
                    again = self.ward["reconsider"] if (cause, offer.row.group) in considered else 1.0
                    case.offers.append(offer if again == 1.0 else replace(offer, p=offer.p * again))
        return case

    def _offers(self, row: Therapy) -> tuple[Offer, ...]:
        """The row as each team sees it."""
        kind = "habit" if not row.cause else "diagnosis" if row.cause in self.diseases else "finding"
        asks = bool(row.when.ids("drug", "nodrug"))
        return tuple(Offer(row, kind, self._chance(row, team), asks) for team in range(len(self.ward["teams"])))

    def _chance(self, row: Therapy, team: int) -> float:
        odds = self.ward["sharpness"] * log(row.p / (1 - row.p)) + self.tables.shifts.get(row.group, 0.0)
        return 1 / (1 + exp(-odds - self._habit(row.group, team)))

    def _habit(self, group: str, team: int) -> float:
        """Log-odds by which a team gives a group more often: its own way, and whether it keeps to what is common."""
        own = np.random.default_rng(crc32(f"{group} {team}".encode())).normal() * self.ward["team_spread"]
        popularity = max(self.choice.popularity.get(group, 0.0), 1.0)
        rank = max(-1.5, min(0.5, log(popularity / self.ward["team_pivot"])))
        return float(own + self.ward["team_common"][team] * rank)

    def groups_for(self, cause: str) -> set[str]:
        """Groups that the tables know for a disease."""
        return {offers[0].row.group for offers in self.by_cause.get(cause, ())}

    def earlier(self, facts: Facts, known: set[str], team: int, rng: np.random.Generator) -> tuple[Prescribed, ...]:
        """What a patient takes at home before his first visit, for the diseases `known` by then."""
        before = Facts(facts.sex, facts.numbers, facts.present & known)
        case = self.case(before, team)
        case.offers = [offer for offer in case.offers if offer.row.cause]
        return tuple(self._listed(case, rng))

    def prescribe(self, case: Case, rng: np.random.Generator) -> list[Prescribed]:
        """One list: at least one drug, none twice, at most `max_drugs`; rule breaks are marked."""
        chosen = self._listed(case, rng)
        if not chosen:
            chosen = [self._fallback(case, rng)]
        self.breaks.add(chosen, case, self.choice, rng)
        return self.breaks.marked(chosen[: int(self.ward["max_drugs"])], case.facts)

    def _listed(self, case: Case, rng: np.random.Generator) -> list[Prescribed]:
        chosen: list[Prescribed] = []
        facts = Facts(case.facts.sex, case.facts.numbers, case.facts.present)
        for drug in case.home:
            self._continue(drug, case, facts, chosen, rng)
        home = {drug.label for drug in case.home}
        for offer in case.offers:
            row = offer.row
            if row.group in facts.groups or row.group in facts.labels or rng.random() >= offer.p:
                continue
            if offer.asks_drugs and not row.when.holds(facts):
                continue
            label = self.choice.draw(row.group, case.team, rng, lambda name: self.breaks.allows(name, facts, rng))
            if label is not None:
                kind = "earlier drug" if label in home else offer.kind
                _take(Prescribed(label, self._group(row.group, label), kind, row.cause), facts, chosen)
        return self._brief(chosen, case.team)

    def _brief(self, chosen: list[Prescribed], team: int) -> list[Prescribed]:
        """A team that writes short lists keeps the drugs of its most common groups."""
        limit = int(self.ward["team_limit"][team])
        if len(chosen) <= limit:
            return chosen
        ranked = sorted(chosen, key=lambda drug: (-self.choice.popularity[drug.group], drug.label))[:limit]
        return [drug for drug in chosen if drug in ranked]

    def _continue(self, drug: Prescribed, case: Case, facts: Facts, chosen: list[Prescribed], rng: np.random.Generator) -> None:
        persists = not drug.why or drug.why in case.facts.present or drug.why not in self.diseases
        if rng.random() >= self.ward["keep" if persists else "keep_without_cause"]:
            return
        if not self.breaks.allows(drug.label, facts, rng):
            return
        label: str | None = drug.label
        if rng.random() < self.ward["swap"]:
            label = self.choice.draw(drug.group, case.team, rng, lambda name: self.breaks.allows(name, facts, rng))
        if label == drug.label:
            _take(replace(drug, cause="earlier drug", rule_broken=None), facts, chosen)
        elif label is not None and drug.why in case.facts.present:
            kind = "diagnosis" if drug.why in self.diseases else "finding"
            _take(Prescribed(label, drug.group, kind, drug.why), facts, chosen)

    def _group(self, name: str, label: str) -> str:
        """The group of a row that may name a label instead."""
        return name if name != label else self.choice.groups_of[label][0]

    def _fallback(self, case: Case, rng: np.random.Generator) -> Prescribed:
        """The likeliest row of the case, or what the ward gives where nothing else is."""
        likely = sorted((o for o in case.offers if o.row.cause and not o.asks_drugs), key=lambda o: (-o.p, o.row.group))
        for offer in likely:
            label = self.choice.draw(offer.row.group, case.team, rng, lambda name: self.breaks.allows(name, case.facts, rng))
            if label is not None:
                return Prescribed(label, self._group(offer.row.group, label), offer.kind, offer.row.cause)
        for group in self.ward["fallback"]:
            label = self.choice.draw(group, case.team, rng, lambda name: self.breaks.allows(name, case.facts, rng))
            if label is not None:
                return Prescribed(label, group, "habit", "")
        raise AssertionError("no fallback of ward.yaml has a label")


def _take(drug: Prescribed, facts: Facts, chosen: list[Prescribed]) -> None:
    chosen.append(drug)
    facts.groups.add(drug.group)
    facts.labels.add(drug.label)
