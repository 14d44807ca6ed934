"""Submission files: `[{"ID": 就诊标识, "prediction": [label, ...]}, ...]`, written, read and checked.

Knows the competition's shape, IDs and labels; does not know how a prediction was made. Files that carry
`"unsafe": true` (from generation without the conflict mask) are refused.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaofang.data.records import Record
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import whole_file

if TYPE_CHECKING:
    from yaofang.vocab.conflicts import ConflictTable

_SHAPE = 'Give one array: [{"ID": "2-1", "prediction": ["二甲双胍", ...]}, ...].'
_UNSAFE = "is marked unsafe: it was generated without the conflict mask"


@dataclass
class Findings:
    """What a check found: `problems` make a submission invalid, `warnings` only cost score."""

    entries: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def write_submission(path: str | Path, predictions: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Write (ID, labels) in the order given, one entry a line, whole or not at all.

    Raises ValueError for an ID given twice or a label twice in one entry: those are faults of the caller.
    """
    lines = []
    seen: set[str] = set()
    for record_id, labels in predictions:
        if record_id in seen or len(set(labels)) != len(labels):
            raise ValueError(f"record {record_id} or one of its labels is given twice")
        seen.add(record_id)
        lines.append(json.dumps({"ID": record_id, "prediction": list(labels)}, ensure_ascii=False))
    with whole_file(path) as handle:
        handle.write("[\n" + ",\n".join(lines) + "\n]\n")


def read_submission(path: str | Path) -> dict[str, list[str]]:
    """The labels of each ID. Raises InputError for a wrong shape, a repeated ID, or an unsafe file."""
    predictions: dict[str, list[str]] = {}
    for place, entry in enumerate(_entries(Path(path)), 1):
        problem = _shape_problem(entry)
        if problem is None and entry["ID"] in predictions:
            problem = f"the ID {entry['ID']} is given twice"
        if problem:
            raise InputError(f"entry {place}: {problem}", file=path, way_out=_SHAPE)
        predictions[entry["ID"]] = list(entry["prediction"])
    return predictions


def check_submission(
    path: str | Path,
    records: Sequence[Record] | None,
    labels: Container[str],
    conflicts: ConflictTable | None = None,
) -> list[str]:
    """The problems of `examine_submission`, without its warnings."""
    return examine_submission(path, records, labels, conflicts).problems


def examine_submission(
    path: str | Path,
    records: Sequence[Record] | None,
    labels: Container[str],
    conflicts: ConflictTable | None = None,
) -> Findings:
    """Everything that is wrong with a submission, by entry (counted from 1).

    With `records`, also IDs that are missing or unknown; `labels` (a Vocabulary) are what may be predicted; with
    `conflicts`, also pairs of tier 1. Raises InputError where the file cannot be read as an array, or is unsafe.
    """
    found = Findings()
    first: dict[str, int] = {}
    known = None if records is None else {record.id for record in records}
    for place, entry in enumerate(_entries(Path(path)), 1):
        found.entries = place
        problem = _shape_problem(entry)
        if problem:
            found.problems.append(f"entry {place}: {problem}")
            continue
        name = f"entry {place} (ID {entry['ID']})"
        if entry["ID"] in first:
            found.problems.append(f"{name}: the ID is given twice, first in entry {first[entry['ID']]}")
        first.setdefault(entry["ID"], place)
        if known is not None and entry["ID"] not in known:
            found.problems.append(f"{name}: no record has this ID")
        found.problems += (f"{name}: {text}" for text in _list_problems(entry["prediction"], labels, conflicts))
        if not entry["prediction"]:
            found.warnings.append(f"{name}: no drug: it scores 0")
    missing = (record.id for record in records or () if record.id not in first)
    found.problems += (f"record {record_id}: no entry has this ID" for record_id in missing)
    return found


def _list_problems(prediction: Sequence[str], labels: Container[str], conflicts: ConflictTable | None) -> Iterator[str]:
    seen: set[str] = set()
    for label in prediction:
        if label in seen:
            yield f"{label} is listed twice"
        elif label not in labels:
            yield f"{label!r} is not in the vocabulary"
        seen.add(label)
    if conflicts is not None:
        for pair in conflicts.among([label for label in dict.fromkeys(prediction) if label in labels]):
            if pair.tier == 1:
                yield f"{pair.a} and {pair.b} must not be combined (T1)"


def _shape_problem(entry: Any) -> str | None:
    """Why an entry is not exactly an ID and a list of labels; None if it is."""
    if not isinstance(entry, dict):
        return "not an object with ID and prediction"
    if missing := [key for key in ("ID", "prediction") if key not in entry]:
        return f"{' and '.join(missing)} missing"
    if extra := sorted(set(entry) - {"ID", "prediction"}):
        return f"{', '.join(extra)} must not be there"
    if not isinstance(entry["ID"], str):
        return "ID must be a string"
    if not isinstance(entry["prediction"], list) or not all(isinstance(label, str) for label in entry["prediction"]):
        return "prediction must be a list of strings"
    return None


def _entries(file: Path) -> list[Any]:
    """The array of the file. Raises InputError if there is none, or it is marked unsafe."""
    value = _json(file)
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, dict) and part.get("unsafe") is True for part in parts):
        raise InputError(f"this file {_UNSAFE}", file=file, way_out="Submit what `yaofang predict` writes.")
    if not isinstance(value, list):
        raise InputError("a submission must be one JSON array", file=file, way_out=_SHAPE)
    return value


def _json(file: Path) -> Any:
    if not file.is_file():
        raise InputError("there is no such file", file=file, way_out="Check the path.")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        problem = f"broken JSON at column {error.colno}: {error.msg}"
        raise InputError(problem, file=file, line=error.lineno, way_out=_SHAPE) from error
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON in UTF-8", file=file, way_out=_SHAPE) from error
