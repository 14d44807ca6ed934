"""Tiers that were computed before, in the user's cache folder: a file a version of tables, list and code.

The cache is a convenience: a folder that cannot be written, or a file that cannot be read, costs a computation, nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KEPT = 20
"""Files kept; the oldest go first."""


def folder() -> Path:
    """`$XDG_CACHE_HOME/yaofang`, else `~/.cache/yaofang`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yaofang"


def read(key: str, size: int) -> NDArray[np.uint8] | None:
    """The tiers [size, size] kept under `key`, or None."""
    try:
        tiers = np.load(folder() / f"conflicts-{key}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return tiers if tiers.shape == (size, size) and tiers.dtype == np.uint8 else None


def write(key: str, tiers: NDArray[np.uint8]) -> None:
    """Keep the tiers; a reader sees the whole file or none."""
    target = folder() / f"conflicts-{key}.npy"
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as handle:
            np.save(handle, tiers, allow_pickle=False)
        os.replace(beside, target)
        for old in sorted(target.parent.glob("conflicts-*.npy"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        return
