"""Every folder with code is shipped under its own name, and nothing else is.

python .ci/check_packages.py
"""

from __future__ import annotations

import sys

from layout import ROOT, folders_with_code, listed_packages, package_folders


def problems() -> list[str]:
    """What differs between the folders and pyproject's two lists."""
    folders = package_folders()
    mapped = {folder.relative_to(ROOT).as_posix(): package for package, folder in folders.items()}
    found = [f"{folder}/ holds code and is not in package-dir" for folder in folders_with_code() if folder not in mapped]
    found += [f"package-dir names {folder}/, which holds no code" for folder in mapped if folder not in folders_with_code()]
    found += [
        f"{folder}/ is mapped to {package}"
        for folder, package in mapped.items()
        if package != "yaofang" and package != "yaofang." + folder.replace("/", ".")
    ]
    found += [f"{name} stands in one of packages and package-dir only" for name in set(folders) ^ set(listed_packages())]
    return found


if __name__ == "__main__":
    wrong = problems()
    print("\n".join(wrong) or f"package list: {len(listed_packages())} packages, as the folders are")
    sys.exit(bool(wrong))
