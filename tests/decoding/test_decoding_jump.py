"""Jump-forward: forced ids pass through the model at once, and nothing that anybody reads changes by it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from peaked_models import peaked

from yaofang.decoding.constraint import Constraint, Ids, Phase, State
from yaofang.decoding.drafts import Drafts
from yaofang.decoding.generation import Generation, Row
from yaofang.decoding.processors import answer_ids
from yaofang.decoding.reading import read
from yaofang.decoding.running import Run
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


def _drawn(
    loaded: LoadedModel, starts: list[State], *, jump: bool
) -> tuple[list[list[int]], list[tuple[int, State, list[int], list[float]]]]:
    """Drawn ids of each row, and all that was watched, in an order of its own."""
    constraint = rule(loaded)
    watched: list[tuple[int, State, list[int], list[float]]] = []

    def watch(row: Row, state: State, allowed: Ids, log_p: torch.Tensor) -> None:
        watched.append((row.number, state, allowed.tolist(), log_p.tolist()))

    prompts = [loaded.template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS[: len(starts)]]
    options: dict[str, Any] = {"copies": 3, "seeds": [5, 6, 7][: len(starts)], "masses": False, "jump": jump, "watch": watch}
    generation = Generation([loaded], constraint, prompts, starts, [200] * len(starts), **options)
    rows = generation.run()
    listed = [sum(state.phase == Phase.LIST for state in _states(constraint, row)) for row in rows]
    assert [sum(number == row.number for number, *_ in watched) for row in rows] == listed, "one call for each id of a list"
    return [row.ids for row in rows], sorted(watched, key=lambda one: (one[0], one[1].taken.bit_count(), one[1].listed))


def _states(constraint: Constraint, row: Row) -> list[State]:
    """The state before each id of a row."""
    return [*accumulate(row.ids[:-1], constraint.step, initial=row.start)]


@pytest.mark.parametrize("phase", [Phase.LIST, Phase.OPENING])
def test_draws_and_what_is_watched_depend_neither_on_jumping_nor_on_drafts(
    phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = random_tiny([*"".join([*LABELS, *PROMPTS])], seed=4)
    constraint = rule(loaded)
    alike = [LABELS.index(label) for label in ("阿卡波糖", "阿司匹林", "阿司匹林肠溶片")]  # one first id
    starts = [constraint.start(phase), constraint.start(phase, only=alike), constraint.start(Phase.LIST)]
    drafted, seen = _drawn(loaded, starts, jump=True)
    plain, one_by_one = _drawn(loaded, starts, jump=False)
    monkeypatch.setattr(Drafts, "after", lambda *_: [])
    undrafted, without = _drawn(loaded, starts, jump=True)
    assert drafted == plain == undrafted
    for watched in (one_by_one, without):
        assert [one[:3] for one in seen] == [one[:3] for one in watched]
        for mine, other in zip(seen, watched, strict=True):
            assert mine[3] == pytest.approx(other[3], abs=2e-5)
    assert len({tuple(ids) for ids in drafted}) > 5, "they are drawn"


def test_three_models_that_vote_give_a_plan_the_numbers_of_the_free_list() -> None:
    models = [model_of(seed) for seed in (18, 2, 21)]
    constraint = rule(models[0])
    free = written(models, constraint, Phase.LIST, jump=True)
    prompts = [models[0].template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    starts = [constraint.start(Phase.LIST)] * len(prompts)
    plans = [row.ids for row in free.rows]
    planned = Generation(models, constraint, prompts, starts, [200] * 4, plans=plans).run()
    for a, b in zip(free.rows, planned, strict=True):
        assert a.ids == b.ids
        for mine, other in zip(numbers(a), numbers(b), strict=True):
            assert mine == pytest.approx(other, abs=2e-5)
    assert sum(len(read(constraint, row.start, row.ids).drugs) for row in planned) > 6


def test_a_plan_is_left_and_taken_up_again_by_place_whatever_is_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model_of(18)
    constraint = rule(loaded, min_drugs=3)
    free = written([loaded], constraint, Phase.LIST, jump=True)
    prompts = [loaded.template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    # Another prompt's list, its separators not allowed: the model decides whether it goes on, and then the plan does.
    others = [row.ids for row in (*free.rows[1:], free.rows[0])]
    refused = {constraint.ids.drug_separator: constraint.ids.newline}
    plans = [[refused.get(token, token) for token in ids] for ids in others]

    def run() -> list[list[int]]:
        starts = [constraint.start(Phase.LIST)] * len(prompts)
        return [row.ids for row in Generation([loaded], constraint, prompts, starts, [200] * 4, plans=plans).run()]

    drafted = run()
    monkeypatch.setattr(Drafts, "after", lambda *_: [])
    assert drafted == run()
    start = constraint.start(Phase.LIST)
    of_plan = [read(constraint, start, ids).drugs for ids in others]
    assert sum(read(constraint, start, ids).drugs == drugs for ids, drugs in zip(drafted, of_plan, strict=True)) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_the_same_however_many_places_are_looked_at_at_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [model_of(seed) for seed in (18, 2, 21)[:count]]
    constraint = rule(models[0])
    at_once = written(models, constraint, Phase.OPENING, jump=True)
    for places in (1, 3):
        monkeypatch.setattr("yaofang.decoding.generation.PLACES", places)
        few = written(models, constraint, Phase.OPENING, jump=True)
        assert [row.ids for row in few.rows] == [row.ids for row in at_once.rows]
        for a, b in zip(few.rows, at_once.rows, strict=True):
            assert a.chosen == pytest.approx(b.chosen, abs=2e-5)


def test_what_the_model_says_behind_a_draft_that_is_not_the_choice_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model_of(15)
    constraint = rule(loaded)
    wanted = [row.ids for row in written([loaded], constraint, Phase.LIST, jump=True).rows]
    spoilt = 0

    def wrong(drafts: Drafts, state: State, ids: Sequence[int], most: int, likely: object = None) -> list[int]:
        """A drafted id that is allowed and not the choice."""
        whole = next(row for row in wanted if row[: len(ids)] == list(ids))
        return [int(one) for one in constraint.allowed(state) if one != whole[len(ids)] and one != constraint.ids.end][:1]

    def extend(run: Run, chunks: Sequence[Sequence[int]], *, keep: Sequence[int]) -> None:
        nonlocal spoilt
        own(run, chunks, keep=keep)
        ends = np.cumsum(keep) - 1
        for row, end in zip(generation.rows, ends.tolist(), strict=True):
            if row.draft:
                run.logits = run.logits.index_fill(0, torch.tensor([end]), torch.nan)
                spoilt += 1

    own = Run.extend
    monkeypatch.setattr(Drafts, "after", wrong)
    monkeypatch.setattr(Run, "extend", extend)
    prompts = [loaded.template.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS[:1]]
    generation = Generation([loaded], constraint, prompts, [constraint.start(Phase.LIST)], [200])
    assert [row.ids for row in generation.run()] == wanted[:1]
    assert spoilt


def test_what_the_model_says_where_a_choice_is_made_is_refused_if_it_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Run.extend

    def extend(run: Run, chunks: Sequence[Sequence[int]], *, keep: Sequence[int]) -> None:
        own(run, chunks, keep=keep)
        run.logits = torch.full_like(run.logits, torch.nan)

    monkeypatch.setattr(Run, "extend", extend)
    loaded = model_of(15)
    with pytest.raises(ValueError, match="nan"):
        written([loaded], rule(loaded), Phase.LIST, jump=True)
