"""Ways to decode, side by side on the simulated ward: greedy, beam search, and the set that is best in expectation.

    yaofang bench modes --out docs/results/modes.json

Three sets of patients, none of whom the model trained on and no two of which share one: on the first p_include is calibrated,
on the second the best way is chosen, on the third (the ward's test board) it is compared with greedy decoding, by a bootstrap
over patients in which both see the same patients. Says nothing about real patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from yaofang.data.records import Record
from yaofang.data.ward.simulate import simulate
from yaofang.decoding.calibration import Calibration
from yaofang.decoding.processors import AnswerProcessor
from yaofang.decoding.reading import read
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.running import pad_left
from yaofang.decoding.settings import Metric, Settings, Strategy
from yaofang.decoding.writing import Writer
from yaofang.eval.calibration import Drawn, draw, fit, pairs, reliability
from yaofang.eval.metrics import bootstrap_means, count_conflicts, percentile_interval, score_record
from yaofang.glm.loading import LoadedModel
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

BEAMS = 4
GREEDY = "greedy"
Report = Callable[[str], None]
Lists = list[list[str]]
Scores = npt.NDArray[np.float64]
"""[records, 2]: Jaccard and F1."""


@dataclass(frozen=True)
class Timed:
    """One way's lists for some records, in their order, and the seconds they took."""

    lists: Lists
    seconds: float


def modes(
    loaded: LoadedModel,
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    *,
    patients: int = 240,
    validation_seed: int = 2,
    ward_patients: int = 1910,
    seed: int = 1,
    samples: int = 24,
    batch_size: int = 8,
    trained_on: Sequence[tuple[int, int]] = (),
    report: Report = lambda _: None,
) -> tuple[dict[str, Any], Calibration]:
    """All figures, and the curve that was learned on the first set of patients.

    `patients` are those of the first two sets, from a ward of `validation_seed`; the test board is that of a ward of
    `ward_patients` and `seed`. Raises InputError if the model was trained on one of these wards.
    """
    for own in {seed, validation_seed} & {trained for _, trained in trained_on} | {seed} & {validation_seed}:
        way_out = "Measure on wards of other seeds, two different ones."
        raise InputError(f"the ward of seed {own} was used before", field="--seed", way_out=way_out)
    validation, board = simulate(patients, validation_seed).train, simulate(ward_patients, seed).test
    first = [record for record in validation if record.patient % 2]
    second = [record for record in validation if not record.patient % 2]
    bench = _Bench(loaded, vocabulary, conflicts, samples, batch_size, report)
    curve = fit(bench.draw(first).drawn, samples, {"model": loaded.version, "ward": [patients, validation_seed]})
    choice = bench.measure(second, curve, "choice")
    best = max(choice["ways"], key=lambda way: choice["ways"][way]["jaccard"]["value"])
    test = bench.measure(board, curve, "test")
    differences = {way: _difference(test["scores"], way) for way in test["ways"] if way != GREEDY}
    wins = best != GREEDY and differences[best]["jaccard"]["low"] > 0
    sets = {"calibration": first, "choice": second, "test": board}
    return {
        "model": {"name": loaded.name, "version": loaded.version},
        "samples": samples,
        "beams": BEAMS,
        "batch_size": batch_size,
        "sets": {name: {"records": len(own), "patients": len({one.patient for one in own})} for name, own in sets.items()},
        "calibration": {"choice": choice["reliability"], "test": test["reliability"]},
        "choice": {"ways": choice["ways"], "best": best},
        "test": {"ways": test["ways"], "less_greedy": differences, "best_wins": bool(wins)},
    }, curve


class _Bench:
    """Decodes sets of records in every way and scores the lists."""

    def __init__(
        self,
        loaded: LoadedModel,
        vocabulary: Vocabulary,
        conflicts: ConflictTable,
        samples: int,
        batch_size: int,
        report: Report,
    ) -> None:
        self.loaded, self.vocabulary, self.conflicts = loaded, vocabulary, conflicts
        self.samples, self.batch_size, self.report = samples, batch_size, report

    def recommender(self, strategy: Strategy) -> Recommender:
        """Diagnoses are given, so that the ways differ in nothing but the lists."""
        return Recommender(
            [self.loaded],
            self.vocabulary,
            self.conflicts,
            diagnoses="given",
            strategy=strategy,
            samples=self.samples,
            audit=False,
        )

    def measure(self, records: Sequence[Record], curve: Calibration, name: str) -> dict[str, Any]:
        """Every way on one set of records, and how well `p_include` is calibrated there."""
        drawn = self.draw(records)
        ways = {
            GREEDY: self.greedy(records),
            f"beam_{BEAMS}": self.beam(records),
            "expected_jaccard": self.expected(drawn, curve, "jaccard"),
            "expected_f1": self.expected(drawn, curve, "f1"),
        }
        scores = {way: self._scores(records, timed.lists) for way, timed in ways.items()}
        owners = [record.patient for record in records]
        rows = {way: self._row(scores[way], owners, timed) for way, timed in ways.items()}
        for way, row in rows.items():
            self.report(f"{name}: {way}: Jaccard {row['jaccard']['value']:.4f}, {row['drugs']:.2f} drugs a record")
        raw, held = pairs(drawn.drawn)
        judged = {"raw": reliability(raw, held), "calibrated": reliability(curve(raw), held)}
        return {"ways": rows, "scores": (scores, owners), "reliability": judged}

    def greedy(self, records: Sequence[Record]) -> Timed:
        """The likeliest next drug, again and again."""
        recommender, begun = self.recommender("greedy"), perf_counter()
        hidden = [record.model_copy(update={"drugs": ()}) for record in records]
        return Timed([one.labels for one in recommender.batch(hidden, self.batch_size)], perf_counter() - begun)

    def beam(self, records: Sequence[Record]) -> Timed:
        """transformers' beam search with the same constraint, the best beam of each record."""
        recommender, lists = self.recommender("greedy"), []
        begun = perf_counter()
        tasks = [recommender.prepare(record.model_copy(update={"drugs": ()})) for record in records]
        for at in range(0, len(tasks), self.batch_size):
            some = tasks[at : at + self.batch_size]
            ids, seen = pad_left([task.ids for task in some], self.loaded.template.pad_id)
            starts = [task.start for task in some]
            with torch.inference_mode():
                output = self.loaded.model.generate(
                    input_ids=ids.to(self.loaded.device),
                    attention_mask=seen.to(self.loaded.device),
                    logits_processor=[AnswerProcessor(recommender.constraint, ids.shape[1], starts)],
                    num_beams=BEAMS,
                    do_sample=False,
                    max_new_tokens=recommender.settings.max_list_tokens,
                )
            for start, row in zip(starts, output[:, ids.shape[1] :].tolist(), strict=True):
                lists.append([self.vocabulary.labels[drug] for drug in read(recommender.constraint, start, row).drugs])
        return Timed(lists, perf_counter() - begun)

    def draw(self, records: Sequence[Record]) -> _Samples:
        """Sampled lists of records: made once, used by every metric."""
        recommender, begun = self.recommender("expected"), perf_counter()
        found = draw(recommender, records, self.batch_size)
        return _Samples(found, perf_counter() - begun)

    def expected(self, samples: _Samples, curve: Calibration, metric: Metric) -> Timed:
        """The best set under those lists."""
        recommender, begun = self.recommender("expected"), perf_counter()
        settings = Settings(strategy="expected", metric=metric, samples=self.samples)
        writer = Writer([self.loaded], recommender.constraint, settings, None, curve)
        lists = [[self.vocabulary.labels[drug] for drug in writer.best(one.lists)] for one in samples.drawn]
        return Timed(lists, samples.seconds + perf_counter() - begun)

    def _scores(self, records: Sequence[Record], lists: Lists) -> Scores:
        found = [score_record(record.drugs, own) for record, own in zip(records, lists, strict=True)]
        return np.array([[one.jaccard, one.f1] for one in found])

    def _row(self, scores: Scores, owners: Sequence[int], timed: Timed) -> dict[str, Any]:
        means = bootstrap_means(scores, owners)
        index = {label: at for at, label in enumerate(self.vocabulary.labels)}
        counts = count_conflicts(timed.lists, index, self.conflicts.tiers)
        return {
            **{name: _figure(scores[:, at].mean(), means[:, at]) for at, name in enumerate(("jaccard", "f1"))},
            "drugs": float(np.mean([len(one) for one in timed.lists])),
            "seconds_a_record": timed.seconds / len(timed.lists),
            "t1_pairs": counts.conflicts[1],
        }


@dataclass(frozen=True)
class _Samples:
    drawn: list[Drawn]
    seconds: float


def _figure(value: float, means: Scores) -> dict[str, float]:
    low, high = percentile_interval(means)
    return {"value": float(value), "low": low, "high": high}


def _difference(scored: tuple[dict[str, Scores], list[int]], way: str) -> dict[str, Any]:
    """A way's scores less greedy's, record by record, with intervals over patients."""
    scores, owners = scored
    less = scores[way] - scores[GREEDY]
    means = bootstrap_means(less, owners)
    return {name: _figure(less[:, at].mean(), means[:, at]) for at, name in enumerate(("jaccard", "f1"))}
