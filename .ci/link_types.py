"""Build build/types/yaofang: the package as links to its folders, where mypy and pyright find `yaofang.vocab` and the rest.

python .ci/link_types.py
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from layout import ROOT, package_folders


def link(tree: Path) -> None:
    """Make the tree anew; links are relative, so that the repository can be moved."""
    shutil.rmtree(tree, ignore_errors=True)
    package = tree / "yaofang"
    package.mkdir(parents=True)
    for file in (ROOT / "yaofang").iterdir():
        if file.is_file():
            _point(package / file.name, file)
    for name, folder in package_folders().items():
        if name.count(".") == 1:  # a nested package is inside its parent's folder
            _point(package / name.partition(".")[2], folder)


def _point(place: Path, target: Path) -> None:
    place.symlink_to(os.path.relpath(target, place.parent))


if __name__ == "__main__":
    link(ROOT / "build" / "types")
