"""Leanings for and against single drugs: exact where names part, summing to each name's own value, never a licence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from adversarial_models import IDS, WIDTH, random_task
from test_decoding_traps import Names, after, free, rule

from yaofang.decoding.bias import Bias
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.processors import AnswerProcessor

SEPARATOR, END = IDS.drug_separator, IDS.end


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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
