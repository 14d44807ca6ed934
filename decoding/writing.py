"""From tasks to written rows: greedy lists, or the best set under sampled lists, for one batch of records.

Knows tasks, the constraint and models; what a row means for a reader is `decoding.reasons`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from yaofang.decoding.bias import Bias
from yaofang.decoding.calibration import Calibration
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.expected import BestSet, Inclusion, order_of
from yaofang.decoding.generation import Generation
from yaofang.decoding.preparation import Task
from yaofang.decoding.reading import read
from yaofang.decoding.settings import Settings
from yaofang.glm.loading import LoadedModel

TOGETHER = 0.5
"""Share of the running rows that have to have ended before others take their places."""
ROWS_A_RECORD = 8
"""Sampled rows that may run at once for each record of a batch."""


@dataclass(frozen=True)
class Written:
    """A batch's generation; of each row its inclusion probabilities [D] by vocabulary position, None where not estimated."""

    generation: Generation
    inclusion: list[npt.NDArray[np.float64] | None]


class Ended(NamedTuple):
    """A row that is written."""

    task: int
    """Place of its task among all."""
    seconds: float
    """Spent on it: of each step an equal share for every row that was in the batch."""


@dataclass(frozen=True)
class Lists:
    """Sampled lists of one record: positions in the vocabulary, and the raw inclusion probability [D] behind them."""

    lists: list[list[int]]
    inclusion: npt.NDArray[np.float64]


class Writer:
    """Writes batches with one or several models."""

    def __init__(
        self,
        models: Sequence[LoadedModel],
        constraint: Constraint,
        settings: Settings,
        bias: Bias | None,
        calibration: Calibration | None,
    ) -> None:
        self._models = models
        self._constraint = constraint
        self._settings = settings
        self._bias = bias
        self._calibration = calibration
        order = constraint.trie.number
        self._conflicts = constraint.together[np.ix_(order, order)]

    def greedy(self, tasks: Sequence[Task]) -> Generation:
        """A generation of the likeliest ids, not yet run."""
        starts = [task.start for task in tasks]
        return self._generation([task.ids for task in tasks], starts, [task.limit for task in tasks])

    def ended(self, tasks: Sequence[Task], at_once: int) -> Iterator[tuple[Generation, dict[int, Ended]]]:
        """Greedy rows of all tasks as they end, so many running at once: a generation, and which of its rows by their numbers.

        Until the next are asked for, the rows and their caches are there; then the next tasks take their places. Some rows are
        waited for, so that prompts are read and rows looked back on together.
        """
        if not tasks:
            return
        begun = perf_counter()
        waiting = iter(range(at_once, len(tasks)))
        generation = self.greedy(tasks[:at_once])
        running = {row.number: Ended(row.number, 0.0) for row in generation.rows}
        steps = generation.steps()
        while running:
            if next(steps, generation) is generation:
                steps = generation.steps()
            share, begun = (perf_counter() - begun) / len(running), perf_counter()
            running = {number: Ended(one.task, one.seconds + share) for number, one in running.items()}
            done = {number: one for number, one in running.items() if generation.rows[number].ended}
            if len(done) < TOGETHER * len(running):
                continue
            yield generation, done
            begun = perf_counter()
            new = dict(zip(done, waiting, strict=False))
            if new:
                generation.replace({number: (tasks[at].ids, tasks[at].start, tasks[at].limit) for number, at in new.items()})
            generation.release(done.keys() - new.keys())
            running = {number: one for number, one in running.items() if number not in done}
            running |= {number: Ended(at, 0.0) for number, at in new.items()}

    def __call__(self, tasks: Sequence[Task]) -> Written:
        """The batch's rows, written to their end."""
        if self._settings.strategy == "greedy":
            generation = self.greedy(tasks)
            generation.run()
            return Written(generation, [None] * len(tasks))
        heads = self.heads(tasks)
        at_once = max(1, len(tasks) * ROWS_A_RECORD // self._settings.samples)
        drawn = [
            one
            for at in range(0, len(tasks), at_once)
            for one in self._sampled(tasks[at : at + at_once], heads[at : at + at_once])
        ]
        return self._along([self.best(one) for one in drawn], tasks, heads, drawn)

    def sampled(self, tasks: Sequence[Task]) -> list[Lists]:
        """`samples` lists of each record, whatever the strategy."""
        return self._sampled(tasks, self.heads(tasks))

    def heads(self, tasks: Sequence[Task]) -> list[list[int]]:
        """What each row has before its list: nothing where diagnoses are given, else the likeliest diagnoses and the header."""
        heads: list[list[int]] = [[] for _ in tasks]
        free = [at for at, task in enumerate(tasks) if not task.given]
        if free:
            generation = self.greedy([tasks[at] for at in free])
            for _ in generation.steps():
                if all(row.state.phase >= Phase.LIST or not row.running for row in generation.rows):
                    break
            for at, row in zip(free, generation.rows, strict=True):
                heads[at] = self._before_list(row.start, row.ids)
        return heads

    def _before_list(self, start: State, ids: Sequence[int]) -> list[int]:
        state = start
        for at, token in enumerate(ids):
            if state.phase >= Phase.LIST:
                return list(ids[:at])
            state = self._constraint.step(state, token)
        return list(ids)

    def _sampled(self, tasks: Sequence[Task], heads: Sequence[Sequence[int]]) -> list[Lists]:
        """Each record's lists, drawn after its head; the draws depend on the record, the seed and nothing else."""
        count = self._settings.samples
        inclusion = Inclusion(self._constraint, count * len(tasks))
        starts = [self._constraint.follow(task.start, head) for task, head in zip(tasks, heads, strict=True)]
        generation = self._generation(
            [[*task.ids, *head] for task, head in zip(tasks, heads, strict=True)],
            starts,
            [task.limit - len(head) for task, head in zip(tasks, heads, strict=True)],
            copies=count,
            seeds=[crc32(f"{self._settings.seed}/{task.record.id}".encode()) for task in tasks],
            masses=False,
            watch=inclusion.watch,
        )
        rows = generation.run()
        lists = [read(self._constraint, row.start, row.ids).drugs for row in rows]
        mine = [range(at * count, (at + 1) * count) for at in range(len(tasks))]
        return [Lists([lists[number] for number in own], inclusion.probabilities(own)) for own in mine]

    def best(self, drawn: Lists) -> list[int]:
        """The best set under a record's lists, in the order in which they have its drugs."""
        settings = self._settings
        p = drawn.inclusion if self._calibration is None else self._calibration(drawn.inclusion)
        best = BestSet(
            drawn.lists, p, self._conflicts, metric=settings.metric, least=settings.min_drugs, most=settings.max_drugs
        )
        return order_of(best.find()[0], drawn.lists)

    def _along(
        self, chosen: Sequence[Sequence[int]], tasks: Sequence[Task], heads: Sequence[Sequence[int]], drawn: Sequence[Lists]
    ) -> Written:
        """The chosen lists as rows: the models read them once, so that every number beside a drug is there."""
        plans = [[*head, *self._constraint.list_ids(drugs)] for head, drugs in zip(heads, chosen, strict=True)]
        starts, limits = [task.start for task in tasks], [task.limit for task in tasks]
        generation = self._generation([task.ids for task in tasks], starts, limits, plans=plans)
        generation.run()
        curve = self._calibration
        return Written(generation, [one.inclusion if curve is None else curve(one.inclusion) for one in drawn])

    def _generation(
        self,
        prompts: Sequence[Sequence[int]],
        starts: Sequence[State],
        limits: Sequence[int],
        **more: object,
    ) -> Generation:
        options = {"bias": self._bias, **more}
        return Generation(self._models, self._constraint, prompts, starts, limits, **options)  # type: ignore[arg-type]
