"""Folds by patient."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaofang.data.records import Record
from yaofang.data.splits import folds
from yaofang.vocab.errors import InputError


def visits(numbers: list[int]) -> list[Record]:
    """Records of patients with so many visits each."""
    return [Record(patient=p, id=f"{p}-{v}") for p, number in enumerate(numbers) for v in range(number)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=5, max_size=60), st.integers(2, 5), st.integers(0, 3))
def test_no_patient_is_in_two_folds_and_folds_are_balanced(numbers: list[int], k: int, seed: int) -> None:
    records = visits(numbers)
    found = folds(records, k, seed)
    of_patient: dict[int, set[int]] = {}
    for record, fold in zip(records, found, strict=True):
        of_patient.setdefault(record.patient, set()).add(fold)
    assert all(len(own) == 1 for own in of_patient.values())
    sizes = Counter(found)
    assert set(sizes) == set(range(k))
    assert max(sizes.values()) - min(sizes.values()) <= max(numbers)


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_records() -> None:
    records = visits([random.Random(1).randint(1, 4) for _ in range(50)])
    first = dict(zip((record.id for record in records), folds(records, 5, 7), strict=True))
    turned = records[::-1]
    assert dict(zip((record.id for record in turned), folds(turned, 5, 7), strict=True)) == first
    assert folds(records, 5, 8) != folds(records, 5, 7)


@pytest.mark.parametrize("k", [1, 4])
def test_more_folds_than_patients_or_one_fold_is_refused(k: int) -> None:
    with pytest.raises(InputError, match="3 patients"):
        folds(visits([1, 2, 3]), k, 0)
