"""Result files under docs/results: every figure with the command, versions, machine and date it came from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from yaofang import __version__
from yaofang.vocab.files import whole_file

PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "scikit-learn", "numpy")


def git_hash() -> str:
    """Short hash of the source tree's commit, with `+` where files differ from it, or `unknown` outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide a result; `missing` where one is not installed."""
    found = {"yaofang": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def machine() -> dict[str, str | int]:
    """What a reader needs to judge a figure: processor architecture, cores, operating system. No host name."""
    return {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count() or 0}


def provenance(command: str) -> dict[str, Any]:
    """The block that every result file carries."""
    return {
        "command": command,
        "git": git_hash(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions(),
        "machine": machine(),
    }


def write_result(path: str | Path, command: str, result: dict[str, Any]) -> None:
    """Write `{"provenance": ..., **result}` to `path`, whole or not at all."""
    with whole_file(path) as handle:
        json.dump({"provenance": provenance(command), **result}, handle, ensure_ascii=False, indent=1)
        handle.write("\n")
