"""The prompt of a record: a short system turn, and the record by sections under their own names.

Knows which sections a prompt has, in which order, and which go first where they do not fit. Does not know templates,
tokenizers or the drug vocabulary. 出院诊断 and 出院带药列表 are never in a prompt: they belong to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from yaofang.data.fitting import Count, Part, fit, joined
from yaofang.data.recommendation import Cut
from yaofang.data.records import Record

SYSTEM = "你是代谢内科医生。请根据住院病历写出出院诊断和出院带药。"


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the table of sections; see `Part` for the last three."""

    name: str
    text: Callable[[Record], str]
    shorten: Literal["middle", "tail", "never"] = "never"
    turn: int = 0
    floor: int = 0


SECTIONS = (
    Section("性别", lambda record: record.sex or ""),
    Section("年龄", lambda record: _age_text(record)),
    Section("出生日期", lambda record: "" if _age_text(record) else record.birth or ""),
    Section("民族", lambda record: record.ethnicity or ""),
    Section("BMI", lambda record: "" if record.bmi is None else f"{record.bmi:.1f}"),
    Section("就诊时间", lambda record: record.visit or ""),
    Section("主诉", lambda record: record.chief_complaint, "tail", turn=5, floor=200),
    # The last shortened is what says most of the drugs: what was treated before, and what was found and done here.
    Section("现病史", lambda record: record.present_illness, "middle", turn=2, floor=240),
    Section("既往史", lambda record: record.past_history, "tail", turn=3, floor=240),
    Section("入院情况", lambda record: record.admission, "middle", turn=1, floor=80),
    Section("诊疗过程描述", lambda record: record.course, "middle", turn=4, floor=320),
)
"""In the order of the prompt."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The turns before the answer, and what of the record did not fit."""

    messages: tuple[dict[str, str], ...]
    cuts: tuple[Cut, ...] = ()


def build_prompt(record: Record, *, budget: int | None = None, count: Count | None = None) -> Prompt:
    """The system turn and the record's turn, the latter of at most `budget` tokens by `count`.

    Raises InputError if the sections that are never cut do not fit.
    """
    parts = [
        Part(section.name, section.text(record).strip(), section.shorten, section.turn, section.floor) for section in SECTIONS
    ]
    if budget is None:
        return _prompt(joined(parts, [len(part.text) for part in parts]))
    if count is None:
        raise ValueError("a budget needs `count`, the function that counts tokens")
    return _prompt(*fit(parts, budget, count))


def _prompt(content: str, cuts: tuple[Cut, ...] = ()) -> Prompt:
    return Prompt(({"role": "system", "content": SYSTEM}, {"role": "user", "content": content}), cuts)


_MONTH = re.compile(r"\s*(\d{4})\s*[-/.年]\s*(\d{1,2})")


def age_at_visit(record: Record) -> int | None:
    """Whole years from the month of birth to the month of the visit; None where one of them cannot be read."""
    birth, visit = _MONTH.match(record.birth or ""), _MONTH.match(record.visit or "")
    if birth is None or visit is None:
        return None
    months = [int(date[1]) * 12 + int(date[2]) for date in (birth, visit)]
    years = (months[1] - months[0]) // 12
    return years if 0 <= years <= 130 else None


def _age_text(record: Record) -> str:
    age = age_at_visit(record)
    return "" if age is None else f"{age}岁"
