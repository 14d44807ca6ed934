"""Processes that are connected, and what one of them does when something fails."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from yaofang.sft import ranks
from yaofang.vocab.errors import InputError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the group of one process is connected with gloo")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts a process, but for a group of this one alone."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "world", lambda: 2)


@pytest.mark.usefixtures("launched")
def test_the_connection_is_closed_after_the_block_but_not_after_an_error_that_others_may_not_have() -> None:
    with ranks.joined():
        assert distributed.is_initialized()
    assert not distributed.is_initialized()
    with pytest.raises(RuntimeError, match="out of memory"), ranks.joined():
        raise RuntimeError("out of memory")
    assert distributed.is_initialized()
    distributed.destroy_process_group()


def test_bad_input_that_only_a_later_process_found_is_said_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("time.sleep", waited.append)
    with pytest.raises(InputError, match="no such file"), ranks.joined():
        raise InputError("no such file")
    assert waited == [ranks.GRACE]


def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"4 processes .* 2 cards.*--nproc-per-node 2"), ranks.joined():
        pytest.fail("not reached")
