"""A place has its numbers whatever else is looked at with it, and nothing is asked that nobody reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peaked_models import peaked
from test_decoding_generation import LABELS, PROMPTS, model_of, prompt, rule

from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.drafts import Drafts
from yaofang.decoding.generation import Generation
from yaofang.decoding.running import Run
from yaofang.decoding.voting import Seen, Votes
from yaofang.glm.loading import LoadedModel
from yaofang.glm.tiny import random_tiny


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models() -> list[LoadedModel]:
    return [model_of(seed) for seed in (15, 18)]


def votes_of(models: Sequence[LoadedModel], constraint: Constraint) -> Votes:
    prompts = [prompt(models[0], text) for text in PROMPTS]
    return Votes([Run(loaded, prompts) for loaded in models], constraint, len(prompts), bias=None, masses=True)


def by_id(seen: Seen, at: int) -> dict[int, float]:
    return {token: float(seen.mixed[at, seen.column(at, token)]) for token in seen.allowed[at].tolist()}


@pytest.mark.parametrize("count", [1, 2])
def test_free_text_alone_has_the_numbers_that_it_has_beside_a_list(models: list[LoadedModel], count: int) -> None:
    constraint = rule(models[0])
    votes = votes_of(models[:count], constraint)
    begun = constraint.start(Phase.DIAGNOSES)
    texts = [begun, constraint.step(begun, int(constraint.ids.text[5]))]
    alone = votes.at([0, 1], texts, [0, 1])
    beside = votes.at([0, 1, 2], [*texts, constraint.start(Phase.LIST)], [0, 1, 2])
    assert alone.ids is None
    assert beside.ids is not None
    for at in (0, 1):
        assert by_id(alone, at) == pytest.approx(by_id(beside, at), abs=1e-5)
        assert alone.token(at, alone.likeliest()[at]) == beside.token(at, beside.likeliest()[at])
    token = int(constraint.ids.text[7])
    first = votes.numbers(alone, [alone.column(at, token) for at in (0, 1)])
    second = votes.numbers(beside, [*(beside.column(at, token) for at in (0, 1)), 0])
    for mine, other in zip(first, second[:2], strict=True):
        assert mine == pytest.approx(other, abs=1e-6)
    assert first[0][2] > 0, "the drugs' separator is an id of the text too"


def written(models: Sequence[LoadedModel], starts: Sequence[State], texts: Sequence[str], **more: Any) -> Generation:
    prompts = [prompt(models[0], text) for text in texts]
    generation = Generation(models, rule(models[0]), prompts, starts, [60] * len(prompts), **more)
    generation.run()
    return generation


def test_drawn_text_is_the_same_beside_a_row_that_is_not_in_its_text(models: list[LoadedModel]) -> None:
    constraint = rule(models[0])
    flat = [random_tiny([*"".join([*LABELS, *PROMPTS])], seed=3)]
    text, opening = constraint.start(Phase.DIAGNOSES), constraint.start(Phase.OPENING)
    different = 0
    for seed in range(12):
        (alone,) = written(flat, [text], PROMPTS[:1], seeds=[seed], jump=False).rows
        beside = written(flat, [text, opening], PROMPTS[:2], seeds=[seed, 99], jump=False).rows[0]
        assert alone.ids == beside.ids
        different += alone.ids != written(flat, [text], PROMPTS[:1], seeds=[seed + 100], jump=False).rows[0].ids
    assert different >= 6, "they are drawn"


def test_the_models_are_not_asked_about_certain_ids_outside_the_list(
    models: list[LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    extend = Run.extend

    def noted(run: Run, chunks: Sequence[Sequence[int]], *, keep: Sequence[int]) -> None:
        asked.append(sum(keep))
        extend(run, chunks, keep=keep)

    monkeypatch.setattr(Run, "extend", noted)
    monkeypatch.setattr(Drafts, "after", lambda *_: [])
    constraint = rule(models[0])
    generation = written(models[:1], [constraint.start(Phase.OPENING)], PROMPTS[:1])
    (row,) = generation.rows
    phases = []
    state = row.start
    for token in row.ids:
        phases.append((state.phase, len(constraint.allowed(state))))
        state = constraint.step(state, token)
    certain = sum(size == 1 and phase != Phase.LIST for phase, size in phases)
    assert certain >= len(constraint.ids.opening) + len(constraint.ids.header)
    assert sum(asked) - (len(row.ids) - certain) in (0, 1), "each id that is a choice or in the list once, and what comes last"
    assert [mass for mass, (phase, _) in zip(row.mass, phases, strict=True) if phase != Phase.LIST] == [1.0] * sum(
        phase != Phase.LIST for phase, _ in phases
    )
    assert np.mean([mass for mass, (phase, _) in zip(row.mass, phases, strict=True) if phase == Phase.LIST]) < 1


def test_a_plan_through_the_text_has_the_numbers_of_a_free_answer(models: list[LoadedModel]) -> None:
    loaded = [peaked(random_tiny([*"".join([*LABELS, *PROMPTS])], seed=15))]
    constraint = rule(loaded[0])
    starts = [constraint.start(Phase.DIAGNOSES), constraint.start(Phase.LIST), constraint.start(Phase.OPENING)]
    free = written(loaded, starts, PROMPTS)
    planned = written(loaded, starts, PROMPTS, plans=[row.ids for row in free.rows])
    assert planned.forwards < free.forwards
    for one, other in zip(free.rows, planned.rows, strict=True):
        assert one.ids == other.ids
        for name in ("chosen", "mass", "closing"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=2e-5)
