"""What is said beside each drug: its probability, what the mask took, what it keeps out and what it interacts with.

Knows labels, the conflict table and finished rows of ids; runs no model but through `decoding.audit`.

`p_step` of a drug is the probability of writing this label at this place of the list, given that the list goes on: the
product over the name's tokens of their probability among the allowed ones, times the probability that the name ends there
where a longer name was still possible (聚乙二醇 against 聚乙二醇洛塞那肽). Whether the list goes on or ends is no part of
it; so over all labels allowed at a place `p_step` sums to 1. `masked_mass` is 1 minus the product, over the same tokens,
of the mass that was allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from yaofang.data.recommendation import Blocked, Considered, Drug, KeptOut, Warning
from yaofang.decoding.audit import kept_away_all
from yaofang.decoding.constraint import Constraint
from yaofang.decoding.generation import Generation, Row
from yaofang.decoding.processors import MASKED_TIER
from yaofang.decoding.reading import Reading
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.patient import PatientFacts, PatientRules

LEAST = 0.001
"""A label that is not listed is named with its `p_include` from here on."""
CONSIDERED = 0.01
"""A label kept out by a conflict is reported if its `p_step` would have reached this."""
MASKED = f"T{MASKED_TIER}"
PATIENT_TIERS = {"contraindicated": "T1", "caution": "T2"}
"""A drug contraindicated in the patient is warned of as T1; it is masked only where the user asked for it."""


def drugs_of(
    row: Row,
    reading: Reading,
    constraint: Constraint,
    conflicts: ConflictTable,
    inclusion: npt.NDArray[np.float64] | None = None,
) -> list[Drug]:
    """The whole drugs of a row, in the order written. `kept_out` holds only what no earlier drug had kept out.

    `inclusion` [D] are their `p_include` by vocabulary position.
    """
    vocabulary = conflicts.vocabulary
    labels = [vocabulary.labels[place] for place in reading.drugs]
    warnings = warnings_of(labels, conflicts)
    left, drugs = row.start.allowed, []
    for place, label, (first, end) in zip(reading.drugs, labels, reading.spans, strict=True):
        after = constraint.without(left, place)
        newly = constraint.without(left, place, conflicts=False) & ~after
        # A row cut right after the name: it was kept as whole because nothing longer was possible.
        closing = row.closing[end] if end < len(row.closing) else 1.0
        entry = vocabulary.drug(label)
        drugs.append(
            Drug(
                label=label,
                generic=entry.generic,
                atc=entry.atc or "",
                p_step=math.prod(row.chosen[first:end]) * closing,
                p_include=None if inclusion is None else float(inclusion[place]),
                masked_mass=max(0.0, 1.0 - math.prod(row.mass[first:end])),
                kept_out=tuple(KeptOut(vocabulary.labels[other], MASKED) for other in sorted(constraint.positions(newly))),
                warnings=tuple(warnings[label]),
            )
        )
        left = after
    return drugs


def warnings_of(labels: Sequence[str], conflicts: ConflictTable) -> dict[str, list[Warning]]:
    """What the table says of each label beside the other listed ones: the tiers that are not masked, on both drugs."""
    found: dict[str, list[Warning]] = {label: [] for label in labels}
    for conflict in conflicts.among(labels):
        for label, other in ((conflict.a, conflict.b), (conflict.b, conflict.a)):
            found[label] += [
                Warning("interaction", f"T{conflict.tier}", f"与{other}：{reason.text}", reason.source)
                for reason in conflict.reasons
            ]
    return found


def with_patient_warnings(
    drugs: Sequence[Drug], facts: PatientFacts, vocabulary: Vocabulary, rules: PatientRules
) -> list[Drug]:
    """The drugs with what the tables say of each in this patient, before what they say of pairs."""
    return [
        replace(
            drug,
            warnings=(
                *(
                    Warning(found.kind, PATIENT_TIERS[found.level], found.text, found.source)
                    for found in rules.warnings(facts, vocabulary.drug(drug.label))
                ),
                *drug.warnings,
            ),
        )
        for drug in drugs
    ]


def blocked_of(
    generation: Generation, readings: Mapping[int, Reading], vocabulary: Vocabulary
) -> dict[int, tuple[Blocked, ...]]:
    """For some rows by their numbers: labels that a listed drug kept out though the model would have considered them.

    The likeliest first.
    """
    found = kept_away_all(generation, readings, CONSIDERED)
    return {
        number: tuple(
            Blocked(vocabulary.labels[kept.drug], vocabulary.labels[by], MASKED, kept.p_step) for kept in own for by in kept.by
        )
        for number, own in zip(readings, found, strict=True)
    }


def considered_of(
    listed: Sequence[str], inclusion: npt.NDArray[np.float64] | None, vocabulary: Vocabulary
) -> tuple[Considered, ...]:
    """The labels that are not listed and whose p_include is at least `LEAST`, likeliest first; `inclusion` [D] by position."""
    if inclusion is None:
        return ()
    order = np.argsort(-inclusion, kind="stable")
    likely = ((vocabulary.labels[place], float(inclusion[place])) for place in order if inclusion[place] >= LEAST)
    return tuple(Considered(label, p) for label, p in likely if label not in listed)


def check_list(labels: Sequence[str], conflicts: ConflictTable) -> None:
    """The promise of the whole system, checked on labels, apart from the trie. Raises RuntimeError if it is broken."""
    if len(set(labels)) < len(labels):
        raise RuntimeError("a label is listed twice")
    if any(label not in conflicts.vocabulary for label in labels):
        raise RuntimeError("a label is not in the vocabulary")
    places = [conflicts.vocabulary.index(label) for label in labels]
    for at, place in enumerate(places):
        if any(conflicts.tiers[place, other] == MASKED_TIER for other in places[:at]):
            raise RuntimeError("two listed labels must not be taken together")
