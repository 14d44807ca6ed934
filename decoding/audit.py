"""Which labels the conflict mask kept out that the model would have considered, exactly.

At each place of the list where a name begins, every label that a listed drug keeps out is scored as if no conflict were
masked there (what is listed or banned stays out). The first token's probability bounds the label's: only labels under a first
token that reaches the threshold are scored further, from the cache of the row as it stood at that place. Knows ids and
positions in the vocabulary, no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from yaofang.decoding.constraint import Constraint, Phase, Reading, State
from yaofang.decoding.generation import Generation, Row
from yaofang.decoding.trie import ROOT

CHUNK = 16
"""Names scored at once: each takes a copy of the prompt's cache."""


class KeptAway(NamedTuple):
    """A drug that the model would have written with probability `p_step`, had the drugs `by` not been listed."""

    drug: int
    by: tuple[int, ...]
    p_step: float


def kept_away(generation: Generation, number: int, reading: Reading, threshold: float) -> list[KeptAway]:
    """For row `number`: each kept-out drug whose `p_step` reaches the threshold somewhere, once, where it is highest."""
    row, constraint = generation.rows[number], generation.constraint
    best: dict[int, KeptAway] = {}
    free = row.start.allowed
    state = row.start._replace(phase=Phase.LIST, node=ROOT, listed=0)
    for drug, (begin, _) in zip(reading.drugs, reading.spans, strict=True):
        unmasked = state._replace(allowed=free)
        for other, p_step in _scores(generation, number, unmasked, free & ~state.allowed, begin, threshold):
            if other not in best or best[other].p_step < p_step:
                best[other] = KeptAway(other, _conflicting(constraint, other, reading.drugs[: state.listed]), p_step)
        free = constraint.without(free, drug, conflicts=False)
        state = state._replace(allowed=constraint.without(state.allowed, drug), listed=state.listed + 1)
    return sorted(best.values(), key=lambda kept: -kept.p_step)


def _conflicting(constraint: Constraint, drug: int, listed: Sequence[int]) -> tuple[int, ...]:
    return tuple(other for other in listed if constraint.in_conflict(drug, other))


def _scores(
    generation: Generation, number: int, unmasked: State, kept_out: int, begin: int, threshold: float
) -> list[tuple[int, float]]:
    """(drug, probability) of the drugs in `kept_out` that reach the threshold at the place `begin` of the row's ids."""
    constraint = generation.constraint
    if not kept_out:
        return []
    first = _first_probabilities(constraint, generation, generation.rows[number], unmasked, begin)
    candidates = [
        drug
        for token, bound in zip(generation.first_ids, first.mean(0).tolist(), strict=True)
        if bound >= threshold
        for drug in constraint.positions(constraint.trie.below[constraint.trie.children[ROOT][token]] & kept_out)
    ]
    found: list[tuple[int, float]] = []
    for at in range(0, len(candidates), CHUNK):
        chunk = candidates[at : at + CHUNK]
        names = [constraint.name(drug) for drug in chunk]
        columns = [generation.first_ids.index(name[0]) for name in names]
        p = first[:, columns] * _rest(generation, number, unmasked, begin, names)
        found += [(drug, value) for drug, value in zip(chunk, p.mean(0).tolist(), strict=True) if value >= threshold]
    return found


def _first_probabilities(constraint: Constraint, generation: Generation, row: Row, unmasked: State, begin: int) -> torch.Tensor:
    """[models, first tokens]: each model's probabilities of a name's first token when no conflict is masked."""
    allowed = set(constraint.allowed(unmasked).tolist())
    open_here = torch.tensor([token in allowed for token in generation.first_ids])
    return row.first[begin].masked_fill(~open_here, -torch.inf).softmax(-1)


def _rest(generation: Generation, number: int, unmasked: State, begin: int, names: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """[models, names]: probability of the name after its first token, and that it ends there and grows no longer."""
    ids = generation.constraint.ids
    p = torch.ones(len(generation.runs), len(names))
    steps = [
        (column, depth, [*name[depth : depth + 1]] or [ids.drug_separator, ids.end], allowed)
        for column, name in enumerate(names)
        for depth, allowed in _choices(generation.constraint, unmasked, name)
    ]
    if not steps:
        return p
    for model, run in enumerate(generation.runs):
        logits = run.score_after(number, generation.width + begin, names).cpu()
        for column, depth, wanted, allowed in steps:
            among = logits[column, depth - 1, allowed].softmax(-1)
            p[model, column] *= sum(float(among[allowed.index(token)]) for token in wanted if token in allowed)
    return p


def _choices(constraint: Constraint, state: State, name: tuple[int, ...]) -> list[tuple[int, list[int]]]:
    """Depths 1.. of a name at which something else could follow, with what could; forced steps cost no probability."""
    found = []
    closing = {constraint.ids.drug_separator, constraint.ids.end}
    for depth, token in enumerate(name, 1):
        state = constraint.step(state, token)
        allowed = constraint.allowed(state).tolist()
        if len(allowed) > 1 and not closing.issuperset(allowed):
            found.append((depth, allowed))
    return found
