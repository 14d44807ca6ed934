"""Attention of several ids to a cache: SDPA on the key/value heads themselves. Knows tensors alone.

GLM-4-9B has 16 query heads for each key/value head. With a mask, transformers copies keys and values for each query head, which
is most of the time of a short forward on a long cache; for a single id it packs the queries of one key/value head instead. Here
several ids are packed alike: they are queries of one head, each under its own row of the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "yaofang_packed_sdpa"
SHORT = 512
"""Ids up to which packing pays: its mask, a row for each query, is then smaller than the copies that it spares."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """[batch, n, heads, width] of `query` [batch, heads, n, width] under a mask [batch, 1, n, columns]; else plain SDPA."""
    if attention_mask is None or attention_mask.shape[1] > 1 or query.shape[2] > SHORT:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)  # type: ignore[no-any-return]
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    packed = query.reshape(batch, key.shape[1], groups * length, width)
    mask = attention_mask.repeat(1, 1, groups, 1)
    found = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


class Packed:
    """While a model whose attention is SDPA runs, its keys and values are not copied."""

    def __init__(self, model: Any) -> None:
        self._config = model.config

    def __enter__(self) -> None:
        self._own = self._config._attn_implementation
        if self._own == "sdpa":
            self._config._attn_implementation = PACKED

    def __exit__(self, *_: object) -> None:
        self._config._attn_implementation = self._own
