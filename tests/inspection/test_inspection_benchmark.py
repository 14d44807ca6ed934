"""What `bench inspection` says of flags, held against the views themselves."""

from __future__ import annotations

import pytest

from yaofang.data.ward.simulate import simulate
from yaofang.decoding.recommender import Recommender
from yaofang.glm.tiny import random_tiny
from yaofang.inspection.benchmark import counterfactual_seconds
from yaofang.inspection.benchmark_flags import RANDOM, flags
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError


def test_flags_are_counted_over_the_boards_own_and_random_drugs() -> None:
    board = simulate(40, 5).test[:6]
    found = flags(load_vocabulary(), records=6, patients=40, seed=5)
    own, drawn = found["unindicated"]["own"], found["unindicated"]["random"]
    assert own["drugs"] == sum(len(record.drugs) for record in board)
    assert drawn["drugs"] == RANDOM * len(board)
    assert own["rate"] == own["flags"] / own["drugs"] < drawn["rate"]
    assert found["untreated"]["a_record"] == found["untreated"]["flags"] / len(board)
    assert found == flags(load_vocabulary(), records=6, patients=40, seed=5) | {"report_seconds": found["report_seconds"]}


def test_a_board_without_a_record_of_the_asked_size_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yaofang.inspection.benchmark.DRUGS", 40)
    vocabulary = load_vocabulary()
    recommender = Recommender([random_tiny()], vocabulary, load_conflicts(vocabulary), audit=False)
    with pytest.raises(InputError, match="40 drugs"):
        counterfactual_seconds(recommender, 40, 5, 1)
