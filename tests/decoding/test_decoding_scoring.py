"""Exact scoring of all drugs in one forward under a tree mask: equal to each label alone, and a distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_decoding_jump import LABELS, PROMPTS, model_of, rule

from yaofang.decoding.constraint import Constraint, Phase
from yaofang.decoding.generation import Generation
from yaofang.decoding.reading import read
from yaofang.decoding.scoring import Place, choice_tree, next_drugs
from yaofang.glm.loading import LoadedModel
from yaofang.glm.tiny import Architecture


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def alone(loaded: LoadedModel, constraint: Constraint, before: list[int], state: object, drug: int) -> float:
    """P of one label after `before`, one forward a prefix and no cache: the definition."""
    p = 1.0
    ids = constraint.ids
    name = constraint.name(drug)
    for depth in range(len(name) + 1):
        allowed = constraint.allowed(state)  # type: ignore[arg-type]
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([[*before, *name[:depth]]])).logits[0, -1].double()
        among = logits[torch.from_numpy(allowed)].softmax(-1).numpy()
        if depth == len(name):
            grows = constraint.could_grow(state)  # type: ignore[arg-type]
            return p * (float(among[np.isin(allowed, [ids.drug_separator, ids.end])].sum()) if grows else 1.0)
        p *= float(among[allowed == name[depth]].sum())
        state = constraint.step(state, name[depth])  # type: ignore[arg-type]
    raise AssertionError


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_all_drugs_at_every_place_equal_each_alone(architecture: Architecture) -> None:
    loaded = model_of(15, architecture)
    constraint = rule(loaded, min_drugs=3)
    prompts = [loaded.template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    start = constraint.start(Phase.LIST, banned=[10])
    generation = Generation([loaded], constraint, prompts, [start] * 4, [200] * 4)
    places = []
    for row in generation.run():
        reading = read(constraint, start, row.ids)
        state = start
        for at, token in enumerate(row.ids):
            if state.phase == Phase.LIST and state.node == 0 and at in {begin for begin, _ in reading.spans}:
                places.append(Place(row.number, at, state))
            state = constraint.step(state, token)
    assert len(places) >= 12
    compared = 0
    for place, found in zip(places, next_drugs(generation, places), strict=True):
        before = prompts[place.row] + generation.rows[place.row].ids[: place.at]
        wanted = [
            alone(loaded, constraint, before, place.state, drug) if drug in constraint.positions(place.state.allowed) else 0.0
            for drug in range(len(LABELS))
        ]
        assert found == pytest.approx(wanted, abs=1e-4)
        assert found.sum() == pytest.approx(1.0, abs=1e-5)
        assert found[10] == 0.0
        compared += sum(value > 1e-3 for value in wanted)
    assert compared >= 30, "the distributions are not all one point"


def test_the_place_that_was_written_has_its_own_p_step() -> None:
    loaded = model_of(18)
    constraint = rule(loaded)
    prompts = [loaded.template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    start = constraint.start(Phase.LIST)
    generation = Generation([loaded], constraint, prompts, [start] * 4, [200] * 4)
    for row in generation.run():
        reading = read(constraint, start, row.ids)
        begin, end = reading.spans[0]
        (found,) = next_drugs(generation, [Place(row.number, begin, start)])
        assert found[reading.drugs[0]] == pytest.approx(float(np.prod(row.chosen[begin:end])) * row.closing[end], abs=1e-4)


def test_scoring_leaves_the_cache_as_it_was() -> None:
    loaded = model_of(15)
    constraint = rule(loaded)
    start = constraint.start(Phase.LIST)
    prompts = [loaded.template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS[:2]]
    quiet = Generation([loaded], constraint, prompts, [start] * 2, [200] * 2)
    quiet.run()
    watched = Generation([loaded], constraint, prompts, [start] * 2, [200] * 2)
    for _ in watched.steps():
        begun = [(row.number, min(row.first)) for row in watched.rows]
        next_drugs(watched, [Place(number, at, start) for number, at in begun])
    assert [row.ids for row in watched.rows] == [row.ids for row in quiet.rows]


def test_names_that_cannot_reach_the_threshold_are_not_followed() -> None:
    loaded = model_of(15)
    constraint = rule(loaded)
    start = constraint.start(Phase.LIST)
    prompt = loaded.template.prompt_ids([{"role": "user", "content": PROMPTS[0]}])
    generation = Generation([loaded], constraint, [prompt], [start], [200])
    generation.run()
    place = Place(0, 0, start)
    (exact,), (pruned,) = next_drugs(generation, [place]), next_drugs(generation, [place], least=0.05)
    assert ((pruned == 0) | (np.abs(pruned - exact) < 1e-6)).all()
    assert (pruned[exact >= 0.05] > 0).all()
    assert (pruned > 0).sum() < (exact > 0).sum()


def test_the_tree_holds_only_nodes_with_a_choice_below_them() -> None:
    loaded = model_of(15)
    constraint = rule(loaded)
    everything = constraint.start(Phase.LIST).allowed
    tree = choice_tree(constraint, everything)
    nodes = len(constraint.trie.children)
    assert 0 < len(tree.nodes) < nodes / 3
    assert tree.ancestors.diagonal().all()
    assert tree.ancestors.sum(1).tolist() == (tree.depths + 1).tolist()
    lone = 1 << int(constraint.trie.number[2])
    assert choice_tree(constraint, lone).nodes == []
