"""The evaluations that a page shows side by side: each result's own, then the one that it was compared with.

Reads the JSON of `yaofang evaluate`; knows nothing of how it is shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaofang.vocab.errors import InputError

Json = Mapping[str, Any]
NEEDED = ("level", "results")
DATA = ("records", "gold")
"""Files that say what was scored against."""


@dataclass(frozen=True, slots=True)
class System:
    """One submission's evaluation under the name that the page gives it."""

    name: str
    result: Json
    """The whole JSON; of a second submission, its part under `compared`."""
    provenance: Json | None
    hashes: Json
    """Option -> hash of its file; those of gold and vocabulary are shared with what it was compared with."""

    def mode(self, diagnoses: str) -> Json | None:
        """The figures of one way in which the diagnoses came about."""
        return next((one for one in self.result["results"] if one["diagnoses"] == diagnoses), None)


def as_results(results: Json | Sequence[Json]) -> list[Json]:
    """One result or several, each checked. Raises InputError for what no `yaofang evaluate` wrote."""
    found = [results] if isinstance(results, Mapping) else list(results)
    way_out = "Give the JSON that yaofang evaluate wrote with --out."
    if not found:
        raise InputError("there is no result", way_out=way_out)
    for one in found:
        lacking = [key for key in NEEDED if key not in one]
        if lacking or not one["results"]:
            problem = f"not the result of an evaluation: {', '.join(lacking) or 'no records were scored'}"
            raise InputError(problem, way_out=way_out)
    return found


def systems_of(results: Sequence[Json]) -> list[System]:
    """Every evaluation in `results`, named by its predictions; equal names are numbered."""
    found: list[System] = []
    for one in results:
        provenance, hashes, other = one.get("provenance"), one.get("sha256") or {}, one.get("compared")
        own = {key: value for key, value in hashes.items() if not key.startswith("compare")}
        found.append(System(_free(_name(one), found), one, provenance, own))
        if other is not None:
            both = {"training": one.get("training"), **other}
            found.append(System(_free(_name(other), found), both, provenance, _theirs(hashes)))
    return found


def modes_of(systems: Sequence[System]) -> list[str]:
    """Ways in which diagnoses came about, in the order of their first occurrence."""
    return list(dict.fromkeys(mode["diagnoses"] for one in systems for mode in one.result["results"]))


def paired_of(results: Sequence[Json]) -> Iterator[tuple[str, str, Json]]:
    """(this, other, {diagnoses, differences}) of every result that was compared."""
    at, systems = 0, systems_of(results)
    for one in results:
        if one.get("compared") is None:
            at += 1
            continue
        for mode in one["compared"]["paired"]:
            yield systems[at].name, systems[at + 1].name, mode
        at += 2


def differences_of(systems: Sequence[System]) -> list[str]:
    """What keeps the systems from being compared: other gold, other level, vocabulary or conflict table."""
    found = []
    for name, key in (("比较层次", "level"), ("词表", "vocabulary"), ("冲突表", "conflicts")):
        if len({one.result.get(key) for one in systems}) > 1:
            found.append(f"各系统的{name}不同")
    if len({tuple(one.hashes.get(file) for file in DATA) for one in systems}) > 1:
        found.append("各系统的金标准文件不同")
    if len(systems) > 1 and all(one.hashes.get(file) is None for one in systems for file in DATA):
        found.append("JSON 中没有金标准文件的哈希，无法确认各系统用的是同一数据")
    return found


def same_gold(modes: Sequence[Json]) -> bool:
    """Whether all were scored against lists of the same figures."""
    return all(one["gold"] == modes[0]["gold"] for one in modes)


def _theirs(hashes: Json) -> dict[str, Any]:
    own = {"predictions": "compare", "details": "compare_details"}
    shared = {key: value for key, value in hashes.items() if key not in (*own, *own.values())}
    return shared | {key: hashes[name] for key, name in own.items() if name in hashes}


def _name(result: Json) -> str:
    """Its predictions' file name: of a path in the JSON, or as the command has it. The whole path stands in the command."""
    if result.get("predictions"):
        return Path(str(result["predictions"])).name
    words = shlex.split((result.get("provenance") or {}).get("command", ""))
    at = words.index("--predictions") + 1 if "--predictions" in words else len(words)
    return Path(words[at]).name if at < len(words) else "本提交"


def _free(name: str, taken: Sequence[System]) -> str:
    names = {one.name for one in taken}
    return next(
        f"{name}{more}" for more in ("", *(f" ({k})" for k in range(2, len(names) + 3))) if f"{name}{more}" not in names
    )
