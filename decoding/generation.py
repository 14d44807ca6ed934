"""Lists for a batch of prompts under one constraint: greedy, sampled or along a plan, by one model or several that vote.

Knows ids, tensors and models with a key/value cache; knows no record, no label and no text. Every id is recorded with its
probability among the allowed ids and with the mass that was allowed, which is what `p_step` and `masked_mass` are made of.

**Jump-forward.** Most ids of an answer are no choice: the rest of a name once it is told from its neighbours, headers,
a planned list. They are written at once and pass through the model together with the choice before them, so a row takes
one forward a choice and not one an id. Rows of a batch need not be at the same place: each gives its own run of ids, padded
on the left, and padding is no column that anybody attends to. The ids are the same as one by one (tests).

**Places.** A row that has ended may leave its place to another prompt (`replace`), so that the models' batch stays full.

**Drafts** (`decoding.drafts`). What may well follow, such as the separator after a name that cannot grow, passes through the
model with what is written, unwritten itself. What the model says decides as ever: where the choice is the draft, what comes
after it has been read already; where it is not, the columns of the draft are struck out.

**Voting.** Models m = 1..M (folds) vote for whole names, not for tokens: the probability of a name t1..tk is
(1/M) sum over m of P_m(t1) P_m(t2|t1) ... P_m(tk|..), each P_m renormalised over the allowed ids. Written token by
token, that is the mixture sum over m of w_m P_m(t), with w_m proportional to the product of P_m over the tokens of the
name so far. The weights go back to 1/M at each separator. In the diagnoses, the next-token probabilities are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from yaofang.decoding.bias import Bias
from yaofang.decoding.constraint import Constraint, Ids, Phase, State
from yaofang.decoding.drafts import Drafts
from yaofang.decoding.masking import gathered
from yaofang.decoding.running import Run, check_same_tokenizer
from yaofang.decoding.trie import ROOT
from yaofang.glm.loading import LoadedModel

WORTHWHILE = 0.75
"""Share of rows still running below which the others are dropped: it takes a copy of the cache."""
WAITING = 64
"""Places whose logits are looked at at once."""
Numbers = tuple[float, float, float]
"""Of one id: probability among the allowed, mass of the allowed, probability that a name closes here."""
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
    """Probability of all allowed ids before the mask; 1 for forced ids where no masses were asked for."""
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


class Seen(NamedTuple):
    """What the models say at n places: `ids` [n, k] and `log_p` [models, n, k] of the allowed, padded with -inf.

    `raw` [n, k] are one model's own logits, None for several; `log_mass` [models, n] is of all allowed ids before the mask.
    """

    ids: torch.Tensor
    log_p: torch.Tensor
    raw: torch.Tensor | None
    log_mass: torch.Tensor


class Generation:
    """A batch from prompts to ended rows, and further prompts in their places. `steps` does the work; `rows` is up to date.

    `prompts` are ids of unequal length (padded on the left here), `starts` and `limits` give a state and a number of new ids
    for each. `copies` rows of each prompt share its forward; with `seeds`, one a prompt, their ids are drawn instead of the
    likeliest taken, and the draws of a prompt do not depend on what else is in the batch. `plans` are ids that a row has to
    write first, where the constraint allows them. `masses` asks for the probability of forced ids too. `jump` False passes
    forced ids one by one. Raises InputError if the models do not share one tokenizer, ValueError for logits that are NaN.
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
        self._bias, self._masses, self._jump, self._watch = bias, masses, jump, watch
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
        self._weights = torch.zeros(len(models), len(self.rows), device=models[0].device)
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
            self._note_waiting(self.rows)

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
            self._weights[:, number] = 0.0
            self._drafts.read(prompt)
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
        chunks = [self._chunk(row) for row in carried]
        # Asked of a row: what its waiting ids were likely to be, each drafted one, and what comes next.
        asked = [0 if row.ended else len(row.waiting) + len(row.draft) + 1 for row in carried]
        for run in self.runs:
            run.extend(chunks, keep=asked)
        self._ends = dict(zip(self._places, accumulate(asked), strict=True))
        for row in self.rows:
            row.unfed = 0
        self.forwards += 1

    def _chunk(self, row: Row) -> list[int]:
        """What the models have to read of a row, with the draft after it."""
        if row.ended:
            return []
        if self._jump and row.running:
            row.draft = self._drafts.after(row.state, row.ids, row.limit - len(row.ids) - 1)
        return row.ids[len(row.ids) - row.unfed :] + row.draft

    def _drop_ended(self) -> None:
        """Take rows that have ended out of the models' batch, once they are many; not if their caches may be wanted later."""
        left = [number for number in self._places if not self.rows[number].ended or self.rows[number].wanted]
        if len(left) > WORTHWHILE * len(self._places):
            return
        for run in self.runs:
            run.keep([self._places[number] for number in left])
        self._places = {number: place for place, number in enumerate(left)}

    def _said(self, asked: Sequence[tuple[Row, int]]) -> torch.Tensor:
        """[models, n, V]: what the models say at n places, each so many before the last one that was asked of its row."""
        places = [self._ends[row.number] - 1 - back for row, back in asked]
        if len(self.runs) == 1:
            return self.runs[0].logits[places][None]
        return torch.stack([run.logits[places].to(self._weights.device) for run in self.runs])

    def _step(self, read: Sequence[Row]) -> None:
        """Note the numbers of what these rows had to write, and make their next choice; all their ids have been read."""
        self._note_waiting(read)
        some = running = [row for row in read if row.running]
        while some:
            # Where text is written, thousands of ids are allowed: apart, so that the lists' places are not padded to as many.
            alike = [[row for row in some if (row.state.phase == Phase.LIST) == listed] for listed in (True, False)]
            for rows in filter(None, alike):
                self._choose(rows)
            some = [row for row in some if self._as_drafted(row)]
            for row in some:
                row.choices -= len(self.constraint.allowed(row.state)) == 1
        if self._jump:
            for row in running:
                self._write_forced(row)

    def _as_drafted(self, row: Row) -> bool:
        """Whether the models have read the id just written, so that the next choice can be made too; else the draft goes."""
        draft, row.draft = row.draft, []
        if draft and row.running and draft[0] == row.ids[-1]:
            row.draft, row.unfed = draft[1:], 0
            return True
        if draft and row.running:
            for run in self.runs:
                run.forget(self._places[row.number], len(draft))
        return False

    def _choose(self, rows: Sequence[Row]) -> None:
        """One choice in each of these rows, by what the models say after its last id."""
        here = self._said([(row, len(row.draft)) for row in rows])
        seen, allowed = self._see(here, [row.state for row in rows])
        mixed = self._mixed(seen, rows)
        picked = self._picked(seen, mixed, rows, allowed)
        numbers = self._numbers(seen, mixed, picked, rows)
        self._keep_first(rows, [row.state for row in rows], [len(row.ids) for row in rows], here)
        for at, row in enumerate(rows):
            if self._watch is not None and row.state.phase == Phase.LIST:
                self._watch(row, row.state, allowed[at], mixed[at, : len(allowed[at])])
            before = row.state
            self._write(row, int(allowed[at][picked[at]]))
            self._note(row, before, numbers[at], seen.log_p[:, at, picked[at]] if len(self.runs) > 1 else None)
            row.choices += 1

    def _picked(self, seen: Seen, mixed: torch.Tensor, running: Sequence[Row], allowed: Sequence[Ids]) -> list[int]:
        """The chosen column in each row of `seen`: the plan's, a drawn one, or the likeliest."""
        if self._draws is not None:
            found = self._drawn(mixed, running, allowed)
        else:
            # One model is chosen by its logits themselves: the same numbers, in the same order, as in `generate`.
            found = (mixed if seen.raw is None else seen.raw).argmax(-1).tolist()
        for at, row in enumerate(running):
            if (planned := self._planned(row, allowed[at])) is not None:
                found[at] = int(np.flatnonzero(allowed[at] == planned)[0])
        return found

    def _drawn(self, mixed: torch.Tensor, running: Sequence[Row], allowed: Sequence[Ids]) -> list[int]:
        assert self._draws is not None
        while len(self._points) <= max(row.choices for row in running):
            drawn = [torch.rand(self._copies, generator=each, dtype=torch.float64) for each in self._draws]
            self._points.append(torch.cat(drawn))
        below = mixed.double().exp().cumsum(-1).cpu()
        points = torch.stack([self._points[row.choices][row.number] for row in running])
        wanted = points[:, None] * below[:, -1:]
        columns = torch.searchsorted(below, wanted, right=True)[:, 0].tolist()
        return [min(column, len(ids) - 1) for column, ids in zip(columns, allowed, strict=True)]

    def _planned(self, row: Row, allowed: Ids) -> int | None:
        plan = self._plans[row.number]
        return plan[len(row.ids)] if len(row.ids) < len(plan) and plan[len(row.ids)] in allowed else None

    def _write(self, row: Row, token: int) -> None:
        row.state = self.constraint.step(row.state, token)
        row.ids.append(token)
        row.unfed += 1
        self._drafts.learn(row.ids)

    def _write_forced(self, row: Row) -> None:
        """What must follow, and what is planned, without asking the models; their numbers are noted when they have read it."""
        while row.running:
            allowed = self.constraint.allowed(row.state)
            token = int(allowed[0]) if len(allowed) == 1 else self._planned(row, allowed)
            if token is None:
                return
            before = row.state
            if self._watch is not None and before.phase == Phase.LIST:
                self._watch(row, before, allowed, torch.from_numpy(np.log(allowed == token)))
            self._write(row, token)
            if self._masses or self._plans[row.number]:
                row.waiting.append(before)
            else:
                closes = token in (self.constraint.ids.drug_separator, self.constraint.ids.end)
                self._note(row, before, (1.0, 1.0, float(closes)), None)

    def _note_waiting(self, asked: Sequence[Row]) -> None:
        """The numbers of the ids that were written without a choice, now that the models have read them."""
        all_of = [(row, at) for row in asked for at in range(len(row.waiting))]
        # Several models: the weights of one place follow from the place before it.
        size = WAITING if len(self.runs) == 1 else 1
        for begin in range(0, len(all_of), size):
            some = all_of[begin : begin + size]
            rows, states = [row for row, _ in some], [row.waiting[at] for row, at in some]
            back = [len(row.waiting) - at for row, at in some]
            tokens = [row.ids[-one] for row, one in zip(rows, back, strict=True)]
            here = self._said([(row, one + len(row.draft)) for row, one in zip(rows, back, strict=True)])
            seen, allowed = self._see(here, states)
            picked = [int(np.flatnonzero(ids == token)[0]) for ids, token in zip(allowed, tokens, strict=True)]
            numbers = self._numbers(seen, self._mixed(seen, rows), picked, rows)
            self._keep_first(rows, states, [len(row.ids) - one for row, one in zip(rows, back, strict=True)], here)
            for at, (row, place) in enumerate(some):
                then = row.waiting[place + 1] if place + 1 < len(row.waiting) else row.state
                self._note(row, states[at], numbers[at], seen.log_p[:, at, picked[at]] if len(self.runs) > 1 else None, then)
        for row in asked:
            row.waiting = []

    def _see(self, logits: torch.Tensor, states: Sequence[State]) -> tuple[Seen, list[Ids]]:
        """`logits` [models, n, V] at n places among their allowed ids, and those ids."""
        allowed = [self.constraint.allowed(state) for state in states]
        bias = None if self._bias is None else [self._bias.of(s, ids) for s, ids in zip(states, allowed, strict=True)]
        ids, scores, before = gathered(logits, allowed, bias)
        whole = before.logsumexp(-1)
        mass = whole - logits.logsumexp(-1) if self._masses else logits.new_zeros(logits.shape[:2])
        log_p = scores - whole[..., None] if scores is before else scores.log_softmax(-1)
        return Seen(ids, log_p, scores[0] if len(scores) == 1 else None, mass), allowed

    def _mixed(self, seen: Seen, rows: Sequence[Row]) -> torch.Tensor:
        """Log of the models' weighted mean [n, k]."""
        if len(seen.log_p) == 1:
            return seen.log_p[0]
        return (seen.log_p + self._log_weights(rows)[..., None]).logsumexp(0)

    def _log_weights(self, rows: Sequence[Row]) -> torch.Tensor:
        return self._weights[:, [row.number for row in rows]].log_softmax(0)

    def _numbers(self, seen: Seen, mixed: torch.Tensor, picked: Sequence[int], rows: Sequence[Row]) -> list[Numbers]:
        """`chosen`, `mass` and `closing` of each place."""
        ids = self.constraint.ids
        chosen = mixed[torch.arange(len(picked)), torch.tensor(picked)].exp()
        closes = (seen.ids == ids.drug_separator) | (seen.ids == ids.end)
        closing = (mixed.exp() * (closes & torch.isfinite(mixed))).sum(-1) if closes.any() else torch.zeros_like(chosen)
        mass = seen.log_mass[0] if len(seen.log_mass) == 1 else (seen.log_mass + self._log_weights(rows)).logsumexp(0)
        columns = (chosen, mass.exp(), closing)
        return list(zip(*(column.clamp(max=1).tolist() for column in columns), strict=True))

    def _keep_first(self, rows: Sequence[Row], before: Sequence[State], places: Sequence[int], logits: torch.Tensor) -> None:
        """Remember what the models said where names begin; `logits` are [models, rows, V]."""
        at_root = [at for at, state in enumerate(before) if state.phase == Phase.LIST and state.node == ROOT]
        if not self._masses or not at_root:
            return
        said = logits[:, at_root].index_select(-1, self._first_ids).float().cpu()
        for number, at in enumerate(at_root):
            row, place = rows[at], places[at]
            row.first[place] = said[:, number]
            row.columns[place] = self.runs[0].columns - (len(row.ids) - place) - len(row.draft)

    def _note(self, row: Row, before: State, numbers: Numbers, log_p: torch.Tensor | None, after: State | None = None) -> None:
        """Append an id's numbers; `log_p` [models] is what each of several models gave it, None where it was certain.

        By it they vote on within the name. `after` is the state after the id, by default the row's.
        """
        for known, number in zip((row.chosen, row.mass, row.closing), numbers, strict=True):
            known.append(number)
        if len(self.runs) > 1:
            after = row.state if after is None else after
            within = before.phase == after.phase == Phase.LIST and before.listed == after.listed
            self._weights[:, row.number] = self._weights[:, row.number] + (0.0 if log_p is None else log_p) if within else 0.0
