"""The constraint in every mode of transformers' `generate`, against models that tempt it, by a check that shares no code.

Each mode writes over 2,000 lists in `make test`, and all of them over 100,000 in `make nightly`. Every task has its own random
vocabulary (names that continue each other), conflicts, limits and bans; `adversarial_models.KINDS` are the models' temptations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adversarial_models import (
    BEAM_KINDS,
    IDS,
    KINDS,
    TableModel,
    Task,
    Temptation,
    check,
    check_drugs,
    prompts_of,
    random_task,
)

from yaofang.decoding.constraint import Phase
from yaofang.decoding.processors import AnswerProcessor, answer_ids
from yaofang.decoding.reading import read
from yaofang.glm.tiny import random_tiny

Settings = dict[str, Any]
MODES: dict[str, Settings] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 0},
    "top-k": {"do_sample": True, "top_k": 3},
    "top-p": {"do_sample": True, "top_k": 0, "top_p": 0.7},
    "min-p": {"do_sample": True, "top_k": 0, "min_p": 0.2},
    "typical-p": {"do_sample": True, "top_k": 0, "typical_p": 0.5},
    "temperature": {"do_sample": True, "top_k": 0, "temperature": 3.0},
    "beam search": {"num_beams": 4, "do_sample": False},
    "beam sampling": {"num_beams": 3, "do_sample": True, "top_k": 0},
    "several samples": {"do_sample": True, "top_k": 10, "temperature": 0.8, "num_return_sequences": 4},
    # The scores tell which of the returned are fillers: where fewer lists are possible than beams are asked for.
    "several beams": {"num_beams": 4, "num_return_sequences": 4, "do_sample": False, "output_scores": True},
}
ROWS = 128
TASKS = 3
"""Of each kind of temptation."""
LEAST = 2_000
FILLER = -1e8
"""Beam search gives a score of -1e9 to what it puts in the place of a list that does not exist."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write(
    task: Task,
    model: TableModel,
    kind: str,
    inputs: dict[str, torch.Tensor],
    limit: int,
    settings: Settings,
    *,
    prompt_length: int | None = None,
) -> tuple[torch.Tensor, set[int]]:
    """All ids after the prompt, and the rows that are fillers of beam search.

    `prompt_length` is for inputs that already hold some of the row's own ids.
    """
    width = prompt_length or inputs["input_ids"].shape[1]
    constraint = task.constraint()
    model.temptation = Temptation(kind, task, width)
    output = model.generate(
        **inputs,
        logits_processor=[AnswerProcessor(constraint, width, task.starts(constraint))],
        max_new_tokens=limit,
        use_cache=False,
        return_dict_in_generate=True,
        **settings,
    )
    fillers = (output.sequences_scores < FILLER).nonzero()[:, 0].tolist() if settings.get("output_scores") else []
    return output.sequences[:, width:], set(fillers)


def check_all(
    task: Task, rows: Iterable[Sequence[int]], limit: int, copies: int = 1, fillers: Collection[int] = ()
) -> list[int]:
    """The number of drugs in each list, all checked; fillers are checked for bad drugs and not counted."""
    constraint = task.constraint()
    starts = task.starts(constraint)
    drugs: list[int] = []
    for at, row in enumerate(rows):
        prompt = at // copies
        if at in fillers:
            check_drugs(task, prompt, read(constraint, starts[prompt], row).drugs)
        else:
            drugs.append(check(task, prompt, row, limit, starts[prompt], constraint))
    return drugs


def room(task: Task, rng: np.random.Generator) -> int:
    """Most new ids: mostly enough for any list, at times far too few."""
    return int(rng.integers(1, 15)) if rng.random() < 0.2 else task.longest


def lists_of(settings: Settings, seed: int, *, phase: Phase = Phase.LIST, tasks: int = TASKS, rows: int = ROWS) -> list[int]:
    """Drugs of each list that a mode writes for `tasks` tasks of every kind."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    copies = int(settings.get("num_return_sequences", 1))
    rows //= copies
    drugs: list[int] = []
    for kind in BEAM_KINDS if "num_beams" in settings else KINDS:
        for _ in range(tasks):
            task = random_task(rng, rows, phase=phase)
            model, limit = TableModel(int(rng.integers(2**31))).eval(), room(task, rng)
            written, fillers = write(task, model, kind, prompts_of(rng, rows), limit, settings)
            assert len(written) == rows * copies
            drugs += check_all(task, written.tolist(), limit, copies, fillers)
    return drugs


def continued(seed: int, *, tasks: int = TASKS, rows: int = ROWS) -> list[int]:
    """Drugs of lists that are cut and gone on with twice, each time by a new call with a new processor."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    drugs: list[int] = []
    for kind in BEAM_KINDS:
        for _ in range(tasks):
            task = random_task(rng, rows)
            model, inputs = TableModel(int(rng.integers(2**31))).eval(), prompts_of(rng, rows)
            width = inputs["input_ids"].shape[1]
            limits = [int(rng.integers(1, 7)), int(rng.integers(1, 7)), task.longest]
            for limit, mode in zip(limits, rng.permutation(["greedy", "sampling", "beam search"]), strict=True):
                written, _ = write(task, model, kind, inputs, limit, MODES[mode], prompt_length=width)
                inputs = after(inputs, written, width)
            drugs += check_all(task, until_end(written), sum(limits))
    return drugs


def after(inputs: dict[str, torch.Tensor], written: torch.Tensor, width: int) -> dict[str, torch.Tensor]:
    """The prompts with what was written after them, as the next call's inputs."""
    prompts, seen = inputs["input_ids"][:, :width], inputs["attention_mask"][:, :width]
    return {
        "input_ids": torch.cat([prompts, written], 1),
        "attention_mask": torch.cat([seen, torch.ones_like(written)], 1),
    }


def until_end(written: torch.Tensor) -> list[list[int]]:
    """Rows without the padding with which an earlier call made them as long as its longest."""
    return [row[: 1 + next((at for at, token in enumerate(row) if token in IDS.ends), len(row))] for row in written.tolist()]


def in_static_cache(seed: int, *, tasks: int = 1, rows: int = 320) -> list[int]:
    """Drugs of lists of a random GLM with a cache of fixed size; the names are random ids of its tokenizer."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    loaded = random_tiny(["药"], hidden=16, layers=1, seed=seed)
    ids = answer_ids(loaded.template)
    tokens = [int(token) for token in ids.text if token != ids.drug_separator][:60]
    drugs: list[int] = []
    for kind in KINDS:
        for _ in range(tasks):
            task, limit = random_task(rng, rows, ids=ids, tokens=tokens), 24
            constraint, inputs = task.constraint(), prompts_of(rng, rows)
            width = inputs["input_ids"].shape[1]
            output = loaded.model.generate(
                **inputs,
                logits_processor=[
                    Temptation(kind, task, width),
                    AnswerProcessor(constraint, width, task.starts(constraint)),
                ],
                max_new_tokens=limit,
                cache_implementation="static",
                do_sample=bool(rng.integers(2)),
            )
            drugs += check_all(task, output[:, width:].tolist(), limit)
    return drugs


def of_all_modes(tasks: int, rows: int) -> list[int]:
    """Drugs of each list of every mode, `tasks` x `rows` of each kind of temptation in each mode."""
    drugs = [drug for at, mode in enumerate(MODES.values()) for drug in lists_of(mode, 100 + at, tasks=tasks, rows=rows)]
    return drugs + continued(200, tasks=tasks, rows=rows) + in_static_cache(201, tasks=tasks, rows=rows)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_writes_only_valid_lists(mode: str) -> None:
    drugs = lists_of(MODES[mode], seed=len(mode))
    assert len(drugs) >= LEAST
    assert np.mean(drugs) > 1.5, "lists too short to say much"
    assert max(drugs) >= 5


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beam search"])
def test_every_mode_writes_only_valid_whole_answers(mode: str) -> None:
    drugs = lists_of(MODES[mode], seed=len(mode), phase=Phase.OPENING, tasks=1, rows=96)
    assert len(drugs) >= 600
    assert np.mean(drugs) > 1.0, "lists too short to say much"


def test_lists_that_are_continued_in_another_call_and_mode_are_valid_over_all_their_ids() -> None:
    drugs = continued(seed=31)
    assert len(drugs) >= LEAST
    assert np.mean(drugs) > 1.5, "lists too short to say much"


def test_lists_of_a_glm_with_a_static_cache_are_valid() -> None:
    drugs = in_static_cache(seed=32)
    assert len(drugs) >= LEAST
    assert np.mean(drugs) > 1.0, "lists too short to say much"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_numbers_that_are_no_logits_are_refused_in_every_mode(mode: str, kind: str) -> None:
    rng = np.random.default_rng(41)
    task, model = random_task(rng, 12), TableModel(1).eval()
    with pytest.raises(ValueError, match=r"logits of row \d+ hold (nan|inf)"):
        write(task, model, kind, prompts_of(rng, 12), task.longest, MODES[mode])


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beam search"])
@pytest.mark.parametrize(
    ("relaxed", "said"),
    [("conflicts", "a pair in conflict"), ("banned", "a banned drug"), ("max_drugs", "more than the most")],
)
def test_the_check_finds_what_a_constraint_without_a_part_of_the_rule_lets_through(mode: str, relaxed: str, said: str) -> None:
    rng = np.random.default_rng(42)
    task = random_task(rng, 64)
    size = len(task.names)
    task = replace(
        task,
        conflicts=rng.random((size, size)) < 0.3 * (relaxed == "conflicts"),
        banned=[set(range(0, size, 2)) if relaxed == "banned" else set() for _ in task.banned],
        min_drugs=1,
        max_drugs=2 if relaxed == "max_drugs" else 8,
    )
    nothing: dict[str, Any] = {
        "conflicts": np.zeros_like(task.conflicts),
        "banned": [set[int]() for _ in task.banned],
        "max_drugs": 8,
    }
    loose = replace(task, **{relaxed: nothing[relaxed]})
    written, _ = write(loose, TableModel(2).eval(), "random", prompts_of(rng, 64), loose.longest, MODES[mode])
    assert check_all(loose, written.tolist(), loose.longest)
    with pytest.raises(AssertionError, match=said):
        check_all(task, written.tolist(), loose.longest)


@pytest.mark.nightly
def test_100000_lists_of_all_modes_are_valid() -> None:
    drugs = of_all_modes(tasks=3, rows=400)
    assert len(drugs) >= 100_000
    assert np.mean(drugs) > 1.5, "lists too short to say much"
