"""A named test for each trap of constrained decoding that no other file has.

Where the others are (`test_decoding_*.py`): reordered beams, parked fillers, a name that is an end and a prefix, the separator
before a dead end, empty and all-banned lists, three end ids, asymmetric and self conflicts, cut names: `constraint`. Left
padding, fillers, continued calls and cut rows inside `generate`: `generation`; every mode of it: `modes`. Half characters and
merged separators: `glm4_ids`. Two names of one drug, what a patient must not get: `recommender`. Models without the mask
write pairs: `outlines`. The prompt's prefix and the trained stop: `tests/glm/test_glm_template.py`. Long, so that a trap is
looked up in one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from adversarial_models import IDS, PAD, WIDTH, TableModel, check, check_drugs, prompts_of, random_task, split
from transformers import GenerationConfig

from yaofang.decoding.bias import Bias
from yaofang.decoding.constraint import AnswerIds, Constraint, Phase, State
from yaofang.decoding.masking import LogitsMask
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


# Bias


def chances(constraint: Constraint, start: State, before: Sequence[int], bias: Bias | None) -> dict[tuple[int, ...], float]:
    """P of each name at a place of the list, by enumeration under a fixed random table of logits."""
    table = torch.from_numpy(np.random.default_rng(5).normal(size=(4099, WIDTH)) * 1.5)
    processor = AnswerProcessor(constraint, 0, [start], bias)

    def names_from(ids: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], float]]:
        whole = torch.tensor([[*before, *ids]], dtype=torch.long)
        entry = int((whole * torch.arange(1, 1 + whole.shape[1]) ** 3).sum()) % len(table)
        p = processor(whole, table[None, entry].clone())[0].softmax(-1)
        closing = float(p[SEPARATOR] + p[END])
        if closing > 0:
            yield ids, closing
        for token in (p > 0).nonzero()[:, 0].tolist():
            if token not in (SEPARATOR, END):
                yield from ((name, float(p[token]) * rest) for name, rest in names_from((*ids, token)))

    return dict(names_from(()))


APART: Names = [(1,), (2, 9), (3, 9, 8), (4,), (5, 6)]


def test_the_penalty_of_a_warned_pair_is_exact_where_names_part_at_their_first_token() -> None:
    warned = free(5)
    warned[0, 1] = warned[3, 2] = warned[0, 2] = True
    constraint = rule(APART)
    bias = Bias(constraint, warned=warned, warned_weight=1.5)
    start = constraint.start(Phase.LIST)
    nothing = chances(constraint, start, [], None)
    assert chances(constraint, start, [], bias) == pytest.approx(nothing, rel=1e-6), "nothing is listed yet"
    before = [1, SEPARATOR, 4, SEPARATOR]  # drugs 0 and 3: drug 1 is warned of once, drug 2 twice
    plain, leaned = chances(constraint, start, before, None), chances(constraint, start, before, bias)
    expected = np.array(
        [plain[name] * np.exp(-1.5 * count) for name, count in zip(APART[1:3] + APART[4:], (1, 2, 0), strict=True)]
    )
    found = [leaned[name] for name in (APART[1], APART[2], APART[4])]
    assert found == pytest.approx((expected / expected.sum()).tolist(), rel=1e-5)
    odds = np.log(found[0] / found[2]) - np.log(plain[APART[1]] / plain[APART[4]])
    assert odds == pytest.approx(-1.5, abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_what_a_name_is_paid_sums_to_its_own_value_whatever_the_trie(seed: int) -> None:
    rng = np.random.default_rng(seed)
    task = random_task(rng, 1)
    size = len(task.names)
    warned, prior = rng.random((size, size)) < 0.2, rng.dirichlet(np.ones(size))
    constraint = Constraint(task.names, task.conflicts, IDS)
    bias = Bias(constraint, prior=prior, prior_weight=0.7, warned=warned, warned_weight=2.0)
    state = constraint.start(Phase.LIST)
    listed: list[int] = []
    while state.phase == Phase.LIST:
        possible = constraint.positions(state.allowed)
        tau = -0.7 * np.log(prior)
        value = {d: tau[d] - 2.0 * sum(bool(warned[d, e] or warned[e, d]) for e in listed) for d in possible}
        for drug in possible:
            assert paid(constraint, bias, state, task.names[drug]) == pytest.approx(value[drug] - max(value.values()), abs=1e-4)
        listed.append(int(rng.choice(possible)))
        closes = after(constraint, state, *task.names[listed[-1]])
        state = constraint.step(closes, SEPARATOR if SEPARATOR in constraint.allowed(closes) else END)
    assert len(listed) > 0


def paid(constraint: Constraint, bias: Bias, state: State, name: Sequence[int]) -> float:
    """What the bias adds along a name up to its end; the separator and the end get the same."""
    total = 0.0
    for token in name:
        ids = constraint.allowed(state)
        if (amounts := bias.of(state, ids)) is not None:
            assert (amounts <= 0).all()
            total += float(amounts[ids == token][0])
        state = constraint.step(state, token)
    ids = constraint.allowed(state)
    if (amounts := bias.of(state, ids)) is None:
        return total
    (closing,) = set(amounts[np.isin(ids, (SEPARATOR, END))].tolist())
    return total + float(closing)


def test_a_label_never_seen_in_training_can_be_written_and_becomes_the_likeliest_as_the_correction_grows() -> None:
    names: Names = [(1,), (1, 2), (3, 4), (3, 5), (6,)]
    prior = np.array([0.5, 0.3, 0.15, 1e-6, 0.05])
    constraint = rule(names)
    start = constraint.start(Phase.LIST)
    found = []
    for tau in (0.0, 0.25, 0.5, 1.0, 2.0):
        p = chances(constraint, start, [], Bias(constraint, prior=prior, prior_weight=tau))
        assert sum(p.values()) == pytest.approx(1.0, abs=1e-6)
        assert set(p) == set(names), "none is lost"
        found.append(p[names[3]])
    assert 0 < found[0] < 0.5
    assert found == sorted(found)
    assert found[-1] > 0.9


@pytest.mark.parametrize("few", [3, 40])
def test_a_bias_neither_allows_what_is_forbidden_nor_forbids_what_is_allowed(few: int) -> None:
    rng = np.random.default_rng(few)
    for _ in range(10):
        task = random_task(rng, few)
        size = len(task.names)
        constraint = task.constraint()
        bias = Bias(
            constraint,
            prior=10.0 ** -rng.uniform(0, 300, size),
            prior_weight=10.0,
            warned=rng.random((size, size)) < 0.5,
            warned_weight=1e4,
        )
        starts = task.starts(constraint)
        plain, leaning = AnswerProcessor(constraint, 0, starts), AnswerProcessor(constraint, 0, starts, bias)
        ids = torch.zeros(few, 0, dtype=torch.long)
        for _ in range(task.longest):
            scores = torch.from_numpy(rng.normal(size=(few, WIDTH)))
            masked = plain(ids, scores)
            assert torch.equal(torch.isfinite(leaning(ids, scores)), torch.isfinite(masked))
            ids = torch.cat([ids, masked.argmax(-1, keepdim=True)], 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prior": np.array([0.5, 0.5])},
        {"prior": np.array([0.5, 0.5, 0.0]), "prior_weight": 1.0},
        {"prior": np.array([0.5, np.nan, 0.1])},
        {"warned": free(2)},
        {"warned_weight": -1.0},
        {"prior_weight": np.inf},
    ],
    ids=["prior's shape", "prior of 0", "prior of nan", "warned's shape", "negative", "infinite"],
)
def test_a_bias_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"prior|warned"):
        Bias(rule([(1,), (2,), (3,)]), **wrong)


# Masks


def random_sets(rng: np.random.Generator, rows: int, width: int, widest: int) -> list[npt.NDArray[np.int64]]:
    return [np.sort(rng.permutation(width)[: int(rng.integers(1, widest))]).astype(np.int64) for _ in range(rows)]


@pytest.mark.parametrize("rows", [1, 5, 60])
def test_a_tensor_that_is_kept_is_not_changed_by_later_steps(rows: int) -> None:
    rng, mask = np.random.default_rng(rows), LogitsMask()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _ in range(6):
        returned = mask(torch.randn(rows, WIDTH), random_sets(rng, rows, WIDTH, 9))
        kept.append((returned, returned.clone()))
    for returned, then in kept:
        assert torch.equal(returned, then)


@pytest.mark.parametrize("part", ["view", "numpy", "detached"])
def test_a_part_of_a_tensor_that_is_kept_is_not_changed_by_later_steps(part: str) -> None:
    rng, mask = np.random.default_rng(1), LogitsMask()
    kept: list[tuple[Any, Any]] = []
    for _ in range(6):
        returned = mask(torch.randn(4, WIDTH), random_sets(rng, 4, WIDTH, 9))
        held = {"view": returned[1:], "numpy": returned.numpy(), "detached": returned.detach()}[part]
        kept.append((held, torch.as_tensor(held).clone()))
        del returned, held
    for held, then in kept:
        assert torch.equal(torch.as_tensor(held), then)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("rows", [2, 30])
def test_what_others_write_into_a_returned_tensor_does_not_come_back_in_a_later_step(rows: int, inference: bool) -> None:
    rng, mask = np.random.default_rng(rows), LogitsMask()
    with torch.inference_mode(inference):
        for _ in range(8):
            allowed, scores = random_sets(rng, rows, WIDTH, 9), torch.randn(rows, WIDTH)
            returned = mask(scores, allowed)
            for row, ids in enumerate(allowed):
                assert torch.isfinite(returned[row]).nonzero()[:, 0].tolist() == ids.tolist()
                assert torch.equal(returned[row, ids], scores[row, ids])
            returned.masked_fill_(torch.rand(rows, WIDTH) < 0.5, 7.0)
            returned[0].add_(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_scores_given_are_not_changed(dtype: torch.dtype) -> None:
    rng, mask = np.random.default_rng(2), LogitsMask()
    for rows in (2, 20, 3):
        scores = torch.randn(rows, WIDTH).to(dtype)
        allowed = random_sets(rng, rows, WIDTH, 9)
        scores[0, allowed[0]] = -torch.inf
        then = scores.clone()
        bias = [np.full(len(ids), -1.0, dtype=np.float32) for ids in allowed]
        returned = mask(scores, allowed, bias)
        returned.fill_(3.0)
        assert torch.equal(scores, then)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "widest"), [(3, 20), (40, 20), (3, 9000), (40, 9000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_and_tensors_give_the_same(dtype: torch.dtype, rows: int, widest: int, biased: bool) -> None:
    """A CPU is masked through numpy, a GPU through torch."""
    rng, mask = np.random.default_rng(rows + widest), LogitsMask()
    for _ in range(3):
        scores = torch.randn(rows, 10_000).to(dtype)
        allowed = random_sets(rng, rows, 10_000, widest)
        scores[1, allowed[1]] = -torch.inf
        bias = [-rng.random(len(ids)).astype(np.float32) if row % 3 else None for row, ids in enumerate(allowed)]
        given = bias if biased else None
        assert torch.equal(mask(scores, allowed, given), mask._with_torch(scores, allowed, given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [3, 40])
def test_half_precision_keeps_its_type_and_its_numbers(dtype: torch.dtype, rows: int) -> None:
    rng = np.random.default_rng(rows)
    scores, allowed = torch.randn(rows, WIDTH).to(dtype), random_sets(rng, rows, WIDTH, 9)
    masked = LogitsMask()(scores, allowed)
    assert masked.dtype == dtype
    assert torch.equal(masked.float(), LogitsMask()(scores.float(), allowed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "number"), list(product([3, 40], [torch.nan, torch.inf])))
def test_a_number_that_is_no_logit_is_refused_where_allowed_and_harmless_elsewhere(
    dtype: torch.dtype, rows: int, number: float
) -> None:
    scores = torch.zeros(rows, WIDTH, dtype=dtype)
    scores[1, [5, 40]] = number
    mask, allowed = LogitsMask(), [np.array([6, 7])] * rows
    assert torch.isfinite(mask(scores, allowed)).nonzero()[:, 1].tolist() == [6, 7] * rows
    with pytest.raises(ValueError, match=r"logits of row 1 hold (nan|inf)"):
        mask(scores, [np.array([4, 5, 6])] * rows)
    assert torch.isfinite(mask(scores, allowed)).nonzero()[:, 1].tolist() == [6, 7] * rows, "the refused step left no trace"


def test_the_scores_that_generate_keeps_are_those_of_their_own_steps() -> None:
    task = random_task(np.random.default_rng(8), 6)
    constraint, model = task.constraint(), TableModel(8).eval()
    starts = task.starts(constraint)
    output = model.generate(
        **prompts_of(np.random.default_rng(8), 6),
        logits_processor=[AnswerProcessor(constraint, 7, starts)],
        do_sample=False,
        max_new_tokens=task.longest,
        use_cache=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for row, start in enumerate(starts):
        ids = output.sequences[row, 7:].tolist()
        for at, scores in enumerate(output.scores):
            state = after(constraint, start, *ids[:at])
            assert set(torch.isfinite(scores[row]).nonzero()[:, 0].tolist()) == offered(constraint, state)


def test_the_ids_that_end_and_part_a_list_must_differ() -> None:
    whole = {name: getattr(IDS, name) for name in AnswerIds.__slots__}
    for wrong in ({"end": 5}, {"drug_separator": 60}, {"newline": 61}, {"text": np.array([1, 60])}):
        with pytest.raises(ValueError, match=r"stop id|must differ|text ids"):
            AnswerIds(**{**whole, **wrong})
