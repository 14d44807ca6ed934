"""Folds by patient: visits of one patient share most of their drugs, so a split by record leaks.

Knows 患者序号 and counts of records; nothing of what the records hold.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from yaofang.data.records import Record
from yaofang.vocab.errors import InputError


def folds(records: Sequence[Record], k: int, seed: int) -> list[int]:
    """The fold, 0 to k-1, of each record: all visits of a patient in one fold, folds balanced by number of records.

    Patients with many visits are dealt first, each to the fold with the fewest records; the seed orders patients with
    equally many. The order of the records does not matter. Raises InputError if there are fewer patients than folds.
    """
    visits = Counter(record.patient for record in records)
    if not 2 <= k <= len(visits):
        problem = f"{len(visits)} patients cannot be split into {k} folds"
        raise InputError(problem, way_out="Give --folds a number from 2 to the number of patients.")
    patients = sorted(visits)
    random.Random(seed).shuffle(patients)
    sizes = [0] * k
    fold_of: dict[int, int] = {}
    for patient in sorted(patients, key=lambda patient: -visits[patient]):
        fold_of[patient] = sizes.index(min(sizes))
        sizes[fold_of[patient]] += visits[patient]
    return [fold_of[record.patient] for record in records]
