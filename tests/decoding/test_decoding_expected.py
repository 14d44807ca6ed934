"""Inclusion probabilities and the best set: against enumeration of all lists and of all sets, by code that shares nothing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations

import numpy as np
import pytest
import torch

from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.calibration import Calibration, load_calibration
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.expected import BestSet, Inclusion, order_of
from yaofang.decoding.generation import Row
from yaofang.vocab.errors import InputError

END, SEP = 20, 21
IDS = AnswerIds((), 22, 23, (), SEP, END, frozenset({END}), np.array([24]))
# A prefix of another, a shared beginning, and two alone.
NAMES = [(1,), (1, 2), (3, 4), (3, 5), (6,)]
PAIRS = [(0, 2), (1, 4)]


def rule(**limits: int) -> Constraint:
    conflicts = np.zeros((len(NAMES), len(NAMES)), dtype=np.bool_)
    conflicts[tuple(zip(*PAIRS, strict=True))] = True
    return Constraint(NAMES, conflicts, IDS, **limits)


def table(seed: int) -> np.ndarray:
    """Logits by last token: a language model without a memory."""
    return np.random.default_rng(seed).normal(scale=1.5, size=(25, 25))


def log_p(logits: np.ndarray, last: int, allowed: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(logits[last][allowed]).log_softmax(-1)


def every_list(constraint: Constraint, logits: np.ndarray) -> Iterator[tuple[list[int], float]]:
    """(ids, probability) of every answer that can be written."""
    waiting: list[tuple[State, list[int], float]] = [(constraint.start(Phase.LIST), [], 1.0)]
    while waiting:
        state, ids, p = waiting.pop()
        if state.phase == Phase.DONE:
            yield ids, p
            continue
        allowed = constraint.allowed(state)
        for token, value in zip(allowed.tolist(), log_p(logits, ids[-1] if ids else 0, allowed).exp().tolist(), strict=True):
            waiting.append((constraint.step(state, token), [*ids, token], p * value))


def drugs_of(ids: list[int]) -> frozenset[int]:
    text = ",".join(map(str, ids[:-1])).split(f",{SEP},")
    return frozenset(NAMES.index(tuple(int(part) for part in name.split(","))) for name in text)


@pytest.mark.parametrize("limits", [{}, {"max_drugs": 2}, {"min_drugs": 2}])
@pytest.mark.parametrize("seed", range(3))
def test_the_expected_rao_blackwell_sum_is_the_probability_of_inclusion(seed: int, limits: dict[str, int]) -> None:
    constraint, logits = rule(**limits), table(seed)
    wanted, found, total = np.zeros(len(NAMES)), np.zeros(len(NAMES)), 0.0
    variance = {"share": np.zeros(len(NAMES)), "rao_blackwell": np.zeros(len(NAMES))}
    for ids, p in every_list(constraint, logits):
        held = np.isin(np.arange(len(NAMES)), list(drugs_of(ids))).astype(float)
        row, inclusion = Row(constraint.start(Phase.LIST), constraint.start(Phase.LIST), 99), Inclusion(constraint, 1)
        state = row.start
        for at, token in enumerate(ids):
            allowed = constraint.allowed(state)
            inclusion.watch(row, state, allowed, log_p(logits, ids[at - 1] if at else 0, allowed))
            state = constraint.step(state, token)
        one = inclusion._totals[0][constraint.trie.number]
        wanted += p * held
        found += p * one
        variance["share"] += p * held**2
        variance["rao_blackwell"] += p * one**2
        total += p
    assert total == pytest.approx(1.0)
    assert found == pytest.approx(wanted, abs=1e-9)
    assert variance["rao_blackwell"].sum() < variance["share"].sum() - 0.02
    assert (variance["rao_blackwell"] < variance["share"] - 1e-3).any()


def best_by_force(
    lists: list[list[int]], conflicts: np.ndarray, metric: str, least: int, most: int, size: int
) -> tuple[frozenset[int], float]:
    def value(chosen: frozenset[int]) -> float:
        both = [len(chosen & set(one)) for one in lists]
        whole = [len(chosen | set(one)) for one in lists]
        if metric == "jaccard":
            return float(np.mean([a / b if b else 0.0 for a, b in zip(both, whole, strict=True)]))
        return float(np.mean([2 * a / (len(chosen) + len(one)) for a, one in zip(both, lists, strict=True)]))

    sets = chain.from_iterable(combinations(range(size), count) for count in range(least, most + 1))
    valid = (frozenset(one) for one in sets if not any(conflicts[a, b] for a, b in combinations(one, 2)))
    return max(((one, value(one)) for one in valid), key=lambda pair: pair[1])


@pytest.mark.parametrize("metric", ["jaccard", "f1"])
def test_the_best_set_is_that_of_all_sets(metric: str) -> None:
    rng = np.random.default_rng(7)
    exact = 0
    for _ in range(120):
        size = int(rng.integers(3, 9))
        conflicts = np.triu(rng.random((size, size)) < 0.25, 1)
        conflicts |= conflicts.T
        leaning = rng.random(size) ** 2
        lists = []
        for _ in range(int(rng.integers(2, 20))):
            own: list[int] = []
            for drug in rng.permutation(size):
                if rng.random() < leaning[drug] and not any(conflicts[drug, other] for other in own):
                    own.append(int(drug))
            lists.append(own or [int(rng.integers(size))])
        p = np.array([np.mean([drug in one for one in lists]) for drug in range(size)])
        most = int(rng.integers(1, size + 1))
        found, value = BestSet(lists, p, conflicts, metric=metric, most=most).find()  # type: ignore[arg-type]
        assert not any(conflicts[a, b] for a, b in combinations(found, 2))
        assert 1 <= len(found) <= most
        assert len(set(found)) == len(found)
        _, best = best_by_force(lists, conflicts, metric, 1, most, size)
        assert value <= best + 1e-12
        assert value >= 0.97 * best
        exact += value == pytest.approx(best, abs=1e-12)
    assert exact >= 114, "a search by single changes finds the best of all sets nearly always"


def test_of_a_pair_that_excludes_each_other_the_one_stays_that_is_worth_more() -> None:
    conflicts = np.zeros((3, 3), dtype=np.bool_)
    conflicts[0, 1] = conflicts[1, 0] = True
    lists = [[1, 2]] * 6 + [[0, 2]] * 4
    p = np.array([0.9, 0.6, 1.0])  # even where the raw numbers say otherwise
    found, _ = BestSet(lists, p, conflicts).find()
    assert sorted(found) == [1, 2]


def test_the_least_number_is_reached_where_conflicts_allow_it() -> None:
    lists = [[0], [0, 1], [0, 2]]
    p = np.array([1.0, 0.3, 0.3])
    free = np.zeros((3, 3), dtype=np.bool_)
    assert len(BestSet(lists, p, free, least=3).find()[0]) == 3
    all_clash = ~np.eye(3, dtype=np.bool_)
    assert BestSet(lists, p, all_clash, least=3).find()[0] == [0]


def test_drugs_are_ordered_by_their_place_in_the_lists() -> None:
    assert order_of([5, 1, 9], [[9, 5], [9, 5, 1], [9]]) == [9, 5, 1]


def test_a_calibration_is_monotone_written_and_read_back(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    assert load_calibration(folder) is None
    assert load_calibration(None) is None
    curve = Calibration((0.1, 0.5, 0.9), (0.0, 0.3, 1.0), 24, {"model": "x"})
    curve.write(folder)
    again = load_calibration(folder)
    assert again == curve
    assert again is not None
    assert again.version == curve.version
    assert curve(np.array([0.0, 0.05, 0.3, 0.9, 1.0])) == pytest.approx([0.0, 0.0, 0.15, 1.0, 1.0])
    with pytest.raises(ValueError, match="ascending"):
        Calibration((0.5, 0.1), (0.0, 1.0), 24, {})
    (folder / "calibration.json").write_text('{"raw": [0.5]}', encoding="utf-8")
    with pytest.raises(InputError, match="broken calibration"):
        load_calibration(folder)
