"""Jaccard by groups of patients: age, sex, number of diagnoses, number of visits, rare diagnoses; and the widest gap.

Reads the groups off records; knows no predictions, only each record's score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yaofang.data.facts import facts_of
from yaofang.data.prompts import age_at_visit
from yaofang.data.records import Record
from yaofang.eval.diagnoses import plain
from yaofang.eval.intervals import Array, Figure, Sample
from yaofang.vocab.patient import PatientFacts

LEAST = 30
"""Records below which a group's mean says little; such a group is shown, and makes no gap."""
RARE = 5
"""A diagnosis in fewer training records than this is rare."""
UNKNOWN = "not stated"
AGES = ((45, "<45"), (60, "45-59"), (75, "60-74"))
DIAGNOSES = ((1, UNKNOWN), (4, "1-3"), (8, "4-7"))
"""(first number beyond, name) of the bands; above the last ones stand >=75 and >=8."""


@dataclass(frozen=True, slots=True)
class Subgroup:
    """The records of one group."""

    attribute: str
    """`age`, `sex`, `diagnoses`, `visits` or `rare_diagnosis`."""
    group: str
    """`not stated` where the records do not say."""
    records: int
    patients: int
    jaccard: Figure
    """Mean over the group's records; the interval is of this part of the resampled patients."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The widest difference between two groups of one attribute, each with at least LEAST records, `not stated` left out.

    It was looked for, so its interval (of this one difference, over the same resamples) is too good: read it as a hint.
    """

    attribute: str
    high: str
    low: str
    difference: Figure
    """Jaccard of `high` - Jaccard of `low`."""


def diagnosis_counts(records: Sequence[Record]) -> Counter[str]:
    """In how many training records each diagnosis is, by its plain form."""
    return Counter(name for record in records for name in {plain(written) for written in record.diagnoses})


def groups_of(
    record: Record, visits: int, trained: Mapping[str, int] | None, facts: PatientFacts | None = None
) -> dict[str, str]:
    """Attribute -> group of one record; `facts` are its `facts_of`, where they are at hand.

    `visits` is how many of the records at hand are this patient's; `trained` is `diagnosis_counts` of the training records, and
    without it nothing is said of rare diagnoses.
    """
    groups = {
        "age": _band(age_at_visit(record), AGES, ">=75"),
        "sex": (facts or facts_of(record)).sex or UNKNOWN,
        "diagnoses": _band(len(record.diagnoses), DIAGNOSES, ">=8"),
        "visits": "multi" if visits > 1 else "single",
    }
    if trained is not None:
        is_rare = any(trained.get(plain(name), 0) < RARE for name in record.diagnoses)
        groups["rare_diagnosis"] = ("yes" if is_rare else "no") if record.diagnoses else UNKNOWN
    return groups


def _band(number: int | None, bands: Sequence[tuple[int, str]], last: str) -> str:
    if number is None:
        return UNKNOWN
    return next((name for beyond, name in bands if number < beyond), last)


def by_subgroup(groups: Sequence[Mapping[str, str]], jaccard: Array, sample: Sample) -> tuple[Subgroup, ...]:
    """One Subgroup for each group that has a record; `groups` and `jaccard` [records] go by the sample's rows."""
    names = sorted({(attribute, group) for one in groups for attribute, group in one.items()}, key=_order)
    if not names:
        return ()
    members = _members(groups, names)
    figures = sample.ratios(members * jaccard[:, None], members)
    return tuple(
        Subgroup(attribute, group, int(inside.sum()), len(_whose(inside, sample)), figure)
        for (attribute, group), inside, figure in zip(names, members.T, figures, strict=True)
        if figure is not None
    )


def widest_gap(
    subgroups: Sequence[Subgroup], groups: Sequence[Mapping[str, str]], jaccard: Array, sample: Sample
) -> Gap | None:
    """The widest gap of `by_subgroup`'s groups, or None where no attribute has two that are large enough."""
    found = [one for one in subgroups if one.records >= LEAST and one.group != UNKNOWN]
    pairs = [
        (max(same, key=_jaccard), min(same, key=_jaccard))
        for attribute in dict.fromkeys(one.attribute for one in found)
        if len(same := [one for one in found if one.attribute == attribute]) > 1
    ]
    if not pairs:
        return None
    high, low = max(pairs, key=lambda pair: pair[0].jaccard.value - pair[1].jaccard.value)
    members = _members(groups, [(one.attribute, one.group) for one in (high, low)])
    difference = sample.difference(members * jaccard[:, None], members)
    return None if difference is None else Gap(high.attribute, high.group, low.group, difference)


def _jaccard(one: Subgroup) -> float:
    return one.jaccard.value


def _members(groups: Sequence[Mapping[str, str]], names: Sequence[tuple[str, str]]) -> Array:
    """[records, groups]: 1 where a record belongs to a group."""
    return np.array([[one.get(attribute) == group for attribute, group in names] for one in groups], dtype=np.float64)


def _whose(inside: Array, sample: Sample) -> set[int | str]:
    return {patient for patient, is_in in zip(sample.patients, inside, strict=True) if is_in}


_ORDER = ("age", "sex", "diagnoses", "visits", "rare_diagnosis")
_BANDS = ("<45", "45-59", "60-74", ">=75", "1-3", "4-7", ">=8")


def _order(name: tuple[str, str]) -> tuple[int, int, str]:
    attribute, group = name
    place = _BANDS.index(group) if group in _BANDS else len(_BANDS)
    return _ORDER.index(attribute), place + (group == UNKNOWN), group
