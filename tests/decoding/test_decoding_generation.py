"""The processor inside `model.generate`, our own greedy loop, voting and the audit, on random GLM models."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from peaked_models import peaked
from transformers import GenerationConfig

from yaofang.decoding.audit import kept_away
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.generation import Generation
from yaofang.decoding.masking import LogitsMask
from yaofang.decoding.processors import AnswerProcessor, answer_ids, check_generation_config
from yaofang.decoding.reading import read
from yaofang.glm.loading import LoadedModel
from yaofang.glm.tiny import Architecture, random_tiny
from yaofang.vocab.errors import InputError

LABELS = [
    "聚乙二醇",
    "聚乙二醇洛塞那肽",
    "阿卡波糖",
    "阿司匹林",
    "阿司匹林肠溶片",
    "瑞格列奈",
    "那格列奈",
    "达格列净片",
    "卡格列净片",
    "诺和灵30R",
    "诺和灵50R",
    "甲钴胺",
]
# By place in LABELS; written one way only: the constraint makes it symmetric.
PAIRS = [(0, 1), (3, 4), (5, 6), (7, 8), (9, 10), (2, 5), (11, 2), (4, 0)]
PROMPTS = ["血糖高十年。", "患者三年前发现血糖升高，未规律服药，近日口干多饮。", "复查"]
ARCHITECTURES: list[Architecture] = ["glm", "glm4"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model_of(seed: int, architecture: Architecture = "glm") -> LoadedModel:
    """A peaked random model with a token a character."""
    return peaked(random_tiny([*"".join([*LABELS, *PROMPTS])], architecture=architecture, seed=seed))


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return model_of(15)


def rule(loaded: LoadedModel, *, max_diagnosis_tokens: int = 6) -> Constraint:
    conflicts = np.zeros((len(LABELS), len(LABELS)), dtype=np.bool_)
    for a, b in PAIRS:
        conflicts[a, b] = True
    names = [loaded.template.encode(label) for label in LABELS]
    return Constraint(names, conflicts, answer_ids(loaded.template), max_diagnosis_tokens=max_diagnosis_tokens)


def prompt(loaded: LoadedModel, text: str) -> list[int]:
    return loaded.template.prompt_ids([{"role": "user", "content": text}])


def padded(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = [[loaded.template.pad_id] * (width - len(row)) + list(row) for row in prompts]
    seen = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(seen)}


def generate(loaded: LoadedModel, constraint: Constraint, prompts: list[list[int]], **settings: object) -> list[list[int]]:
    inputs = padded(loaded, prompts)
    width = inputs["input_ids"].shape[1]
    output = loaded.model.generate(
        **inputs,
        logits_processor=[AnswerProcessor(constraint, width)],
        max_new_tokens=150,
        pad_token_id=loaded.template.pad_id,
        **settings,
    )
    return [row[width:].tolist() for row in output]


def until_end(loaded: LoadedModel, ids: list[int]) -> list[int]:
    ends = [at for at, token in enumerate(ids) if token in loaded.template.stop_ids]
    return ids[: ends[0] + 1] if ends else ids


def assert_valid(constraint: Constraint, ids: list[int]) -> None:
    reading = read(constraint, constraint.start(), ids)
    assert reading.state.phase == Phase.DONE
    assert reading.diagnoses
    assert reading.drugs
    assert len(set(reading.drugs)) == len(reading.drugs)
    clashes = {frozenset(pair) for pair in PAIRS}
    assert not any(frozenset((a, b)) in clashes for a in reading.drugs for b in reading.drugs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5},
        {"do_sample": True, "top_k": 3, "top_p": 0.8, "num_return_sequences": 3},
        {"num_beams": 4, "num_return_sequences": 2},
    ],
    ids=["greedy", "sampling", "top-k top-p", "beam"],
)
def test_generate_writes_only_valid_answers(architecture: Architecture, settings: dict[str, object]) -> None:
    loaded = model_of(9, architecture)
    constraint = rule(loaded)
    torch.manual_seed(0)
    rows = generate(loaded, constraint, [prompt(loaded, text) for text in PROMPTS], **settings)
    assert len(rows) == len(PROMPTS) * int(str(settings.get("num_return_sequences", 1)))
    for row in rows:
        assert_valid(constraint, row)


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_a_left_padded_batch_equals_each_prompt_alone(model: LoadedModel, settings: dict[str, object]) -> None:
    constraint = rule(model)
    prompts = [prompt(model, text) for text in PROMPTS]
    together = generate(model, constraint, prompts, **settings)
    for ids, row in zip(prompts, together, strict=True):
        (alone,) = generate(model, constraint, [ids], **settings)
        assert until_end(model, row) == until_end(model, alone)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_greedy_loop_equals_generate_token_for_token(architecture: Architecture) -> None:
    loaded = model_of(21, architecture)
    constraint = rule(loaded)
    prompts = [prompt(loaded, text) for text in PROMPTS]
    ours = run(loaded, constraint, prompts, [constraint.start()] * 3).rows
    theirs = generate(loaded, constraint, prompts, do_sample=False)
    assert [row.ids for row in ours] == [until_end(loaded, row) for row in theirs]


def run(
    loaded: LoadedModel | list[LoadedModel],
    constraint: Constraint,
    prompts: list[list[int]],
    starts: list[State],
    limit: int = 150,
) -> Generation:
    models = loaded if isinstance(loaded, list) else [loaded]
    generation = Generation(models, constraint, prompts, starts, [limit] * len(prompts))
    generation.run()
    return generation


def test_rows_of_one_batch_may_start_in_the_diagnoses_and_in_the_list(model: LoadedModel) -> None:
    constraint = rule(model)
    starts = [constraint.start(), constraint.start(Phase.LIST), constraint.start(Phase.DIAGNOSES)]
    prompts = [prompt(model, text) for text in PROMPTS]
    together = run(model, constraint, prompts, starts).rows
    for ids, start, row in zip(prompts, starts, together, strict=True):
        assert run(model, constraint, [ids], [start]).rows[0].ids == row.ids
        assert read(constraint, start, row.ids).drugs


@torch.inference_mode()
def next_p(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """Probabilities of the next id, from the whole text and without a cache."""
    logits: torch.Tensor = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits.float().softmax(-1)


def may_follow(listed: Sequence[int], *, masked: bool = True) -> list[int]:
    clashes = {frozenset(pair) for pair in PAIRS}
    return [
        drug
        for drug in range(len(LABELS))
        if drug not in listed and not (masked and any(frozenset((drug, other)) in clashes for other in listed))
    ]


def score(loaded: LoadedModel, before: list[int], drug: int, options: list[int]) -> tuple[float, float]:
    """(p_step, mass allowed) of one label at a place, by the definition, from names and not from the trie."""
    names = {other: loaded.template.encode(LABELS[other]) for other in options}
    name, p_step, mass = names[drug], 1.0, 1.0
    (separator,), end = loaded.template.encode("、"), loaded.template.stop_id
    for depth in range(len(name) + 1):
        going = {other[depth] for other in names.values() if other[:depth] == name[:depth] and len(other) > depth}
        if depth == len(name) and not going:
            break
        here = [other for other, ids in names.items() if ids == name[:depth]]
        p = next_p(loaded, before + name[:depth])
        closing = sum(float(p[end]) + float(p[separator]) * bool(set(options) & set(may_follow([other]))) for other in here)
        total = float(sum(p[token] for token in going)) + closing
        wanted = float(p[name[depth]]) if depth < len(name) else closing
        p_step *= wanted / total
        mass *= total if depth < len(name) else 1.0
    return p_step, mass


def test_chosen_probabilities_and_masses_equal_those_without_a_cache(model: LoadedModel) -> None:
    constraint = rule(model)
    prompts = [prompt(model, text) for text in PROMPTS]
    start = constraint.start(Phase.LIST)
    checked = 0
    for ids, row in zip(prompts, run(model, constraint, prompts, [start] * 3).rows, strict=True):
        reading = read(constraint, start, row.ids)
        for place, (drug, (first, end)) in enumerate(zip(reading.drugs, reading.spans, strict=True)):
            options = may_follow(reading.drugs[:place])
            p_step, mass = score(model, ids + row.ids[:first], drug, options)
            assert np.prod(row.chosen[first:end]) * row.closing[end] == pytest.approx(p_step, abs=1e-4)
            assert np.prod(row.mass[first:end]) == pytest.approx(mass, abs=1e-4)
            checked += 1
    assert checked >= 12


def test_p_step_sums_to_one_over_all_labels_of_a_place(model: LoadedModel) -> None:
    before = prompt(model, PROMPTS[0])
    assert sum(score(model, before, drug, may_follow([]))[0] for drug in may_follow([])) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("seeds", [[15], [18, 2, 21]], ids=["one model", "three that vote"])
def test_the_audit_finds_exactly_the_labels_that_a_full_scoring_finds(seeds: list[int]) -> None:
    models = [model_of(seed) for seed in seeds]
    constraint = rule(models[0])
    start = constraint.start(Phase.LIST)
    found = 0
    prompts = [prompt(models[0], text) for text in PROMPTS]
    generation = run(models, constraint, prompts, [start] * 3)
    for number, (ids, row) in enumerate(zip(prompts, generation.rows, strict=True)):
        reading = read(constraint, start, row.ids)
        wanted: dict[int, float] = {}
        for place, (first, _) in enumerate(reading.spans):
            listed = reading.drugs[:place]
            options = may_follow(listed, masked=False)
            for drug in set(options) - set(may_follow(listed)):
                p = float(np.mean([score(each, ids + row.ids[:first], drug, options)[0] for each in models]))
                if p >= 0.01:
                    wanted[drug] = max(p, wanted.get(drug, 0.0))
        kept = kept_away(generation, number, reading, 0.01)
        assert {each.drug: each.p_step for each in kept} == pytest.approx(wanted, abs=1e-4)
        for each in kept:
            assert each.by
            assert all(constraint.in_conflict(each.drug, by) and by in reading.drugs for by in each.by)
        found += len(kept)
    assert found >= 6


def test_voting_averages_whole_names_and_writes_the_best_token_of_the_mixture() -> None:
    models = [model_of(seed) for seed in (18, 2, 21)]
    constraint = rule(models[0])
    ids = prompt(models[0], PROMPTS[1])
    start = constraint.start(Phase.LIST)
    (row,) = run(models, constraint, [ids], [start]).rows
    reading = read(constraint, start, row.ids)
    assert len(reading.drugs) > 2
    for place, (drug, (first, end)) in enumerate(zip(reading.drugs, reading.spans, strict=True)):
        options = may_follow(reading.drugs[:place])
        p = np.mean([score(each, ids + row.ids[:first], drug, options)[0] for each in models])
        assert np.prod(row.chosen[first:end]) * row.closing[end] == pytest.approx(p, abs=1e-4)


def test_one_model_voting_twice_is_that_model(model: LoadedModel) -> None:
    constraint = rule(model)
    prompts = [prompt(model, text) for text in PROMPTS]
    starts = [constraint.start()] * 3
    once, twice = run(model, constraint, prompts, starts).rows, run([model, model], constraint, prompts, starts).rows
    for a, b in zip(once, twice, strict=True):
        assert a.ids == b.ids
        assert a.chosen == pytest.approx(b.chosen, abs=1e-5)
        assert a.mass == pytest.approx(b.mass, abs=1e-5)


def test_models_of_different_tokenizers_cannot_vote(model: LoadedModel) -> None:
    other = random_tiny(["别的词表，另一些药名"])
    with pytest.raises(InputError, match="different tokenizers"):
        Generation([model, other], rule(model), [[1]], [rule(model).start()], [1])


def test_a_row_cut_by_its_limit_keeps_whole_drugs_only(model: LoadedModel) -> None:
    constraint = rule(model)
    start = constraint.start(Phase.LIST)
    ids = prompt(model, PROMPTS[1])
    (whole,) = run(model, constraint, [ids], [start]).rows
    drugs = read(constraint, start, whole.ids).drugs
    for limit in range(1, len(whole.ids)):
        (row,) = run(model, constraint, [ids], [start], limit).rows
        reading = read(constraint, start, row.ids)
        assert row.ids == whole.ids[:limit]
        assert reading.truncated
        assert reading.drugs == drugs[: len(reading.drugs)]


def test_beams_that_outnumber_the_allowed_lists_do_not_raise(model: LoadedModel) -> None:
    names = [model.template.encode("甲钴胺")]
    constraint = Constraint(names, np.zeros((1, 1), dtype=np.bool_), answer_ids(model.template))
    inputs = padded(model, [prompt(model, text) for text in PROMPTS])
    width = inputs["input_ids"].shape[1]
    starts = [constraint.start(Phase.LIST), constraint.start(Phase.LIST, banned=[0]), constraint.start(Phase.LIST)]
    output = model.model.generate(
        **inputs,
        logits_processor=[AnswerProcessor(constraint, width, starts)],
        num_beams=6,
        max_new_tokens=30,
        pad_token_id=model.template.pad_id,
    )
    lists = [read(constraint, start, row[width:].tolist()).drugs for start, row in zip(starts, output, strict=True)]
    assert lists == [[0], [], [0]]


def test_continued_generation_goes_on_as_if_never_cut(model: LoadedModel) -> None:
    constraint = rule(model)
    ids = prompt(model, PROMPTS[0])
    (whole,) = generate(model, constraint, [ids], do_sample=False)
    output = model.model.generate(
        torch.tensor([ids + whole[:9]]),
        attention_mask=torch.ones(1, len(ids) + 9, dtype=torch.long),
        logits_processor=[AnswerProcessor(constraint, len(ids))],
        max_new_tokens=150,
        do_sample=False,
        pad_token_id=model.template.pad_id,
    )
    assert output[0, len(ids) :].tolist() == whole


def test_rows_that_do_not_fit_the_starts_are_refused(model: LoadedModel) -> None:
    constraint = rule(model)
    processor = AnswerProcessor(constraint, 1, [constraint.start()] * 2)
    with pytest.raises(ValueError, match="3 rows are no multiple of 2"):
        processor(torch.ones(3, 1, dtype=torch.long), torch.zeros(3, 2000))


def test_tokens_that_hold_a_newline_or_separator_and_untrained_rows_are_in_no_diagnosis(model: LoadedModel) -> None:
    ids = answer_ids(model.template)
    assert int(ids.text.max()) < model.template.size <= model.model.config.vocab_size
    for token in ids.text.tolist():
        assert not {"\n", "；"} & set(model.template.decode([token]))
    assert not set(ids.text.tolist()) & model.template.special_ids
    text = len(model.template.token_bytes) - len(model.template.special_ids)
    merged = set(model.template.ids_containing("\n")) | set(model.template.ids_containing("；"))
    assert len(ids.text) == text - len(merged), "every other text token is allowed"


def test_the_mask_leaves_allowed_scores_as_they_are_and_nothing_else() -> None:
    scores = torch.randn(3, 9000)
    allowed = [np.array([5, 7]), np.arange(8000), np.array([0])]
    masked = LogitsMask()(scores, allowed)
    for row, ids in enumerate(allowed):
        assert torch.equal(masked[row, ids], scores[row, ids])
        assert int(torch.isfinite(masked[row]).sum()) == len(ids)


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 5},
        {"min_length": 5},
        {"bad_words_ids": [[3]]},
        {"num_beams": 2, "renormalize_logits": True},
    ],
    ids=lambda setting: next(reversed(setting)),
)
def test_generation_settings_that_fight_the_trie_are_refused_by_name(setting: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        check_generation_config(GenerationConfig(**setting))
    assert caught.value.field == list(setting)[-1]


def test_harmless_generation_settings_pass() -> None:
    check_generation_config(GenerationConfig())
    check_generation_config(GenerationConfig(do_sample=True, top_k=5, top_p=0.9, temperature=0.7, num_beams=4))


def test_labels_of_this_file_hold_a_prefix_pair_in_ids(model: LoadedModel) -> None:
    names = sorted(tuple(model.template.encode(label)) for label in LABELS)
    assert any(longer[: len(shorter)] == shorter for shorter, longer in pairwise(names))
