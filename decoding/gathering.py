"""The logits that matter for choices at some places: the allowed ids' alone, or all but the few that are closed.

Knows tensors and sets of ids. `masking` masks whole batches for decoders that choose by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from yaofang.decoding.bias import Values
from yaofang.decoding.constraint import Ids
from yaofang.decoding.masking import refuse


def gathered(
    logits: Iterable[torch.Tensor],
    places: Sequence[int],
    allowed: Sequence[Ids],
    bias: Sequence[Values | None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Only the allowed: ids [n, k], scores [models, n, k] with the bias, and without, at n `places` of each model's [p, V].

    k is the largest set's size; the rest of a row has id -1 and -inf. Rows whose scores are all -inf get 0 for each allowed id.
    Raises ValueError for NaN or +inf.
    """
    width = max(map(len, allowed))
    ids = np.full((len(allowed), width), -1, dtype=np.int64)
    amounts = np.zeros((len(allowed), width), dtype=np.float32)
    for row, own in enumerate(allowed):
        ids[row, : len(own)] = own
        if bias is not None and (found := bias[row]) is not None:
            amounts[row, : len(own)] = found
    where, rows = torch.from_numpy(ids), torch.tensor(places)[:, None]
    before = torch.stack([_taken(one, rows, where) for one in logits])
    _level(before, [slice(len(own)) for own in allowed])
    return where.to(before.device), before + torch.from_numpy(amounts).to(before) if bias is not None else before, before


def _taken(logits: torch.Tensor, rows: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    flat = (where.clamp(min=0) + rows * logits.shape[1]).to(logits.device)
    return logits.take(flat).masked_fill((where < 0).to(logits.device), -torch.inf)


class Closed:
    """Where nearly all ids are allowed: the few others get -inf where they stand, which spares gathering the many."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Ids, torch.Tensor]] = {}

    def __call__(self, logits: Iterable[torch.Tensor], places: Sequence[int], allowed: Sequence[Ids]) -> torch.Tensor:
        """Scores [models, n, V] at n `places` of each model's logits [p, V]. Errors and rows of -inf as in `gathered`."""
        scores = torch.stack([one[torch.tensor(places)] for one in logits])
        scores.masked_fill_(torch.stack([self._of(ids, scores) for ids in allowed]), -torch.inf)
        _level(scores, allowed)
        return scores

    def _of(self, ids: Ids, like: torch.Tensor) -> torch.Tensor:
        """[V]: which ids a shared set does not hold."""
        known = self._known.get(id(ids))
        if known is None:
            closed = torch.ones(like.shape[-1], dtype=torch.bool).index_fill(0, torch.from_numpy(ids), False)
            # The array is kept beside it, so that its id() stays its own.
            known = self._known[id(ids)] = (ids, closed.to(like.device))
        return known[1]


def _level(scores: torch.Tensor, columns: Sequence[slice | Ids]) -> None:
    """0 in these columns of a row of `scores` [models, n, k] where all is -inf."""
    best = scores.amax(-1)
    if not torch.isfinite(best).all():
        for model, row in torch.nonzero(~torch.isfinite(best)).tolist():
            refuse(row, float(best[model, row]))
            scores[model, row, columns[row]] = 0.0
