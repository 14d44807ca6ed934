"""CMB-Exam: the questions and answers of the benchmark, letters compared as sets, and accuracy by class and type.

The files are the user's own copy (Wang X et al., CMB: A Comprehensive Medical Benchmark in Chinese, arXiv 2308.08833). Knows no
model (`cmb.model` asks one) and no free text (`cmb.answers` reads it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from yaofang.vocab.errors import InputError

SINGLE, MULTIPLE = "单项选择题", "多项选择题"
MOST = 8
"""Options of a question at most: 2^8 - 1 answers of a multiple choice are all scored."""
Skip = Callable[[InputError], None]
"""Takes what is wrong with an entry that is then left out; where a function gets none, it raises the first error."""
_QUESTION = 'Give {"exam_type", "exam_class", "exam_subject", "question", "question_type", "option": {"A": "..."}}.'
_ANSWER = 'Give [{"id": 1, "answer": "AC"}, ...], or the answers in the questions.'


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its options; letters are upper case."""

    id: str
    exam_type: str
    exam_class: str
    exam_subject: str
    text: str
    options: tuple[tuple[str, str], ...]
    """(letter, text), in order of letters; options without text are left out."""
    multiple: bool
    answer: frozenset[str] | None
    """None where no file gives it."""

    @property
    def letters(self) -> str:
        """The letters of its own options, in order."""
        return "".join(letter for letter, _ in self.options)

    @property
    def kind(self) -> str:
        """The field question_type."""
        return MULTIPLE if self.multiple else SINGLE

    @property
    def chance(self) -> float:
        """Expected accuracy of a guess: 1/n options, or 1/(2^n - 1) sets of a multiple choice."""
        return 1 / (2 ** len(self.options) - 1) if self.multiple else 1 / len(self.options)


@dataclass(frozen=True, slots=True)
class Share:
    """Right answers of a group of questions."""

    exam_type: str | None
    exam_class: str | None
    question_type: str | None
    """Of the group; None where it is not told apart by this field."""
    questions: int
    right: int
    accuracy: float
    low: float
    high: float
    """Wilson's 95% interval (Wilson EB, J Am Stat Assoc 1927;22:209-212): questions are taken as independent."""
    chance: float
    """Mean expected accuracy of a guess."""


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one set of answers."""

    micro: Share
    """Over all questions."""
    macro_class: float
    """Mean over exam classes of their accuracy."""
    macro_type: float
    """Mean over exam types of the mean over their classes: the published leaderboard's average."""
    types: tuple[tuple[str, float], ...]
    """(exam type, mean over its classes of their accuracy)."""
    classes: tuple[Share, ...]
    kinds: tuple[Share, ...]
    """Single and multiple choice apart."""
    unparsed: tuple[str, ...]
    """Questions whose answer holds no letter of theirs; they count as wrong."""
    missing: tuple[str, ...]
    """Questions without any answer; they count as wrong."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)


def read_questions(
    files: Iterable[str | Path], answers: Mapping[str, str] | None = None, skip: Skip | None = None, *, need: bool = True
) -> list[Question]:
    """The questions of all files, each a JSON array or one object a line; `answers` outrank those in the questions.

    A question without `id` gets its place in its file, from 1; where another file has that already, the file's name stands
    before it: CMB-val/1. Raises InputError with file, entry and field for a bad question, an id given twice, and, where
    `need`, a question without answer.
    """
    found: dict[str, Question] = {}
    for file in map(Path, files):
        for place, line, value in _entries(file, _QUESTION):
            try:
                if isinstance(value, dict) and "id" not in value and str(place) in found:
                    value = {"id": f"{file.stem}/{place}", **value}
                question = _question(value, place, answers or {})
                if question.id in found:
                    raise InputError(f"the id {question.id} is given twice", field="id", way_out="Number the questions.")
                if need and question.answer is None:
                    raise InputError(f"question {question.id} has no answer", field="answer", way_out=_ANSWER)
            except InputError as error:
                _leave_out(_placed(error, file, place, line), skip)
            else:
                found[question.id] = question
    if not found:
        raise InputError("there is no question", way_out=_QUESTION)
    return list(found.values())


def read_answers(file: str | Path) -> dict[str, str]:
    """id -> letters, from the file that goes with the test questions: [{"id", "answer"}]. Raises InputError."""
    found: dict[str, str] = {}
    for place, line, value in _entries(Path(file), _ANSWER):
        id_, answer = (value.get("id"), value.get("answer")) if isinstance(value, dict) else (None, None)
        if not _is_id(id_) or not isinstance(answer, str):
            name = "answer" if _is_id(id_) else "id"
            raise _placed(InputError("not an id with an answer", field=name, way_out=_ANSWER), Path(file), place, line)
        if str(id_) in found:
            problem = InputError(f"the id {id_} is given twice", field="id", way_out=_ANSWER)
            raise _placed(problem, Path(file), place, line)
        found[str(id_)] = answer
    return found


def score(questions: Sequence[Question], chosen: Mapping[str, frozenset[str] | None]) -> Result:
    """Compare letters as sets. `chosen`: id -> letters, None where an answer held none; ids without a question do not count.

    Raises ValueError if a question has no answer to compare with.
    """
    if any(question.answer is None for question in questions):
        raise ValueError("a question has no answer")
    classes = _groups(questions, lambda q: (q.exam_type, q.exam_class, None), chosen)
    by_type: dict[str, list[float]] = {}
    for share in classes:
        by_type.setdefault(share.exam_type or "", []).append(share.accuracy)
    types = tuple((name, _mean(values)) for name, values in by_type.items())
    return Result(
        micro=_groups(questions, lambda q: (None, None, None), chosen)[0],
        macro_class=_mean([share.accuracy for share in classes]),
        macro_type=_mean([value for _, value in types]),
        types=types,
        classes=classes,
        kinds=_groups(questions, lambda q: (None, None, q.kind), chosen),
        unparsed=tuple(q.id for q in questions if q.id in chosen and chosen[q.id] is None),
        missing=tuple(q.id for q in questions if q.id not in chosen),
    )


Group = tuple[str | None, str | None, str | None]


def _groups(
    questions: Sequence[Question], key: Callable[[Question], Group], chosen: Mapping[str, frozenset[str] | None]
) -> tuple[Share, ...]:
    """A Share for each group, in order of the first question."""
    groups: dict[Group, list[Question]] = {}
    for question in questions:
        groups.setdefault(key(question), []).append(question)
    return tuple(_share(name, members, chosen) for name, members in groups.items())


def _share(name: Group, members: Sequence[Question], chosen: Mapping[str, frozenset[str] | None]) -> Share:
    right = sum(chosen.get(question.id) == question.answer for question in members)
    interval = binomtest(right, len(members)).proportion_ci(method="wilson")
    chance = _mean([question.chance for question in members])
    return Share(*name, len(members), right, right / len(members), float(interval.low), float(interval.high), chance)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _question(value: Any, place: int, answers: Mapping[str, str]) -> Question:
    """A question out of a file's object. Raises InputError with the field, without the file."""
    if not isinstance(value, dict):
        raise InputError("not an object", way_out=_QUESTION)
    for name in ("exam_type", "exam_class", "exam_subject", "question", "question_type"):
        if not isinstance(value.get(name), str) or not value[name].strip():
            raise InputError("no text", field=name, way_out=_QUESTION)
    if value["question_type"] not in (SINGLE, MULTIPLE):
        way_out = f"Types are {SINGLE} and {MULTIPLE}."
        raise InputError(f"{value['question_type']!r} is no type of question", field="question_type", way_out=way_out)
    id_ = value.get("id", place)
    if not _is_id(id_):
        raise InputError("neither a number nor a text", field="id", way_out=_QUESTION)
    options = _options(value.get("option"))
    question = Question(
        id=str(id_),
        exam_type=value["exam_type"].strip(),
        exam_class=value["exam_class"].strip(),
        exam_subject=value["exam_subject"].strip(),
        text=value["question"].strip(),
        options=options,
        multiple=value["question_type"] == MULTIPLE,
        answer=None,
    )
    answer = answers.get(question.id, value.get("answer"))
    return question if answer in (None, "") else replace(question, answer=_letters(answer, question))


def _options(value: Any) -> tuple[tuple[str, str], ...]:
    good = isinstance(value, dict) and all(re.fullmatch("[A-Z]", k) and isinstance(v, str) for k, v in value.items())
    kept = tuple((letter, value[letter].strip()) for letter in sorted(value) if value[letter].strip()) if good else ()
    if not 2 <= len(kept) <= MOST:
        raise InputError(f"not 2 to {MOST} options with a letter and a text", field="option", way_out=_QUESTION)
    return kept


def _letters(answer: Any, question: Question) -> frozenset[str]:
    """The letters of a gold answer, whatever their order and what stands between them."""
    plain = re.sub(r"[\s,，、;；.]", "", answer) if isinstance(answer, str) else ""
    letters = frozenset(plain)
    if not letters or not letters <= set(question.letters) or (len(letters) > 1 and not question.multiple):
        problem = f"the answer {answer!r} does not fit {question.kind} with the options {question.letters}"
        raise InputError(problem, field="answer", way_out="Correct the answer, or leave the question out with --skip-bad.")
    return letters


def _entries(file: Path, way_out: str) -> list[tuple[int, int | None, Any]]:
    """(place from 1, line or None, value) of a JSON array, or of one JSON object a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot be read as UTF-8 text", file=file, way_out="Check the path.") from error
    if text.lstrip().startswith("["):
        return [(place, None, value) for place, value in enumerate(_json(text, file, 1, way_out), 1)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(place, number, _json(line, file, number, way_out)) for place, (number, line) in enumerate(lines, 1)]


def _json(text: str, file: Path, line: int, way_out: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"broken JSON ({error.msg})"
        raise InputError(problem, file=file, line=line + error.lineno - 1, way_out=way_out) from error


def _placed(error: InputError, file: Path, place: int, line: int | None) -> InputError:
    problem = error.problem if line is not None else f"entry {place}: {error.problem}"
    return InputError(problem, file=file, line=line, field=error.field, way_out=error.way_out)


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip() != ""


def _leave_out(error: InputError, skip: Skip | None) -> None:
    if skip is None:
        raise error
    skip(error)
