"""The pieces of evidence of a record, and the record, or its fitted prompt, without one of them.

    whole = pieces(record)                      # diagnoses, sections, sentences
    without(record, whole[0])                   # the record without the first diagnosis
    Shown.of(record, build_prompt(record, budget=400, count=count)).without(whole[5])

A piece has the truth file's coordinates: section, start, end. They are characters of the record's own field; for 出院诊断 the
place of the diagnosis in the list and the place after it. Knows records and prompts; no model and no token.

A prompt is fitted once. A variant is that text with a piece taken out, never another text fitted anew: where a section was
shortened, a new fitting would fill the gap with other sentences, and their effect would be taken for the piece's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from yaofang.data.fitting import ELLIPSIS, Part
from yaofang.data.prompts import SECTIONS, Prompt
from yaofang.data.records import Record

DIAGNOSES = "出院诊断"
LONG = 60
"""Characters of a sentence above which it is divided at its commas."""
Kind = Literal["diagnosis", "section", "sentence"]
FIELDS = {
    "性别": "sex",
    "年龄": "birth",
    "出生日期": "birth",
    "民族": "ethnicity",
    "BMI": "bmi",
    "就诊时间": "visit",
    "主诉": "chief_complaint",
    "现病史": "present_illness",
    "既往史": "past_history",
    "入院情况": "admission",
    "诊疗过程描述": "course",
}
"""Section of the prompt -> field of the record. The age has none of its own: it is worked out from 出生日期 and 就诊时间."""
_SENTENCE = re.compile(r"[^。；;！？\n]*[。；;！？\n]+|[^。；;！？\n]+$")
_CLAUSE = re.compile(r"[^，,]*[，,]+|[^，,]+$")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of evidence. `start` and `end` are characters of the field, or places in the list of diagnoses."""

    kind: Kind
    section: str
    start: int
    end: int
    text: str
    added: bool = False
    """A diagnosis that the record does not have: its effect is that of putting it in, at `start`."""

    def holds(self, section: str, start: int, end: int) -> bool:
        """Whether the span lies inside."""
        return self.section == section and self.start <= start and end <= self.end


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans [start, end) that cover the text but for blank ones: up to 。；！？ or a line's end, its mark included.

    A sentence of more than 60 characters is divided at its commas, into runs of at most 60 where the commas allow it.
    """
    found: list[tuple[int, int]] = []
    for match in _SENTENCE.finditer(text):
        found += _divided(text, *match.span())
    return [(start, end) for start, end in found if text[start:end].strip()]


def _divided(text: str, start: int, end: int) -> list[tuple[int, int]]:
    if end - start <= LONG:
        return [(start, end)]
    found, begun, last = [], start, start
    for match in _CLAUSE.finditer(text, start, end):
        if last > begun and match.end() - begun > LONG:
            found.append((begun, last))
            begun = last
        last = match.end()
    return [*found, (begun, end)]


def pieces(record: Record, diagnoses: Sequence[str] | None = None) -> list[Piece]:
    """Every diagnosis, then each section followed by its sentences, in the order of the prompt.

    `diagnoses` stand for the record's own where the model has written them. A section that is one sentence, and one that is
    no text (sex, age, BMI), has no sentences of its own: it is one piece.
    """
    names = record.diagnoses if diagnoses is None else diagnoses
    found = [Piece("diagnosis", DIAGNOSES, place, place + 1, name) for place, name in enumerate(names)]
    for section in SECTIONS:
        text = section.text(record)
        if text.strip():
            found += _of_section(section.name, text)
    return found


def _of_section(name: str, text: str) -> Iterator[Piece]:
    spans = sentences(text)
    yield Piece("section", name, 0, len(text), text)
    if len(spans) > 1:
        for start, end in spans:
            yield Piece("sentence", name, start, end, text[start:end])


def finest(found: Sequence[Piece]) -> list[int]:
    """Places of the pieces that hold no other: diagnoses, sentences, sections of one piece. They do not overlap."""
    divided = {piece.section for piece in found if piece.kind == "sentence"}
    return [at for at, piece in enumerate(found) if piece.kind != "section" or piece.section not in divided]


def without(record: Record, piece: Piece) -> Record:
    """The record without the piece. Without 就诊时间 or 出生日期 no age can be worked out either."""
    if piece.section == DIAGNOSES:
        kept = (*record.diagnoses[: piece.start], *record.diagnoses[piece.end :])
        return record.model_copy(update={"diagnoses": kept})
    field = FIELDS[piece.section]
    text = getattr(record, field)
    left = None if field in ("sex", "birth", "ethnicity", "bmi", "visit") else text[: piece.start] + text[piece.end :]
    return record.model_copy(update={field: left})


def with_diagnosis(record: Record, name: str, place: int | None = None) -> Record:
    """The record with a diagnosis put in, last unless a place is given; the same record if it has it."""
    if name in record.diagnoses:
        return record
    at = len(record.diagnoses) if place is None else place
    return record.model_copy(update={"diagnoses": (*record.diagnoses[:at], name, *record.diagnoses[at:])})


def added_diagnosis(record: Record, name: str) -> Piece:
    """The piece that stands for putting a diagnosis in, last in the list."""
    return Piece("diagnosis", DIAGNOSES, len(record.diagnoses), len(record.diagnoses) + 1, name, added=True)


@dataclass(frozen=True, slots=True)
class Line:
    """What the prompt shows of one section: `kept` of its characters, as `Part.kept` keeps them."""

    part: Part
    lead: int
    """Blank characters that stand before the text in the record's own field."""
    kept: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Spans of the field that are shown, one or two."""
        size = len(self.part.text)
        if self.kept >= size:
            return [(self.lead, self.lead + size)]
        head = self.kept if self.part.shorten == "tail" else (self.kept + 1) // 2
        both = [(self.lead, self.lead + head), (self.lead + size - (self.kept - head), self.lead + size)]
        return [(start, end) for start, end in both if start < end]

    def shows(self, start: int, end: int) -> bool:
        """Whether the whole span of the field is in the prompt."""
        first, last = start + self._blank(start, end), end - self._blank_after(start, end)
        return first < last and any(low <= first and last <= high for low, high in self.spans)

    def _blank(self, start: int, end: int) -> int:
        """Blank characters at the span's beginning that stripping took away."""
        return min(max(0, self.lead - start), end - start)

    def _blank_after(self, start: int, end: int) -> int:
        return min(max(0, end - self.lead - len(self.part.text)), end - start)

    def text_without(self, start: int, end: int) -> str:
        """What is shown, less the part of the span that is; `…` stays where fitting has put it. Blank if nothing is left."""
        left = [
            _less(self.part.text, low - self.lead, high - self.lead, start - self.lead, end - self.lead)
            for low, high in self.spans
        ]
        if not any(text.strip() for text in left):
            return ""
        if self.kept >= len(self.part.text):
            return left[0].strip()
        before, after = (left[0], "") if len(left) == 1 else (left[0], left[1])
        return before + ELLIPSIS + after


def _less(text: str, low: int, high: int, start: int, end: int) -> str:
    """text[low:high] without text[start:end]."""
    first, last = min(max(start, low), high), min(max(end, low), high)
    return text[low:first] + text[max(first, last) : high]


@dataclass(frozen=True, slots=True)
class Shown:
    """The user's turn of a fitted prompt, section by section."""

    content: str
    lines: tuple[Line, ...]
    """Of the sections that are not empty and not cut whole, in the order of the prompt."""

    @classmethod
    def of(cls, record: Record, prompt: Prompt) -> Shown:
        """Read from the prompt how much of each section it shows. Raises ValueError if it is no prompt of this record."""
        content = prompt.messages[-1]["content"]
        cut = {one.section for one in prompt.cuts}
        parts = []
        for section in SECTIONS:
            text = section.text(record)
            lead = len(text) - len(text.lstrip())
            part = Part(section.name, text.strip(), section.shorten, section.turn, section.floor)
            if part.text:
                parts.append((part, lead))
        for lines in _read(content, parts, cut):
            return cls(content, tuple(lines))
        raise ValueError(f"the prompt is not one of record {record.id}")

    def line(self, section: str) -> Line | None:
        """What is shown of a section; None for nothing."""
        return next((line for line in self.lines if line.part.name == section), None)

    def shows(self, section: str, start: int, end: int) -> bool:
        """Whether the whole span is in the prompt."""
        line = self.line(section)
        return line is not None and line.shows(start, end)

    def touches(self, piece: Piece) -> bool:
        """Whether any of the piece is in the prompt."""
        line = self.line(piece.section)
        return line is not None and any(max(low, piece.start) < min(high, piece.end) for low, high in line.spans)

    def without(self, piece: Piece) -> str:
        """The turn with the piece taken out; a section of which nothing is left goes with its name."""
        texts = [
            (
                line.part.name,
                line.text_without(piece.start, piece.end) if line.part.name == piece.section else line.part.kept(line.kept),
            )
            for line in self.lines
        ]
        return "\n".join(f"{name}：{text}" for name, text in texts if text)

    def places(self) -> Iterator[tuple[str, int, int, int]]:
        """(section, start, end, place of `start` in `content`) of every shown span."""
        at = 0
        for line in self.lines:
            at += len(line.part.name) + 1
            for number, (start, end) in enumerate(line.spans):
                skip = 0 if not number else line.spans[0][1] - line.spans[0][0] + len(ELLIPSIS)
                yield line.part.name, start, end, at + skip
            at += len(line.part.kept(line.kept)) + 1


def _read(content: str, parts: Sequence[tuple[Part, int]], cut: set[str]) -> Iterator[list[Line]]:
    """Ways in which the content is made of the parts; any of them is this very text."""
    if not parts:
        if not content:
            yield []
        return
    (part, lead), rest = parts[0], parts[1:]
    sizes = range(len(part.text) - 1, 0, -1) if part.name in cut else [len(part.text)]
    head = f"{part.name}："
    for size in sizes if content.startswith(head) else ():
        text = head + part.kept(size)
        if content.startswith(text) and content[len(text) : len(text) + 1] in ("", "\n"):
            for others in _read(content[len(text) + 1 :], rest, cut):
                yield [Line(part, lead, size), *others]
    if part.name in cut:
        yield from _read(content, rest, cut)
