"""Attention masks [batch, 1, queries, keys], True where a query may attend to a key, for training and for decoding alike.

All is read from ids and positions: which tokens are a record's, which examples share a packed row, which columns are padding.
Knows nothing of models: a boolean mask is what SDPA takes as it is (eager attention adds it as a number and leaks the future).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from yaofang.glm.template import ChatTemplate


def record_blocks(ids: Tensor, user_id: int, ends: Iterable[int]) -> Tensor:
    """Number of the record's block that each token of `ids` [batch, length] is in, from 1 on; 0 outside.

    A block runs from a `user_id` marker to before the next one of `ends` (or the next marker). Text never holds a marker.
    """
    markers = torch.tensor([user_id, *ends], dtype=ids.dtype, device=ids.device)
    opens = torch.isin(ids, markers)
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    opener = torch.where(opens, columns, -1).cummax(dim=1).values
    inside = (opener >= 0) & (ids.gather(1, opener.clamp(min=0)) == user_id)
    return torch.where(inside, opens.cumsum(dim=1), 0)


def document_numbers(position_ids: Tensor) -> Tensor:
    """Number of the packed example that each token is in, from 0 on; `position_ids` [batch, length] starts anew in each."""
    steps = torch.diff(position_ids, dim=1, prepend=position_ids[:, :1] - 1)
    return (steps != 1).cumsum(dim=1)


def attention_mask(
    length: int,
    *,
    documents: Tensor | None = None,
    blocks: Tensor | None = None,
    present: Tensor | None = None,
    queries: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Boolean mask [batch, 1, queries, length]: causal, tokens of one block see each other, examples see themselves only.

    `documents`, `blocks` (0 is no block) and `present` (False or 0 on padding, on either side) are [batch, length]; with none
    of them batch is 1. `queries` asks for the last so many rows, those of a forward over a cache; None is all. Every token
    sees itself, padding too, so that no row is empty.
    """
    for given in (documents, blocks, present):
        device = device if given is None else given.device
    rows = torch.arange(length, device=device)[:, None][-length if queries is None else -queries :]
    columns = torch.arange(length, device=device)[None]
    first = length - len(rows)
    mask = (rows >= columns)[None]
    if blocks is not None:
        own = blocks[:, first:, None]
        mask = mask | ((own == blocks[:, None]) & (own > 0))
    if documents is not None:
        mask = mask & (documents[:, first:, None] == documents[:, None])
    if present is not None:
        mask = mask & present.bool()[:, None]
    return (mask | (rows == columns)[None])[:, None]


@dataclass(frozen=True)
class PrefixLM:
    """Prefix-LM attention: the tokens of a record's turn see each other in both directions, all else is causal.

    The system's turn and the answer stay causal, so the cache of a shared system turn, and of an answer as it grows, holds.
    """

    user_id: int
    ends: tuple[int, ...]
    """Ids that end a block: the other roles' markers, the prefix of a prompt, padding."""

    @classmethod
    def of(cls, template: ChatTemplate) -> Self:
        """The markers of a template."""
        roles = [marker for role, marker in template.roles.items() if role != "user"]
        return cls(template.roles["user"], (*roles, *template.prefix, template.pad_id))

    def blocks(self, ids: Tensor) -> Tensor:
        """`record_blocks` of `ids` [batch, length]."""
        return record_blocks(ids, self.user_id, self.ends)

    def prefill(self, ids: Tensor, present: Tensor | None = None, queries: int | None = None) -> Tensor:
        """Mask [batch, 1, queries, length] for reading prompts before decoding, left padding included.

        `ids` [batch, length] holds what the cache has and what the forward reads; `queries` is how many of them it reads. What
        was cached must end outside a block, or the cached half would not have seen the rest.
        """
        return attention_mask(ids.shape[1], blocks=self.blocks(ids), present=present, queries=queries)
