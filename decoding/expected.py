"""Decoding for the metric: inclusion probabilities from sampled lists, and the set of drugs that is best in expectation.

The likeliest list is not the list with the best expected Jaccard: a drug that is worth naming has a good chance to be in the
list at all, wherever it would stand. Knows ids, sets and numbers; no label, no text.

**Inclusion.** A sampled list says of each drug yes or no. It need not: at every choice that decides about drugs, the model's
probabilities of all its outcomes are known, not only which was drawn. Each drug has one such choice on its way, the token
after which it is the only one left under the trie's node, and

    P(d is listed) = E[ sum over the visited choices that decide about d of P(the token that decides for d) ]

since a drug is listed at most once. Each term is the conditional expectation of a draw given the ids before it
(Rao-Blackwellisation, Blackwell 1947), so the mean of the right side over sampled lists has the same expectation as the share
of lists that hold d. Its variance is smaller summed over drugs, and for most of them; it need not be for each, since the
terms of one list are not independent (a list's sum may even pass 1, so the mean is clipped).

**The best set.** For a set S and lists L1..LK drawn from the model, the expected metric is the mean of Jaccard(S, Lk), or of
F1(S, Lk) (minimum Bayes risk, Kumar and Byrne 2004). S grows from the likeliest drugs and is then changed by one drug at a
time (added, taken away, exchanged) while that helps. A drug that conflicts with members of S can only come in by their
leaving, so of a pair that excludes each other the one stays that is worth more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from yaofang.decoding.constraint import Constraint, Ids, State
from yaofang.decoding.generation import Row
from yaofang.decoding.settings import Metric
from yaofang.decoding.trie import NO_DRUG, ROOT

Decided = tuple[Ids, Ids]
MEMO_SIZE = 1 << 14


class Inclusion:
    """Rao-Blackwellised inclusion of every drug in each row of a generation: hand `watch` to it."""

    def __init__(self, constraint: Constraint, rows: int) -> None:
        self._constraint = constraint
        self._totals = np.zeros((rows, len(constraint.trie)))
        self._memo: dict[tuple[int, int, bytes], Decided] = {}

    def watch(self, row: Row, state: State, allowed: Ids, log_p: torch.Tensor) -> None:
        """Count one choice; see `generation.Watch`."""
        inside = self._constraint.trie.below[state.node] & state.allowed
        if inside & (inside - 1) == 0 and state.node != ROOT:
            return  # decided before
        columns, drugs = self._decided(state, allowed)
        if len(columns):
            np.add.at(self._totals[row.number], drugs, log_p[torch.from_numpy(columns)].exp().cpu().numpy())

    def probabilities(self, rows: Sequence[int]) -> npt.NDArray[np.float64]:
        """[D] by vocabulary position: the mean over some rows, those of one prompt."""
        mean = self._totals[list(rows)].mean(0).clip(0, 1)
        found: npt.NDArray[np.float64] = np.empty_like(mean)
        found[self._constraint.trie.order] = mean
        return found

    def _decided(self, state: State, allowed: Ids) -> Decided:
        key = (state.node, state.allowed, allowed.tobytes())
        if key not in self._memo:
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            pairs = [(at, self._drug_of(state, token)) for at, token in enumerate(allowed.tolist())]
            found = np.array([pair for pair in pairs if pair[1] != NO_DRUG], dtype=np.int64).reshape(-1, 2)
            self._memo[key] = (found[:, 0], found[:, 1])
        return self._memo[key]

    def _drug_of(self, state: State, token: int) -> int:
        """The drug that this token decides for: the only one left under its node, or the one whose name it closes."""
        trie = self._constraint.trie
        child = trie.children[state.node].get(token)
        if child is None:
            return trie.ending[state.node]
        inside = trie.below[child] & state.allowed
        return inside.bit_length() - 1 if inside & (inside - 1) == 0 else NO_DRUG


class BestSet:
    """The set of drugs with the best expected metric under sampled lists, without conflicts.

    `lists` are positions in the vocabulary; `p` [D] are inclusion probabilities, by which the search begins; `conflicts` is a
    symmetric boolean [D, D]. The set has `least` to `most` drugs, fewer than `least` only if conflicts leave nothing.
    """

    def __init__(
        self,
        lists: Sequence[Sequence[int]],
        p: npt.NDArray[np.float64],
        conflicts: npt.NDArray[np.bool_],
        *,
        metric: Metric = "jaccard",
        least: int = 1,
        most: int | None = None,
    ) -> None:
        self._metric = metric
        self._drugs = sorted({drug for one in lists for drug in one}, key=lambda drug: (-p[drug], drug))
        column = {drug: at for at, drug in enumerate(self._drugs)}
        self._held = np.zeros((len(lists), len(self._drugs)))
        for at, one in enumerate(lists):
            self._held[at, [column[drug] for drug in one]] = 1.0
        self._sizes = self._held.sum(1)
        self._clash = conflicts[np.ix_(self._drugs, self._drugs)] & ~np.eye(len(self._drugs), dtype=np.bool_)
        self._least = min(least, len(self._drugs))
        self._most = len(self._drugs) if most is None else most

    def find(self) -> tuple[list[int], float]:
        """The set, likeliest first, and its expected metric. Empty only if every list is."""
        chosen = self._grown()
        value = self._value(chosen)
        while True:
            options = [other for other in self._neighbours(chosen) if self._fits(other)]
            values = [self._value(other) for other in options]
            if not values or max(values) <= value + 1e-12:
                return [self._drugs[at] for at in np.flatnonzero(chosen)], value
            value, chosen = max(values), options[int(np.argmax(values))]

    def _grown(self) -> npt.NDArray[np.bool_]:
        """The best beginning of the drugs in order of inclusion, those left out that conflict with one before."""
        chosen = np.zeros(len(self._drugs), dtype=np.bool_)
        best, best_value = chosen, -1.0
        for at in range(len(self._drugs)):
            if self._clash[at, chosen].any() or chosen.sum() >= self._most:
                continue
            chosen = chosen.copy()
            chosen[at] = True
            value = self._value(chosen)
            if value > best_value or chosen.sum() <= self._least:
                best, best_value = chosen, value
        return best

    def _neighbours(self, chosen: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
        found = []
        for at in range(len(self._drugs)):
            other = chosen.copy()
            other[at] = not chosen[at]
            if not chosen[at]:
                other &= ~self._clash[at]
                for leaving in np.flatnonzero(chosen & other):
                    exchanged = other.copy()
                    exchanged[leaving] = False
                    found.append(exchanged)
            found.append(other)
        return found

    def _fits(self, chosen: npt.NDArray[np.bool_]) -> bool:
        return bool(self._least <= chosen.sum() <= self._most)

    def _value(self, chosen: npt.NDArray[np.bool_]) -> float:
        both, mine = self._held @ chosen, float(chosen.sum())
        if not mine:
            return 0.0
        whole = self._sizes + mine
        score = both / (whole - both) if self._metric == "jaccard" else 2 * both / whole
        return float(score.mean())


def order_of(drugs: Sequence[int], lists: Sequence[Sequence[int]]) -> list[int]:
    """The drugs in the order in which the lists have them: by their mean relative place."""
    places: dict[int, list[float]] = {drug: [] for drug in drugs}
    for one in lists:
        for at, drug in enumerate(one):
            if drug in places:
                places[drug].append(at / len(one))
    return sorted(drugs, key=lambda drug: (float(np.mean(places[drug])) if places[drug] else 1.0, drug))
