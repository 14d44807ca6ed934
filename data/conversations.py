"""Conversations for fine-tuning, in the forms that other projects write: `messages`, ShareGPT and Alpaca.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}], "system": "..."}
    {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}

Which form a file has is read from the fields of its rows; JSON lines and JSON arrays are both read. Knows turns, and where
in a file something is wrong. Does not know templates or tokenizers. No error quotes a row's text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

from yaofang.data.records import json_rows
from yaofang.vocab.errors import InputError

Form = Literal["records", "messages", "sharegpt", "alpaca"]
Role = Literal["system", "user", "assistant"]
Row = tuple[int, object]
"""The line on which a row starts, and its JSON value, or an InputError in its place."""

FIELDS: Mapping[Form, tuple[str, ...]] = {
    "records": ("患者序号", "就诊标识"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
}
"""The fields by which a form is known: a row of it has all of them."""
ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
TOOLS = ("tool", "function", "function_call", "observation")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says; never blank."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """At most one system turn, then user and assistant in turn, the assistant last."""

    id: str
    """File and line: `chat.jsonl:3`."""
    turns: tuple[Turn, ...]


@dataclass
class Conversations:
    """The conversations of a file in its order, and what `skip_bad` left out."""

    conversations: list[Conversation]
    skipped: list[InputError] = field(default_factory=list)


def form_of(path: str | Path) -> Form:
    """The form of a file: the one that most of its rows have the fields of, the first of `FIELDS` among equals.

    Raises InputError for a file that is absent or empty, that cannot be read at all, or whose rows have no known form.
    """
    return _form(Path(path), json_rows(path))


def read_conversations(path: str | Path, *, skip_bad: bool = False) -> Conversations:
    """Read a file of conversations in any form but `records`.

    Raises InputError, naming file, line and field, for the first row that is wrong or of another form than the file's;
    with `skip_bad` only where no row of it could be read, and lists the rest in `skipped`.
    """
    file = Path(path)
    rows = json_rows(file)
    form = _form(file, rows)
    if form == "records":
        raise InputError("these are records, not conversations", file=file, way_out="Read them as records.")
    result = Conversations([])
    for line, value in rows:
        try:
            if isinstance(value, InputError):
                raise value
            result.conversations.append(Conversation(f"{file.name}:{line}", _checked(_READERS[form](value))))
        except _RowError as wrong:
            result.skipped.append(InputError(wrong.problem, file=file, line=line, field=wrong.field, way_out=wrong.way_out))
        except InputError as error:
            result.skipped.append(error)
    if result.skipped and not (skip_bad and result.conversations):
        raise result.skipped[0]
    return result


def _form(file: Path, rows: Sequence[Row]) -> Form:
    objects = [value for _, value in rows if isinstance(value, dict)]
    fitting = Counter(form for value in objects for form in FIELDS if set(FIELDS[form]) <= set(value))
    if fitting:
        return max(FIELDS, key=lambda form: fitting[form])
    for _, value in rows:
        if isinstance(value, InputError):
            raise value
    line = rows[0][0] if rows else None
    if rows and isinstance(rows[0][1], dict) and not set(rows[0][1]).isdisjoint(FIELDS["records"]):
        return "records"  # their reader says which field is missing
    known = "; ".join(f"{form}: {', '.join(names)}" for form, names in FIELDS.items())
    raise InputError("no row has the fields of a known form", file=file, line=line, way_out=f"The forms have {known}.")


class _RowError(Exception):
    """What is wrong with one row; its reader adds file and line."""

    def __init__(self, problem: str, field: str | None = None, way_out: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.field, self.way_out = problem, field, way_out


def _messages(row: object) -> list[Turn]:
    held = _object(row, "messages")
    return [*_system(held), *_turns(held["messages"], "messages", (("role", "content"),))]


def _sharegpt(row: object) -> list[Turn]:
    held = _object(row, "conversations")
    keys = (("from", "value"), ("role", "content"))
    return [*_system(held), *_turns(held["conversations"], "conversations", keys)]


def _alpaca(row: object) -> list[Turn]:
    held = _object(row, "instruction", "output")
    turns = _system(held)
    history = held.get("history") or []
    if not isinstance(history, list):
        raise _RowError("must be a list", "history", 'Give pairs: [["question", "answer"], ...].')
    for place, pair in enumerate(history):
        name = f"history[{place}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise _RowError("must be a pair of strings", name, 'Give pairs: [["question", "answer"], ...].')
        turns += [Turn("user", _text(pair[0], f"{name}[0]")), Turn("assistant", _text(pair[1], f"{name}[1]"))]
    asked = [_text(held.get(name) or "", name, blank=True) for name in ("instruction", "input")]
    if not (question := "\n".join(text for text in asked if text)):
        raise _RowError("is empty, and so is input", "instruction", "Say what is asked.")
    return [*turns, Turn("user", question), Turn("assistant", _text(held["output"], "output"))]


_READERS: Mapping[str, Callable[[object], list[Turn]]] = {"messages": _messages, "sharegpt": _sharegpt, "alpaca": _alpaca}


def _object(row: object, *names: str) -> dict[str, object]:
    if not isinstance(row, dict):
        raise _RowError("a row must be an object", None, "Give one object a conversation.")
    for name in names:
        if name not in row:
            raise _RowError("is missing, and the rest of the file has it", name, "Put rows of one form into one file.")
    return row


def _system(row: Mapping[str, object]) -> list[Turn]:
    text = _text(row.get("system") or "", "system", blank=True)
    return [Turn("system", text)] if text else []


def _turns(value: object, name: str, keys: Sequence[tuple[str, str]]) -> list[Turn]:
    """The turns of a list of objects, whose role and text stand under one of the pairs of `keys`."""
    if not isinstance(value, list) or not value:
        raise _RowError("must be a list of turns", name, "Give at least a question and an answer.")
    return [turn for place, item in enumerate(value) for turn in _turn(item, f"{name}[{place}]", keys)]


def _turn(item: object, name: str, keys: Sequence[tuple[str, str]]) -> list[Turn]:
    """The turn, or nothing for an empty system turn."""
    if not isinstance(item, dict):
        raise _RowError("a turn must be an object", name, f"Give {keys[0][0]} and {keys[0][1]}.")
    who, what = next((pair for pair in keys if pair[0] in item), keys[0])
    said = item.get(who)
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise _no_role(said, f"{name}.{who}")
    text = _text(item.get(what), f"{name}.{what}", blank=role == "system")
    return [Turn(role, text)] if text else []


def _no_role(said: object, name: str) -> _RowError:
    if said in TOOLS:
        way_out = "Take tool calls out of the file: GLM-4 writes the tool's name into the turn, which these forms do not hold."
        return _RowError(f"turns of {said} are not trained", name, way_out)
    what = "is missing" if said is None else "is no known role"
    return _RowError(what, name, f"Roles are {', '.join(ROLES)}.")


def _text(value: object, name: str, *, blank: bool = False) -> str:
    """The text without the blanks round it, which the template takes off too."""
    if value is None and blank:
        return ""
    if not isinstance(value, str):
        raise _RowError("must be a string", name, "Give a text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _RowError("text that is no valid Unicode", name, "Repair the text.") from error
    if not (text := value.strip()) and not blank:
        raise _RowError("is empty", name, "Leave the conversation out, or say something.")
    return text


def _checked(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """The turns in the order that the template knows: what one side says in several turns is one turn, by lines.

    A question at the end that nobody answers is left out: nothing of it would be trained.
    """
    grouped = [(role, [turn.content for turn in said]) for role, said in groupby(turns, key=lambda turn: turn.role)]
    joined = [Turn(role, "\n".join(texts)) for role, texts in grouped]
    if any(turn.role == "system" for turn in joined[1:]):
        raise _RowError("a system turn stands after others", None, "Put the system turn first.")
    start = int(bool(joined) and joined[0].role == "system")
    talk = joined[start:]
    if talk and talk[-1].role == "user":
        talk = talk[:-1]
    if not talk:
        raise _RowError("no turn of the assistant follows one of the user", None, "Give at least a question and an answer.")
    if talk[0].role == "assistant":
        raise _RowError(
            "the assistant speaks before the user", None, "Give the question that it answers, or leave the turn out."
        )
    return (*joined[:start], *talk)
