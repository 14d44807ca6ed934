"""What the checks know of the repository's layout: its package list, read from pyproject.toml, and the modules in it."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_CODE = {"tests", "build", "dist", "docs", "out", "runs"}


def package_folders() -> dict[str, Path]:
    """{package: folder} as pyproject's package-dir maps them."""
    setuptools = _setuptools()
    return {package: ROOT / folder for package, folder in setuptools["package-dir"].items()}


def listed_packages() -> list[str]:
    """The packages that pyproject says are shipped."""
    return list(_setuptools()["packages"])


def folders_with_code() -> list[str]:
    """Folders of the repository, relative to its root, that hold a Python file, but tests and build outputs."""
    found = {
        file.parent.relative_to(ROOT)
        for top in ROOT.iterdir()
        if top.is_dir() and not top.name.startswith(".") and top.name not in NOT_CODE and not top.name.endswith(".egg-info")
        for file in top.rglob("*.py")
    }
    return sorted(folder.as_posix() for folder in found)


def modules() -> dict[str, Path]:
    """{module: file} of everything that is shipped; a package stands under its own name."""
    found = {}
    for package, folder in package_folders().items():
        for file in sorted(folder.glob("*.py")):
            found[package if file.stem == "__init__" else f"{package}.{file.stem}"] = file
    return found


def _setuptools() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
