"""Which labels the conflict mask kept out that the model would have considered, exactly.

At each place of the list where a name begins, every label that a listed drug keeps out is scored as if no conflict were
masked there (what is listed or banned stays out), from the cache of the row as it stood at that place (`decoding.scoring`).
The first token's probability bounds the label's: only labels under a first token that reaches the threshold are scored
further. Knows ids and positions in the vocabulary, no labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from yaofang.decoding.constraint import Constraint, Phase
from yaofang.decoding.generation import Generation
from yaofang.decoding.reading import Reading
from yaofang.decoding.scoring import Place, Probabilities, next_drugs
from yaofang.decoding.trie import ROOT


class KeptAway(NamedTuple):
    """A drug that the model would have written with probability `p_step`, had the drugs `by` not been listed."""

    drug: int
    by: tuple[int, ...]
    p_step: float


def kept_away(generation: Generation, number: int, reading: Reading, threshold: float) -> list[KeptAway]:
    """For row `number`: each kept-out drug whose `p_step` reaches the threshold somewhere, once, where it is highest."""
    return kept_away_all(generation, {number: reading}, threshold)[0]


def kept_away_all(generation: Generation, readings: Mapping[int, Reading], threshold: float) -> list[list[KeptAway]]:
    """The same for some rows by their numbers, scored together."""
    places = {number: list(_places(generation, number, reading)) for number, reading in readings.items()}
    scored = iter(next_drugs(generation, [place for own in places.values() for place, _ in own], least=threshold))
    return [_likeliest(generation.constraint, readings[number], own, scored, threshold) for number, own in places.items()]


def _likeliest(
    constraint: Constraint, reading: Reading, places: Sequence[tuple[Place, int]], scored: Iterator[Probabilities], least: float
) -> list[KeptAway]:
    best: dict[int, KeptAway] = {}
    for place, kept_out in places:
        p_step = next(scored)
        for drug in np.flatnonzero(p_step >= least).tolist():
            if kept_out >> int(constraint.trie.number[drug]) & 1 and (drug not in best or best[drug].p_step < p_step[drug]):
                by = _conflicting(constraint, drug, reading.drugs[: place.state.listed])
                best[drug] = KeptAway(drug, by, float(p_step[drug]))
    return sorted(best.values(), key=lambda kept: -kept.p_step)


def _places(generation: Generation, number: int, reading: Reading) -> Iterator[tuple[Place, int]]:
    """Where a name began, without conflicts masked there, and the drugs that conflicts kept out."""
    row, constraint = generation.rows[number], generation.constraint
    free = row.start.allowed
    state = row.start._replace(phase=Phase.LIST, node=ROOT, listed=0)
    for drug, (begin, _) in zip(reading.drugs, reading.spans, strict=True):
        if free != state.allowed:
            kept_out = free & ~state.allowed
            yield Place(number, begin, state._replace(allowed=free), kept_out), kept_out
        free = constraint.without(free, drug, conflicts=False)
        state = state._replace(allowed=constraint.without(state.allowed, drug), listed=state.listed + 1)


def _conflicting(constraint: Constraint, drug: int, listed: Sequence[int]) -> tuple[int, ...]:
    return tuple(other for other in listed if constraint.in_conflict(drug, other))
