"""Rows that end leave their places to other prompts, and what is written is what each prompt would get by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from peaked_models import peaked

from yaofang.data.ward.simulate import simulate
from yaofang.decoding import running
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.generation import Generation, Row
from yaofang.decoding.processors import answer_ids
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.running import Run
from yaofang.decoding.scoring import Place, next_drugs
from yaofang.glm.loading import LoadedModel, load_model
from yaofang.glm.tiny import Architecture, random_tiny
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary

LABELS = ["聚乙二醇", "聚乙二醇洛塞那肽", "阿卡波糖", "阿司匹林", "阿司匹林肠溶片", "达格列净片", "卡格列净片", "甲钴胺"]
PAIRS = [(0, 1), (3, 4), (5, 6)]
# Neither in order of length, nor do they end in order: a short prompt is followed by one that needs more columns.
PROMPTS = [
    "复查",
    "血糖高十年。",
    "患者三年前发现血糖升高，未规律服药，近日口干多饮，门诊以糖尿病收入。",
    "乏力两周，伴双下肢麻木。",
    "口干",
    "血糖升高，近日乏力，伴双下肢麻木，未规律服药。",
    "门诊复查十年",
    "患者乏力。",
    "近日麻木",
]
Prompt = tuple[list[int], State, int]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model_of(seed: int, architecture: Architecture = "glm", *, prefix_lm: bool = False) -> LoadedModel:
    loaded = peaked(random_tiny([*"".join([*LABELS, *PROMPTS])], architecture=architecture, seed=seed))
    return replace(loaded, prefix_lm=prefix_lm)


def rule(loaded: LoadedModel) -> Constraint:
    conflicts = np.zeros((len(LABELS), len(LABELS)), dtype=np.bool_)
    conflicts[tuple(zip(*PAIRS, strict=True))] = True
    names = [loaded.template.encode(label) for label in LABELS]
    return Constraint(names, conflicts, answer_ids(loaded.template), max_diagnosis_tokens=6)


def prompts_of(loaded: LoadedModel, constraint: Constraint) -> list[Prompt]:
    """The prompts, some with a drug banned, one with room for two ids."""
    starts = [constraint.start(Phase.LIST, banned=[at % len(LABELS)] if at % 2 else []) for at in range(len(PROMPTS))]
    turn = {"role": "system", "content": "口干多饮复查"}
    ids = [loaded.template.prompt_ids([turn, {"role": "user", "content": text}]) for text in PROMPTS]
    return [(one, start, 2 if at == 6 else 200) for at, (one, start) in enumerate(zip(ids, starts, strict=True))]


def alone(models: list[LoadedModel], constraint: Constraint, prompt: Prompt) -> Generation:
    generation = Generation(models, constraint, [prompt[0]], [prompt[1]], [prompt[2]])
    generation.run()
    return generation


def in_turn(
    models: list[LoadedModel], constraint: Constraint, prompts: list[Prompt], at_once: int
) -> Iterator[tuple[Generation, int, Row]]:
    """(generation, number of the prompt, its row) as rows end, each replaced at once by the next prompt."""
    first, waiting = prompts[:at_once], iter(range(at_once, len(prompts)))
    generation = Generation(models, constraint, *map(list, zip(*first, strict=True)))  # type: ignore[arg-type]
    running = {number: number for number in range(len(first))}
    while running:
        for _ in generation.steps():
            yield from _ended(generation, running, waiting, prompts)
        yield from _ended(generation, running, waiting, prompts)


def _ended(
    generation: Generation, running: dict[int, int], waiting: Iterator[int], prompts: list[Prompt]
) -> Iterator[tuple[Generation, int, Row]]:
    done = [number for number in running if generation.rows[number].ended]
    for number in done:
        yield generation, running.pop(number), generation.rows[number]
    new = dict(zip(done, islice(waiting, len(done)), strict=False))
    if new:
        generation.replace({number: prompts[at] for number, at in new.items()})
    generation.release([number for number in done if number not in new])
    running.update(new)


def same(row: Row, other: Row) -> None:
    assert row.ids == other.ids
    for name in ("chosen", "mass", "closing"):
        assert getattr(row, name) == pytest.approx(getattr(other, name), abs=2e-5)
    assert row.first.keys() == other.first.keys()


@pytest.mark.parametrize(
    ("architecture", "at_once", "attention"),
    [("glm", 1, "sdpa"), ("glm", 2, "sdpa"), ("glm", 3, "sdpa"), ("glm4", 3, "sdpa"), ("glm", 3, "eager")],
)
def test_a_row_in_another_s_place_is_what_it_would_be_alone(architecture: Architecture, at_once: int, attention: str) -> None:
    for seed in (15, 18, 2):
        models = [model_of(seed, architecture)]
        models[0].model.set_attn_implementation(attention)
        constraint = rule(models[0])
        prompts = prompts_of(models[0], constraint)
        found = {at: row for _, at, row in in_turn(models, constraint, prompts, at_once)}
        assert sorted(found) == list(range(len(prompts)))
        for at, prompt in enumerate(prompts):
            same(found[at], alone(models, constraint, prompt).rows[0])


def test_models_that_vote_write_in_another_s_place_what_they_would_alone() -> None:
    models = [model_of(seed) for seed in (18, 2, 21)]
    constraint = rule(models[0])
    prompts = prompts_of(models[0], constraint)
    found = {at: row for _, at, row in in_turn(models, constraint, prompts, 3)}
    assert sorted(found) == list(range(len(prompts)))
    for at, prompt in enumerate(prompts):
        same(found[at], alone(models, constraint, prompt).rows[0])
    first = [alone(models[:1], constraint, prompt).rows[0].chosen for prompt in prompts]
    assert any(found[at].chosen != pytest.approx(one, abs=1e-2) for at, one in enumerate(first)), "the others have a say"


def test_prefix_lm_reads_each_new_prompt_in_both_directions() -> None:
    models, causal = [model_of(15, prefix_lm=True)], [model_of(15)]
    constraint = rule(models[0])
    prompts = prompts_of(models[0], constraint)
    differ = 0
    for _, at, row in in_turn(models, constraint, prompts, 2):
        same(row, alone(models, constraint, prompts[at]).rows[0])
        differ += row.chosen != pytest.approx(alone(causal, constraint, prompts[at]).rows[0].chosen, abs=2e-5)
    assert differ >= 5


def test_what_is_asked_of_a_row_s_cache_is_the_same_in_another_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model_of(15)
    constraint = rule(loaded)
    prompts = prompts_of(loaded, constraint)
    moved: list[int] = []
    replace_in = Run.replace

    def noted(run: Run, places: Sequence[int], new: Sequence[Sequence[int]]) -> int:
        moved.append(replace_in(run, places, new))
        return moved[-1]

    monkeypatch.setattr(Run, "replace", noted)
    compared = 0
    for order in (sorted(prompts, key=lambda prompt: len(prompt[0])), sorted(prompts, key=lambda prompt: -len(prompt[0]))):
        for generation, at, row in in_turn([loaded], constraint, order, 3):
            by_itself = alone([loaded], constraint, order[at])
            for place in row.first:
                asked = [Place(number, place, order[at][1]) for number in (row.number, 0)]
                (found,), (wanted,) = next_drugs(generation, asked[:1]), next_drugs(by_itself, asked[1:])
                assert found == pytest.approx(wanted, abs=2e-5)
                compared += 1
    assert compared >= 30
    assert min(moved) < 0 < max(moved), "columns were added and lost on the left while other rows ran"


def test_columns_that_nobody_has_any_more_go_and_a_longer_prompt_gets_its_own() -> None:
    loaded = model_of(15)
    long, short = ([5] * length for length in (30, 4))
    run = Run(loaded, [long, short])
    assert run.replace([0], [short]) == 26
    assert run.columns == run.cache.get_seq_length() == 4
    assert run.replace([1], [long]) == -26
    assert run.columns == run.cache.get_seq_length() == 30
    assert run.seen.sum(-1).tolist() == [4, 30]
    assert run.replace([0, 1], [short, short]) == 26


def test_what_all_prompts_begin_with_is_read_once_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [model_of(15)]
    constraint = rule(models[0])
    prompts = prompts_of(models[0], constraint)
    with monkeypatch.context() as patched:
        patched.setattr(running, "LEAST", 1000)
        whole = {at: row for _, at, row in in_turn(models, constraint, prompts, 3)}
    read: list[int] = []
    forward = Run._forward

    def noted(run: Run, ids: torch.Tensor, *others: object) -> torch.Tensor:
        read.append(ids.shape[1])
        return forward(run, ids, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "_forward", noted)
    assert sorted(whole) == list(range(len(prompts)))
    for generation, at, row in in_turn(models, constraint, prompts, 3):
        same(row, whole[at])
        opening = generation.runs[0].opening
        assert opening is not None
        assert read[0] == len(opening.ids) >= running.LEAST
        assert all(prompt[: read[0]] == opening.ids for prompt, _, _ in prompts)
    assert max(read) < max(len(prompt) for prompt, _, _ in prompts), "never a whole prompt"


def test_nothing_is_read_for_all_where_that_would_change_it_or_where_it_is_not_worth_while() -> None:
    loaded = model_of(15)
    prompts = [prompt for prompt, _, _ in prompts_of(loaded, rule(loaded))]
    assert Run(loaded, prompts).opening is not None
    assert Run(loaded, prompts[:1]).opening is None, "one prompt"
    assert Run(model_of(15, prefix_lm=True), prompts).opening is None
    assert Run(loaded, [prompt[5:] for prompt in prompts]).opening is None, "little in common"
    (shortest,) = Run(loaded, [prompts[0][:12], prompts[0][:14]]).opening[:1]  # type: ignore[index]
    assert shortest == prompts[0][:11], "each row reads something of its own"
    run, other = Run(loaded, prompts[:2]), prompts[2][1:]
    run.replace([0], [other])
    assert torch.allclose(run.logits, Run(loaded, [other]).logits, atol=1e-5), "another beginning"
    loaded.model.set_attn_implementation("eager")
    assert Run(loaded, prompts).opening is None


def test_a_running_row_keeps_its_place_and_so_do_rows_that_are_drawn_planned_or_without_masses() -> None:
    loaded = model_of(15)
    constraint = rule(loaded)
    prompt = prompts_of(loaded, constraint)[0]
    running = Generation([loaded], constraint, [prompt[0]], [prompt[1]], [200])
    next(running.steps())
    with pytest.raises(ValueError, match="has not ended"):
        running.replace({0: prompt})
    others = ({"seeds": [1]}, {"plans": [constraint.list_ids([2])]}, {"seeds": [1], "copies": 2}, {"masses": False})
    for settings in others:
        generation = Generation([loaded], constraint, [prompt[0]], [prompt[1]], [200], **settings)  # type: ignore[arg-type]
        generation.run()
        with pytest.raises(ValueError, match="likeliest ids with masses"):
            generation.replace({0: prompt})


@pytest.mark.parametrize("diagnoses", ["given", "generated"])
def test_recommendations_do_not_depend_on_how_many_run_at_once(diagnoses: str) -> None:
    vocabulary = load_vocabulary()
    rx = Recommender([load_model(device="cpu")], vocabulary, load_conflicts(vocabulary), diagnoses=diagnoses, strategy="greedy")
    records = [record.model_copy(update={"drugs": ()}) for record in simulate(60, 3).test[:14]]
    single = [rx(record) for record in records]
    assert any(one.blocked for one in single)
    for many in (rx.batch(records, 4), rx.batch(records, 9), rx.batch(records, 32)):
        for one, other in zip(single, many, strict=True):
            assert one.id == other.id
            assert one.labels == other.labels
            assert [drug.p_step for drug in one.drugs] == pytest.approx([drug.p_step for drug in other.drugs], abs=1e-4)
            assert {b.label: b.by for b in one.blocked} == {b.label: b.by for b in other.blocked}
            assert [b.p_step for b in one.blocked] == pytest.approx([b.p_step for b in other.blocked], abs=1e-4)
    assert rx.batch([]) == []
