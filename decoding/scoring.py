"""The probability of every allowed drug as the next one of a list, exactly, in one forward over the names' trie.

A name's probability is the product over its tokens of what the model gives each among the ids allowed there (and of the name
ending where it could grow). Where only one id is allowed the factor is 1, so the model is only asked at the trie's nodes with
a choice: of GLM-4's 651 names some hundreds of some thousands. These nodes are fed together, each as one token that attends
to the row's cache and to the nodes on its own way from the root (a tree attention mask), at the position of its depth. Nodes
on different ways do not see each other, so each has the logits that it would have alone.

Knows ids, the constraint and a generation's cache; no label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.generation import Generation
from yaofang.decoding.running import Tree
from yaofang.decoding.trie import NO_DRUG, ROOT

Probabilities = npt.NDArray[np.float64]


class Place(NamedTuple):
    """Where a name begins in a row, and the state there; its set of drugs may be another than the one generated with."""

    row: int
    at: int
    state: State
    wanted: int | None = None
    """The drugs asked for, as bits by the trie's numbers; None asks for all."""


class ChoiceTree(NamedTuple):
    """The nodes of a trie that the model has to read, parents first."""

    nodes: list[int]
    tokens: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    """[n, n], true where the second node is on the way to the first, itself included."""


def choice_tree(
    constraint: Constraint, drugs: int, roots: Sequence[int] | None = None, wanted: int | None = None
) -> ChoiceTree:
    """The nodes with a choice among `drugs` (bits), and those on the way to them.

    Only those under the first tokens `roots`, and only those above a drug of `wanted`, where these are given.
    """
    trie = constraint.trie
    nodes: list[int] = []
    tokens: list[int] = []
    ways: list[list[int]] = []

    def visit(node: int, token: int, way: list[int]) -> None:
        inside = trie.below[node] & drugs
        if inside & (inside - 1) == 0 or (wanted is not None and not inside & wanted):
            return  # none or one: nothing is left to choose here or below; or nobody asks
        own = [*way, len(nodes)]
        nodes.append(node)
        tokens.append(token)
        ways.append(own)
        for following, child in trie.children[node].items():
            visit(child, following, own)

    for first in trie.children[ROOT] if roots is None else roots:
        visit(trie.children[ROOT][first], first, [])
    ancestors = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for at, own in enumerate(ways):
        ancestors[at, own] = True
    return ChoiceTree(nodes, torch.tensor(tokens), torch.tensor([len(own) - 1 for own in ways]), ancestors)


def next_drugs(generation: Generation, places: Sequence[Place], *, least: float = 0.0, chunk: int = 512) -> list[Probabilities]:
    """For each place, [D] probabilities by vocabulary position; 0 where a drug is not allowed. They sum to 1.

    Where a place asks for some drugs only, the others may be 0 though they are possible.

    With `least`, names whose first token has less probability are not followed: they get 0, as none of them could reach it.
    The generation must have been made with `masses`. About `chunk` nodes are read in one forward, more if one row needs more.
    """
    if not places:
        return []
    first = _first(generation, places)
    mean = first.exp().mean(1)
    likely = ((mean > 0) & (mean >= least)).numpy()
    asked = [_Asked(generation, *one) for one in zip(places, first, likely, strict=True)]
    of_row: dict[int, list[_Asked]] = {}
    for one in asked:
        if one.tree.nodes:
            of_row.setdefault(one.place.row, []).append(one)
    # Rows of like size go together: a forward is as wide as its largest.
    sized = sorted((sum(len(one.tree.nodes) for one in own), row) for row, own in of_row.items())
    while sized:
        width = sized[-1][0]
        batch = [sized.pop()[1] for _ in range(min(len(sized), max(1, chunk // width)))]
        _read(generation, [(row, of_row[row]) for row in batch])
    return [one.drugs(generation) for one in asked]


def _read(generation: Generation, rows: Sequence[tuple[int, Sequence[_Asked]]]) -> None:
    """One forward of each model over all trees of some rows."""
    trees = [
        (generation.place(row), [Tree(generation.rows[row].columns[one.place.at], *one.tree[1:]) for one in own])
        for row, own in rows
    ]
    asked = [one for _, own in rows for one in own]
    for run in generation.runs:
        said = torch.split(run.trees(trees).cpu(), [len(one.tree.nodes) for one in asked])
        for one, logits in zip(asked, said, strict=True):
            one.said.append(logits)


class _Asked:
    """One place: which names can be likely enough there, the tree that tells them apart, and what the models say at it."""

    def __init__(self, generation: Generation, place: Place, first: torch.Tensor, likely: npt.NDArray[np.bool_]) -> None:
        self.place = place
        self.first = first
        self.reached = _reached(generation, place, likely)
        roots = [generation.first_ids[at] for at in self.reached]
        self.tree = choice_tree(generation.constraint, place.state.allowed, roots, place.wanted)
        self.said: list[torch.Tensor] = []
        """Of each model, logits [nodes, V]."""

    def drugs(self, generation: Generation) -> Probabilities:
        """[D] probabilities by vocabulary position, the mean of the models'."""
        if not self.reached:
            return np.zeros(len(generation.constraint.trie))
        said = self.said or [torch.empty(0, 0)] * len(generation.runs)
        walks = [_Walk(generation.constraint, self.place, self.tree.nodes, logits) for logits in said]
        tokens = [generation.first_ids[at] for at in self.reached]
        firsts = self.first[:, self.reached].tolist()
        names = [walk.drugs(dict(zip(tokens, own, strict=True))) for walk, own in zip(walks, firsts, strict=True)]
        found: Probabilities = np.mean([np.exp(one) for one in names], axis=0)
        return found


def _reached(generation: Generation, place: Place, likely: npt.NDArray[np.bool_]) -> list[int]:
    """Which of the `likely` first tokens have a drug below them that the place asks for."""
    trie = generation.constraint.trie
    asked = place.state.allowed if place.wanted is None else place.state.allowed & place.wanted
    under = trie.children[ROOT]
    return [at for at in np.flatnonzero(likely).tolist() if trie.below[under[generation.first_ids[at]]] & asked]


def _first(generation: Generation, places: Sequence[Place]) -> torch.Tensor:
    """[places, models, first tokens]: log probabilities of a name's first token among those allowed at each place."""
    first = np.array(generation.first_ids)
    closed = torch.ones(len(places), len(first), dtype=torch.bool)
    for own, place in zip(closed, places, strict=True):
        allowed = generation.constraint.allowed(place.state)
        at = np.searchsorted(first, allowed).clip(max=len(first) - 1)
        own[at[first[at] == allowed]] = False  # the end may be allowed too
    said = torch.stack([generation.rows[place.row].first[place.at] for place in places])
    return said.masked_fill(closed[:, None], -torch.inf).log_softmax(-1)


class _Walk:
    """From the root's probabilities to those of all drugs, for one place and one model."""

    def __init__(self, constraint: Constraint, place: Place, nodes: Sequence[int], logits: torch.Tensor) -> None:
        self.constraint = constraint
        self.state = place.state
        self.wanted = place.state.allowed if place.wanted is None else place.wanted
        self.place = {node: at for at, node in enumerate(nodes)}
        self.logits = logits

    def drugs(self, first: Mapping[int, float]) -> Probabilities:
        """[D] log probabilities by vocabulary position, from those of first tokens; 0 under others."""
        trie = self.constraint.trie
        found = np.full(len(trie), -np.inf)
        for token, log_p in first.items():
            if log_p > -np.inf:
                for drug, value in self._under(trie.children[ROOT][token], log_p):
                    found[trie.order[drug]] = value
        return found

    def _under(self, node: int, log_p: float) -> Iterator[tuple[int, float]]:
        """(drug, log probability) of every allowed drug below a node that is itself reached with `log_p`."""
        trie = self.constraint.trie
        inside = trie.below[node] & self.state.allowed
        if not inside & self.wanted:
            return
        if inside & (inside - 1) == 0:
            yield inside.bit_length() - 1, log_p
            return
        allowed = self.constraint.allowed(self.state._replace(phase=Phase.LIST, node=node))
        said = self.logits[self.place[node]][torch.from_numpy(allowed)].log_softmax(-1).tolist()
        closing = -np.inf
        for token, value in zip(allowed.tolist(), said, strict=True):
            child = trie.children[node].get(token)
            if child is None:
                closing = np.logaddexp(closing, value)
            else:
                yield from self._under(child, log_p + value)
        if trie.ending[node] != NO_DRUG and closing > -np.inf:
            yield trie.ending[node], log_p + closing
