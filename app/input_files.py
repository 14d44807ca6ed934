"""Records that verbs read, with what `--skip-bad` leaves out listed on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yaofang.data.records import Record
    from yaofang.vocab.errors import InputError


def good_records(file: Path, skip_bad: bool) -> list[Record]:
    """The records of a file, with what was skipped listed on stderr."""
    from yaofang.data.records import read_records

    result = read_records(file, skip_bad=skip_bad)
    for error in result.skipped:
        say_skipped(error)
    return result.records


def say_skipped(error: InputError) -> None:
    """List on stderr what was left out."""
    from yaofang.app.tables import say

    say(f"skipped: {error}")
