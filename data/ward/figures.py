"""Measures the ward: the distributions it must have, how often its doctors break rules, and its ceiling.

Knows the ward before and after writing. Token counts come from a `count` the caller gives; baselines are measured elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from yaofang.data.records import Record
from yaofang.data.ward.breaks import KINDS, Breaks
from yaofang.data.ward.ceiling import measure_ceiling
from yaofang.data.ward.rare import Draft
from yaofang.data.ward.simulate import draft, write
from yaofang.data.ward.tables import Tables, load_tables
from yaofang.data.ward.text import Truth
from yaofang.data.ward.therapy import Prescriber

PERCENTILES = (50, 80, 90, 95, 99)


def measure(
    patients: int,
    seed: int,
    *,
    count: Callable[[str], int] | None = None,
    draws: int = 60,
    tables: Tables | None = None,
) -> dict[str, Any]:
    """All figures of a ward: sizes, drugs, labels, tokens (with `count`), causes, rule breaks, ceiling on the test board."""
    tables = tables or load_tables()
    drafts = draft(patients, seed, tables)
    train, truth = write(drafts.train, seed, tables)
    prescriber = Prescriber(tables)
    result: dict[str, Any] = {
        "patients": {"train": patients, "test": len({d.patient.number for d in drafts.test})},
        "records": {"train": len(train), "test": len(drafts.test)},
        "seed": seed,
        "tables": tables.version,
        "drugs": spread([len(record.drugs) for record in train]),
        "diagnoses": spread([len(record.diagnoses) for record in train]),
        "labels": label_shares(train),
        "unseen_in_test": unseen(train, drafts.test),
        "causes": causes(truth),
        "rules_broken": rule_breaks(drafts.train, prescriber.breaks),
        "ceiling": asdict(measure_ceiling(drafts.test, prescriber, draws=draws, seed=seed)),
    }
    if count is not None:
        result["tokens"] = spread([count(text_of(record)) for record in train])
    return result


def text_of(record: Record) -> str:
    """Every field of a record but its drugs, one after the other under its name."""
    fields = record.model_dump(by_alias=True)
    fields.pop("出院带药列表")
    written = {name: "，".join(value) if isinstance(value, list | tuple) else value for name, value in fields.items()}
    return "\n".join(f"{name}：{value}" for name, value in written.items() if value not in (None, ""))


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Mean, smallest, largest and percentiles."""
    values = np.asarray(numbers, dtype=float)
    named = {f"p{p}": round(float(np.percentile(values, p)), 1) for p in PERCENTILES}
    return {"mean": round(float(values.mean()), 3), "min": float(values.min()), "max": float(values.max()), **named}


def label_shares(records: Sequence[Record]) -> dict[str, Any]:
    """How many labels occur; the mean occurrences of the most frequent 9.9%, of the middle, and of the rarest 10.07%."""
    counts = sorted(Counter(label for record in records for label in record.drugs).values(), reverse=True)
    head, tail = round(0.099 * len(counts)), round(0.1007 * len(counts))
    middle = counts[head : len(counts) - tail]
    return {
        "seen": len(counts),
        "head": {"labels": head, "mean": _mean(counts[:head])},
        "middle": {"labels": len(middle), "mean": _mean(middle)},
        "tail": {"labels": tail, "mean": _mean(counts[len(counts) - tail :])},
        "once": sum(1 for number in counts if number == 1),
    }


def _mean(numbers: Sequence[int]) -> float:
    return round(float(np.mean(numbers)), 2) if numbers else 0.0


def unseen(train: Sequence[Record], test: Sequence[Draft]) -> int:
    """Labels of the test board that no training record has."""
    seen = {label for record in train for label in record.drugs}
    return len({drug.label for draft in test for drug in draft.drugs} - seen)


def causes(truth: Sequence[Truth]) -> dict[str, float]:
    """Share of each cause among the prescribed drugs."""
    counts = Counter(row.cause for row in truth)
    return {cause: round(number / len(truth), 4) for cause, number in counts.most_common()}


def rule_breaks(drafts: Sequence[Draft], breaks: Breaks) -> dict[str, float]:
    """Share of records with at least one broken rule of each kind, by the ward's own list."""
    counts: Counter[str] = Counter()
    for one in drafts:
        labels = [drug.label for drug in one.drugs]
        found = {k for i, label in enumerate(labels) for k, _ in breaks.broken(label, labels[:i], one.stay.facts)}
        counts.update(found)
    return {kind: round(counts[kind] / len(drafts), 4) for kind in KINDS}
