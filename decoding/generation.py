"""Lists for a batch of prompts under one constraint: greedy, sampled or along a plan, by one model or several that vote.

Knows ids, tensors and models with a key/value cache; knows no record, no label and no text. Every id is recorded with its
probability among the allowed ids and, in the list, with the mass that was allowed: what `p_step` and `masked_mass` are made of.

**Jump-forward.** Most ids of an answer are no choice: the rest of a name once it is told from its neighbours, headers,
a planned list. They are written at once and pass through the model together with the choice before them, so a row takes
one forward a choice and not one an id. Rows of a batch need not be at the same place: each gives its own run of ids, padded
on the left, and padding is no column that anybody attends to. The ids are the same as one by one (tests).

**Places.** A row that has ended may leave its place to another prompt (`replace`), so that the models' batch stays full.

**Drafts** (`decoding.drafts`). What may well follow, such as the separator after a name that cannot grow, passes through the
model with what is written, unwritten itself. What the model says decides as ever: where the choice is the draft, what comes
after it has been read already; where it is not, the columns of the draft are struck out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby, zip_longest
from typing import NamedTuple

import numpy as np
import torch

from yaofang.decoding.bias import Bias
from yaofang.decoding.constraint import Constraint, Ids, Phase, State
from yaofang.decoding.drafts import Drafts, Likely
from yaofang.decoding.running import Run, check_same_tokenizer
from yaofang.decoding.trie import ROOT
from yaofang.decoding.voting import Numbers, Seen, Votes
from yaofang.glm.loading import LoadedModel

WORTHWHILE = 0.75
"""Share of rows still running below which the others are dropped: it takes a copy of the cache."""
PLACES = 64
"""Places whose logits are looked at at once."""
Watch = Callable[["Row", State, Ids, torch.Tensor], None]
"""Called for each choice in a list with the row, the state before it, the allowed ids, and their log probabilities."""


@dataclass(slots=True)
class Row:
    """One prompt's generation so far. The four lists have an entry for each generated id."""

    start: State
    state: State
    limit: int
    """Most ids this row may write."""
    number: int = 0
    """Place in `Generation.rows`; in the models' batch it is at `Generation.place(number)`."""
    ids: list[int] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    """Probability of the id among the allowed ones."""
    mass: list[float] = field(default_factory=list)
    """Probability of all allowed ids before the mask; 1 outside the list, and everywhere if no masses were asked for."""
    closing: list[float] = field(default_factory=list)
    """Probability, among the allowed, of separator or end: of a drug's name ending here."""
    first: dict[int, torch.Tensor] = field(default_factory=dict)
    """Place where a name begins -> logits [models, first tokens of names], unmasked."""
    columns: dict[int, int] = field(default_factory=dict)
    """Place where a name begins -> columns of the cache that hold what is before it."""
    waiting: list[State] = field(default_factory=list)
    """States before the ids that are written but whose probabilities are not known yet."""
    unfed: int = 0
    """Ids at the end that no model has read."""
    draft: list[int] = field(default_factory=list)
    """Ids that the models have read after the last one, and that are not written yet."""
    choices: int = 0
    """Choices made so far, forced ids left out: which of the prompt's random numbers is next."""
    wanted: bool = False
    """Its cache may still be asked for when the row has ended."""

    @property
    def running(self) -> bool:
        """The row may write another id."""
        return self.state.phase < Phase.DONE and len(self.ids) < self.limit

    @property
    def ended(self) -> bool:
        """The row has all its ids and their numbers."""
        return not self.running and not self.waiting


class Asked(NamedTuple):
    """A place of a row at which the models have said what comes next."""

    row: Row
    state: State
    """Before it."""
    at: int
    """In the row's ids."""
    behind: int
    """Places of the row behind it at which the models have been asked too."""
    token: int | None = None
    """What is written there already; None if it is to be chosen."""
    choice: int = 0
    """Which of the row's choices it is."""

    @property
    def is_reached(self) -> bool:
        """Not if it is behind a draft and the row has gone another way, or ended."""
        return self.token is not None or (self.row.running and not self.row.unfed)


class Generation:
    """A batch from prompts to ended rows, and further prompts in their places. `steps` does the work; `rows` is up to date.

    `prompts` are ids of unequal length (padded on the left here), `starts` and `limits` give a state and a number of new ids
    for each. `copies` rows of each prompt share its forward; with `seeds`, one a prompt, their ids are drawn instead of the
    likeliest taken, and the draws of a prompt do not depend on what else is in the batch. `plans` are ids that a row has to
    write first, where the constraint allows them. `masses` False asks for no mass, and so nothing of forced ids. `jump` False
    passes them one by one. Raises InputError if the models do not share one tokenizer, ValueError for logits that are NaN.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        constraint: Constraint,
        prompts: Sequence[Sequence[int]],
        starts: Sequence[State],
        limits: Sequence[int],
        *,
        bias: Bias | None = None,
        copies: int = 1,
        seeds: Sequence[int] | None = None,
        plans: Sequence[Sequence[int]] | None = None,
        masses: bool = True,
        jump: bool = True,
        watch: Watch | None = None,
    ) -> None:
        check_same_tokenizer(models)
        self.constraint = constraint
        each = [(start, limit) for start, limit in zip(starts, limits, strict=True) for _ in range(copies)]
        self.rows = [
            Row(start, start, limit, number, wanted=masses or plans is not None) for number, (start, limit) in enumerate(each)
        ]
        self.first_ids = sorted(constraint.trie.children[ROOT])
        self._first_ids = torch.tensor(self.first_ids, device=models[0].device)
        self.forwards = 1
        """Forwards so far, the prompts' included."""
        self._masses, self._jump, self._watch = masses, jump, watch
        self._copies = copies
        self._draws = None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds]
        self._points: list[torch.Tensor] = []
        """For the first choice of all rows, the second and so on: a point in [0, 1) for each row."""
        self._plans = [list(plan) for plan in plans] if plans is not None else [[] for _ in self.rows]
        # A plan says what follows, and draws seldom follow a draft. A draft that was struck out leaves a gap in the columns,
        # which only an attention that takes a ready mask is known to skip; a wrong separator leaves none: the row has ended.
        masked = all(loaded.model.config._attn_implementation == "sdpa" for loaded in models)
        self._drafts = Drafts(constraint, prompts, learned=masked and seeds is None and plans is None)
        self.runs = [Run(loaded, prompts, copies) for loaded in models]
        self._votes = Votes(self.runs, constraint, len(self.rows), bias=bias, masses=masses)
        self._places = {row.number: row.number for row in self.rows}
        """Number of each row that the models still carry -> its place in their batch."""
        self._ends = {row.number: row.number + 1 for row in self.rows}
        """Number of each row of which the models were asked -> end of its places in their logits."""

    def run(self) -> list[Row]:
        """Write all rows to their end and return them."""
        for _ in self.steps():
            pass
        return self.rows

    def steps(self) -> Iterator[None]:
        """Make one choice in every running row, again and again until none runs; yields after each."""
        if any(row.unfed and not row.ended for row in self.rows):
            self._feed()
        while any(row.running for row in self.rows):
            with torch.inference_mode():
                self._step([row for row in self.rows if not row.unfed])
            yield
            if self._open():
                self._feed()
        with torch.inference_mode():
            self._step(self.rows)

    def place(self, number: int) -> int:
        """Where the models carry row `number` in their batch. KeyError if they do not any more."""
        return self._places[number]

    @torch.inference_mode()
    def replace(self, tasks: Mapping[int, tuple[Sequence[int], State, int]]) -> None:
        """Give the places of ended rows to new ones: number of the row -> the new one's prompt, start and limit.

        Between two `steps`, for likeliest ids with masses and without plans alone: other rows are given up when they end, or
        share a prompt. `rows` then holds a new row under the old one's number, with its first ids. An iterator of `steps` goes
        on with it; where it has come to its end, another does.
        """
        if self._copies > 1 or self._draws is not None or any(self._plans) or not self._masses:
            raise ValueError("only rows of likeliest ids with masses can be replaced")
        if any(not self.rows[number].ended for number in tasks):
            raise ValueError("a row that has not ended keeps its place")
        places, prompts = [self._places[number] for number in tasks], [prompt for prompt, _, _ in tasks.values()]
        (lost,) = {run.replace(places, prompts) for run in self.runs}  # all caches have the same columns
        for number in self._places:
            row = self.rows[number]
            row.columns = {place: columns - lost for place, columns in row.columns.items()}
        self.forwards += 1
        for number, (prompt, start, limit) in tasks.items():
            self.rows[number] = Row(start, start, limit, number, wanted=True)
            self._votes.begin(number)
            self._drafts.read(prompt)
        self._votes.asked()
        self._ends = {number: at + 1 for at, number in enumerate(tasks)}
        self._step([self.rows[number] for number in tasks])

    def release(self, numbers: Iterable[int]) -> None:
        """The caches of these ended rows will not be asked for any more."""
        for number in numbers:
            self.rows[number].wanted = False

    def _open(self) -> bool:
        """Whether the models have to read what was written: for a next choice, or for the numbers of forced ids."""
        return not all(row.ended for row in self.rows)

    def _feed(self) -> None:
        self._drop_ended()
        carried = [self.rows[number] for number in self._places]
        room = self._drafts.room([0 if row.ended else row.unfed for row in carried])
        chunks = [self._chunk(row, most) for row, most in zip(carried, room, strict=True)]
        # Asked of a row: what its waiting ids were likely to be, each drafted one, and what comes next.
        asked = [0 if row.ended else len(row.waiting) + len(row.draft) + 1 for row in carried]
        for run in self.runs:
            run.extend(chunks, keep=asked)
        self._votes.asked()
        self._ends = dict(zip(self._places, accumulate(asked), strict=True))
        for row in self.rows:
            row.unfed = 0
        self.forwards += 1

    def _chunk(self, row: Row, most: int) -> list[int]:
        """What the models have to read of a row, with a draft of at most so many ids after it."""
        if row.ended:
            return []
        if self._jump and row.running:
            most = min(most, row.limit - len(row.ids) - 1)
            row.draft = self._drafts.after(row.state, row.ids, most, self._likely(row) if row.first else None)
        return row.ids[len(row.ids) - row.unfed :] + row.draft

    def _likely(self, row: Row) -> Likely:
        """By what the models said where the row's last name began: of other names' first ids, which was next to be chosen."""
        said = next(reversed(row.first.values())).mean(0).numpy()
        return lambda ids: int(ids[said[np.searchsorted(self.first_ids, ids)].argmax()])

    def _drop_ended(self) -> None:
        """Take rows that have ended out of the models' batch, once they are many; not if their caches may be wanted later."""
        left = [number for number in self._places if not self.rows[number].ended or self.rows[number].wanted]
        if len(left) > WORTHWHILE * len(self._places):
            return
        for run in self.runs:
            run.keep([self._places[number] for number in left])
        self._places = {number: place for place, number in enumerate(left)}

    def _step(self, read: Sequence[Row]) -> None:
        """Note the numbers of what these rows had to write, and make their next choices; all their ids have been read."""
        asked = [list(self._asked(row)) for row in read]
        # Where several models vote, the weights of a place follow from the place before it.
        for at_once in zip_longest(*asked) if len(self.runs) > 1 else [chain.from_iterable(asked)]:
            for _, alike in groupby(sorted(filter(None, at_once), key=self._behind_text), self._behind_text):
                places = list(alike)
                for begin in range(0, len(places), PLACES):
                    self._look(places[begin : begin + PLACES])
        for row in read:
            row.waiting = []
            if self._jump:
                self._write_forced(row)

    def _asked(self, row: Row) -> Iterator[Asked]:
        """Of what the models have said of a row: the ids that it had to write, its next one, and those behind a draft."""
        first, behind = len(row.ids) - len(row.waiting), len(row.waiting) + len(row.draft)
        for at, state in enumerate(row.waiting):
            yield Asked(row, state, first + at, behind - at, row.ids[first + at])
        if row.running:
            state, choice = row.state, row.choices
            for at, token in enumerate((*row.draft, None)):
                yield Asked(row, state, len(row.ids) + at, len(row.draft) - at, None, choice)
                if token is not None:
                    choice += len(self.constraint.allowed(state)) > 1
                    state = self.constraint.step(state, token)

    def _behind_text(self, asked: Asked) -> bool:
        """Free text allows thousands of ids: apart, so that other places are not padded to as many. It comes first in a row."""
        return not self._votes.in_text(self.constraint.allowed(asked.state))

    def _look(self, asked: Sequence[Asked]) -> None:
        """Note what the models say at these places, and choose there where nothing is written; of each row in their order."""
        asked = [one for one in asked if one.is_reached]
        if not asked:
            return
        here = [self._ends[one.row.number] - 1 - one.behind for one in asked]
        try:
            seen = self._votes.at(here, [one.state for one in asked], [one.row.number for one in asked])
        except ValueError:
            if len(asked) == 1:
                raise
            # NaN, perhaps behind a draft that is not the choice: nobody asks about a place that is not reached.
            for one in asked:
                self._look([one])
            return
        picked = self._picked(seen, asked)
        numbers = self._votes.numbers(seen, picked)
        noted = []
        for at, one in enumerate(asked):
            if not one.is_reached:
                continue  # the draft before it was not the choice
            noted.append(at)
            token = seen.token(at, picked[at])
            if one.token is None:
                if self._watch is not None and one.state.phase == Phase.LIST:
                    self._watch(one.row, one.state, seen.allowed[at], seen.mixed[at, : len(seen.allowed[at])])
                self._choose(one.row, token, forced=len(seen.allowed[at]) == 1)
            self._note(one.row, numbers[at])
            self._votes.follow(one.row.number, one.state, self.constraint.step(one.state, token), seen, at, picked[at])
        self._keep_first([(asked[at], here[at]) for at in noted])

    def _choose(self, row: Row, token: int, *, forced: bool) -> None:
        """Write an id. If the models have read it as a draft, the next choice can be made too; else the draft goes."""
        self._write(row, token)
        row.choices += not forced
        draft, row.draft = row.draft, []
        if draft and row.running and draft[0] == token:
            row.draft, row.unfed = draft[1:], 0
        elif draft and row.running:
            for run in self.runs:
                run.forget(self._places[row.number], len(draft))

    def _picked(self, seen: Seen, asked: Sequence[Asked]) -> list[int]:
        """The column at each place of `seen`: what is written there, the plan's, a drawn one, or the likeliest."""
        found = self._drawn(seen.mixed, asked) if self._draws is not None else seen.likeliest()
        for at, one in enumerate(asked):
            token = one.token if one.token is not None else self._planned(one.row, one.at, seen.allowed[at])
            if token is not None:
                found[at] = seen.column(at, token)
        return found

    def _drawn(self, mixed: torch.Tensor, asked: Sequence[Asked]) -> list[int]:
        assert self._draws is not None
        while len(self._points) <= max(one.choice for one in asked):
            drawn = [torch.rand(self._copies, generator=each, dtype=torch.float64) for each in self._draws]
            self._points.append(torch.cat(drawn))
        below = mixed.double().exp().cumsum(-1).cpu()
        points = torch.stack([self._points[one.choice][one.row.number] for one in asked])
        wanted = points[:, None] * below[:, -1:]
        # The last column that adds anything: rounding could lead beyond it.
        last = torch.searchsorted(below, below[:, -1:].contiguous())
        return torch.searchsorted(below, wanted, right=True).minimum(last)[:, 0].tolist()

    def _planned(self, row: Row, at: int, allowed: Ids) -> int | None:
        """What the row's plan has at this place of its ids, if it is allowed."""
        plan = self._plans[row.number]
        return plan[at] if at < len(plan) and plan[at] in allowed else None

    def _write(self, row: Row, token: int) -> None:
        row.state = self.constraint.step(row.state, token)
        row.ids.append(token)
        row.unfed += 1
        self._drafts.learn(row.ids)

    def _write_forced(self, row: Row) -> None:
        """What must follow, and what is planned, without asking the models; their numbers are noted when they have read it."""
        while row.running:
            allowed = self.constraint.allowed(row.state)
            token = int(allowed[0]) if len(allowed) == 1 else self._planned(row, len(row.ids), allowed)
            if token is None:
                return
            before = row.state
            if self._watch is not None and before.phase == Phase.LIST:
                self._watch(row, before, allowed, torch.from_numpy(np.log(allowed == token)))
            self._write(row, token)
            # A certain id is asked about for its mass alone, and nobody reads that outside the list.
            asked = before.phase == Phase.LIST and (self._masses or self._plans[row.number])
            if asked or len(allowed) > 1 or row.waiting:
                row.waiting.append(before)
            else:
                closes = token in (self.constraint.ids.drug_separator, self.constraint.ids.end)
                self._note(row, (1.0, 1.0, float(closes)))
                self._votes.follow(row.number, before, row.state)

    def _keep_first(self, places: Sequence[tuple[Asked, int]]) -> None:
        """Remember what the models said where names begin: at places of rows, and where these are in their logits."""
        begun = [(one, here) for one, here in places if one.state.phase == Phase.LIST and one.state.node == ROOT]
        if not self._masses or not begun:
            return
        said = self._votes.of([here for _, here in begun], self._first_ids)
        for number, (one, _) in enumerate(begun):
            one.row.first[one.at] = said[:, number]
            one.row.columns[one.at] = self.runs[0].columns - one.behind

    def _note(self, row: Row, numbers: Numbers) -> None:
        """Append an id's numbers."""
        for known, number in zip((row.chosen, row.mass, row.closing), numbers, strict=True):
            known.append(number)
