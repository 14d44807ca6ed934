"""What can be said of one side's drug lists, gold or predicted, without the other side.

Lengths, repeats, duplicates, names outside the vocabulary, conflicts by tier, and drugs against the patient. Works on lists by
就诊标识; knows vocabulary, conflict table and patient rules, and no scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yaofang.eval.intervals import Array, Figure, Sample
from yaofang.eval.levels import Comparison, linked
from yaofang.eval.metrics import TIERS, ConflictCounts, count_conflicts, outside, repeats
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.patient import PatientFacts, PatientRules, load_patient_rules

Names = Mapping[str, Sequence[str]]
"""就诊标识 -> names."""
PATIENT_TIERS = {"contraindicated": 1, "caution": 2}
"""Of a drug against a patient: T1 contraindicated, T2 with care."""


@dataclass(frozen=True, slots=True)
class PatientCounts:
    """Listed drugs that the tables speak of in this very patient (`vocab.patient` on `data.facts`), pooled over records."""

    drugs: int
    """Distinct labels of the vocabulary, summed over records: what could be asked."""
    against: Mapping[int, int]
    """Tier -> drugs whose gravest warning has this tier."""
    records_with: Mapping[int, int]
    """Tier -> records with at least one such drug."""
    records: int

    def rate(self, tier: int) -> float:
        """Drugs of this tier / all drugs; 0 where there is none."""
        return self.against[tier] / self.drugs if self.drugs else 0.0

    def share(self, tier: int) -> float:
        """Records with at least one such drug / all records."""
        return self.records_with[tier] / self.records if self.records else 0.0


@dataclass(frozen=True, slots=True)
class ListFigures:
    """What can be said of one side's lists, gold or predicted, without the other side."""

    mean_drugs: float
    """Mean number of distinct names a record, at the level of the evaluation, over all records (a missing one has 0)."""
    empty: int
    """Records with an empty list."""
    repeats: int
    """Entries that repeat an earlier entry of their list; a set counts them once."""
    duplicates: int
    """Distinct labels beyond the first of the same generic and route in one list: one drug under two names."""
    outside: int
    """Distinct names a record that the vocabulary does not hold, summed over records."""
    outside_names: tuple[str, ...]
    conflicts: ConflictCounts
    patient: PatientCounts | None
    """None where no records say what the patients have."""
    figures: Mapping[str, Figure | None]
    """Every rate above with its interval: `mean_drugs`, `empty`, `repeats`, `duplicates`, `outside` (a record), `T1_rate` to
    `T3_rate` (of pairs), `T1_share` to `T3_share` (of records), `patient_T1_rate` (of drugs), `patient_T1_share` and so on."""


@dataclass(frozen=True, slots=True)
class ListReader:
    """Counts what is in lists, record by record."""

    comparison: Comparison
    vocabulary: Vocabulary
    conflicts: ConflictTable
    facts: Mapping[str, PatientFacts] | None
    """就诊标识 -> facts; None where there are no records."""

    def figures(self, lists: Names, sample: Sample, *, link: bool) -> ListFigures:
        """`link`: names of another shape are linked to labels by matching, to count their conflicts."""
        names = [linked(one, self.vocabulary) if link else list(one) for one in lists.values()]
        index = {label: row for row, label in enumerate(self.vocabulary.labels)}
        strangers = [outside(one, index) for one in names]
        columns = {
            "mean_drugs": [len(self.comparison.keys(one)) for one in lists.values()],
            "empty": [int(not one) for one in lists.values()],
            "repeats": [repeats(one) for one in lists.values()],
            "duplicates": [duplicates(one, self.vocabulary) for one in names],
            "outside": [len(one) for one in strangers],
        }
        each = [count_conflicts([one], index, self.conflicts.tiers) for one in names]
        patient = None if self.facts is None else [self._against(id_, one) for id_, one in zip(lists, names, strict=True)]
        return ListFigures(
            mean_drugs=sum(columns["mean_drugs"]) / len(lists),
            empty=sum(columns["empty"]),
            repeats=sum(columns["repeats"]),
            duplicates=sum(columns["duplicates"]),
            outside=sum(columns["outside"]),
            outside_names=tuple(sorted({name for one in strangers for name in one})),
            conflicts=count_conflicts(names, index, self.conflicts.tiers),
            patient=None if patient is None else _pooled(patient),
            figures=_figures(columns, each, patient, sample),
        )

    def _against(self, id_: str, names: Sequence[str]) -> PatientCounts:
        """One record's drugs against its patient; a record without facts is asked nothing."""
        facts = (self.facts or {}).get(id_)
        drugs = [self.vocabulary.drug(name) for name in dict.fromkeys(names) if name in self.vocabulary]
        rules: PatientRules = load_patient_rules()
        levels = [] if facts is None else [w[0].level for drug in drugs if (w := rules.warnings(facts, drug))]
        against = {tier: levels.count(level) for level, tier in PATIENT_TIERS.items()}
        return PatientCounts(
            drugs=0 if facts is None else len(drugs),
            against=against,
            records_with={tier: int(count > 0) for tier, count in against.items()},
            records=1,
        )


def duplicates(names: Iterable[str], vocabulary: Vocabulary) -> int:
    """Distinct labels beyond the first of the same generic and route; names outside the vocabulary are left out."""
    drugs = [vocabulary.drug(name) for name in set(names) if name in vocabulary]
    return len(drugs) - len({(drug.generic, drug.route) for drug in drugs})


def _pooled(counts: Sequence[PatientCounts]) -> PatientCounts:
    tiers = PATIENT_TIERS.values()
    return PatientCounts(
        drugs=sum(one.drugs for one in counts),
        against={tier: sum(one.against[tier] for one in counts) for tier in tiers},
        records_with={tier: sum(one.records_with[tier] for one in counts) for tier in tiers},
        records=len(counts),
    )


def _figures(
    columns: Mapping[str, Sequence[int]],
    conflicts: Sequence[ConflictCounts],
    patient: Sequence[PatientCounts] | None,
    sample: Sample,
) -> dict[str, Figure | None]:
    """Each rate as a ratio of sums over records."""
    ones = [1] * len(conflicts)
    parts: dict[str, tuple[Sequence[int], Sequence[int]]] = {name: (values, ones) for name, values in columns.items()}
    for tier in TIERS:
        parts[f"T{tier}_rate"] = [one.conflicts[tier] for one in conflicts], [one.pairs for one in conflicts]
        parts[f"T{tier}_share"] = [one.records_with[tier] for one in conflicts], ones
    for tier in PATIENT_TIERS.values() if patient is not None else ():
        found = patient or ()
        parts[f"patient_T{tier}_rate"] = [one.against[tier] for one in found], [one.drugs for one in found]
        parts[f"patient_T{tier}_share"] = [one.records_with[tier] for one in found], ones
    above, below = (_matrix([part[side] for part in parts.values()]) for side in (0, 1))
    return dict(zip(parts, sample.ratios(above, below), strict=True))


def _matrix(columns: Sequence[Sequence[int]]) -> Array:
    made: NDArray[np.float64] = np.array(columns, dtype=np.float64).T
    return made


def counts_json(counts: ConflictCounts) -> dict[str, Any]:
    """Pairs and records of each tier with their rate and share."""
    return {"pairs": counts.pairs, **_tiers_json("pairs", counts.conflicts, counts)}


def patient_json(counts: PatientCounts | None) -> dict[str, Any] | None:
    """Drugs and records of each tier with their rate and share; None where nothing was asked."""
    return None if counts is None else {"drugs": counts.drugs, **_tiers_json("drugs", counts.against, counts)}


def _tiers_json(what: str, counted: Mapping[int, int], counts: ConflictCounts | PatientCounts) -> dict[str, Any]:
    return {
        f"T{tier}": {
            what: number,
            "rate": counts.rate(tier),
            "records": counts.records_with[tier],
            "share": counts.share(tier),
        }
        for tier, number in counted.items()
    }
