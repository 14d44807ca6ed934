"""The journal of a long job: one line a finished record, so that a killed run loses and repeats nothing.

    with Journal(path, settings, resume=True) as journal:
        for record in records:
            if record.id not in journal.done():
                journal.append(record.id, result.to_json())
    values = merged([path, ...], settings, [record.id for record in records])

Knows JSON lines, IDs and the settings they were made with; does not know what a result means. The first line holds the
settings. Every line reaches the operating system at once (it survives kill -9) and the disk in groups (fsync). A line
torn by a kill is dropped, and its record done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from yaofang.vocab.errors import InputError

FORMAT = "yaofang.journal/1"
LINES_A_SYNC = 64
_HEADER_START = json.dumps({"format": FORMAT}).encode()[:-1]

Settings = Mapping[str, Any]


class Journal:
    """A journal open for appending, by one process.

    `settings` is what decides the results (models, vocabulary, options, a hash of the input), ready for JSON. Raises
    InputError if the file is the journal of other settings, or holds results and `resume` is false.
    """

    def __init__(self, path: str | Path, settings: Settings, *, resume: bool) -> None:
        self.path = Path(path)
        kept = _read(self.path, settings)
        if kept.values and not resume:
            problem = f"the journal of a stopped run, with {len(kept.values)} finished records"
            raise InputError(problem, file=self.path, way_out="Go on from it with --resume, or delete it.")
        self._done = kept.values
        self._unsynced = 0
        self._handle: IO[bytes] = self.path.open("r+b" if self.path.exists() else "xb")
        self._handle.truncate(kept.size)
        self._handle.seek(kept.size)
        if not kept.size:
            self._write({"format": FORMAT, "settings": settings})

    def done(self) -> Mapping[str, dict[str, Any]]:
        """The results so far by ID, those of earlier runs included."""
        return self._done

    def append(self, record_id: str, value: dict[str, Any]) -> None:
        """Keep the result of one record. Raises ValueError for an ID that is done."""
        if record_id in self._done:
            raise ValueError(f"{record_id} is in the journal already")
        self._write({"id": record_id, "value": value})
        self._done[record_id] = value

    def close(self) -> None:
        """Bring everything to the disk."""
        if not self._handle.closed:
            self._sync()
            self._handle.close()

    def _write(self, line: dict[str, Any]) -> None:
        # ASCII, so that U+2028 and the like in a value cannot look like the end of a line.
        self._handle.write(json.dumps(line).encode() + b"\n")
        self._handle.flush()
        self._unsynced += 1
        if self._unsynced >= LINES_A_SYNC:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._handle.fileno())
        self._unsynced = 0

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def merged(paths: Iterable[str | Path], settings: Settings, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The results of several journals (one a rank) in the order of `ids`; the first journal that has an ID gives it.

    Raises InputError if a result is in none of them, or a journal is of other settings.
    """
    values: dict[str, dict[str, Any]] = {}
    for path in paths:
        values = {**_read(Path(path), settings).values, **values}
    missing = [record_id for record_id in ids if record_id not in values]
    if missing:
        problem = f"{len(missing)} of {len(ids)} records are not finished, the first is {missing[0]}"
        raise InputError(problem, way_out="Run the same command again with --resume.")
    return [values[record_id] for record_id in ids]


def finished(paths: Iterable[str | Path], settings: Settings) -> set[str]:
    """The IDs that have a result in any of the journals: on resuming, the number of ranks may be another."""
    return {record_id for path in paths for record_id in _read(Path(path), settings).values}


@dataclass(frozen=True, slots=True)
class _Contents:
    values: dict[str, dict[str, Any]]
    size: int
    """Bytes of the whole lines; what follows was torn."""


def _read(path: Path, settings: Settings) -> _Contents:
    """The whole lines of a journal; nothing, if there is none or its first line was torn."""
    values: dict[str, dict[str, Any]] = {}
    size = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else []):
        found = _whole_line(line)
        if found is None:
            if number == 0 and not _HEADER_START.startswith(line[: len(_HEADER_START)]):
                raise _no_journal(path)
            break
        if number == 0:
            _same(path, found, settings)
        elif "id" in found:
            values.setdefault(found["id"], found["value"])
        size += len(line)
    return _Contents(values, size)


def _whole_line(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for one that a kill, or a full disk, left in part."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _no_journal(path: Path) -> InputError:
    return InputError("not a journal of this program", file=path, line=1, way_out="Give another output path.")


def _same(path: Path, header: dict[str, Any], settings: Settings) -> None:
    """Raise InputError unless the header is that of a journal made with these settings."""
    if header.get("format") != FORMAT:
        raise _no_journal(path)
    before, now = header["settings"], json.loads(json.dumps(dict(settings)))
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        problem = f"the journal of a run with other settings: {', '.join(changed)}"
        way_out = "Give the settings of that run again, or delete the journal to start anew."
        raise InputError(problem, file=path, line=1, way_out=way_out)
