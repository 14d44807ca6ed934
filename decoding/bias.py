"""Leanings for and against single drugs, as amounts added to logits inside the list: never a ban, never a licence.

Knows the constraint's trie and sets; no tensor, no label. Each drug d has a value v(d | listed), in nats:

    v(d | listed) = - tau log prior(d) - lambda * (number of listed drugs that d has a T2 conflict with)

The first part is the prior correction of long-tailed classification (logit adjustment): it takes tau times the log frequency in
training out again. The second is the penalty of warned pairs.

**Where a value is paid.** A name is several tokens, and the drugs under a node share them. With phi(n) the largest value of
an allowed drug under node n, a token from n to its child c gets phi(c) - phi(n), and the separator and the end after drug d
get v(d) - phi(n). Over a whole name these sum to v(d) - phi(root), whatever the trie looks like: each drug gets its
own value, relative to the best, as soon as the token is written that decides it. All amounts are at most 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from yaofang.decoding.constraint import Constraint, Ids, Phase, State
from yaofang.decoding.trie import members

Values = npt.NDArray[np.float32]
MEMO_SIZE = 1 << 12


class Bias:
    """Amounts to add to the logits of the allowed ids.

    `prior` is the share of each label in training (all above 0, sum about 1), `warned` a boolean [D, D] matrix of pairs that
    are penalised, both in the vocabulary's order. Raises ValueError for other shapes, values that are not finite, or a
    negative weight.
    """

    def __init__(
        self,
        constraint: Constraint,
        *,
        prior: npt.NDArray[np.float64] | None = None,
        prior_weight: float = 0.0,
        warned: npt.NDArray[np.bool_] | None = None,
        warned_weight: float = 0.0,
    ) -> None:
        self._constraint = constraint
        size, order = len(constraint.trie), constraint.trie.order
        if not (np.isfinite([prior_weight, warned_weight]).all() and min(prior_weight, warned_weight) >= 0):
            raise ValueError("prior_weight and warned_weight must be finite and at least 0")
        self._base = np.zeros(size, dtype=np.float32)
        if prior is not None:
            if prior.shape != (size,) or not (np.isfinite(prior).all() and (prior > 0).all()):
                raise ValueError(f"prior must hold {size} finite shares above 0")
            self._base -= (prior_weight * np.log(prior[order])).astype(np.float32)
        self._warned = np.zeros((size, size), dtype=np.float32)
        if warned is not None:
            if warned.shape != (size, size):
                raise ValueError(f"warned is {warned.shape}, not ({size}, {size})")
            self._warned += warned_weight * (warned | warned.T)[np.ix_(order, order)]
        self._memo: dict[tuple[int, int, int], Values] = {}

    def of(self, state: State, ids: Ids) -> Values | None:
        """The amount for each of the allowed `ids` of this state, in their order; None where there is no choice of drugs."""
        if state.phase != Phase.LIST or len(ids) < 2:
            return None
        key = (state.node, state.allowed, state.taken)
        known = self._memo.get(key)
        if known is None or len(known) != len(ids):
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            known = self._memo[key] = self._amounts(state, ids)
        return known

    def values(self, state: State) -> Values:
        """v(d | listed) of every drug by the trie's numbers, -inf where it is not allowed."""
        values = self._base - self._warned[members(state.taken)].sum(0)
        closed = np.ones(len(values), dtype=np.bool_)
        closed[members(state.allowed)] = False
        values[closed] = -np.inf
        found: Values = values
        return found

    def _amounts(self, state: State, ids: Ids) -> Values:
        trie, values = self._constraint.trie, self.values(state)
        ending, children = trie.ending[state.node], trie.children[state.node]

        def potential(node: int) -> np.float32:
            low, high = trie.span(node)
            return np.float32(values[low:high].max())

        # Ids without a child are the separator and the end: they take the drug whose name ends here.
        found = [potential(children[i]) if i in children else values[ending] for i in ids.tolist()]
        return np.array(found, dtype=np.float32) - potential(state.node)
