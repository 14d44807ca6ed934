"""The same work on many items, on all cores, in the items' order. Knows nothing of the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 256
WORTHWHILE = 4 * CHUNK
"""Fewer items are done in this process: starting others takes seconds."""


def spread(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """What `work` makes of the items, chunk by chunk; it must not look from one chunk to another, and can be pickled."""
    processes = max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if processes == 1 or len(items) < WORTHWHILE:
        return work(items)
    chunks = [items[at : at + CHUNK] for at in range(0, len(items), CHUNK)]
    return list(chain.from_iterable(Parallel(n_jobs=processes)(delayed(work)(chunk) for chunk in chunks)))
