"""Files that are whole or not there, and tables with line numbers. Knows nothing of what the files hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from yaofang.vocab.errors import InputError


def check_place(path: str | Path | None) -> None:
    """Raise InputError if no file can come to `path` because its folder is missing or it is a folder; None is fine.

    For verbs that work long before they write.
    """
    if path is None:
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"there is no folder {target.parent}", file=target, way_out="Make the folder first.")
    if target.is_dir():
        raise InputError("this is a folder", file=target, way_out="Give the path of a file.")


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[str]]:
    """Write a UTF-8 text file beside its target and rename it when the block ends without an error."""
    with _renamed(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


@contextmanager
def whole_bytes(path: str | Path) -> Iterator[IO[bytes]]:
    """The same for a binary file."""
    with _renamed(path) as beside, beside.open("wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())


@contextmanager
def _renamed(path: str | Path) -> Iterator[Path]:
    target = Path(path)
    check_place(target)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def read_table(path: str | Path) -> list[tuple[int, dict[str, str]]]:
    """Rows of a tab-separated table as (line number, {column: value}); lines that start with `#` are comments.

    Raises InputError for a row whose number of cells differs from the header's.
    """
    file = Path(path)
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] = []
    for number, text in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not text.strip() or text.startswith("#"):
            continue
        cells = [cell.strip() for cell in text.split("\t")]
        if not header:
            header = cells
        elif len(cells) != len(header):
            raise InputError(
                f"{len(cells)} cells, the header has {len(header)}",
                file=file,
                line=number,
                way_out="Separate the columns by one tab each.",
            )
        else:
            rows.append((number, dict(zip(header, cells, strict=True))))
    return rows


def sha256_of(*parts: bytes | str | Path) -> str:
    """SHA-256, in hex, over texts, bytes and the contents of files, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
