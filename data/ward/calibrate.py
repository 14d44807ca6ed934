"""Fits how often each group and label is prescribed to the popularities of groups.tsv.

    python -m yaofang.data.ward.calibrate --rounds 12 --patients 1910

simulates lists, compares counts with popularities, and writes `group_shifts.tsv` (log-odds added to every chance of a group)
and `label_weights.tsv` (weight of a label inside its group). It changes nothing else: therapy.tsv keeps the clinician's
chances, and its causes and conditions decide who gets a drug. Run it again after any change of the ward's tables.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import log
from pathlib import Path

from yaofang.data.ward.rare import FULL
from yaofang.data.ward.simulate import visits
from yaofang.data.ward.tables import FOLDER, Tables, load_tables
from yaofang.data.ward.therapy import Prescriber
from yaofang.vocab.files import whole_file

MOST_SHIFT = 6.0


def targets(tables: Tables) -> tuple[dict[str, float], dict[str, float]]:
    """Records of a training set that should have each group and each label. A label of two groups is shared by them."""
    groups: dict[str, float] = {}
    labels: dict[str, float] = {}
    shared = Counter(label.label for label in tables.labels)
    for row in tables.labels:
        if row.note == "-":
            groups[row.group] = groups.get(row.group, 0.0) + row.popularity / shared[row.label]
            labels[row.label] = row.popularity
    return groups, labels


def counted(tables: Tables, patients: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """How often each group and label is prescribed, without the placing of rare labels."""
    prescriber = Prescriber(tables)
    groups: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for number in range(1, patients + 1):
        for visit in visits(number, seed, prescriber):
            groups.update(drug.group for drug in visit.drugs)
            labels.update(drug.label for drug in visit.drugs)
    return groups, labels


def step(tables: Tables, groups: Mapping[str, int], labels: Mapping[str, int], scale: float, rate: float) -> Tables:
    """Tables whose shifts and weights are moved towards the targets. Counts are `scale` times a training set's."""
    wanted, popular = targets(tables)
    shifts, weights = dict(tables.shifts), dict(tables.weights)
    for group, target in wanted.items():
        odds = log((target * scale + 1.0) / (groups.get(group, 0) + 1.0))
        shifts[group] = max(-MOST_SHIFT, min(MOST_SHIFT, shifts.get(group, 0.0) + rate * max(-1.5, min(1.5, odds))))
    for label, target in popular.items():
        ratio = (target * scale + 2.0) / (labels.get(label, 0) + 2.0)
        weights[label] = weights.get(label, max(target, 0.5)) * max(0.5, min(2.0, ratio ** (rate * 0.7)))
    return replace(tables, shifts=shifts, weights=_normed(tables, weights))


def _normed(tables: Tables, weights: dict[str, float]) -> dict[str, float]:
    """Weights that sum to the popularity of their (first) group, so that they can be read."""
    group_of = {row.label: row.group for row in reversed(tables.labels)}
    sums: dict[str, list[float]] = {}
    popular = {row.label: row.popularity for row in tables.labels}
    for label, weight in weights.items():
        total = sums.setdefault(group_of[label], [0.0, 0.0])
        total[0] += weight
        total[1] += popular[label]
    return {label: w * sums[group_of[label]][1] / sums[group_of[label]][0] for label, w in weights.items()}


def distance(tables: Tables, labels: Mapping[str, int], scale: float) -> float:
    """Mean over labels of |log(count / target)|, weighted by the target."""
    popular = targets(tables)[1]
    errors = [(target, abs(log((labels.get(label, 0) + 1) / (target * scale + 1)))) for label, target in popular.items()]
    return sum(t * e for t, e in errors) / sum(t for t, _ in errors)


def fit(tables: Tables, patients: int, rounds: int, seed: int = 9000) -> Tables:
    """Rounds of simulation and correction, with other patients each time and smaller steps towards the end."""
    for turn in range(rounds):
        groups, labels = counted(tables, patients, seed + turn)
        scale = patients / FULL
        per_list = sum(labels.values()) / (scale * 3602)
        print(f"round {turn + 1}: mean |log ratio| {distance(tables, labels, scale):.3f}, drugs a record about {per_list:.2f}")
        tables = step(tables, groups, labels, scale, rate=0.9 if turn < rounds // 2 else 0.45)
    return tables


def save(tables: Tables, folder: Path) -> None:
    """Write both fitted tables."""
    for name, key, value, rows in (
        ("group_shifts.tsv", "group", "shift", tables.shifts),
        ("label_weights.tsv", "label", "weight", tables.weights),
    ):
        with whole_file(folder / name) as handle:
            handle.write("# Written by python -m yaofang.data.ward.calibrate; see its docstring.\n")
            handle.write(f"{key}\t{value}\n")
            handle.writelines(f"{row}\t{number:.3f}\n" for row, number in rows.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=FULL)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--afresh", action="store_true", help="start from no shifts and from the popularities")
    options = parser.parse_args()
    tables = load_tables(options.folder)
    if options.afresh:
        tables = replace(tables, shifts={}, weights={})
    save(fit(tables, options.patients, options.rounds), options.folder)


if __name__ == "__main__":
    main()
