"""A named test for each trap of constrained decoding that no other file has.

Where the others are (`test_decoding_*.py`): reordered beams, parked fillers, a name that is an end and a prefix, the separator
before a dead end, empty and all-banned lists, three end ids, asymmetric and self conflicts, cut names: `constraint`. Left
padding, fillers, continued calls and cut rows inside `generate`: `generation`; every mode of it: `modes`. Half characters and
merged separators: `glm4_ids`. Two names of one drug, what a patient must not get: `recommender`. Models without the mask
write pairs: `outlines`. The prompt's prefix and the trained stop: `tests/glm/test_glm_template.py`.
Leanings and masks: `bias`, `masking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from adversarial_models import IDS, PAD, WIDTH, TableModel, check, check_drugs, prompts_of, random_task, split
from transformers import GenerationConfig

from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.processors import NEUTRAL, AnswerProcessor, check_generation_config
from yaofang.decoding.reading import read
from yaofang.vocab.errors import InputError

Names = list[tuple[int, ...]]
SEPARATOR, END = IDS.drug_separator, IDS.end
FIGHTING: dict[str, Any] = {
    "repetition_penalty": 1.1,
    "encoder_repetition_penalty": 1.1,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "min_new_tokens": 5,
    "min_length": 5,
    "bad_words_ids": [[3]],
    "sequence_bias": {(3,): -1.0},
    "suppress_tokens": [3],
    "begin_suppress_tokens": [3],
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 3,
    "exponential_decay_length_penalty": (2, 1.1),
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 2.0},
    "remove_invalid_values": True,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def free(size: int) -> npt.NDArray[np.bool_]:
    return np.zeros((size, size), dtype=np.bool_)


def rule(names: Names, **settings: Any) -> Constraint:
    return Constraint(names, settings.pop("conflicts", free(len(names))), IDS, **settings)


def after(constraint: Constraint, state: State, *ids: int) -> State:
    for token in ids:
        state = constraint.step(state, token)
    return state


def offered(constraint: Constraint, state: State) -> set[int]:
    return set(constraint.allowed(state).tolist())


# Options of `generate` that fight the trie


def test_every_option_that_fights_the_trie_is_tried_here() -> None:
    assert set(FIGHTING) == set(NEUTRAL)


@pytest.mark.parametrize("name", FIGHTING)
def test_an_option_that_fights_the_trie_is_refused_with_its_value_and_the_reason(name: str) -> None:
    with pytest.raises(InputError, match="fights the constraint: names share tokens") as caught:
        check_generation_config(GenerationConfig(**{name: FIGHTING[name]}))
    assert str(caught.value).count(name) >= 1
    assert caught.value.field == name
    assert caught.value.way_out == f"Leave {name} out."


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NEUTRAL.items() for value in values])
def test_a_value_that_does_nothing_is_let_through(name: str, value: object) -> None:
    config = GenerationConfig()
    setattr(config, name, value)
    check_generation_config(config)


def test_renormalised_scores_are_refused_with_beams_only() -> None:
    with pytest.raises(InputError, match="favour long names, whose forced tokens cost nothing"):
        check_generation_config(GenerationConfig(renormalize_logits=True, num_beams=2))
    check_generation_config(GenerationConfig(renormalize_logits=True, do_sample=True))


def test_renormalised_beams_do_prefer_the_long_name_that_is_less_likely() -> None:
    """The reason for the refusal, shown: forced tokens of probability 1 dilute the mean of a long name's scores."""
    constraint = rule([(1,), (2, 3, 4, 5, 6)], max_drugs=1)
    model = TableModel(0, spread=0.0).eval()
    with torch.no_grad():
        model.table[:, 1] += 0.4

    def best(**settings: bool) -> list[int]:
        start = constraint.start(Phase.LIST)
        output = model.generate(
            **prompts_of(np.random.default_rng(0), 1),
            logits_processor=[AnswerProcessor(constraint, 7, [start])],
            num_beams=2,
            do_sample=False,
            max_new_tokens=9,
            use_cache=False,
            **settings,
        )
        return read(constraint, start, output[0, 7:].tolist()).drugs

    assert best() == [0]
    assert best(renormalize_logits=True) == [1]


def test_beams_below_minus_a_thousand_million_end_as_cut_rows_and_never_as_a_bad_list() -> None:
    """Beam search of transformers holds -1e9 for "no beam": a model below that loses to a filler."""
    task = random_task(np.random.default_rng(3), 32)
    constraint, model = task.constraint(), TableModel(3, spread=1e30).eval()
    starts = task.starts(constraint)
    output = model.generate(
        **prompts_of(np.random.default_rng(4), 32),
        logits_processor=[AnswerProcessor(constraint, 7, starts)],
        num_beams=4,
        do_sample=False,
        max_new_tokens=task.longest,
        use_cache=False,
    )
    cut = 0
    for number, (start, row) in enumerate(zip(starts, output[:, 7:].tolist(), strict=True)):
        reading = read(constraint, start, row)
        if reading.truncated:
            cut += 1
            check_drugs(task, number, reading.drugs)
        else:
            check(task, number, row, task.longest, start, constraint)
    assert cut, "no filler came back"


# Names


def test_a_name_inside_another_is_read_as_what_was_written() -> None:
    """氨氯地平 and 左旋氨氯地平: "contains, take the first" makes the one out of the other."""
    constraint = rule([(1, 2), (9, 1, 2), (1, 2, 9)])
    start = constraint.start(Phase.LIST)
    assert read(constraint, start, [9, 1, 2, SEPARATOR, 1, 2, SEPARATOR, 1, 2, 9, END]).drugs == [1, 0, 2]


def test_what_a_patient_must_not_get_is_out_of_one_row_and_not_of_the_others() -> None:
    constraint = rule([(1,), (2,), (3,)])
    starts = [constraint.start(Phase.LIST, banned=banned) for banned in ([], [0], [1, 2])]
    masked = AnswerProcessor(constraint, 0, starts)(torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, WIDTH))
    assert [torch.isfinite(row).nonzero()[:, 0].tolist() for row in masked] == [[1, 2, 3], [2, 3], [1]]


def test_a_formulary_leaves_its_drugs_alone_and_bans_still_hold() -> None:
    names: Names = [(1,), (1, 2), (3,), (4, 5), (4, 6)]
    conflicts = free(5)
    conflicts[1, 4] = True
    constraint = rule(names, conflicts=conflicts)
    start = constraint.start(Phase.LIST, only=[1, 3, 4], banned=[3])
    assert offered(constraint, start) == {1, 4}
    assert offered(constraint, after(constraint, start, 1)) == {2}, "the shorter name is not of this hospital"
    assert offered(constraint, after(constraint, start, 4)) == {6}
    assert offered(constraint, after(constraint, start, 1, 2)) == {END}, "what is left is in conflict"
    assert offered(constraint, after(constraint, constraint.start(Phase.LIST, only=[1, 2]), 1, 2)) == {SEPARATOR, END}


# Least and most


def test_a_list_below_its_least_does_not_end_while_a_drug_can_follow() -> None:
    constraint = rule([(1,), (1, 2), (3,)], min_drugs=3)
    start = constraint.start(Phase.LIST)
    assert offered(constraint, after(constraint, start, 1)) == {2, SEPARATOR}
    assert offered(constraint, after(constraint, start, 1, 2, SEPARATOR, 1)) == {SEPARATOR}
    assert offered(constraint, after(constraint, start, 1, 2, SEPARATOR, 1, SEPARATOR, 3)) == {END}


def test_a_least_that_conflicts_make_unreachable_ends_the_list_all_the_same() -> None:
    conflicts = free(3)
    conflicts[0, 1] = conflicts[0, 2] = True
    constraint = rule([(1,), (2,), (3,)], conflicts=conflicts, min_drugs=3)
    start = constraint.start(Phase.LIST)
    assert offered(constraint, after(constraint, start, 1)) == {END}
    assert offered(constraint, after(constraint, start, 2)) == {SEPARATOR}
    assert offered(constraint, after(constraint, start, 2, SEPARATOR, 3)) == {END}
    assert offered(constraint, constraint.start(Phase.LIST, banned=[0, 1, 2])) == {END}


@pytest.mark.parametrize("limits", [{"min_drugs": 0}, {"max_drugs": 0}, {"min_drugs": 3, "max_drugs": 2}, {"min_drugs": 4}])
def test_limits_that_contradict_each_other_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="min_drugs"):
        rule([(1,), (2,), (3,)], **limits)


# Diagnoses bound to a list


def random_diagnoses(rng: np.random.Generator) -> Names:
    names = {tuple(int(t) for t in rng.integers(0, 6, rng.integers(1, 5))) for _ in range(int(rng.integers(1, 20)))}
    return sorted(names, key=lambda name: rng.random())


def next_in_diagnoses(names: Names, written: Sequence[int], most: int) -> set[int]:
    """The rule of bound diagnoses by lists of ids: slow, and written apart from the constraint."""
    *done, current = split(written, IDS.diagnosis_separator)
    left = [name for name in names if name not in done]
    found = {name[len(current)] for name in left if name[: len(current)] == current and len(name) > len(current)}
    if current in left:
        found.add(IDS.newline)
        if len(left) > 1 and len(written) + 1 + max(map(len, names)) <= most:
            found.add(IDS.diagnosis_separator)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_bound_diagnoses_are_whole_names_once_each_within_the_budget_under_any_logits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    written = 0
    for _ in range(12):
        names = random_diagnoses(rng)
        most = max(map(len, names)) + int(rng.integers(0, 14))
        constraint = rule([(1,), (2,)], diagnoses=names, max_diagnosis_tokens=most)
        for _ in range(10):
            written += check_diagnoses(constraint, names, most, rng)
    assert written > 200


def check_diagnoses(constraint: Constraint, names: Names, most: int, rng: np.random.Generator) -> int:
    """Write an answer against logits that want the end, specials and the newline never; the number of its diagnoses."""
    start = state = constraint.start()
    ids: list[int] = []
    while state.phase < Phase.HEADER:
        begun = ids[len(IDS.opening) :]
        if state.phase == Phase.DIAGNOSES:
            assert offered(constraint, state) == next_in_diagnoses(names, begun, most)
        logits = torch.from_numpy(rng.normal(size=(1, WIDTH)))
        logits[:, [END, PAD, SEPARATOR, 57]] += 1e4
        logits[:, IDS.newline] -= 20.0
        masked = AnswerProcessor(constraint, 0)(torch.tensor([ids], dtype=torch.long), logits)
        ids.append(int(masked.argmax()))
        state = constraint.step(state, ids[-1])
        assert len(ids) <= len(IDS.opening) + most + 1, "no newline within the budget"
    found = split(ids[len(IDS.opening) : -1], IDS.diagnosis_separator)
    assert all(name in names for name in found)
    assert len(set(found)) == len(found)
    spans = read(constraint, start, [*ids, *IDS.header, 1, END]).diagnoses
    assert [tuple(ids[first:end]) for first, end in spans] == found
    return len(found)


def test_an_id_outside_the_bound_diagnoses_parks_the_row() -> None:
    constraint = rule([(1,)], diagnoses=[(5, 6)])
    state = after(constraint, constraint.start(Phase.DIAGNOSES), 5, 7)
    assert state.phase == Phase.PARKED
    assert read(constraint, constraint.start(Phase.DIAGNOSES), [5, 7, 6, END]).truncated


@pytest.mark.parametrize("diagnoses", [[], [(5, IDS.newline)], [(5, IDS.diagnosis_separator)], [(5, END)], [(5,) * 9]])
def test_bound_diagnoses_that_make_no_sense_are_refused(diagnoses: Names) -> None:
    with pytest.raises(ValueError, match=r"name|diagnosis"):
        rule([(1,)], diagnoses=diagnoses, max_diagnosis_tokens=8)


def test_the_ids_that_end_and_part_a_list_must_differ() -> None:
    whole = {name: getattr(IDS, name) for name in AnswerIds.__slots__}
    for wrong in ({"end": 5}, {"drug_separator": 60}, {"newline": 61}, {"text": np.array([1, 60])}):
        with pytest.raises(ValueError, match=r"stop id|must differ|text ids"):
            AnswerIds(**{**whole, **wrong})
