"""The simulated ward as a whole: patients, their visits' lists, records, truth, files.

    yaofang data simulate --patients 1910 --seed 1 --out ward.jsonl

writes ward.jsonl (training records with drugs), ward.test.jsonl (other patients, without drugs), ward.test.gold.jsonl (the
same with drugs) and ward.jsonl.truth.jsonl (the cause of every drug of both). Same patients and seed, same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from yaofang.data.parallel import spread
from yaofang.data.records import Record, write_records
from yaofang.data.ward.patients import draw_patient
from yaofang.data.ward.rare import FULL, TEST, Draft, place_rare
from yaofang.data.ward.tables import Tables, load_tables
from yaofang.data.ward.text import Truth, Writer
from yaofang.data.ward.therapy import Prescribed, Prescriber
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import whole_file


@dataclass(frozen=True, slots=True)
class Ward:
    """Records of training and of the test board, both with drugs, and the cause of every drug."""

    train: list[Record]
    test: list[Record]
    truth: list[Truth]


@dataclass(frozen=True, slots=True)
class Drafts:
    """The ward before its records are written."""

    train: list[Draft]
    test: list[Draft]


@cache
def generics() -> dict[str, str]:
    """Generic name of each label, for records that write a home drug by it."""
    from yaofang.vocab.drugs import load_vocabulary

    return {drug.label: drug.generic for drug in load_vocabulary().drugs}


def draft(patients: int, seed: int, tables: Tables | None = None) -> Drafts:
    """Draw the patients and their lists. Raises InputError for fewer than one patient."""
    if patients < 1:
        raise InputError(f"{patients} patients", field="--patients", way_out="Simulate at least 1.")
    tables = tables or load_tables()
    prescriber = Prescriber(tables)
    test = max(1, round(patients * TEST / FULL))
    drafts = spread(partial(_patients, seed=seed, tables=tables), range(1, patients + test + 1))
    ward = Drafts([d for own in drafts[:patients] for d in own], [d for own in drafts[patients:] for d in own])
    place_rare(ward.train, ward.test, patients, prescriber, seed)
    return ward


def _patients(numbers: Sequence[int], seed: int, tables: Tables) -> list[list[Draft]]:
    prescriber = Prescriber(tables)
    return [list(visits(number, seed, prescriber)) for number in numbers]


def visits(number: int, seed: int, prescriber: Prescriber) -> Iterator[Draft]:
    """The visits of one patient in order; what is prescribed at one is taken at home before the next."""
    patient = draw_patient(number, prescriber.tables, np.random.default_rng([seed, number, 0]))
    home: tuple[Prescribed, ...] = ()
    considered: frozenset[tuple[str, str]] = frozenset()
    before = 0
    for stay in patient.stays:
        rng = np.random.default_rng([seed, number, 1, stay.number])
        if stay.number == 1:
            known = {c.disease.id for c in stay.conditions if c.visit == 0}
            home = prescriber.earlier(stay.facts, known, stay.team, rng)
            considered = frozenset((i, group) for i in known for group in prescriber.groups_for(i))
        drugs = prescriber.prescribe(prescriber.case(stay.facts, stay.team, home, considered), rng)
        yield Draft(patient, stay, home, considered, stay.months_in - before, drugs)
        home, before = tuple(drugs), stay.months_in
        considered |= {
            (c.disease.id, g) for c in stay.conditions if c.disease.chronic for g in prescriber.groups_for(c.disease.id)
        }


def write(drafts: list[Draft], seed: int, tables: Tables) -> tuple[list[Record], list[Truth]]:
    """Records with drugs, and their truth."""
    written = spread(partial(_written, seed=seed, tables=tables), drafts)
    return [record for record, _ in written], [cause for _, causes in written for cause in causes]


def _written(drafts: Sequence[Draft], seed: int, tables: Tables) -> list[tuple[Record, list[Truth]]]:
    writer = Writer(tables, generics())
    done = []
    for one in drafts:
        rng = np.random.default_rng([seed, one.patient.number, 2, one.stay.number])
        written = writer.write(one.patient, one.stay, one.home, one.gap, rng)
        order = [one.drugs[i] for i in rng.permutation(len(one.drugs))]
        causes = [
            Truth(written.record.id, drug.label, drug.cause, writer.evidence(drug, written), drug.rule_broken) for drug in order
        ]
        done.append((written.record.model_copy(update={"drugs": tuple(drug.label for drug in order)}), causes))
    return done


def simulate(patients: int, seed: int, tables: Tables | None = None) -> Ward:
    """A ward of `patients` training patients, with a test board of other patients in the published proportion."""
    tables = tables or load_tables()
    drafts = draft(patients, seed, tables)
    train, causes = write(drafts.train, seed, tables)
    test, test_causes = write(drafts.test, seed, tables)
    return Ward(train, test, [*causes, *test_causes])


def simulate_to_files(patients: int, seed: int, out: str | Path) -> list[Path]:
    """Simulate and write the four files, each whole or not at all; returns their paths."""
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent}", file=out, way_out="Make the folder first.")
    ward = simulate(patients, seed)
    board, gold = out.with_name(f"{out.stem}.test.jsonl"), out.with_name(f"{out.stem}.test.gold.jsonl")
    causes = out.with_name(f"{out.name}.truth.jsonl")
    write_records(out, ward.train)
    write_records(board, [record.model_copy(update={"drugs": ()}) for record in ward.test])
    write_records(gold, ward.test)
    with whole_file(causes) as handle:
        for row in ward.truth:
            handle.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
    return [out, board, gold, causes]
