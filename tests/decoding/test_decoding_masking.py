"""The buffers of -inf: nothing that is kept changes, nothing that others write comes back, and all ways give the same."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from adversarial_models import WIDTH, TableModel, prompts_of, random_task
from test_decoding_traps import after, offered

from yaofang.decoding.masking import LogitsMask
from yaofang.decoding.processors import AnswerProcessor


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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
