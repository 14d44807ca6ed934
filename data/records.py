"""Records of the competition's format: what a record holds, and reading and writing files of them.

Knows the Chinese keys, JSON lines, JSON arrays and single objects, and where in a file something is wrong. Does not
know prompts, vocabularies or models. No error quotes a record's text: only field names, types and 就诊标识.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from yaofang.vocab.errors import InputError
from yaofang.vocab.files import whole_file

BOM = "\ufeff"


def _whole(text: str) -> str:
    """Refuse half a character (a lone surrogate): it could be neither encoded nor written."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PydanticCustomError("not_unicode", "text that is no valid Unicode") from error
    return text


def _none_if_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _listed_once(names: tuple[str, ...]) -> tuple[str, ...]:
    """Without blank names and repeats, in the order of the file."""
    return tuple(dict.fromkeys(stripped for name in names if (stripped := name.strip())))


def _identifier(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "is blank")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Identifier = Annotated[Text, AfterValidator(_identifier)]
OptionalText = Annotated[Text | None, BeforeValidator(_none_if_blank)]
Number = Annotated[float | None, BeforeValidator(_none_if_blank)]
Section = Annotated[Text, BeforeValidator(lambda value: "" if value is None else value)]
Names = Annotated[
    tuple[Text, ...],
    BeforeValidator(lambda value: () if value is None else tuple(value) if isinstance(value, list) else value),
    AfterValidator(_listed_once),
]


class Record(BaseModel):
    """One inpatient stay. Built by field name in code, by the Chinese key from a file; types are not coerced.

    A missing or null value is legal everywhere but in 患者序号 and 就诊标识; unknown keys are ignored. Section texts
    are kept to the character; blank names and repeats in the two lists are left out.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", validate_by_name=True, validate_by_alias=True, allow_inf_nan=False
    )

    patient: int = Field(alias="患者序号")
    id: Identifier = Field(alias="就诊标识")
    sex: OptionalText = Field(default=None, alias="性别")
    birth: OptionalText = Field(default=None, alias="出生日期")
    ethnicity: OptionalText = Field(default=None, alias="民族")
    bmi: Number = Field(default=None, alias="BMI")
    visit: OptionalText = Field(default=None, alias="就诊时间")
    course: Section = Field(default="", alias="诊疗过程描述")
    admission: Section = Field(default="", alias="入院情况")
    present_illness: Section = Field(default="", alias="现病史")
    past_history: Section = Field(default="", alias="既往史")
    chief_complaint: Section = Field(default="", alias="主诉")
    diagnoses: Names = Field(default=(), alias="出院诊断")
    drugs: Names = Field(default=(), alias="出院带药列表")

    def to_json(self) -> dict[str, Any]:
        """Under the Chinese keys, in the order of the competition's files."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass
class ReadResult:
    """The records of a file in its order, and what `skip_bad` left out."""

    records: list[Record]
    skipped: list[InputError] = field(default_factory=list)


def read_records(path: str | Path, *, skip_bad: bool = False) -> ReadResult:
    """Read JSON lines, a JSON array of objects, or one JSON object (it may span lines). UTF-8, a BOM is tolerated.

    Raises InputError, naming file, line and field, for the first thing that is wrong; with `skip_bad` only where the
    file is absent or empty or no record of it could be read, and lists the rest in `skipped`.
    """
    file = Path(path)
    result = ReadResult([])
    first_line: dict[str, int] = {}
    for line, value in _values(_text(file), file):
        found = value if isinstance(value, InputError) else _record(value, file, line)
        if isinstance(found, Record) and found.id in first_line:
            found = _repeated(found.id, file, line, first_line[found.id])
        if isinstance(found, Record):
            first_line[found.id] = line
            result.records.append(found)
        elif skip_bad:
            result.skipped.append(found)
        else:
            raise found
    if not result.records:
        raise _nothing_read(file, result.skipped)
    return result


def json_rows(path: str | Path) -> list[tuple[int, object]]:
    """(line, value) of each row of JSON lines, of a JSON array, or of one JSON value; an InputError in place of a broken one.

    Raises InputError for a file that is absent or empty.
    """
    return list(_values(_text(Path(path)), Path(path)))


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write JSON lines under the Chinese keys, whole or not at all."""
    with whole_file(path) as handle:
        for record in records:
            handle.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")


def line_of(path: str | Path, record_id: str) -> int | None:
    """The line of a records file that holds this 就诊标识; None if it is written in some unusual way, or not there."""
    return lines_of(path, (record_id,)).get(record_id)


def lines_of(path: str | Path, record_ids: Container[str]) -> dict[str, int]:
    """`line_of` for many records in one reading of the file; those that are not found are left out."""
    found: dict[str, int] = {}
    for number, line in enumerate(_text(Path(path)).split("\n"), 1):
        for held in _IDENTIFIED.finditer(line):
            record_id = json.loads(held[1])
            if record_id in record_ids:
                found.setdefault(record_id, number)
    return found


_IDENTIFIED = re.compile(
    rf"(?:{'|'.join(re.escape(json.dumps('就诊标识', ensure_ascii=ascii)) for ascii in (False, True))})"
    r'\s*:\s*("(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
)


def _text(file: Path) -> str:
    """The file's text; bytes that are not UTF-8 stay visible as lone surrogates, so that their line can be named."""
    if file.is_dir():
        raise InputError("this is a folder", file=file, way_out="Give the path of a file of records.")
    if not file.is_file():
        raise InputError("there is no such file", file=file, way_out="Check the path.")
    text = file.read_bytes().decode("utf-8", "surrogateescape").removeprefix(BOM)
    if not text.strip():
        raise InputError("the file is empty", file=file, way_out="Give a file with one JSON object a line.")
    return text


def _values(text: str, file: Path) -> Iterator[tuple[int, object]]:
    """(line, JSON value) of each record; an InputError takes the place of a value that could not be read."""
    lines = text.split("\n")
    try:
        json.loads(_utf8(text))
    except (ValueError, RecursionError) as error:
        if _one_a_line(lines):
            yield from _values_of_lines(lines, file)
            return
        broken = _broken(error, file, text, 0)
        line = broken.line or 1
        yield line, broken
        for other, value in _values_in(text, file):
            if not (isinstance(value, InputError) and other == line):
                yield other, value
    else:
        yield from _values_in(text, file)


def _one_a_line(lines: list[str]) -> bool:
    """Whether some line is a whole object, and no array opens before it."""
    first = next(line for line in lines if line.strip())
    if first.lstrip().startswith("[") and not _is_json(first):
        return False
    return any(line.lstrip(" \t").startswith("{") and _is_json(line) for line in lines)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _values_of_lines(lines: list[str], file: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(_utf8(line))
            except (ValueError, RecursionError) as error:
                yield number, _broken(error, file, line, number - 1)


def _values_in(text: str, file: Path) -> Iterator[tuple[int, object]]:
    """The elements of an array, or the one value, each with the line it starts on.

    After an element that cannot be read it goes on at the next line that opens an object.
    """
    decoder = json.JSONDecoder()
    end = text.index("[") + 1 if text.lstrip().startswith("[") else 0
    line, counted = 1, 0
    while (start := _BETWEEN.match(text, end).end()) < len(text):  # type: ignore[union-attr]  # it matches "" too
        line, counted = line + text.count("\n", counted, start), start
        try:
            value, end = decoder.raw_decode(text, start)
            _utf8(text[start:end])
            yield line, value
        except (ValueError, RecursionError) as error:
            broken = _broken(error, file, text, 0)
            yield broken.line or line, broken
            following = _OPENING_LINE.search(text, start + 1)
            end = following.end() - 1 if following else len(text)


_BETWEEN = re.compile(r"[\s,\]]*")
_OPENING_LINE = re.compile(r"\n[ \t]*\{")


def _utf8(text: str) -> str:
    """The same text. Raises UnicodeEncodeError (a ValueError) where bytes of the file were not UTF-8."""
    text.encode("utf-8")
    return text


def _broken(error: ValueError | RecursionError, file: Path, text: str, lines_before: int) -> InputError:
    """What is wrong with JSON `text`, which starts after `lines_before` lines of the file."""
    if isinstance(error, UnicodeEncodeError):
        line = lines_before + 1 + text.count("\n", 0, error.start)
        way_out = "Save it as UTF-8, for instance with: iconv -f gb18030 -t utf-8"
        return InputError("bytes that are not UTF-8", file=file, line=line, way_out=way_out)
    if isinstance(error, json.JSONDecodeError):
        problem = f"broken JSON at column {error.colno}: {error.msg}"
        way_out = "Check quotation marks, brackets and commas here and at the end of the line before."
        return InputError(problem, file=file, line=lines_before + error.lineno, way_out=way_out)
    deep = isinstance(error, RecursionError)
    problem = "JSON nested too deep" if deep else "broken JSON: a number with too many digits"
    return InputError(problem, file=file, line=lines_before + 1, way_out="Give one flat object a record.")


def _record(value: object, file: Path, line: int) -> Record | InputError:
    if not isinstance(value, dict):
        way_out = 'Give one object a record: {"患者序号": ..., "就诊标识": ..., ...}.'
        return InputError(f"a record must be an object, this is {_kind(value)}", file=file, line=line, way_out=way_out)
    try:
        return Record.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        return _invalid(error.errors(include_url=False), file, line)


def _invalid(errors: list[ErrorDetails], file: Path, line: int) -> InputError:
    """The first field that is wrong, in words that quote none of its text, and how many others there are."""
    first = errors[0]
    name = str(first["loc"][0])
    item = "".join(f"[{place}]" for place in first["loc"][1:2])
    way_out = _WAYS_OUT.get(name, "Give a string, or leave it out.")
    others = [other for other in dict.fromkeys(str(error["loc"][0]) for error in errors) if other != name]
    more = f" (also wrong: {', '.join(others)})" if others else ""
    return InputError(_problem(first) + more, file=file, line=line, field=name + item, way_out=way_out)


def _problem(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind == "missing":
        return "is missing"
    if kind in ("not_unicode", "blank"):
        return str(error["msg"])
    return f"must be {_WANTED[kind.split('_')[0]]}, is {_kind(error['input'])}"


def _kind(value: object) -> str:
    """The JSON type of a value, in words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    kinds: dict[type, str] = {str: "a string", int: "a number", list: "a list", tuple: "a list"}
    if isinstance(value, float):
        return "a number with decimals" if isfinite(value) else "not finite"
    return kinds.get(type(value), "an object")


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "a string",
    "tuple": "a list",
}
_WAYS_OUT = {
    "患者序号": "Give the patient's number, the same in all records of one patient, as a whole number.",
    "就诊标识": 'Give a string of its own for every record, such as "2-1".',
    "BMI": "Give a number, or null where it is not known.",
    "出院诊断": 'Give a list of strings: ["2型糖尿病", ...].',
    "出院带药列表": 'Give a list of strings: ["二甲双胍", ...], or leave it out.',
}


def _repeated(record_id: str, file: Path, line: int, first: int) -> InputError:
    problem = f"{record_id} is already on line {first}"
    way_out = "Give every record a 就诊标识 of its own."
    return InputError(problem, file=file, line=line, field="就诊标识", way_out=way_out)


def _nothing_read(file: Path, skipped: list[InputError]) -> InputError:
    if not skipped:
        return InputError("no record in the file", file=file, way_out="Give at least one record.")
    first = skipped[0]
    problem = f"none of its records could be read ({len(skipped)} skipped); the first: {first.problem}"
    return InputError(problem, file=file, line=first.line, field=first.field, way_out=first.way_out)
