"""`yaofang env [--json]`: what a bug report needs. Says nothing of records, names no host, no user and no path.

yaofang env --json
"""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer

OPTIONAL = ("accelerate", "datasets", "deepspeed", "outlines", "rapidfuzz", "pydantic", "typer", "flash-attn", "bitsandbytes")


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Print versions, device, cores, the bundled model and the tables in use."""
    from yaofang.app.tables import show

    facts = environment()
    rows = [(group, name, value) for group, values in facts.items() for name, value in values.items()]
    show("yaofang env", ("", "", ""), [(g, n, str(v)) for g, n, v in rows], as_json=as_json, data=facts)


def environment() -> dict[str, dict[str, Any]]:
    """Everything `env` prints, by group. Imports torch."""
    from yaofang.data.provenance import git_hash, machine, versions

    optional = {name: _version(name) for name in OPTIONAL}
    return {
        "versions": {**versions(), "git": git_hash()},
        "packages": optional,
        "machine": {**machine(), **_torch()},
        "bundled model": _bundled(),
        "tables": _tables(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _torch() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "devices": torch.cuda.device_count() if cuda else 0,
        "threads": torch.get_num_threads(),
    }


def _bundled() -> dict[str, Any]:
    from yaofang.glm.loading import BUNDLED
    from yaofang.vocab.files import sha256_of

    weights = sorted(BUNDLED.glob("*.safetensors"))
    return {
        "present": bool(weights),
        "megabytes": round(sum(file.stat().st_size for file in weights) / 1e6, 1),
        "sha256": sha256_of(*weights)[:12] if weights else None,
    }


def _tables() -> dict[str, Any]:
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary

    vocabulary = load_vocabulary()
    conflicts = load_conflicts(vocabulary)
    return {"labels": len(vocabulary), "vocab": vocabulary.version, "conflicts": conflicts.version}
