"""Greedy generation for a batch of prompts under one constraint, by one model or several that vote.

Knows ids, tensors and models with a key/value cache; knows no record, no label and no text. Every choice is recorded with its
probability among the allowed ids and with the mass that was allowed, which is what `p_step` and `masked_mass` are made of.

**Voting.** Models m = 1..M (folds) vote for whole names, not for tokens: the probability of a name t1..tk is
(1/M) sum over m of P_m(t1) P_m(t2|t1) ... P_m(tk|..), each P_m renormalised over the allowed ids. Written token by
token, that is the mixture sum over m of w_m P_m(t), with w_m proportional to the product of P_m over the tokens of the
name so far. The weights go back to 1/M at each separator. In the diagnoses, the next-token probabilities are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from yaofang.decoding.constraint import Constraint, Ids, Phase, State
from yaofang.decoding.processors import LogitsMask
from yaofang.decoding.trie import ROOT
from yaofang.glm.loading import LoadedModel
from yaofang.vocab.errors import InputError


@dataclass(slots=True)
class Row:
    """One prompt's generation so far. The four lists have an entry for each generated id."""

    start: State
    state: State
    limit: int
    """Most ids this row may write."""
    ids: list[int] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    """Probability of the id among the allowed ones."""
    mass: list[float] = field(default_factory=list)
    """Probability of all allowed ids before the mask."""
    closing: list[float] = field(default_factory=list)
    """Probability, among the allowed, of separator or end: of a drug's name ending here."""
    first: dict[int, torch.Tensor] = field(default_factory=dict)
    """Place where a name begins -> logits [models, first tokens of names], unmasked."""

    @property
    def running(self) -> bool:
        """The row may write another id."""
        return self.state.phase < Phase.DONE and len(self.ids) < self.limit


class Generation:
    """One batch from prompts to ended rows. `steps` does the work; `rows` is always up to date.

    `prompts` are ids of unequal length (padded on the left here), `starts` and `limits` give a state and a number of
    new ids for each. Raises InputError if the models do not share one tokenizer.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        constraint: Constraint,
        prompts: Sequence[Sequence[int]],
        starts: Sequence[State],
        limits: Sequence[int],
    ) -> None:
        check_same_tokenizer(models)
        self.constraint = constraint
        self.rows = [Row(start, start, limit) for start, limit in zip(starts, limits, strict=True)]
        self.width = max(map(len, prompts))
        self.first_ids = sorted(constraint.trie.children[ROOT])
        self._pad = models[0].template.pad_id
        self._mask = LogitsMask()
        ids, seen = pad_left(prompts, self._pad)
        self.runs = [Run(loaded, ids, seen) for loaded in models]
        self._weights = torch.zeros(len(models), len(prompts), device=models[0].device)

    def run(self) -> list[Row]:
        """Write all rows to their end and return them."""
        for _ in self.steps():
            pass
        return self.rows

    def steps(self) -> Iterator[None]:
        """Write one id in every running row, again and again until none runs; yields after each."""
        while any(row.running for row in self.rows):
            with torch.inference_mode():
                tokens = self._step()
            yield
            if any(row.running for row in self.rows):
                for run in self.runs:
                    run.extend(tokens)

    def _step(self) -> torch.Tensor:
        device = self._weights.device
        logits = torch.stack([run.logits.to(device) for run in self.runs])
        allowed = [self.constraint.allowed(row.state) for row in self.rows]
        self._keep_first(logits)
        scores, log_p, log_mass = self._vote(logits, allowed)
        picked = scores.argmax(-1)
        mixed = self._mix(log_p)
        ids = self.constraint.ids
        closing = torch.logaddexp(mixed[:, ids.drug_separator], mixed[:, ids.end])
        columns = torch.stack([mixed.gather(1, picked[:, None])[:, 0], self._mix(log_mass), closing]).exp().clamp(max=1)
        self._record(picked.tolist(), columns.T.tolist(), log_p)
        return picked

    def _vote(self, logits: torch.Tensor, allowed: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What to choose by, and each model's log probabilities among the allowed and log mass of these.

        Shapes [rows, V], [models, rows, V] and [models, rows].
        """
        masked = torch.stack([self._mask(each, allowed) for each in logits])
        total = masked.logsumexp(-1)
        log_p = masked - total[..., None]
        # One model is chosen by its logits themselves: the same numbers, in the same order, as in `generate`.
        scores = masked[0] if len(masked) == 1 else self._mix(log_p)
        return scores, log_p, total - logits.logsumexp(-1)

    def _mix(self, log_p: torch.Tensor) -> torch.Tensor:
        """Log of the models' weighted mean; `log_p` is [models, rows] or [models, rows, V]."""
        weights = self._weights.log_softmax(0)
        return (log_p + (weights if log_p.dim() == 2 else weights[..., None])).logsumexp(0)

    def _keep_first(self, logits: torch.Tensor) -> None:
        for number, row in enumerate(self.rows):
            if row.running and row.state.phase == Phase.LIST and row.state.node == ROOT:
                row.first[len(row.ids)] = logits[:, number, self.first_ids].float().cpu()

    def _record(self, picked: list[int], columns: list[list[float]], log_p: torch.Tensor) -> None:
        for number, (row, token, (chosen, mass, closing)) in enumerate(zip(self.rows, picked, columns, strict=True)):
            if not row.running:
                continue
            before = row.state
            row.state = self.constraint.step(before, token)
            row.ids.append(token)
            row.chosen.append(chosen)
            row.mass.append(mass)
            row.closing.append(closing)
            if before.phase == row.state.phase == Phase.LIST and row.state.listed == before.listed:
                self._weights[:, number] += log_p[:, number, token]
            else:
                self._weights[:, number] = 0.0


class Run:
    """One model on one batch: its cache, and the logits [rows, V] after the last id."""

    def __init__(self, loaded: LoadedModel, ids: torch.Tensor, seen: torch.Tensor) -> None:
        self.loaded = loaded
        self.cache = DynamicCache()
        self.seen = seen.to(loaded.device)
        positions = (self.seen.cumsum(-1) - 1).clamp(min=0)
        self.logits = self._forward(ids, self.seen, positions, self.cache, keep=1)[:, -1]

    def extend(self, tokens: torch.Tensor) -> None:
        """Feed one more id in every row."""
        ids = tokens[:, None].to(self.loaded.device)
        self.seen = torch.cat([self.seen, torch.ones_like(ids)], dim=1)
        positions = self.seen.sum(-1, keepdim=True) - 1
        self.logits = self._forward(ids, self.seen, positions, self.cache, keep=1)[:, -1]

    def score_after(self, row: int, columns: int, continuations: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits [n, longest, V] after each id of n continuations of the row's first `columns` columns of the cache."""
        ids, _ = pad_right(continuations, 0)
        ids = ids.to(self.loaded.device)
        cache = self._slice(row, columns, len(ids))
        before = self.seen[row, :columns].expand(len(ids), columns)
        positions = before.sum(-1, keepdim=True) + torch.arange(ids.shape[1], device=ids.device)
        return self._forward(ids, torch.cat([before, torch.ones_like(ids)], dim=1), positions, cache, keep=ids.shape[1])

    def _slice(self, row: int, columns: int, copies: int) -> DynamicCache:
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            keys, values = (part[row : row + 1, :, :columns].expand(copies, -1, -1, -1) for part in (layer.keys, layer.values))
            cache.update(keys, values, number)
        return cache

    @torch.inference_mode()
    def _forward(
        self, ids: torch.Tensor, seen: torch.Tensor, positions: torch.Tensor, cache: DynamicCache, *, keep: int
    ) -> torch.Tensor:
        output: Any = self.loaded.model(
            input_ids=ids.to(self.loaded.device),
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits.float()
        return logits


def check_same_tokenizer(models: Sequence[LoadedModel]) -> None:
    """Raise InputError unless all models write ids alike."""
    known = models[0].template.tokenizer.get_vocab()
    for other in models[1:]:
        if other.template.tokenizer.get_vocab() != known:
            raise InputError(
                f"models {models[0].name} and {other.name} have different tokenizers",
                field="model",
                way_out="Let only models vote that were trained from one base.",
            )


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [rows, longest] with the padding before them, and the mask of what is no padding."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, seen


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [rows, longest] with the padding after them, and the mask of what is no padding."""
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows])
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, seen
