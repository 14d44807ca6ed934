"""The processes that `torchrun` started together: one of them checks and writes files, and all go on from what it found.

Without torchrun there is one process, and everything here returns at once. Knows nothing of recipes or models.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from yaofang.vocab.errors import InputError

Found = TypeVar("Found")
PATIENCE = timedelta(days=30)
"""How long a rank waits for another. torchrun ends all ranks when one fails, so this is no failure detector."""
GRACE = 60.0
"""Seconds for the first rank of a machine to say what is wrong with the input, before another one says it."""


def rank() -> int:
    """Number of this process; 0 checks and writes files."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """The processes connected while the block runs (nccl with CUDA, else gloo), unless somebody connected them before.

    Bad input is mostly found by all of them: the first of a machine says so and ends, and torchrun ends the others, which wait
    for that. One that found it alone says it after `GRACE`. Raises InputError for more processes than cards.
    """
    opened = world() > 1 and not distributed.is_initialized()
    try:
        if opened:
            _connect()
        yield
    except InputError:
        if int(os.environ.get("LOCAL_RANK", "0")):
            time.sleep(GRACE)
        raise
    # Never after an error: NCCL would wait here for ranks that wait elsewhere, and torchrun would not see that this one failed.
    if opened:
        distributed.destroy_process_group()


def _connect() -> None:
    if not torch.cuda.is_available():
        distributed.init_process_group("gloo", timeout=PATIENCE)
        return
    cards, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > cards:
        problem = f"{here} processes were started on this machine, which shows {cards} cards"
        raise InputError(problem, way_out=f"Start with torchrun --nproc-per-node {cards}.")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl", timeout=PATIENCE)


def wait() -> None:
    """Return when every process has come here."""
    if distributed.is_initialized():
        distributed.barrier()


def from_first(work: Callable[[], Found]) -> Found:
    """What `work` returns in the first process, in all of them; an InputError there is raised in all."""
    if not distributed.is_initialized():
        return work()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = work()
        except InputError as error:
            found[1] = error
    distributed.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    value: Found = found[0]
    return value


def gathered(value: Found) -> list[Found]:
    """The values of all processes, in their order."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values
