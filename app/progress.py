"""Progress of long work, on stderr: a bar on a terminal, a plain line now and then elsewhere. Knows counts, never records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from yaofang.app.tables import say

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(label: str, total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`. `done` of `total` were finished by an earlier run."""
    if quiet:
        yield lambda n: None
    elif sys.stderr.isatty():
        with _bar(label, total, done) as advance:
            yield advance
    else:
        yield _lines(label, total, done)


@contextmanager
def _bar(label: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total, completed=done)
        yield lambda n: bars.advance(task, n)


def _lines(label: str, total: int, done: int) -> Callable[[int], None]:
    started = last = time.monotonic()
    before = done

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            last = now
            rate = (done - before) / max(now - started, 1e-9)
            say(f"{label} {done}/{total}, {rate:.2f} a second")

    return advance
