"""A model on a batch of rows: its key/value cache, and what it says after the last ids. Knows ids and tensors alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from yaofang.glm.attention import Packed
from yaofang.glm.loading import LoadedModel
from yaofang.glm.masks import PrefixLM
from yaofang.vocab.errors import InputError

LEAST = 8
"""Tokens that prompts have to begin with in common, to have them read once for all."""
FEW = 0.5
"""Share of the places up to which the last layer works at those alone that are looked at."""


class Tree(NamedTuple):
    """Continuations of a row after so many of its columns; `tokens`, `depths` [n] and `ancestors` [n, n] as in `Run.tree`."""

    columns: int
    tokens: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor


class Opening(NamedTuple):
    """What all prompts of a batch begin with, such as the system's turn, and a model's cache of it for one row."""

    ids: list[int]
    cache: DynamicCache

    def of(self, prompts: Sequence[Sequence[int]]) -> Opening | None:
        """As much of it as other prompts begin with; None if that is little."""
        common = in_common([self.ids, *(prompt[:-1] for prompt in prompts)])
        return Opening(common, self.cache) if len(common) >= LEAST else None


class Run:
    """One model on one batch: its cache, and the logits [places, V] that were asked for last, row by row, as float32.

    Each of `prompts`, of unequal length, is read once for `copies` rows; what all of them begin with is read once for all, or
    taken from `opening`. At first the logits are those after the prompts, one place a row.
    """

    def __init__(
        self, loaded: LoadedModel, prompts: Sequence[Sequence[int]], copies: int = 1, opening: Opening | None = None
    ) -> None:
        self.loaded = loaded
        self.cache = DynamicCache()
        self.opening = opening or self._opening(prompts)
        known = len(self.opening.ids) if self.opening else 0
        ids, seen = (one.to(loaded.device) for one in pad_left([prompt[known:] for prompt in prompts], loaded.template.pad_id))
        self.seen = torch.cat([seen.new_ones(len(prompts), known), seen], dim=1)
        if self.opening:
            for number, layer in enumerate(self.opening.cache.layers):
                shared = (one[:, :, :known].expand(len(prompts), -1, -1, -1) for one in (layer.keys, layer.values))
                self.cache.update(*shared, number)
        positions = (self.seen.cumsum(-1) - 1).clamp(min=0)[:, known:]
        mask = self.seen if not loaded.prefix_lm else PrefixLM.of(loaded.template).prefill(ids, self.seen)
        self.logits = self._forward(ids, mask, positions, self.cache, last_of([1] * len(ids), ids.shape[1]))
        if copies > 1:
            self.cache.batch_repeat_interleave(copies)
            self.seen = self.seen.repeat_interleave(copies, dim=0)
            self.logits = self.logits.repeat_interleave(copies, dim=0)

    def _opening(self, prompts: Sequence[Sequence[int]]) -> Opening | None:
        """None where it is not worth while, and where what comes later changes what was read (prefix-LM).

        Shorter prompts than the longest then have their padding behind it: for an attention that is known to skip it there.
        """
        common = in_common([prompt[:-1] for prompt in prompts])
        skipped = self.loaded.model.config._attn_implementation == "sdpa" and not self.loaded.prefix_lm
        if not skipped or len(prompts) == 1 or len(common) < LEAST:
            return None
        cache, ids = DynamicCache(), torch.tensor([common], device=self.loaded.device)
        positions = torch.arange(len(common), device=ids.device)[None]
        self._forward(ids, torch.ones_like(ids), positions, cache, torch.zeros_like(ids, dtype=torch.bool))
        return Opening(common, cache)

    @property
    def columns(self) -> int:
        """Columns of the cache."""
        return int(self.seen.shape[1])

    def extend(self, chunks: Sequence[Sequence[int]], *, keep: Sequence[int]) -> None:
        """Feed each row its next ids, none or several; the logits are then those of so many last places of each row."""
        ids, fresh = pad_left(chunks, 0)
        ids, fresh = ids.to(self.loaded.device), fresh.to(self.loaded.device)
        before = self.seen.sum(-1, keepdim=True)
        positions = (before + fresh.cumsum(-1) - 1).clamp(min=0)
        self.seen = torch.cat([self.seen, fresh], dim=1)
        self.logits = self._forward(ids, self._mask(ids.shape[1]), positions, self.cache, last_of(keep, ids.shape[1]))

    def _mask(self, fresh: int) -> torch.Tensor:
        """What the last `fresh` columns attend to: ready-made for an attention that takes it, else as `seen`."""
        if self.loaded.model.config._attn_implementation != "sdpa":
            return self.seen
        mask = self.seen.bool()[:, None, None].expand(-1, 1, fresh, -1)
        if fresh > 1:
            # Padding attends to itself too, so that its numbers are finite; nobody attends to padding.
            own = torch.eye(fresh, self.columns, dtype=torch.bool, device=mask.device).roll(self.columns - fresh, 1)
            mask = mask.tril(self.columns - fresh) | own
        return mask

    def forget(self, row: int, columns: int) -> None:
        """Let nobody attend to a row's last columns any more: what was read there was not written."""
        self.seen[row, -columns:] = 0

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows alone, in this order; the logits stay those that were asked for last."""
        picked = torch.tensor(places, device=self.loaded.device)
        self.cache.batch_select_indices(picked)
        self.seen = self.seen[picked]

    @torch.inference_mode()
    def replace(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> int:
        """Read new prompts in the places of rows that are not wanted any more; the logits are then those after the prompts.

        The prompts end at the last column. Returns how many columns all rows have lost on the left, where nobody has anything
        any more; less than 0 if a longer prompt has added some.
        """
        fresh = Run(self.loaded, prompts, opening=self.opening and self.opening.of(prompts))
        picked = torch.tensor(places, device=self.loaded.device)
        self.seen[picked] = 0
        used = self.columns - int(self.seen.any(0).int().argmax()) if self.seen.any() else 0
        lost = self.columns - max(used, fresh.columns)
        self.seen = pad(self.seen, (-lost, 0))
        self.seen[picked, -fresh.columns :] = fresh.seen
        for layer, new in zip(self.cache.layers, fresh.cache.layers, strict=True):
            for name in ("keys", "values"):
                whole = pad(getattr(layer, name), (0, 0, -lost, 0))
                whole[picked, :, -fresh.columns :] = getattr(new, name)
                setattr(layer, name, whole)
        self.logits = fresh.logits
        return lost

    def tree(
        self, rows: Sequence[int], columns: Sequence[int], tokens: torch.Tensor, depths: torch.Tensor, ancestors: torch.Tensor
    ) -> torch.Tensor:
        """Logits [rows, n, V] at the n nodes of a tree of continuations, in one forward on top of the cache.

        Each of `rows` goes on after so many of its `columns`. `tokens` [n] are the nodes' ids, `depths` [n] start at 0, and
        `ancestors` [n, n] is true where the second node is on the way to the first, itself included. The cache stays as it is.
        """
        said = self.trees([(row, [Tree(width, tokens, depths, ancestors)]) for row, width in zip(rows, columns, strict=True)])
        return said.reshape(len(rows), len(tokens), -1)

    def trees(self, rows: Sequence[tuple[int, Sequence[Tree]]]) -> torch.Tensor:
        """Logits [nodes, V] of several trees on each row, one after another: they do not see each other."""
        device = self.loaded.device
        sizes = [sum(len(tree.tokens) for tree in trees) for _, trees in rows]
        width, longest = max(tree.columns for _, trees in rows for tree in trees), max(sizes)
        ids, positions = torch.zeros(2, len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, width + longest, dtype=torch.bool)
        mask[:, :, width:] |= torch.eye(longest, dtype=torch.bool)  # padding attends to itself, so that its numbers are finite
        seen = self.seen[[row for row, _ in rows], :width].bool().cpu()
        for at, (_, trees) in enumerate(rows):
            begin = 0
            for tree in trees:
                here = slice(begin, begin := begin + len(tree.tokens))
                before = seen[at, : tree.columns]
                ids[at, here], positions[at, here] = tree.tokens, tree.depths + before.sum()
                mask[at, here, : tree.columns] = before
                mask[at, here, width + here.start : width + here.stop] = tree.ancestors
        picked, cache = [row for row, _ in rows], DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            cache.update(layer.keys[picked, :, :width], layer.values[picked, :, :width], number)
        nodes = torch.arange(longest) < torch.tensor(sizes)[:, None]
        with _AttentionByMask(self.loaded.model):
            return self._forward(ids, mask[:, None].to(device), positions.to(device), cache, nodes)

    @torch.inference_mode()
    def _forward(
        self, ids: torch.Tensor, seen: torch.Tensor, positions: torch.Tensor, cache: DynamicCache, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Logits [places, V] where `ids` [rows, width] are `wanted`.

        The LM head and the last layer are a large part of a small model's work; elsewhere, the layer's keys and values suffice.
        """
        decoder: Any = self.loaded.model.get_decoder()
        wanted = wanted.to(self.loaded.device)
        with Packed(self.loaded.model), _OnlyAt(wanted, _after_keys(decoder)):
            output: Any = decoder(
                input_ids=ids.to(self.loaded.device),
                attention_mask=seen,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        hidden = output.last_hidden_state[wanted]
        logits: torch.Tensor = self.loaded.model.get_output_embeddings()(hidden).float()
        return logits


def in_common(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The ids that all prompts begin with."""
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*prompts, strict=False))]


def last_of(counts: Sequence[int], width: int) -> torch.Tensor:
    """Which places [rows, width] are among so many last ones of each row."""
    return torch.arange(width, 0, -1) <= torch.tensor(counts)[:, None]


def _after_keys(decoder: Any) -> list[torch.nn.Module]:
    """What of the last layer works on each place alone and is not needed for its keys and values."""
    layer = decoder.layers[-1]
    return [layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp]


class _OnlyAt:
    """While a model runs, some modules work at the few `wanted` places [rows, width] alone, and say 0 elsewhere."""

    def __init__(self, wanted: torch.Tensor, modules: Sequence[torch.nn.Module]) -> None:
        self._shape, self._where = wanted.shape, wanted.nonzero(as_tuple=True)
        # A module may not know how to work at no place at all.
        self._modules = modules if 0 < len(self._where[0]) <= FEW * wanted.numel() else ()

    def __enter__(self) -> None:
        self._hooks = [
            hook
            for module in self._modules
            for hook in (module.register_forward_pre_hook(self._picked), module.register_forward_hook(self._put_back))
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _picked(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][self._where], *inputs[1:])

    def _put_back(self, _: torch.nn.Module, __: object, said: torch.Tensor) -> torch.Tensor:
        return said.new_zeros(*self._shape, said.shape[-1]).index_put(self._where, said)


class _AttentionByMask:
    """While a tree is scored, an attention that takes any mask: FlashAttention knows causal ones only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._own = model.config._attn_implementation

    def __enter__(self) -> None:
        if self._own.startswith("flash"):
            self._model.set_attn_implementation("sdpa")

    def __exit__(self, *_: object) -> None:
        if self._own.startswith("flash"):
            self._model.set_attn_implementation(self._own)


def check_same_tokenizer(models: Sequence[LoadedModel]) -> None:
    """Raise InputError unless all models write ids alike."""
    for other in models[1:]:
        if other.template.tokenizer.get_vocab() != models[0].template.tokenizer.get_vocab():
            raise InputError(
                f"models {models[0].name} and {other.name} have different tokenizers",
                field="model",
                way_out="Let only models vote that were trained from one base.",
            )


def pad_left(rows: Sequence[Sequence[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [rows, longest] with the padding before them, and the mask of what is no padding."""
    width = max(map(len, rows))
    ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows])
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, seen
