"""What may be written next: the answer as one state machine a row, a pure function of the row's generated ids.

It knows ids and sets of drugs: no text, no tokenizer, no model, no tensor.

    opening (forced) -> diagnoses (free text) -> header (forced) -> list -> done
                                                                      any -> parked

**State.** A row's state is its phase, its place in that phase, the trie's node inside a name, and two sets of drugs as
the bits of one int each: `allowed`, those that may still be listed, and `taken`, those that are. `Constraint.step(state,
token)` makes the next state, and nothing else changes it. So the state after some ids is the same whichever row, beam or
call they come from, and beam search may reorder, copy and drop rows as it likes (`decoding.states` remembers them by ids).

**The rule of the list** (`Constraint.allowed`, the one place where masking is decided). At node n with the set A:

1. a token that leads to child c is allowed if and only if some drug below c is in A;
2. if a name ends at n and its drug d is in A, the separator is allowed if another drug could follow: A without d and
   without d's conflicts is not empty, and the list has room for it;
3. and the end is, unless the list is shorter than its minimum and the separator is allowed;
4. if nothing is allowed by 1 to 3, the end is.

**Why no list ends badly.** `step` follows only what rule 1 to 4 allow; any other token parks the row, and a
parked row never lists another drug. A name that is completed was in A, so it is in the vocabulary. The separator after
d takes d and its conflicts out of A for good: nothing later repeats d or conflicts with it; conflicts are made
symmetric first, so nothing earlier does either. **Why there is no dead end.** By rule 1 the node of a row in
the list has a drug of A below it (or at it), and a path to that drug's end is then allowed token by token, where by 2
and 3 the separator or the end is allowed; after a separator A is not empty by rule 2, so the same holds at the root.
Rule 4 is needed only for a list whose A was empty from the start. A list that ends below its minimum does so by rule 3
because nothing could follow.

**Diagnoses** are free text, unless the constraint has a list of their names. In free text any text token is allowed. Of
the tokens that contain a separator or a newline only two are: the exact separator, and the exact newline which ends the
phase; the caller leaves merged tokens such as `）；` out of `AnswerIds.text`. When the phase's budget is used up the newline
is forced. With a list, rules 1 and 2 hold for its own trie, with the names not yet written as A, no conflicts, and the
newline as end; a separator is allowed only if the longest name still fits into the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.trie import NO_DRUG, ROOT, Trie, bits, members

Ids = npt.NDArray[np.int64]
MEMO_SIZE = 1 << 16
ROOTS = 1 << 12
"""Sets of ids that are remembered inside names, and where names begin (some kilobytes each)."""
END, SEPARATOR = 1, 2
"""What may close a name, as a sum."""


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
    taken: int = 0
    """Those names, as bits by the trie's numbers."""
    written: tuple[int, ...] = ()
    """Diagnoses completed by a separator, by the numbers of their trie; only where they are bound to a list."""


LIST = Phase.LIST
_new = partial(tuple.__new__, State)  # `State._make` without its check, for the two steps that are taken most


class Constraint:
    """The rule of the answer for one vocabulary and one table of conflicts.

    `names` are the labels' ids, each encoded alone; `conflicts` is a boolean [D, D] matrix over the same order, true
    where two labels must not be listed together. It is made symmetric; its diagonal means nothing, since no label is
    listed twice anyway. A list has `min_drugs` to `max_drugs` names, fewer only where nothing could follow. `diagnoses` are
    the ids of the only names that a diagnosis may have; None leaves them free text. Raises ValueError for a matrix of
    another shape, names that hold a separator or end id, limits below 1, or limits that contradict each other.
    """

    def __init__(
        self,
        names: Iterable[Sequence[int]],
        conflicts: npt.NDArray[np.bool_],
        ids: AnswerIds,
        *,
        min_drugs: int = 1,
        max_drugs: int | None = None,
        max_diagnosis_tokens: int = 256,
        diagnoses: Iterable[Sequence[int]] | None = None,
    ) -> None:
        self.trie = Trie(names)
        self.diagnoses = None if diagnoses is None else Trie(diagnoses)
        self.ids = ids
        self.min_drugs = min_drugs
        self.max_drugs = len(self.trie) if max_drugs is None else max_drugs
        self.max_diagnosis_tokens = max_diagnosis_tokens
        self._longest = max(map(len, self.diagnoses.names), default=0) if self.diagnoses else 0
        self._check(conflicts)
        order = self.trie.order
        self.together: npt.NDArray[np.bool_] = (conflicts | conflicts.T)[np.ix_(order, order)]
        np.fill_diagonal(self.together, True)
        self._keeps = [~bits(row) for row in self.together]
        self._below = below = self.trie.below
        self._children, self._ending = self.trie.children, self.trie.ending
        self._branches = [[(token, below[child]) for token, child in children.items()] for children in self._children]
        closing: tuple[list[int], ...] = ([], [ids.end], [ids.drug_separator], sorted([ids.end, ids.drug_separator]))
        self._closing = [np.array(tokens, dtype=np.int64) for tokens in closing]
        self._sole: list[Ids | None] = [
            np.array(list(children), dtype=np.int64) if node != ROOT and len(children) == 1 and ending == NO_DRUG else None
            for node, (children, ending) in enumerate(zip(self.trie.children, self.trie.ending, strict=True))
        ]
        self.inside_diagnosis: Ids = np.sort(np.append(ids.text, [ids.diagnosis_separator, ids.newline]))
        self.texts = (self.inside_diagnosis, ids.text)
        """What free text allows inside a diagnosis, and where one begins: nearly all ids."""
        self._memo: dict[tuple[int, int, int], Ids] = {}
        self._single: dict[int, Ids] = {}
        self._roots: dict[int, Ids] = {}
        self._whole = self._untouched()

    def _check(self, conflicts: npt.NDArray[np.bool_]) -> None:
        size = len(self.trie)
        if conflicts.shape != (size, size) or conflicts.dtype != np.bool_:
            raise ValueError(f"conflicts are {conflicts.dtype} {conflicts.shape}, not bool ({size}, {size})")
        if (size and self.max_drugs < 1) or min(self.max_diagnosis_tokens, self.min_drugs) < 1:
            raise ValueError("min_drugs, max_drugs and max_diagnosis_tokens must be at least 1")
        if size and self.min_drugs > self.max_drugs:
            raise ValueError(f"min_drugs is {self.min_drugs}, above max_drugs, {self.max_drugs}")
        _check_names(self.trie, {self.ids.drug_separator, *self.ids.ends})
        if self.diagnoses is not None:
            _check_names(self.diagnoses, {self.ids.diagnosis_separator, self.ids.newline, *self.ids.ends})
            if not 1 <= self._longest <= self.max_diagnosis_tokens:
                raise ValueError(f"the longest diagnosis has {self._longest} ids, not 1 to {self.max_diagnosis_tokens}")

    def start(
        self,
        phase: Phase = Phase.OPENING,
        *,
        banned: Iterable[int] = (),
        only: Iterable[int] | None = None,
    ) -> State:
        """The state of a row without ids: which phase comes first and which drugs are allowed (vocabulary positions)."""
        wanted, unwanted = set(() if only is None else only), set(banned)
        if not wanted | unwanted <= set(range(len(self.trie))):
            raise ValueError(f"positions are 0 to {len(self.trie) - 1}")
        allowed = self._below[ROOT] if only is None else self._bits(wanted)
        allowed &= ~self._bits(unwanted)
        return self._settle(State(phase, 0, False, ROOT, allowed, 0))

    def _bits(self, positions: Iterable[int]) -> int:
        return sum(1 << int(self.trie.number[position]) for position in positions)

    def allowed(self, state: State) -> Ids:
        """Ids that may come next; never empty. Not to be changed: arrays are shared."""
        if state.phase is LIST:
            sole = self._sole[state.node]
            # With one child and no name ending, rule 1 held for that child when this node was reached.
            return self._allowed_in_list(state) if sole is None else sole
        if state.phase == Phase.DIAGNOSES:
            return self._allowed_in_diagnoses(state)
        if state.phase == Phase.OPENING:
            return self._only(self.ids.opening[state.position])
        if state.phase == Phase.HEADER:
            return self._only(self.ids.header[state.position])
        return self._only(self.ids.end)

    def _allowed_in_list(self, state: State) -> Ids:
        """Rules 1 to 4."""
        _, _, _, node, allowed, listed, _, _ = state
        if node == ROOT:
            known = self._roots.get(allowed)
            return self._remember_root(allowed) if known is None else known
        closing = 0
        if (drug := self._ends_at(node, allowed)) != NO_DRUG:
            more = listed + 1 < self.max_drugs and bool(allowed & self._keeps[drug])
            closing = END * (listed + 1 >= self.min_drugs or not more) + SEPARATOR * more
            if not self._branches[node]:
                return self._closing[closing]
        inside = self._below[node] & allowed
        if inside == self._below[node]:
            return self._whole[node][closing]
        key = (node, inside, closing)
        known = self._memo.get(key)
        return self._remember(key) if known is None else known

    def _untouched(self) -> list[tuple[Ids, ...]]:
        """The ids of each node with a choice while all drugs below it are allowed, by what may close the name there."""
        found: list[tuple[Ids, ...]] = []
        for node, (below, ending) in enumerate(zip(self._below, self.trie.ending, strict=True)):
            choice = node != ROOT and self._sole[node] is None and bool(self._branches[node])
            closings = range(1 if ending == NO_DRUG else 4) if choice else range(0)
            found.append(tuple(self._ids_of((node, below, closing)) for closing in closings))
        return found

    def _remember(self, key: tuple[int, int, int]) -> Ids:
        """The ids of a node, the allowed drugs below it, and what may close the name there."""
        if len(self._memo) >= MEMO_SIZE:
            self._memo.clear()
        found = self._memo[key] = self._ids_of(key)
        return found

    def _remember_root(self, allowed: int) -> Ids:
        """The ids where a name begins, by the allowed drugs: asked for at each place some times in a row."""
        if len(self._roots) >= ROOTS:
            self._roots.clear()
        found = self._roots[allowed] = self._ids_of((ROOT, allowed, 0))
        return found

    def _ids_of(self, key: tuple[int, int, int]) -> Ids:
        node, inside, closing = key
        if node == ROOT:
            return self.trie.beginnings(inside) if inside else self._only(self.ids.end)
        tokens = [token for token, below in self._branches[node] if below & inside]
        return np.array(sorted([*tokens, *self._closing[closing].tolist()]), dtype=np.int64)

    def _allowed_in_diagnoses(self, state: State) -> Ids:
        if self.diagnoses is not None:
            return np.array(sorted(self._allowed_names(self.diagnoses, state)), dtype=np.int64)
        if state.position >= self.max_diagnosis_tokens:
            return self._only(self.ids.newline)
        return self.inside_diagnosis if state.open else self.ids.text

    def _allowed_names(self, trie: Trie, state: State) -> list[int]:
        tokens = [token for token, child in trie.children[state.node].items() if trie.left(child, state.written)]
        name = trie.ending[state.node]
        if name != NO_DRUG and name not in state.written:
            room = state.position + 1 + self._longest <= self.max_diagnosis_tokens
            more = room and len(state.written) + 1 < len(trie)
            tokens += [self.ids.newline] + [self.ids.diagnosis_separator] * more
        return tokens or [self.ids.newline]

    def _only(self, token: int) -> Ids:
        return self._single.setdefault(token, np.array([token], dtype=np.int64))

    def _ends_at(self, node: int, allowed: int) -> int:
        drug = self._ending[node]
        return drug if drug != NO_DRUG and allowed >> drug & 1 else NO_DRUG

    def step(self, state: State, token: int) -> State:
        """The state after one more id.

        An end id ends any row. In the forced parts, the list and bound diagnoses, another id that `allowed` does not hold
        parks the row; diagnoses in free text take any other id as text.
        """
        phase, position, _, node, allowed, listed, taken, _ = state
        if phase is LIST:
            child = self._children[node].get(token)
            if child is not None and self._below[child] & allowed:
                return _new((LIST, position, False, child, allowed, listed, taken, ()))
            return self._close(state, token)
        if token in self.ids.ends or state.phase >= Phase.DONE:
            return state._replace(phase=Phase.PARKED if state.phase == Phase.PARKED else Phase.DONE)
        if state.phase == Phase.DIAGNOSES:
            return self._step_in_diagnoses(state, token)
        forced = self.ids.opening if state.phase == Phase.OPENING else self.ids.header
        if token != forced[state.position]:
            return _parked(state)
        return self._settle(state._replace(position=state.position + 1))

    def _step_in_diagnoses(self, state: State, token: int) -> State:
        if self.diagnoses is not None and token not in self._allowed_names(self.diagnoses, state):
            return _parked(state)
        if token == self.ids.newline:
            return self._settle(State(Phase.HEADER, 0, False, ROOT, state.allowed, 0))
        closed = token == self.ids.diagnosis_separator
        after = state._replace(position=state.position + 1, open=not closed)
        if self.diagnoses is None:
            return after
        if closed:
            return after._replace(node=ROOT, written=(*state.written, self.diagnoses.ending[state.node]))
        return after._replace(node=self.diagnoses.children[state.node][token])

    def _close(self, state: State, token: int) -> State:
        """After an id of the list that leads to no child: the end, a separator after a name, or out."""
        _, position, _, node, allowed, listed, taken, _ = state
        if token in self.ids.ends:
            return state._replace(phase=Phase.DONE)
        if token == self.ids.drug_separator and (drug := self._ends_at(node, allowed)) != NO_DRUG:
            left = allowed & self._keeps[drug]
            if left and listed + 1 < self.max_drugs:
                return _new((LIST, position, False, ROOT, left, listed + 1, taken | 1 << drug, ()))
        return _parked(state)

    def _settle(self, state: State) -> State:
        """Go on to the next phase if this one is forced and written."""
        if state.phase == Phase.OPENING and state.position >= len(self.ids.opening):
            return state._replace(phase=Phase.DIAGNOSES, position=0)
        if state.phase == Phase.HEADER and state.position >= len(self.ids.header):
            return state._replace(phase=Phase.LIST, position=0)
        return state

    def follow(self, state: State, ids: Iterable[int]) -> State:
        """The state after some ids."""
        for token in ids:
            state = self.step(state, token)
        return state

    def list_ids(self, positions: Sequence[int]) -> list[int]:
        """The ids of a whole list of drugs, with separators and the end."""
        ids = [token for position in positions for token in (*self.name(position), self.ids.drug_separator)]
        return [*ids[:-1], self.ids.end]

    def completed(self, state: State) -> int:
        """Vocabulary position of the drug whose name ends at this state, or -1."""
        drug = self._ends_at(state.node, state.allowed) if state.phase == Phase.LIST else NO_DRUG
        return int(self.trie.order[drug]) if drug != NO_DRUG else NO_DRUG

    def could_grow(self, state: State) -> bool:
        """Whether the name at this state can still become a longer one."""
        return any(below & state.allowed for _, below in self._branches[state.node])

    def name(self, position: int) -> tuple[int, ...]:
        """The ids of a label."""
        return self.trie.names[int(self.trie.number[position])]

    def in_conflict(self, position: int, other: int) -> bool:
        """Whether two labels must not be listed together."""
        return not self.without(1 << int(self.trie.number[other]), position)

    def positions(self, drugs: int) -> list[int]:
        """Vocabulary positions of a set of drugs."""
        return [int(self.trie.order[drug]) for drug in members(drugs)]

    def without(self, allowed: int, position: int, *, conflicts: bool = True) -> int:
        """The set that is left once a drug is listed: without it and, unless told otherwise, without its conflicts."""
        drug = int(self.trie.number[position])
        return allowed & (self._keeps[drug] if conflicts else ~(1 << drug))


def _check_names(trie: Trie, fixed: set[int]) -> None:
    for drug, name in enumerate(trie.names):
        if fixed.intersection(name):
            raise ValueError(f"name {trie.order[drug]} holds a separator, newline or end id")


def _parked(state: State) -> State:
    return state._replace(phase=Phase.PARKED)
