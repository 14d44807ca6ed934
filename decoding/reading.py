"""What a row's ids say: the diagnoses and the whole drug names in them. Knows the constraint's states; no text, no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.trie import NO_DRUG


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


def read(constraint: Constraint, start: State, ids: Sequence[int]) -> Reading:
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
        following = constraint.step(state, token)
        if state.phase == Phase.DIAGNOSES and (following.phase != state.phase or not following.open):
            diagnoses.append((begun, at))
        if _ends_name(state, following) and constraint.completed(state) != NO_DRUG:
            drugs.append(constraint.completed(state))
            spans.append((begun, at))
        if following.phase != state.phase or following.listed != state.listed or following.open < state.open:
            begun = at + 1
        state = following
    if state.phase == Phase.DIAGNOSES and state.open:
        diagnoses.append((begun, len(ids)))
    if constraint.completed(state) != NO_DRUG and not constraint.could_grow(state):
        drugs.append(constraint.completed(state))
        spans.append((begun, len(ids)))
    return Reading(state, [(first, end) for first, end in diagnoses if first < end], drugs, spans)


def _ends_name(state: State, following: State) -> bool:
    return following.phase == Phase.DONE or following.listed > state.listed
