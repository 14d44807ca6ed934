"""The states of many rows from their ids alone, so that batches and beams may be reordered, doubled and cut.

Knows the constraint and integers; no tensor. One call a step: what the last step's ids led to is remembered by the ids
themselves (as bytes: the cheapest key), so a row that grew by one id costs one step; other ids are read from their start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from yaofang.decoding.constraint import Constraint, Ids, State

MOST_STARTS = 1 << 16
WIDTH = np.dtype(np.int64).itemsize


class StatesByIds:
    """States of rows whose ids grow by one a call, remembered by the ids and not by the row's place."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self._known: dict[tuple[int, bytes], State] = {}
        self._number: dict[State, int] = {}
        self._starts: tuple[State, ...] = ()
        self._numbers: list[int] = []

    def of(self, starts: Sequence[State], rows: Ids | Sequence[Sequence[int]]) -> list[State]:
        """The state of each row, given its start and its generated ids ([rows, length], or lists of unequal length).

        Starts given as the same tuple again and again are looked up once. ValueError if rows and starts differ in number.
        """
        before, step = self._known, self._constraint.step
        known: dict[tuple[int, bytes], State] = {}
        states = []
        for number, start, ids in zip(self._numbered(starts), starts, _as_bytes(rows), strict=True):
            key = (number, ids)
            state = known.get(key)
            if state is None:
                parent = before.get((number, ids[:-WIDTH])) if ids else start
                if parent is None:
                    parent = self._read(start, ids[:-WIDTH])
                state = known[key] = step(parent, int.from_bytes(ids[-WIDTH:], sys.byteorder)) if ids else parent
            states.append(state)
        self._known = known
        return states

    def _numbered(self, starts: Sequence[State]) -> list[int]:
        """A small number for each start, equal for equal ones: cheaper in a key than the start itself."""
        if starts is not self._starts:
            if len(self._number) > MOST_STARTS:  # an engine that serves for months sees many
                self._number.clear()
                self._known.clear()
            self._numbers = [self._number.setdefault(start, len(self._number)) for start in starts]
            self._starts = starts if isinstance(starts, tuple) else ()
        return self._numbers

    def _read(self, start: State, ids: bytes) -> State:
        state = start
        for token in np.frombuffer(ids, dtype=np.int64).tolist():
            state = self._constraint.step(state, token)
        return state


def _as_bytes(rows: Ids | Sequence[Sequence[int]]) -> list[bytes]:
    if not isinstance(rows, np.ndarray):
        return [np.array(row, dtype=np.int64).tobytes() for row in rows]
    whole = rows.astype(np.int64, copy=False).tobytes()
    if len(rows) == 1:
        return [whole]
    width = rows.shape[1] * WIDTH
    return [whole[at : at + width] for at in range(0, len(rows) * width, width)] if width else [b""] * len(rows)
