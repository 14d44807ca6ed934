"""What is gathered for a choice is what masking would leave, whichever of the two ways gathers it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from yaofang.decoding.gathering import Closed, gathered
from yaofang.decoding.masking import LogitsMask

WIDTH = 50
TEXT = np.arange(3, WIDTH - 4, dtype=np.int64)
"""An odd place for the ids that a text may not have: on both sides."""


def _numbers(models: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(models, 9, WIDTH, generator=torch.Generator().manual_seed(seed)))


def _sets() -> list[npt.NDArray[np.int64]]:
    return [TEXT, TEXT[:-2], TEXT, np.array([7], dtype=np.int64)]


@pytest.mark.parametrize("models", [1, 3])
def test_each_place_has_the_logits_of_its_own_allowed_ids(models: int) -> None:
    said, places, allowed = _numbers(models), [8, 0, 3, 3], _sets()
    ids, scores, before = gathered(said, places, allowed)
    assert scores is before
    assert scores.shape == (models, 4, len(TEXT))
    for model, logits in enumerate(said):
        masked = LogitsMask()(logits[places], allowed)
        for at, own in enumerate(allowed):
            assert ids[at, : len(own)].tolist() == own.tolist()
            assert (ids[at, len(own) :] == -1).all()
            assert torch.equal(scores[model, at, : len(own)], masked[at, own])
            assert (scores[model, at, len(own) :] == -torch.inf).all()


@pytest.mark.parametrize("models", [1, 3])
def test_closing_the_few_is_masking_whatever_set_lies_where_another_lay(models: int) -> None:
    said, places, closed = _numbers(models), [8, 0, 3, 3], Closed()
    for shift in range(20):
        # Each round's arrays are new, and the last round's are gone.
        sets = [(own + shift) % WIDTH for own in _sets()]
        expected = torch.stack([LogitsMask()(logits[places], [np.sort(own) for own in sets]) for logits in said])
        assert torch.equal(closed(said, places, sets), expected)
        del sets
    assert all(torch.equal(one, other) for one, other in zip(said, _numbers(models), strict=True)), "the logits stay"


def _both(said: list[torch.Tensor], allowed: list[npt.NDArray[np.int64]]) -> list[torch.Tensor]:
    """Of both ways, the scores [n, V] or [n, k] of one model."""
    places = range(len(allowed))
    return [Closed()(said, places, allowed)[0], gathered(said, places, allowed)[1][0]]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_number_that_is_no_logit_is_refused_where_allowed_and_harmless_elsewhere(broken: float) -> None:
    said = _numbers(1)
    said[0][:, 0] = said[0][:, WIDTH - 1] = broken
    for scores in _both(said, [TEXT, TEXT[:-2]]):
        assert torch.isfinite(scores.amax(-1)).all()
    said[0][1, 5] = broken
    for way in (Closed(), gathered):
        with pytest.raises(ValueError, match="logits of row 1"):
            way(said, range(2), [TEXT, TEXT[:-2]])


def test_where_all_allowed_are_impossible_none_is_preferred_and_no_other_can_win() -> None:
    said = _numbers(1)
    said[0][1, TEXT] = -torch.inf
    whole, few = _both(said, [TEXT, TEXT[:-2]])
    assert (whole[1, TEXT[:-2]] == 0).all()
    assert (whole[1, np.setdiff1d(np.arange(WIDTH), TEXT[:-2])] == -torch.inf).all()
    assert (few[1, : len(TEXT) - 2] == 0).all()
    assert (few[1, len(TEXT) - 2 :] == -torch.inf).all()
    assert torch.isfinite(whole[0].amax())
    assert whole[0].amax() != 0
