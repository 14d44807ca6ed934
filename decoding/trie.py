"""Drug names as a trie of token ids in which every subtree is one interval of drugs.

It knows ids only: no text, no tokenizer, no model, no conflicts.

The names are sorted as lists of ids, and drugs are renumbered in that order. Names that share a beginning are then
neighbours, so the drugs below a node n are exactly the interval low[n] <= drug < high[n], and a set of drugs held as
the bits of one Python int meets the subtree of n if and only if `below[n] & drugs` is not zero, where `below[n]`
has the bits low[n] .. high[n] - 1. A name that is a prefix of another ends at an inner node: `ending[n]` is its
number, and since a prefix sorts before what continues it, that number is low[n].

The intervals of the root's children adjoin, so one addition says which of them a set meets (`beginnings`): leave out each
interval's last bit and add ones in its other places; it carries into the last bit if and only if one of those was set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

ROOT = 0
NO_DRUG = -1
WIDTH, FEW = np.dtype(np.int64).itemsize, 32  # bytes of an id; first tokens that are taken out one by one, at most


class Trie:
    """A trie over names given as lists of token ids; drug numbers are positions in the sorted order.

    - `order[number]` is the position in `names` of the drug with this number, `number[position]` its inverse.
    - `children[node]` maps a token to a node; `ending[node]` is the drug whose name ends there or `NO_DRUG`.

    Raises ValueError for an empty name and for two names with the same ids.
    """

    def __init__(self, names: Iterable[Sequence[int]]) -> None:
        unsorted = [tuple(int(token) for token in name) for name in names]
        if not all(unsorted):
            raise ValueError(f"name {unsorted.index(())} has no token")
        order = sorted(range(len(unsorted)), key=unsorted.__getitem__)
        self.names = tuple(unsorted[position] for position in order)
        self.order: npt.NDArray[np.int64] = np.array(order, dtype=np.int64)
        self.number: npt.NDArray[np.int64] = np.argsort(self.order, kind="stable")
        self.children: list[dict[int, int]] = [{}]
        self.ending: list[int] = [NO_DRUG]
        self._low = [0]
        self._high = [len(self.names)]
        for drug, name in enumerate(self.names):
            self._insert(drug, name)
        self._firsts: npt.NDArray[np.int64] = np.array(list(self.children[ROOT]), dtype=np.int64)
        self._bytes = self._firsts.tobytes()
        lasts = [self._high[child] - 1 for child in self.children[ROOT].values()]
        self._place_of = {last: place * WIDTH for place, last in enumerate(lasts)}
        self._lasts = sum(1 << last for last in lasts)
        self._others = interval(0, len(self.names)) ^ self._lasts

    @cached_property
    def below(self) -> list[int]:
        """The drugs under each node, as bits; not for tens of thousands of names, which would be gigabytes."""
        return [interval(low, high) for low, high in zip(self._low, self._high, strict=True)]

    def span(self, node: int) -> tuple[int, int]:
        """The drugs under a node: low .. high - 1."""
        return self._low[node], self._high[node]

    def beginnings(self, drugs: int) -> npt.NDArray[np.int64]:
        """First tokens of the names of some drugs, ascending; there is at least one."""
        met = ((drugs & self._others) + self._others | drugs) & self._lasts
        missed = met ^ self._lasts
        if missed.bit_count() > FEW:
            flags = np.unpackbits(np.frombuffer(met.to_bytes(len(self) // 8 + 1, "little"), dtype=np.uint8), bitorder="little")
            return self._firsts[flags[list(self._place_of)] > 0]
        ids = bytearray(self._bytes)
        for last in reversed(members(missed)):
            del ids[self._place_of[last] : self._place_of[last] + WIDTH]
        return np.frombuffer(ids, dtype=np.int64)

    def __len__(self) -> int:
        """Number of drugs."""
        return len(self.names)

    def left(self, node: int, written: Sequence[int]) -> bool:
        """Whether a name under the node is not among the numbers `written`."""
        low, high = self._low[node], self._high[node]
        return high - low > sum(low <= number < high for number in written)

    def _insert(self, drug: int, name: tuple[int, ...]) -> None:
        node = ROOT
        for token in name:
            if token not in self.children[node]:
                self.children[node][token] = self._new_node(drug)
            node = self.children[node][token]
            self._high[node] = drug + 1
        if self.ending[node] != NO_DRUG:
            raise ValueError(f"names {self.order[self.ending[node]]} and {self.order[drug]} have the same ids")
        self.ending[node] = drug

    def _new_node(self, drug: int) -> int:
        self.children.append({})
        self.ending.append(NO_DRUG)
        self._low.append(drug)
        self._high.append(drug)
        return len(self.children) - 1


def interval(low: int, high: int) -> int:
    """The set of drugs low .. high - 1 as bits."""
    return (1 << high) - (1 << low)


def bits(members: npt.NDArray[np.bool_]) -> int:
    """A boolean vector as one int: bit i is `members[i]`."""
    return int.from_bytes(np.packbits(members, bitorder="little").tobytes(), "little")


def members(drugs: int) -> list[int]:
    """The drugs of a set of bits, ascending."""
    found = []
    while drugs:
        lowest = drugs & -drugs
        found.append(lowest.bit_length() - 1)
        drugs ^= lowest
    return found
