"""The letters that another system's free answer chooses: after words for an answer, alone, or before the options' texts.

Only capitals that stand as letters of an option count: not those of WBC, 维生素C, B超 or D-二聚体. Order and separators do not
matter. Where it cannot be told which options are meant, the answer is unparsed. Knows one answer and its question.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from yaofang.eval.cmb.exam import Question
from yaofang.vocab.errors import InputError

KEYS = ("prediction", "model_answer", "output", "response", "pred", "text", "answer_0", "answer")
"""Fields that may hold the answer, the first that is there: beside another, `answer` may be the gold."""
_WAY_OUT = 'Give [{"id": 1, "output": "..."}, ...], the same one object a line, or {id: text}.'
_THINKING = re.compile(r"<think>.*?(?:</think>|$)", re.S)
_BETWEEN = r"[\s、,;/.。和与及*\"'()\[\]]*"
_MARK = re.compile(
    r"(?:答案|(?:正确|最佳|应选|所选)的?选项)(?:应该|应当|应|可能)?(?:包括|选择|选|是|为)?\s*:?"
    r"|(?:应选|故选|选择|(?<![不可备单多项])选)(?!项|择题)\s*:?|answers?\s*(?:is|are)?\s*:?",
    re.I,
)
_NOT_BEFORE = re.compile(r"(?:维生素|维他命|因子|抗原|肝炎病毒|复合物|蛋白|链球菌|[A-Za-z0-9-])$")
_NOT_AFTER = (
    r"[A-Za-z0-9]|[-–][\dA-Za-z\u4e00-\u9fff]|[型超族肽期级群肝]|反应|细胞|因子|链球菌|淋巴"
    r"|[ \t]*(?:选?项)?[ \t]*(?:错|不正确|不对|有误)"
)
_WRONG = re.compile(r"错误|不正确|有误|不对|不符|不选|排除|×|✗|❌|(?:除(?:了|去)?|不是)\s*(?:选项)?\s*[A-Z](?![a-z])")


def read_free_answers(path: str | Path) -> dict[str, str]:
    """id -> text. Raises InputError with file and line or entry for what is no answer, or an id given twice."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("cannot be read as UTF-8 text", file=file, way_out="Check the path.") from error
    found: dict[str, str] = {}
    for place, line, value in _values(text, file):
        id_ = value.get("id") if isinstance(value, dict) else None
        key = next((key for key in KEYS if key in value), None) if isinstance(value, dict) else None
        problem = None
        if not isinstance(id_, str | int) or key is None or not isinstance(value[key], str):
            problem = "not an id with an answer"
        elif str(id_) in found:
            problem = f"the id {id_} is given twice"
        if problem or key is None:
            name = "id" if key is None or not isinstance(id_, str | int) or str(id_) in found else key
            entry = "" if line else f"entry {place}: "
            raise InputError(f"{entry}{problem}", file=file, line=line, field=name, way_out=_WAY_OUT)
        found[str(id_)] = value[key]
    if not found:
        raise InputError("there is no answer in the file", file=file, way_out=_WAY_OUT)
    return found


def _values(text: str, file: Path) -> list[tuple[int, int | None, Any]]:
    """(place, line or None, entry) of an array, an object {id: text}, or one object a line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if isinstance(value, dict) and "id" not in value:
        value = [{"id": id_, "output": answer} for id_, answer in value.items()]
    if isinstance(value, list):
        return [(place, None, entry) for place, entry in enumerate(value, 1)]
    entries: list[tuple[int, int | None, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            entries += [(number, number, json.loads(line))] if line.strip() else []
        except json.JSONDecodeError as error:
            raise InputError(f"broken JSON ({error.msg})", file=file, line=number, way_out=_WAY_OUT) from error
    return entries


def letters_in(text: str, question: Question) -> frozenset[str] | None:
    """The letters that an answer chooses, or None where it tells none.

    Tried in this order: an answer of letters alone, what stands behind the last word for an answer, letters called right,
    options listed by line, the only letters in the text, the only option's text in it.
    """
    plain = unicodedata.normalize("NFKC", _THINKING.sub("", text)).replace("**", "").strip()
    ways = (_bare, _announced, _called_right, _listed, _alone, _by_text)
    return next((found for way in ways if (found := way(plain, question))), None)


def _runs(question: Question) -> str:
    """A pattern for letters of the question's options, together or with separators, that are part of no other word."""
    run = rf"[{question.letters}]+(?!{_NOT_AFTER})"
    return rf"{run}(?:(?:[ \t、,;|/和与及]|以及|\band\b)*{run})*"


def _set(letters: str, question: Question) -> frozenset[str]:
    return frozenset(letters) & set(question.letters)


def _bare(plain: str, question: Question) -> frozenset[str] | None:
    """An answer of letters and separators alone, lower case too."""
    letters = re.sub(_BETWEEN, "", plain).upper()
    return frozenset(letters) if letters and set(letters) <= set(question.letters) else None


def _announced(plain: str, question: Question) -> frozenset[str] | None:
    """The letters, or the text of an option, right behind the last word for an answer that has some."""
    for mark in reversed(list(_MARK.finditer(plain))):
        rest = plain[mark.end() :].lstrip(" \n\t:*\"'([{")
        texts = [letter for letter, option in question.options if rest.startswith(_plain(option))]
        if len(texts) == 1:
            return frozenset(texts)
        group = re.match(_runs(question), rest) or re.fullmatch(_runs(question), rest.strip(" .。").upper())
        if group:
            if re.match(rf"\s*(?:或者?|or\b)\s*[{question.letters}]", rest[group.end() :]):
                return None
            return _with_more_lines(rest, _set(group[0], question), question)
    return None


def _called_right(plain: str, question: Question) -> frozenset[str] | None:
    """Letters that are called right: B选项正确; A、B、D均正确."""
    called = r"\s*选?项?\s*(?:均|都)?(?:是|为)?\s*(?:正确|对的|✓|✔)(?!答案|选项)"
    letters = _set("".join(re.findall(rf"(?<![A-Za-z])({_runs(question)}){called}", plain)), question)
    return letters if letters and (question.multiple or len(letters) == 1) else None


def _with_more_lines(rest: str, letters: frozenset[str], question: Question) -> frozenset[str]:
    """The letters, and those of options that follow one a line or one a clause: `A. 发热、C. 咳嗽`."""
    if not question.multiple or _WRONG.search(rest):
        return letters
    more = re.findall(rf"(?:^|[\s;,、])\s*([{question.letters}])\s*[.、:)]", rest)
    return letters | frozenset(more)


def _listed(plain: str, question: Question) -> frozenset[str] | None:
    """Options that begin lines; not where all of them are gone through, or some are called wrong."""
    found = re.findall(rf"^\s*[-*]?\s*\(?([{question.letters}])\s*[.、:)]", plain, re.M)
    letters = frozenset(found)
    fits = len(letters) > 0 and (question.multiple or len(letters) == 1) and not _WRONG.search(plain)
    return letters if fits and (not question.multiple or len(letters) < len(question.letters)) else None


def _alone(plain: str, question: Question) -> frozenset[str] | None:
    """The only letters that stand as letters of an option; one group of them where several may be right."""
    found = re.finditer(_runs(question), plain)
    sets = {_set(group[0], question) for group in found if not _NOT_BEFORE.search(plain[: group.start()])}
    return sets.pop() if len(sets) == 1 and not _WRONG.search(plain) else None


def _by_text(plain: str, question: Question) -> frozenset[str] | None:
    """The option whose text alone stands in the answer to a single choice; one that is part of another's does not count."""
    held = [(letter, _plain(option)) for letter, option in question.options if _plain(option) in plain]
    longest = [letter for letter, option in held if not any(option in other and option != other for _, other in held)]
    return frozenset(longest) if len(longest) == 1 and not question.multiple and not _WRONG.search(plain) else None


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()
