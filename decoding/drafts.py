"""Ids that may well follow, to be read by the models before they are chosen: speculative decoding by looking up.

Knows the constraint and ids; no tensor, no text. A draft changes no choice: it passes through the model behind what is written,
what the model says decides as ever, and only where the choice is the draft has the next place been read already.

Four sources, in this order. What the constraint forces. Separator, where a name cannot grow and the choice is between
separator and end. Where a name begins, the first id that was next to be chosen where the name before it began (`Likely`): the
model has ranked the other names already. What came last after the same two ids (or one) in the prompts or in what the rows have
written, as in prompt lookup decoding (Saxena, 2023); in the diagnoses, failing that, their separator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from yaofang.decoding.constraint import Constraint, Ids, Phase, State
from yaofang.decoding.trie import ROOT

MOST = 4
"""Ids drafted at once. Each is read by the model whether it is right or not."""
AHEAD = 1
"""Ids that a row of several may draft beyond what the longest has to give: so far it is padding that is read in their stead."""
Likely = Callable[[Ids], int]
"""Of the first ids of some names, the one that a row is likely to go on with."""
REMEMBERED = 1 << 18
"""Pairs of ids and single ids after which what came is remembered; beyond that all is forgotten."""


class Drafts:
    """Drafts for the rows of one generation. `learned` False drafts separators and forced ids alone."""

    def __init__(self, constraint: Constraint, prompts: Sequence[Sequence[int]], *, learned: bool) -> None:
        self._constraint = constraint
        self._learned = learned
        self._after: dict[tuple[int, ...], int] = {}
        for ids in prompts:
            self.read(ids)

    def read(self, prompt: Sequence[int]) -> None:
        """Remember what came after what in another prompt."""
        if self._learned:
            if len(self._after) > REMEMBERED:
                self._after.clear()
            self._after.update(zip(zip(prompt), prompt[1:], strict=False))
            self._after.update(zip(pairwise(prompt), prompt[2:], strict=False))

    def learn(self, ids: Sequence[int]) -> None:
        """Remember what the last of a row's written ids came after."""
        if self._learned:
            for length in (1, 2):
                if len(ids) > length:
                    self._after[tuple(ids[-1 - length : -1])] = ids[-1]

    @staticmethod
    def room(unfed: Sequence[int]) -> list[int]:
        """How many ids each of some rows may draft that have so many to give. A row that is alone takes no other's time."""
        if len(unfed) == 1:
            return [MOST]
        return [min(MOST, max(unfed) + AHEAD - own) for own in unfed]

    def after(self, state: State, ids: Sequence[int], most: int, likely: Likely | None = None) -> list[int]:
        """At most so many ids that may follow a row's `ids`, which led to `state`; they stay in its phase.

        `likely` picks the first id of a name that begins; without it, or where nothing is learned, none is picked so.
        """
        found: list[int] = []
        last, phase = tuple(ids[-2:]), state.phase
        while len(found) < most:
            token = self._next(state, last, likely)
            if token is None:
                break
            after = self._constraint.step(state, token)
            if after.phase != phase:
                break
            found.append(token)
            state, last = after, (*last[-1:], token)
        return found

    def _next(self, state: State, last: tuple[int, ...], likely: Likely | None) -> int | None:
        ids, allowed = self._constraint.ids, self._constraint.allowed(state)
        if state.phase == Phase.LIST:
            if len(allowed) == 1:
                return int(allowed[0])
            if len(allowed) == 2 and ids.drug_separator in allowed and ids.end in allowed:
                return ids.drug_separator
        if not self._learned:
            return None
        if state.phase == Phase.LIST and state.node == ROOT and likely is not None:
            return likely(allowed)
        token = self._after.get(last, self._after.get(last[-1:]) if state.phase != Phase.LIST else None)
        if token is None and state.phase == Phase.DIAGNOSES and last[-1:] != (ids.diagnosis_separator,):
            token = ids.diagnosis_separator
        return token if token is not None and token in allowed else None
