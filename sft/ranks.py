"""The processes that `torchrun` started together: one of them checks and writes files, and all go on from what it found.

Without torchrun there is one process, and everything here returns at once. Knows nothing of recipes or models.
"""

from __future__ import annotations

import os
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


def rank() -> int:
    """Number of this process; 0 checks and writes files."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """The processes connected while the block runs (nccl with CUDA, else gloo), unless somebody connected them before.

    Bad input is found by all of them alike: one process a machine says so, the others end quietly with the same exit code.
    """
    opened = world() > 1 and not distributed.is_initialized()
    if opened and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if opened:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    except InputError:
        if int(os.environ.get("LOCAL_RANK", "0")):
            raise SystemExit(2) from None
        raise
    finally:
        if opened:
            distributed.destroy_process_group()


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
