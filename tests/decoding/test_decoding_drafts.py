"""Drafts change no choice, right or wrong, and spare forwards."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from yaofang.data.ward.simulate import simulate
from yaofang.decoding.constraint import Constraint, Ids, Phase, State
from yaofang.decoding.drafts import AHEAD, MOST, Drafts
from yaofang.decoding.generation import Generation, Row
from yaofang.decoding.processors import answer_ids, constraint_for
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.running import Run
from yaofang.decoding.trie import ROOT
from yaofang.glm.loading import load_model
from yaofang.glm.tiny import random_tiny
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    vocabulary = load_vocabulary()
    settings = {"strategy": "greedy", "audit": False, "diagnoses": "generated"}
    return Recommender([load_model(device="cpu")], vocabulary, load_conflicts(vocabulary), **settings)


def generated(rx: Recommender, *, jump: bool) -> tuple[list[Row], int, list[int]]:
    """Rows, forwards, and how many drafted ids were struck out of each model's columns."""
    tasks = [rx.prepare(record) for record in simulate(60, 3).test[:6]]
    limits, starts = [task.limit for task in tasks], [task.start for task in tasks]
    generation = Generation(rx.models, rx.constraint, [task.ids for task in tasks], starts, limits, jump=jump)
    struck: list[int] = []
    run = generation.runs[0]
    forget, feed = run.forget, generation._chunk
    written: list[int] = []
    widths: list[tuple[int, int]] = []

    def chunk(row: Row, most: int) -> list[int]:
        written.append(row.unfed)
        return feed(row, most)

    def extend(chunks: Sequence[Sequence[int]], *, keep: Sequence[int]) -> None:
        widths.append((max(map(len, chunks)), max(written)))
        written.clear()
        Run.extend(run, chunks, keep=keep)

    def noted(row: int, columns: int) -> None:
        struck.append(columns)
        forget(row, columns)

    run.forget, run.extend, generation._chunk = noted, extend, chunk  # type: ignore[method-assign]
    rows = generation.run()
    assert all(width <= longest + AHEAD for width, longest in widths), "drafts make no forward wider than they may"
    return rows, generation.forwards, struck


def test_ids_and_numbers_are_those_of_one_id_after_another(recommender: Recommender) -> None:
    drafted, few, struck = generated(recommender, jump=True)
    plain, many, none = generated(recommender, jump=False)
    assert [row.ids for row in drafted] == [row.ids for row in plain]
    for one, other in zip(drafted, plain, strict=True):
        for name in ("chosen", "mass", "closing"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4)
    assert few < 0.75 * many
    assert struck, "some drafts are wrong, and what comes after them is right all the same"
    assert max(struck) <= MOST
    assert not none


@pytest.fixture(scope="module")
def constraint() -> Constraint:
    vocabulary = load_vocabulary()
    return constraint_for(random_tiny().template, vocabulary, load_conflicts(vocabulary))


def test_a_separator_is_drafted_where_a_name_cannot_grow(constraint: Constraint) -> None:
    name = next(name for name in constraint.trie.names if not constraint.could_grow(_after(constraint, name)))
    state = _after(constraint, name)
    assert Drafts(constraint, [], learned=False).after(state, name, 5) == [constraint.ids.drug_separator]
    assert Drafts(constraint, [], learned=False).after(state, name, 0) == []


def test_the_rows_of_a_batch_draft_as_far_as_the_longest_is_read_and_one_further() -> None:
    assert Drafts.room([7, 2, 6, 1, 0]) == [1, MOST, 2, MOST, MOST]
    assert Drafts.room([3, 3]) == [1, 1]
    assert Drafts.room([7]) == [MOST]
    assert Drafts.room([]) == []


def test_what_came_after_the_same_ids_is_drafted_and_the_last_time_counts(constraint: Constraint) -> None:
    state = constraint.start(Phase.DIAGNOSES)
    a, b, c, d = constraint.ids.text[20:24].tolist()
    drafts = Drafts(constraint, [[a, b, c, a, d]], learned=True)
    assert drafts.after(constraint.step(state, a), [b, a], 1) == [d], "after one id: the last time"
    assert drafts.after(constraint.step(state, b), [a, b], 1) == [c], "after two ids"
    drafts.learn([a, b, d])
    assert drafts.after(constraint.step(state, b), [a, b], 1) == [d]
    assert Drafts(constraint, [[a, b]], learned=False).after(constraint.step(state, a), [a], 1) == []


def test_where_a_name_begins_the_one_that_was_next_to_be_chosen_is_drafted(constraint: Constraint) -> None:
    name = next(name for name in constraint.trie.names if not constraint.could_grow(_after(constraint, name)))
    state = constraint.step(_after(constraint, name), constraint.ids.drug_separator)
    wanted = int(constraint.allowed(state)[7])
    asked: list[list[int]] = []

    def likely(ids: Ids) -> int:
        asked.append(ids.tolist())
        return wanted

    before = [*name, constraint.ids.drug_separator]
    assert Drafts(constraint, [], learned=True).after(state, before, 1, likely) == [wanted]
    assert asked == [constraint.allowed(state).tolist()], "what is listed or in conflict is not drafted"
    assert Drafts(constraint, [], learned=False).after(state, before, 1, likely) == []


def test_a_row_drafts_the_name_that_its_model_ranked_next(recommender: Recommender) -> None:
    task = recommender.prepare(simulate(60, 3).test[1])
    generation = Generation(recommender.models, recommender.constraint, [task.ids], [task.start], [task.limit])
    row, first_ids = generation.rows[0], generation.first_ids
    drafted: list[tuple[int, int]] = []
    feed = generation._chunk

    def chunk(row: Row, most: int) -> list[int]:
        found = feed(row, most)
        state = row.state
        for token in row.draft:
            if state.phase == Phase.LIST and state.node == ROOT and len(recommender.constraint.allowed(state)) > 1:
                at = [first_ids.index(one) for one in recommender.constraint.allowed(state)]
                ranks = row.first[max(row.first)][0]
                drafted.append((token, first_ids[max(at, key=lambda place: float(ranks[place]))]))
            state = recommender.constraint.step(state, token)
        return found

    generation._chunk = chunk  # type: ignore[method-assign]
    generation.run()
    assert len(row.first) > 2
    assert drafted
    assert all(token == ranked for token, ranked in drafted)


def test_an_unknown_id_in_the_diagnoses_is_followed_by_a_drafted_separator_but_never_two(constraint: Constraint) -> None:
    state = constraint.start(Phase.DIAGNOSES)
    token = int(constraint.ids.text[30])
    separator = answer_ids(random_tiny().template).diagnosis_separator
    found = Drafts(constraint, [], learned=True).after(constraint.step(state, token), [token], 3)
    assert found == [separator]


def test_a_draft_never_leaves_its_phase(constraint: Constraint) -> None:
    state = constraint.start(Phase.DIAGNOSES)
    token = int(constraint.ids.text[30])
    drafts = Drafts(constraint, [[token, constraint.ids.newline, token]], learned=True)
    assert drafts.after(constraint.step(state, token), [token], 2) == []


def _after(constraint: Constraint, name: tuple[int, ...] | list[int]) -> State:
    return constraint.follow(constraint.start(Phase.LIST), list(name))


def test_under_another_attention_than_sdpa_nothing_is_struck_out(recommender: Recommender) -> None:
    model = recommender.models[0].model
    sdpa, _, _ = generated(recommender, jump=True)
    model.set_attn_implementation("eager")
    try:
        eager, _, struck = generated(recommender, jump=True)
    finally:
        model.set_attn_implementation("sdpa")
    assert [row.ids for row in eager] == [row.ids for row in sdpa]
    assert not struck
