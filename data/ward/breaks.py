"""The ward's rules and how its doctors break them: contraindications, pairs not to combine, drugs against the patient.

Knows rule_breaks.tsv and contraindications.tsv only, which are the ward's own: never the conflict table of `vocab`, so that
nothing is tested against itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from yaofang.data.ward.patients import pick
from yaofang.data.ward.rules import Facts, When
from yaofang.data.ward.tables import RuleBreak, Tables

if TYPE_CHECKING:
    from yaofang.data.ward.labels import LabelChoice
    from yaofang.data.ward.therapy import Case, Prescribed

KINDS = ("T1-like", "T2-like", "patient")


class Breaks:
    """Judges drugs by the ward's rules, and breaks them at the chances of ward.yaml."""

    def __init__(self, tables: Tables, groups_of: dict[str, tuple[str, ...]]) -> None:
        self.ward = tables.ward
        self.called = {label: (label, *groups) for label, groups in groups_of.items()}
        self.pairs: dict[str, list[RuleBreak]] = {kind: [] for kind in KINDS}
        for row in tables.rule_breaks:
            self.pairs[row.kind].append(row)
        self.partners = {kind: _partners(self.pairs[kind]) for kind in KINDS[:2]}
        self.against: dict[str, list[When]] = {name: list(rules) for name, rules in tables.contraindications.items()}
        self.patient: dict[str, list[RuleBreak]] = {}
        self.popularity: dict[str, float] = {}
        for label in tables.labels:
            for name in (label.label, label.group):
                self.popularity[name] = self.popularity.get(name, 0.0) + label.popularity
        for row in self.pairs["patient"]:
            self.against.setdefault(row.a, []).append(row.when)
            self.patient.setdefault(row.a, []).append(row)

    def names(self, label: str) -> tuple[str, ...]:
        """The names by which a rule may call a label: its own and its groups'."""
        return self.called[label]

    def contraindicated(self, label: str, facts: Facts) -> bool:
        """Whether a careful doctor would not give the label to this patient."""
        return any(rule.holds(facts) for name in self.names(label) for rule in self.against.get(name, ()))

    def allows(self, label: str, facts: Facts, rng: np.random.Generator) -> bool:
        """Whether a doctor adds the label to the list in `facts`. No T1-like pair, and mostly no T2-like pair, is made here."""
        if label in facts.labels or self.contraindicated(label, facts):
            return False
        if self._meets("T1-like", label, facts.labels):
            return False
        return not (self._meets("T2-like", label, facts.labels) and rng.random() < self.ward["careful"])

    def _meets(self, kind: str, label: str, others: set[str]) -> bool:
        partners = self.partners[kind]
        wrong = {name for own in self.names(label) for name in partners.get(own, ())}
        return bool(wrong) and any(name in wrong for other in others if other != label for name in self.names(other))

    def add(self, chosen: list[Prescribed], case: Case, choice: LabelChoice, rng: np.random.Generator) -> None:
        """Now and then add a drug that breaks a rule with a drug of the list, or with the patient."""
        for kind in KINDS:
            if rng.random() < self.ward["breaks"][kind]:
                partner = self._breaking(kind, chosen, case.facts, rng)
                self._add(kind, partner, chosen, case, choice, rng)

    def _breaking(self, kind: str, chosen: list[Prescribed], facts: Facts, rng: np.random.Generator) -> str | None:
        """Group or label that would break a rule of this kind."""
        listed = {name for drug in chosen for name in self.names(drug.label)}
        if kind == "patient":
            open_to = [row.a for row in self.pairs[kind] if row.a not in listed and row.when.holds(facts)]
        else:
            partners = self.partners[kind]
            open_to = sorted(b for a in listed for b in partners.get(a, ()) if b == a or b not in listed)
        if not open_to:
            return None
        return open_to[pick([self.popularity.get(name, 0.0) + 0.1 for name in open_to], rng)]

    def _add(
        self,
        kind: str,
        name: str | None,
        chosen: list[Prescribed],
        case: Case,
        choice: LabelChoice,
        rng: np.random.Generator,
    ) -> None:
        if name is None:
            return
        taken = {drug.label for drug in chosen}

        def fits(label: str) -> bool:
            if label in taken or (kind != "patient" and self.contraindicated(label, case.facts)):
                return False
            return kind == "T1-like" or not self._meets("T1-like", label, taken)

        label = choice.draw(name, case.team, rng, fits)
        if label is not None:
            group = name if name != label else self.called[label][1]
            offer = next((offer for offer in case.offers if offer.row.group == group and offer.row.cause), None)
            kind, why = (offer.kind, offer.row.cause) if offer else ("habit", "")
            chosen.append(replace(chosen[0], label=label, group=group, cause=kind, why=why, rule_broken=None))

    def marked(self, chosen: list[Prescribed], facts: Facts) -> list[Prescribed]:
        """The list with `rule_broken` on the later drug of each pair and on drugs against the patient."""
        marked: list[Prescribed] = []
        for place, drug in enumerate(chosen):
            found = [text for kind, text in self.broken(drug.label, [d.label for d in chosen[:place]], facts) if kind]
            marked.append(replace(drug, rule_broken="; ".join(found) or None))
        return marked

    def broken(self, label: str, others: list[str], facts: Facts) -> list[tuple[str, str]]:
        """(kind, text) of each rule that `label` breaks, with one of `others` or with the patient."""
        found = []
        for kind in KINDS[:2]:
            for other in others:
                if self._meets(kind, label, {other}):
                    found.append((kind, f"{kind}: {other} + {label}"))
        for name in self.names(label):
            found += [("patient", f"patient: {label} {row.b}") for row in self.patient.get(name, ()) if row.when.holds(facts)]
        return found


def _partners(rows: list[RuleBreak]) -> dict[str, set[str]]:
    partners: dict[str, set[str]] = {}
    for row in rows:
        partners.setdefault(row.a, set()).add(row.b)
        partners.setdefault(row.b, set()).add(row.a)
    return partners
