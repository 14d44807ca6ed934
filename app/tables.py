"""One way for every verb to print its table: for people with rich, or as JSON alone with `--json`.

It knows consoles and cells, not what the numbers mean. Results go to stdout; progress and remarks belong on stderr (`say`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Cell = str | int | float | None


def show(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    as_json: bool,
    data: Any,
    notes: Sequence[str] = (),
) -> None:
    """Print a table and its notes to stdout, or `data` as one JSON document and nothing else."""
    if as_json:
        print_json(data)
        return
    from rich import box
    from rich.table import Table

    listed = [tuple(row) for row in rows]
    table = Table(title=_plain(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for place, column in enumerate(columns):
        numeric = any(isinstance(row[place], int | float) for row in listed)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(_plain(text(cell)) for cell in row))
    console = terminal()
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on stdout, Chinese as it is, NaN refused."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def say(message: str) -> None:
    """One line for people, on stderr."""
    print(message, file=sys.stderr, flush=True)


def text(cell: Cell) -> str:
    """A cell as people read it: `-` for nothing, three decimals for a fraction, thousands separated."""
    if cell is None or cell == "":
        return "-"
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.3f}"


def terminal() -> Console:
    """The console of stdout; wide where it is a pipe or a file, so that no cell is folded there."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200, no_color=True)


def _plain(cell: str) -> Any:
    from rich.text import Text

    return Text(cell)
