"""What may be written next: the answer as one state machine a row, a pure function of the row's generated ids.

It knows ids and sets of drugs: no text, no tokenizer, no model, no tensor.

    opening (forced) -> diagnoses (free text) -> header (forced) -> list -> done
                                                                      any -> parked

**State.** A row's state is its phase, its place in that phase, the trie's node inside a name, and `allowed`, the set of
drugs that may still be listed, as the bits of one int. `Constraint.step(state, token)` makes the next state, and
nothing else changes it. So the state after some ids is the same whichever row, beam or call they come from, and beam
search may reorder, copy and drop rows as it likes. `StatesByIds` only remembers the states of the last step's ids.

**The rule of the list** (`Constraint.allowed`, the one place where masking is decided). At node n with the set A:

1. a token that leads to child c is allowed if and only if some drug below c is in A;
2. if a name ends at n and its drug d is in A, the end is allowed;
3. and the separator is, if another drug could follow: A without d and without d's conflicts is not empty, and the list
   has room;
4. if nothing is allowed by 1 to 3, the end is.

**Why no list ends badly.** `step` follows only what rule 1 to 4 allow; any other token parks the row, and a
parked row never lists another drug. A name that is completed was in A, so it is in the vocabulary. The separator after
d takes d and its conflicts out of A for good: nothing later repeats d or conflicts with it; conflicts are made
symmetric first, so nothing earlier does either. **Why there is no dead end.** By rule 1 the node of a row in
the list has a drug of A below it (or at it), and a path to that drug's end is then allowed token by token; after a
separator A is not empty by rule 3, so the same holds at the root. Rule 4 is needed only for a list whose A was
empty from the start.

**Free text.** In the diagnoses any text token is allowed. Of the tokens that contain a separator or a newline only two
are: the exact separator, and the exact newline which ends the phase; the caller leaves merged tokens such as `）；` out of
`AnswerIds.text`. When the phase's budget is used up the newline is forced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from yaofang.decoding.trie import NO_DRUG, ROOT, Trie, bits, members

Ids = npt.NDArray[np.int64]
MEMO_SIZE = 1 << 16


class Phase(IntEnum):
    """Where in the answer a row is."""

    OPENING = 0
    DIAGNOSES = 1
    HEADER = 2
    LIST = 3
    DONE = 4
    PARKED = 5
    """The row's ids left the answer's format: a filler of beam search. It is offered the end and never raises."""


class State(NamedTuple):
    """All that the past of a row means for its future."""

    phase: Phase
    position: int
    """Tokens written in the opening, the diagnoses or the header."""
    open: bool
    """The current diagnosis has a token."""
    node: int
    """Node of the trie inside a name; `ROOT` where a name begins."""
    allowed: int
    """Drugs that may still be listed, as bits by the trie's numbers."""
    listed: int
    """Names completed by a separator."""


@dataclass(frozen=True, slots=True)
class AnswerIds:
    """The answer's fixed parts as ids, each encoded alone."""

    opening: tuple[int, ...]
    """Everything before the first diagnosis."""
    diagnosis_separator: int
    newline: int
    """Ends the diagnoses."""
    header: tuple[int, ...]
    """Between that newline and the first drug."""
    drug_separator: int
    end: int
    """The stop id that training taught: the only one that is offered."""
    ends: frozenset[int]
    """Every id that ends a row when it appears, `end` among them."""
    text: Ids = field(repr=False)
    """Ids allowed inside a diagnosis: no special token, no spare row, none that contains a newline or a separator."""

    def __post_init__(self) -> None:
        fixed = {self.newline, self.diagnosis_separator, *self.ends}
        if self.end not in self.ends:
            raise ValueError(f"the stop id {self.end} is not among the ids that end a row, {sorted(self.ends)}")
        if self.drug_separator in self.ends or len(fixed) != len(self.ends) + 2:
            raise ValueError("separators, newline and end ids must differ")
        if fixed & set(self.text.tolist()):
            raise ValueError("the text ids hold a newline, separator or end id")


class Reading(NamedTuple):
    """What a row's ids say. Spans are half-open intervals of positions in the ids."""

    state: State
    """The state after the last id."""
    diagnoses: list[tuple[int, int]]
    """Spans of the diagnoses; only the last can be unfinished."""
    drugs: list[int]
    """Whole names, as positions in the vocabulary, in the order written."""
    spans: list[tuple[int, int]]
    """Span of each whole name, without separator or end."""

    @property
    def truncated(self) -> bool:
        """The row was cut before it ended."""
        return self.state.phase != Phase.DONE


class Constraint:
    """The rule of the answer for one vocabulary and one table of conflicts.

    `names` are the labels' ids, each encoded alone; `conflicts` is a boolean [D, D] matrix over the same order, true
    where two labels must not be listed together. It is made symmetric; its diagonal means nothing, since no label is
    listed twice anyway. Raises ValueError for a matrix of another shape, names that hold a separator or end id, and
    limits below 1.
    """

    def __init__(
        self,
        names: Iterable[Sequence[int]],
        conflicts: npt.NDArray[np.bool_],
        ids: AnswerIds,
        *,
        max_drugs: int | None = None,
        max_diagnosis_tokens: int = 256,
    ) -> None:
        self.trie = Trie(names)
        self.ids = ids
        self.max_drugs = len(self.trie) if max_drugs is None else max_drugs
        self.max_diagnosis_tokens = max_diagnosis_tokens
        self._check(conflicts)
        order = self.trie.order
        together = (conflicts | conflicts.T)[np.ix_(order, order)]
        np.fill_diagonal(together, True)
        self._removes = [bits(row) for row in together]
        below = self.trie.below
        self._branches = [
            [(token, child, below[child]) for token, child in children.items()] for children in self.trie.children
        ]
        self.inside_diagnosis: Ids = np.append(ids.text, [ids.diagnosis_separator, ids.newline])
        self._memo: dict[tuple[int, int, bool], Ids] = {}
        self._single: dict[int, Ids] = {}

    def _check(self, conflicts: npt.NDArray[np.bool_]) -> None:
        size = len(self.trie)
        if conflicts.shape != (size, size) or conflicts.dtype != np.bool_:
            raise ValueError(f"conflicts are {conflicts.dtype} {conflicts.shape}, not bool ({size}, {size})")
        if (size and self.max_drugs < 1) or self.max_diagnosis_tokens < 1:
            raise ValueError("max_drugs and max_diagnosis_tokens must be at least 1")
        fixed = {self.ids.drug_separator, *self.ids.ends}
        for drug, name in enumerate(self.trie.names):
            if fixed.intersection(name):
                raise ValueError(f"name {self.trie.order[drug]} holds a separator or end id")

    def start(
        self,
        phase: Phase = Phase.OPENING,
        *,
        banned: Iterable[int] = (),
        only: Iterable[int] | None = None,
    ) -> State:
        """The state of a row without ids: which phase comes first and which drugs are allowed (vocabulary positions)."""
        everything = range(len(self.trie)) if only is None else only
        allowed = 0
        for position in set(everything) - set(banned):
            allowed |= 1 << int(self.trie.number[position])
        return self._settle(State(phase, 0, False, ROOT, allowed, 0))

    def allowed(self, state: State) -> Ids:
        """Ids that may come next; never empty. Not to be changed: arrays are shared."""
        if state.phase == Phase.LIST:
            room = state.listed + 1 < self.max_drugs
            return self._allowed_in_list(state.node, state.allowed, room)
        if state.phase == Phase.DIAGNOSES:
            if state.position >= self.max_diagnosis_tokens:
                return self._only(self.ids.newline)
            return self.inside_diagnosis if state.open else self.ids.text
        if state.phase == Phase.OPENING:
            return self._only(self.ids.opening[state.position])
        if state.phase == Phase.HEADER:
            return self._only(self.ids.header[state.position])
        return self._only(self.ids.end)

    def _allowed_in_list(self, node: int, allowed: int, room: bool) -> Ids:
        key = (node, allowed, room)
        known = self._memo.get(key)
        if known is None:
            tokens = [token for token, _, below in self._branches[node] if below & allowed]
            drug = self._ends_at(node, allowed)
            if drug != NO_DRUG:
                tokens.append(self.ids.end)
                if room and allowed & ~self._removes[drug]:
                    tokens.append(self.ids.drug_separator)
            known = np.array(tokens or [self.ids.end], dtype=np.int64)
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            self._memo[key] = known
        return known

    def _only(self, token: int) -> Ids:
        return self._single.setdefault(token, np.array([token], dtype=np.int64))

    def _ends_at(self, node: int, allowed: int) -> int:
        drug = self.trie.ending[node]
        return drug if drug != NO_DRUG and allowed >> drug & 1 else NO_DRUG

    def step(self, state: State, token: int) -> State:
        """The state after one more id.

        An end id ends any row. In the forced parts and the list, another id that `allowed` does not hold parks the row;
        the diagnoses are free text, where any other id is taken as text.
        """
        if token in self.ids.ends or state.phase >= Phase.DONE:
            return state._replace(phase=Phase.PARKED if state.phase == Phase.PARKED else Phase.DONE)
        if state.phase == Phase.LIST:
            return self._step_in_list(state, token)
        if state.phase == Phase.DIAGNOSES:
            return self._step_in_diagnoses(state, token)
        forced = self.ids.opening if state.phase == Phase.OPENING else self.ids.header
        if token != forced[state.position]:
            return _parked(state)
        return self._settle(state._replace(position=state.position + 1))

    def _step_in_diagnoses(self, state: State, token: int) -> State:
        if token == self.ids.newline:
            return self._settle(State(Phase.HEADER, 0, False, ROOT, state.allowed, 0))
        return state._replace(position=state.position + 1, open=token != self.ids.diagnosis_separator)

    def _step_in_list(self, state: State, token: int) -> State:
        if token == self.ids.drug_separator:
            drug = self._ends_at(state.node, state.allowed)
            left = state.allowed & ~self._removes[drug] if drug != NO_DRUG else 0
            if not left or state.listed + 1 >= self.max_drugs:
                return _parked(state)
            return state._replace(node=ROOT, allowed=left, listed=state.listed + 1)
        child = self.trie.children[state.node].get(token)
        if child is None or not self.trie.below[child] & state.allowed:
            return _parked(state)
        return state._replace(node=child)

    def _settle(self, state: State) -> State:
        """Go on to the next phase if this one is forced and written."""
        if state.phase == Phase.OPENING and state.position >= len(self.ids.opening):
            return state._replace(phase=Phase.DIAGNOSES, position=0)
        if state.phase == Phase.HEADER and state.position >= len(self.ids.header):
            return state._replace(phase=Phase.LIST, position=0)
        return state

    def completed(self, state: State) -> int:
        """Vocabulary position of the drug whose name ends at this state, or -1."""
        drug = self._ends_at(state.node, state.allowed) if state.phase == Phase.LIST else NO_DRUG
        return int(self.trie.order[drug]) if drug != NO_DRUG else NO_DRUG

    def could_grow(self, state: State) -> bool:
        """Whether the name at this state can still become a longer one."""
        return any(below & state.allowed for _, _, below in self._branches[state.node])

    def name(self, position: int) -> tuple[int, ...]:
        """The ids of a label."""
        return self.trie.names[int(self.trie.number[position])]

    def in_conflict(self, position: int, other: int) -> bool:
        """Whether two labels must not be listed together."""
        return not self.without(1 << int(self.trie.number[other]), position)

    def positions(self, allowed: int) -> list[int]:
        """Vocabulary positions of a set of drugs."""
        return [int(self.trie.order[drug]) for drug in members(allowed)]

    def without(self, allowed: int, position: int, *, conflicts: bool = True) -> int:
        """The set that is left once a drug is listed: without it and, unless told otherwise, without its conflicts."""
        drug = int(self.trie.number[position])
        return allowed & ~(self._removes[drug] if conflicts else 1 << drug)

    def read(self, start: State, ids: Sequence[int]) -> Reading:
        """Diagnoses and whole drug names in the ids of a row.

        A name is whole if a separator or end follows it, or if the ids stop after it and no longer name was possible.
        """
        state, begun = start, 0
        diagnoses: list[tuple[int, int]] = []
        drugs: list[int] = []
        spans: list[tuple[int, int]] = []
        for at, token in enumerate(ids):
            if state.phase >= Phase.DONE:
                break
            following = self.step(state, token)
            if state.phase == Phase.DIAGNOSES and (following.phase != state.phase or not following.open):
                diagnoses.append((begun, at))
            if _ends_name(state, following) and self.completed(state) != NO_DRUG:
                drugs.append(self.completed(state))
                spans.append((begun, at))
            if following.phase != state.phase or following.listed != state.listed or following.open < state.open:
                begun = at + 1
            state = following
        if state.phase == Phase.DIAGNOSES and state.open:
            diagnoses.append((begun, len(ids)))
        if self.completed(state) != NO_DRUG and not self.could_grow(state):
            drugs.append(self.completed(state))
            spans.append((begun, len(ids)))
        return Reading(state, [(first, end) for first, end in diagnoses if first < end], drugs, spans)


def _ends_name(state: State, following: State) -> bool:
    return following.phase == Phase.DONE or following.listed > state.listed


def _parked(state: State) -> State:
    return state._replace(phase=Phase.PARKED)


class StatesByIds:
    """States of rows whose ids grow by one a call, remembered by the ids and not by the row's place.

    Rows may come back in any order, doubled or cut; ids that were not there a step before are read from their start.
    """

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self._known: dict[tuple[State, tuple[int, ...]], State] = {}

    def of(self, starts: Sequence[State], rows: Sequence[Sequence[int]]) -> list[State]:
        """The state of each row, given its start and its generated ids."""
        known = {(start, tuple(ids)): self._state(start, tuple(ids)) for start, ids in zip(starts, rows, strict=True)}
        states = [known[start, tuple(ids)] for start, ids in zip(starts, rows, strict=True)]
        self._known = known
        return states

    def _state(self, start: State, ids: tuple[int, ...]) -> State:
        if not ids:
            return start
        state = self._known.get((start, ids[:-1]))
        if state is None:
            state = start
            for token in ids[:-1]:
                state = self._constraint.step(state, token)
        return self._constraint.step(state, ids[-1])
