"""What one or several models say at places of a batch, as one voice: probabilities among the allowed ids, and their mass.

Knows the models' logits, states and numbers of rows; writes nothing.

**Voting.** Models m = 1..M (folds) vote for whole names, not for tokens: the probability of a name t1..tk is
(1/M) sum over m of P_m(t1) P_m(t2|t1) ... P_m(tk|..), each P_m renormalised over the allowed ids. Written token by
token, that is the mixture sum over m of w_m P_m(t), with w_m proportional to the product of P_m over the tokens of the
name so far. The weights go back to 1/M at each separator. In the diagnoses, the next-token probabilities are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from yaofang.decoding.bias import Bias
from yaofang.decoding.constraint import Constraint, Ids, Phase, State
from yaofang.decoding.gathering import Closed, gathered
from yaofang.decoding.running import Run

Numbers = tuple[float, float, float]
"""Of one id: probability among the allowed, mass of the allowed, probability that a name closes here."""


class Seen(NamedTuple):
    """What the models say at n places, each with its `allowed` ids.

    The columns k are a place's allowed ids (`ids` [n, k], padded with -1), or all ids where nearly all are allowed (`ids`
    None); -inf where a column is none. `log_p` [models, n, k] is of each model, `mixed` [n, k] of all; `raw` [n, k] are one
    model's own logits, None for several; `mass` [n] is of all allowed ids before the mask, 1 outside the list.
    """

    allowed: Sequence[Ids]
    ids: torch.Tensor | None
    log_p: torch.Tensor
    mixed: torch.Tensor
    raw: torch.Tensor | None
    mass: torch.Tensor

    def token(self, at: int, column: int) -> int:
        """The id of a column."""
        return column if self.ids is None else int(self.allowed[at][column])

    def column(self, at: int, token: int) -> int:
        """The column of an allowed id."""
        return token if self.ids is None else int(np.flatnonzero(self.allowed[at] == token)[0])

    def likeliest(self) -> list[int]:
        """The column of each place that is chosen without draws.

        One model is chosen by its logits themselves: the same numbers, in the same order, as in `generate`.
        """
        return (self.mixed if self.raw is None else self.raw).argmax(-1).tolist()


class Votes:
    """The models' voice on the rows of a batch; `masses` False leaves the mass of the allowed ids out (1 everywhere)."""

    def __init__(self, runs: Sequence[Run], constraint: Constraint, rows: int, *, bias: Bias | None, masses: bool) -> None:
        self._runs, self._constraint, self._bias, self._masses = runs, constraint, bias, masses
        self.device = runs[0].loaded.device
        self._weights = torch.zeros(len(runs), rows, device=self.device)
        """Log of each model's share in a row's name so far, unnormalised."""
        self._logits: list[torch.Tensor] | None = None
        self._whole: torch.Tensor | None = None
        self._closed = Closed()

    def asked(self) -> None:
        """The models were asked again: their logits are others."""
        self._logits = self._whole = None

    def begin(self, row: int) -> None:
        """All models have the same say in this row."""
        self._weights[:, row] = 0.0

    def at(self, places: Sequence[int], states: Sequence[State], rows: Sequence[int]) -> Seen:
        """What the models say at n places of their logits, among what each state allows; `rows` are their rows' numbers."""
        said, allowed = self._said(), [self._constraint.allowed(state) for state in states]
        if all(self.in_text(ids) for ids in allowed):
            ids, scores = None, self._closed(said, places, allowed)
            before = scores
        else:
            bias = None if self._bias is None else [self._bias.of(s, ids) for s, ids in zip(states, allowed, strict=True)]
            ids, scores, before = gathered(said, places, allowed, bias)
        whole = before.logsumexp(-1)
        mass = torch.zeros_like(whole)
        if self._masses and any(listed := [state.phase == Phase.LIST for state in states]):
            mass[:, listed] = (whole - self._log_whole(said)[:, places])[:, listed]
        log_p = scores - whole[..., None] if scores is before else scores.log_softmax(-1)
        if len(said) == 1:
            return Seen(allowed, ids, log_p, log_p[0], scores[0], mass[0].exp())
        weights = self._weights[:, rows].log_softmax(0)
        mixed, mass = (log_p + weights[..., None]).logsumexp(0), (mass + weights).logsumexp(0)
        return Seen(allowed, ids, log_p, mixed, None, mass.exp())

    def in_text(self, allowed: Ids) -> bool:
        """Whether these are the ids of free text: nearly all."""
        return any(allowed is text for text in self._constraint.texts)

    def numbers(self, seen: Seen, picked: Sequence[int]) -> list[Numbers]:
        """Of the picked column of each place."""
        ids, mixed = self._constraint.ids, seen.mixed
        chosen = mixed[torch.arange(len(picked)), torch.tensor(picked)].exp()
        closing = torch.zeros_like(chosen)
        if seen.ids is None:
            closing = mixed[:, [ids.drug_separator, ids.end]].exp().sum(-1)
        elif (closes := (seen.ids == ids.drug_separator) | (seen.ids == ids.end)).any():
            closing = (mixed.exp() * (closes & torch.isfinite(mixed))).sum(-1)
        return list(zip(*(column.clamp(max=1).tolist() for column in (chosen, seen.mass, closing)), strict=True))

    def of(self, places: Sequence[int], ids: torch.Tensor) -> torch.Tensor:
        """[models, n, k]: the logits of some ids [k] at n places, unmasked."""
        asked = torch.tensor(places)[:, None]
        return torch.stack([one[asked, ids].float().cpu() for one in self._said()])

    def follow(self, row: int, before: State, after: State, seen: Seen | None = None, at: int = 0, column: int = 0) -> None:
        """A row has got the id of a column of `seen`, at its place `at`; a certain one where there is no `seen`.

        By what each of several models gave it they vote on within the name, and alike behind it.
        """
        if len(self._runs) > 1:
            within = before.phase == after.phase == Phase.LIST and before.listed == after.listed
            log_p = 0.0 if seen is None else seen.log_p[:, at, column]
            self._weights[:, row] = self._weights[:, row] + log_p if within else 0.0

    def _said(self) -> list[torch.Tensor]:
        """Of each model, logits [p, V] at all places that were asked for, on one device."""
        if self._logits is None:
            self._logits = [run.logits.to(self.device) for run in self._runs]
        return self._logits

    def _log_whole(self, said: Sequence[torch.Tensor]) -> torch.Tensor:
        """[models, p]: log of what all ids have together, at all places that were asked for."""
        if self._whole is None:
            self._whole = torch.stack([one.logsumexp(-1) for one in said])
        return self._whole
