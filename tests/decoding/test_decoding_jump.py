"""Jump-forward: forced ids pass through the model at once, and nothing that anybody reads changes by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peaked_models import peaked

from yaofang.decoding.constraint import Constraint, Phase
from yaofang.decoding.generation import Generation, Row
from yaofang.decoding.processors import answer_ids
from yaofang.decoding.reading import read
from yaofang.glm.loading import LoadedModel
from yaofang.glm.tiny import Architecture, random_tiny

LABELS = [
    "聚乙二醇",
    "聚乙二醇洛塞那肽",
    "阿卡波糖",
    "阿司匹林",
    "阿司匹林肠溶片",
    "瑞格列奈",
    "达格列净片",
    "卡格列净片",
    "诺和灵30R",
    "诺和灵50R",
    "甲钴胺",
]
PAIRS = [(0, 1), (3, 4), (6, 7), (8, 9), (2, 5)]
PROMPTS = ["血糖高十年。", "患者三年前发现血糖升高，未规律服药，近日口干多饮。", "复查", "乏力两周，伴双下肢麻木。"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model_of(seed: int, architecture: Architecture = "glm") -> LoadedModel:
    return peaked(random_tiny([*"".join([*LABELS, *PROMPTS])], architecture=architecture, seed=seed))


def rule(loaded: LoadedModel, **limits: int) -> Constraint:
    conflicts = np.zeros((len(LABELS), len(LABELS)), dtype=np.bool_)
    conflicts[tuple(zip(*PAIRS, strict=True))] = True
    names = [loaded.template.encode(label) for label in LABELS]
    return Constraint(names, conflicts, answer_ids(loaded.template), max_diagnosis_tokens=6, **limits)


def written(models: list[LoadedModel], constraint: Constraint, phase: Phase, *, jump: bool, masses: bool = True) -> Generation:
    prompts = [models[0].template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    starts = [constraint.start(phase)] * len(prompts)
    generation = Generation(models, constraint, prompts, starts, [200] * len(prompts), jump=jump, masses=masses)
    generation.run()
    return generation


def numbers(row: Row) -> list[list[float]]:
    return [row.chosen, row.mass, row.closing]


@pytest.mark.parametrize("phase", [Phase.LIST, Phase.OPENING])
@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_jumping_writes_the_same_ids_and_the_same_numbers_in_fewer_forwards(architecture: Architecture, phase: Phase) -> None:
    drugs = fewer = 0
    for seed in (15, 18, 2):
        models = [model_of(seed, architecture)]
        constraint = rule(models[0], min_drugs=2)
        plain, jumped = (written(models, constraint, phase, jump=jump) for jump in (False, True))
        for a, b in zip(plain.rows, jumped.rows, strict=True):
            assert a.ids == b.ids
            for mine, other in zip(numbers(a), numbers(b), strict=True):
                assert len(mine) == len(other) == len(a.ids)
                assert mine == pytest.approx(other, abs=2e-5)
            assert a.first.keys() == b.first.keys()
            drugs += len(read(constraint, a.start, a.ids).drugs)
        assert jumped.forwards < plain.forwards
        fewer += plain.forwards - jumped.forwards
    assert drugs >= 20
    assert fewer >= 15


def test_three_models_that_vote_jump_alike() -> None:
    models = [model_of(seed) for seed in (18, 2, 21)]
    constraint = rule(models[0])
    plain, jumped = (written(models, constraint, Phase.LIST, jump=jump) for jump in (False, True))
    for a, b in zip(plain.rows, jumped.rows, strict=True):
        assert a.ids == b.ids
        for mine, other in zip(numbers(a), numbers(b), strict=True):
            assert mine == pytest.approx(other, abs=2e-5)


def test_without_masses_the_ids_and_the_choices_are_the_same() -> None:
    models = [model_of(15)]
    constraint = rule(models[0])
    with_masses, without = (written(models, constraint, Phase.LIST, jump=True, masses=masses) for masses in (True, False))
    for a, b in zip(with_masses.rows, without.rows, strict=True):
        assert a.ids == b.ids
        assert a.chosen == pytest.approx(b.chosen, abs=2e-5)
        assert a.closing == pytest.approx(b.closing, abs=2e-5)
    assert without.forwards <= with_masses.forwards


def test_a_plan_is_followed_where_the_constraint_allows_it_and_its_numbers_are_those_of_a_free_list() -> None:
    models = [model_of(15)]
    constraint = rule(models[0])
    free = written(models, constraint, Phase.LIST, jump=True)
    prompts = [models[0].template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    starts = [constraint.start(Phase.LIST)] * len(prompts)
    again = Generation(models, constraint, prompts, starts, [200] * 4, plans=[row.ids for row in free.rows])
    again.run()
    assert again.forwards == 2, "the prompts, and all lists at once"
    for a, b in zip(free.rows, again.rows, strict=True):
        assert a.ids == b.ids
        for mine, other in zip(numbers(a), numbers(b), strict=True):
            assert mine == pytest.approx(other, abs=2e-5)
    forbidden = constraint.list_ids([3, 4])
    (row,) = Generation(models, constraint, prompts[:1], starts[:1], [200], plans=[forbidden]).run()
    drugs = read(constraint, row.start, row.ids).drugs
    assert drugs[0] == 3
    assert 4 not in drugs


def test_draws_follow_the_models_probabilities_and_do_not_depend_on_the_batch() -> None:
    models = [model_of(15)]
    constraint = rule(models[0])
    prompts = [models[0].template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    start = constraint.start(Phase.LIST)

    def drawn(which: list[int], seeds: list[int], copies: int) -> list[list[int]]:
        own = [prompts[at] for at in which]
        rows = Generation(models, constraint, own, [start] * len(own), [200] * len(own), copies=copies, seeds=seeds).run()
        return [row.ids for row in rows]

    together = drawn([0, 1, 2], [5, 6, 7], 4)
    assert together[4:8] == drawn([1], [6], 4), "the draws of a prompt are its own"
    assert together[:4] != drawn([0], [99], 4)
    many = Generation(models, constraint, prompts[:1], [start], [200], copies=400, seeds=[1])
    many.run()
    firsts = [read(constraint, start, row.ids).drugs[0] for row in many.rows]
    # The first choice of every row is one distribution: its share of draws is its probability.
    for drug in set(firsts):
        row = next(row for row, first in zip(many.rows, firsts, strict=True) if first == drug)
        begin, end = read(constraint, start, row.ids).spans[0]
        p = float(np.prod(row.chosen[begin:end])) * row.closing[end]
        assert firsts.count(drug) / 400 == pytest.approx(p, abs=4 * (p * (1 - p) / 400) ** 0.5 + 0.005)


def test_rows_that_end_early_are_dropped_and_the_others_write_on_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from yaofang.decoding.running import Run

    models = [model_of(15)]
    constraint = rule(models[0])
    prompts = [models[0].template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    sizes: list[int] = []
    keep = Run.keep

    def noted(run: Run, places: list[int]) -> None:
        sizes.append(len(places))
        keep(run, places)

    monkeypatch.setattr(Run, "keep", noted)

    def drawn(masses: bool) -> list[list[int]]:
        starts = [constraint.start(Phase.LIST)] * len(prompts)
        settings = {"copies": 6, "seeds": [1, 2, 3, 4], "masses": masses}
        rows = Generation(models, constraint, prompts, starts, [200] * len(prompts), **settings).run()  # type: ignore[arg-type]
        return [row.ids for row in rows]

    whole = drawn(True)
    assert not sizes, "with masses every row's cache is kept for the audit"
    assert drawn(False) == whole
    assert sizes
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 12
