"""The states of many rows from their ids alone, so that batches and beams may be reordered, doubled and cut.

Knows the constraint and integers; no tensor. One call a step: what the last call's ids led to is remembered by the ids
themselves. Where the rows are those of the last call, in its order, and each grew by one id, one comparison of bytes shows it
and each row costs one step; other rows are looked up one by one by their ids as bytes, or else read from their start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from yaofang.decoding.constraint import Constraint, Ids, State

MOST_STARTS = 1 << 16
INT64 = np.dtype(np.int64)
WIDTH = INT64.itemsize


class StatesByIds:
    """States of rows whose ids grow by one a call, remembered by the ids and not by the row's place."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self._number: dict[State, int] = {}
        """A small number for each start, equal for equal ones: cheaper in a key than the start itself."""
        self._counted: tuple[tuple[State, ...], list[int]] = ((), [])
        """The starts that were numbered last, and their numbers."""
        # Of the last call: its starts, its ids (as one where they were an array), and what they led to.
        self._starts: tuple[State, ...] = ()
        self._ids: bytes | list[bytes] = b""
        self._states: list[State] = []

    def of(self, starts: Sequence[State], rows: Ids | Sequence[Sequence[int]]) -> list[State]:
        """The state of each row, given its start and its generated ids ([rows, length], or lists of unequal length).

        Quickest where `starts` is the same tuple each time. ValueError if rows and starts differ in number.
        """
        count = len(rows)
        if count != len(starts):
            raise ValueError(f"{count} rows, {len(starts)} starts")
        if not isinstance(rows, np.ndarray):
            each = [np.array(row, dtype=np.int64).tobytes() for row in rows]
            self._states, self._ids = self._looked_up(starts, each), each
            return self._states.copy()
        rows = rows if rows.dtype is INT64 else rows.astype(np.int64)
        ids = rows.tobytes()
        if ids and starts is self._starts and (ids[:-WIDTH] if count == 1 else rows[:, :-1].tobytes()) == self._ids:
            tokens = [int.from_bytes(ids[-WIDTH:], sys.byteorder)] if count == 1 else rows[:, -1].tolist()
            self._states = list(map(self._constraint.step, self._states, tokens))
        elif ids:
            self._states = self._looked_up(starts, _cut(ids, count))
        else:
            self._starts = tuple(starts)
            self._states = list(starts)
        self._ids = ids
        return self._states.copy()

    def _looked_up(self, starts: Sequence[State], rows: Sequence[bytes]) -> list[State]:
        before, known, step = self._last(), dict[tuple[int, bytes], State](), self._constraint.step
        self._starts = tuple(starts)  # a tuple is kept as it is, of a list that may change a copy
        states = []
        for number, start, ids in zip(self._numbers(), starts, rows, strict=True):
            key = (number, ids)
            state = known.get(key)
            if state is None:
                parent = before.get((number, ids[:-WIDTH])) if ids else start
                if parent is None:
                    parent = self._constraint.follow(start, np.frombuffer(ids[:-WIDTH], dtype=np.int64).tolist())
                state = known[key] = step(parent, int.from_bytes(ids[-WIDTH:], sys.byteorder)) if ids else parent
            states.append(state)
        return states

    def _last(self) -> dict[tuple[int, bytes], State]:
        """The last call's states by the numbers of their starts and by their ids."""
        if len(self._number) > MOST_STARTS:  # an engine that serves for months sees many
            self._number, self._counted = {}, ((), [])
            return {}
        ids = _cut(self._ids, len(self._states)) if isinstance(self._ids, bytes) else self._ids
        return dict(zip(zip(self._numbers(), ids, strict=True), self._states, strict=True))

    def _numbers(self) -> list[int]:
        if self._counted[0] is not self._starts:
            self._counted = self._starts, [self._number.setdefault(start, len(self._number)) for start in self._starts]
        return self._counted[1]


def _cut(whole: bytes, rows: int) -> list[bytes]:
    """The ids of rows of equal length, one after another, as the bytes of each."""
    width = len(whole) // max(1, rows)
    return [whole[at : at + width] for at in range(0, len(whole), width)] if width else [b""] * rows
