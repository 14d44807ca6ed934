"""Imports go one way: each part may use any to its left and none to its right, also inside functions.

    python .ci/check_imports.py

Beside the order it refuses relative imports, and torch or transformers in what the parts below list as light.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from layout import modules

ORDER = ("vocab", "data", "glm", "decoding", "eval", "inspection", "reports", "sft", "dpo", "distill", "app")
HEAVY = {"torch", "transformers"}
LIGHT = (
    "yaofang.vocab",
    "yaofang.data.records",
    *(f"yaofang.decoding.{name}" for name in ("trie", "constraint", "states", "reading", "bias", "settings")),
)
"""These modules, and all that importing them brings in, import nothing of HEAVY."""


def problems(files: Mapping[str, Path]) -> list[str]:
    """Every import of `files` ({module: file}) that goes the wrong way, and every heavy one that a light module brings in."""
    found = []
    for module, file in files.items():
        for line, target in imports(file, files, everywhere=True):
            if wrong := _wrong(module, target):
                found.append(f"{module}, line {line}: {wrong}")
    for module in files:
        if any(module == light or module.startswith(light + ".") for light in LIGHT):
            found += _heavy(module, files)
    return found


def imports(file: Path, files: Mapping[str, Path], *, everywhere: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of the imports of a file: all, or only those that run when it is imported."""
    for node in _statements(ast.parse(file.read_text(encoding="utf-8")), everywhere):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in files else base


def _statements(tree: ast.AST, everywhere: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not everywhere and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_only(node)):
            continue
        yield node
        yield from _statements(node, everywhere)


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _wrong(module: str, target: str) -> str | None:
    if target.startswith("."):
        return "a relative import; write yaofang.…"
    own, other = _part(module), _part(target)
    if own is None or other is None:
        return None  # the package's root may name any part: its one import is lazy
    if ORDER.index(other) > ORDER.index(own):
        return f"{own} may not import {target}: the order is {' <- '.join(ORDER)}"
    return None


def _part(module: str) -> str | None:
    names = module.split(".")
    return names[1] if len(names) > 1 and names[0] == "yaofang" else None


def _heavy(module: str, files: Mapping[str, Path]) -> list[str]:
    found, seen, waiting = [], {module}, [module]
    while waiting:
        current = waiting.pop()
        # The light module itself is held to it inside functions too; what it brings in, only when imported.
        for line, target in imports(files[current], files, everywhere=current == module):
            if target.split(".")[0] in HEAVY:
                found.append(f"{module} must stay light: {current}, line {line} imports {target}")
            if target in files and target not in seen:
                seen.add(target)
                waiting.append(target)
    return found


if __name__ == "__main__":
    known = modules()
    wrong = problems(known)
    print("\n".join(wrong) or f"import order: {len(known)} modules")
    sys.exit(bool(wrong))
