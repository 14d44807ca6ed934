"""Files that a user gives to decoding: lists of labels or diagnoses, bans a record. Knows their form, not what they mean."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from yaofang.data.answer import clean_diagnosis
from yaofang.vocab.errors import InputError
from yaofang.vocab.lists import read_names

_BANS = TypeAdapter(dict[str, list[str]])


def read_list(file: Path) -> tuple[str, ...]:
    """The names of a list, each once, in their order. Raises InputError as `vocab.lists.read_names` does."""
    return tuple(dict.fromkeys(read_names(file)))


def read_diagnoses(file: Path) -> tuple[str, ...]:
    """A list's names as they can stand in an answer (`；` becomes `，`), each once. Raises InputError as `read_list` does."""
    return tuple(dict.fromkeys(name for listed in read_list(file) if (name := clean_diagnosis(listed))))


def read_bans(file: Path) -> dict[str, tuple[str, ...]]:
    """就诊标识 -> labels. Raises InputError for a file that is no JSON object of lists of strings."""
    way_out = 'Write one object: {"12-1": ["阿卡波糖"]}.'
    try:
        found = _BANS.validate_python(json.loads(file.read_text(encoding="utf-8")), strict=True)
    except OSError as error:
        raise InputError(f"cannot be read ({type(error).__name__})", file=file, way_out="Check the path.") from None
    except json.JSONDecodeError as error:
        raise InputError("broken JSON", file=file, line=error.lineno, way_out=way_out) from None
    except ValidationError as error:
        place = "/".join(map(str, error.errors()[0]["loc"])) or None
        raise InputError("not an object of lists of labels", file=file, field=place, way_out=way_out) from None
    return {record: tuple(labels) for record, labels in found.items()}
