"""Pages of records as HTML: one self-contained text each, that opens from a file, without a network.

    html = records_page("检查", [Shown(1, view)], about={"模型": "tiny"})

Everything that comes from a record is escaped by the templates (jinja2, autoescape on); the one script is ours, and the page's
policy names its hash, so that nothing else would run. Knows views; no model, no table and no place on a disk.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from yaofang.inspection.carriers import FLAGS
from yaofang.inspection.view import DIAGNOSIS_STATES, STATES, STRENGTHS, DiagnosisView, RecordView

TEMPLATES = Path(__file__).parent / "templates"
CONFIDENTIAL = "含病历原文，请按病历管理。"
RESEARCH_ONLY = "本程序是研究软件，其输出不是处方，不能代替医师和药师的判断。"
NO_DATA_NOTE = "“无数据”和没有列出的相互作用只表示所用资料中查不到，不表示没有适应证，也不表示安全。"
KINDS = {"drug": "药名", "diagnosis": "诊断用词", "finding": "检查或体征"}
MARKS = {"wrong": "✗", "missed": "○", "correct": "✓", "unjudged": "·"}
_CLASSES = {"drug": "drug-name", "diagnosis": "diagnosis", "finding": "finding"}


@dataclass(frozen=True, slots=True)
class Part:
    """A run of characters that the same spans cover."""

    text: str
    keys: tuple[str, ...] = ()
    """Marks of the drugs that it speaks for."""
    classes: str = ""
    anchor: str = ""
    ends: tuple[str, ...] = ()
    """Marks of the drugs of which a span ends here: written behind it."""


@dataclass(frozen=True, slots=True)
class Span:
    """A span of a section, of one drug and kind."""

    start: int
    end: int
    key: str
    style: str


@dataclass(frozen=True, slots=True)
class Text:
    """A section with its text in parts."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A view and its number on the page or in the report."""

    number: int
    view: RecordView

    def anchor(self, section: str, start: int) -> str:
        """The id of a place in a section's text."""
        names = [name for name, _ in self.view.sections]
        return f"r{self.number}-{names.index(section)}-{start}"

    @property
    def sections(self) -> list[Text]:
        """Each section's text, cut where a span begins or ends."""
        spans = _spans(self.view)
        return [Text(name, self._parts(name, text, spans.get(name, []))) for name, text in self.view.sections]

    def _parts(self, name: str, text: str, spans: Sequence[Span]) -> tuple[Part, ...]:
        edges = sorted({0, len(text), *(span.start for span in spans), *(span.end for span in spans)})
        begins = {span.start for span in spans}
        parts = []
        for start, end in pairwise(edges):
            over = [span for span in spans if span.start <= start and end <= span.end]
            keys = dict.fromkeys(span.key for span in over)
            classes = " ".join(dict.fromkeys(span.style for span in over))
            anchor = self.anchor(name, start) if start in begins else ""
            ends = dict.fromkeys(span.key for span in over if span.end == end)
            parts.append(Part(text[start:end], tuple(keys), classes, anchor, tuple(ends)))
        return tuple(parts)

    @property
    def patient(self) -> list[str]:
        """What the warnings go by: the facts that were read, and those that were not."""
        facts = self.view.facts
        sex = {"male": "男", "female": "女", None: "不详"}[facts.sex]
        return [
            f"性别 {sex}",
            f"年龄 {_amount(None if facts.age is None else int(facts.age), '岁', 0)}",
            f"eGFR {_amount(facts.egfr, ' mL/min/1.73m²', 0)}",
            f"血钾 {_amount(facts.potassium, ' mmol/L', 1)}",
            *(["妊娠"] if facts.pregnant else []),
            f"药物过敏 {'、'.join(facts.allergies) or '未读到'}",
        ]

    @property
    def remarks(self) -> list[str]:
        """What a reader must know of this list."""
        found, lines = self.view.found, []
        if found.truncated:
            lines.append("清单因长度上限提前结束，可能不完整。")
        if found.below_minimum:
            lines.append("药品数少于要求的最少数：冲突与排除之后没有更多可列。")
        if found.cuts:
            cuts = "，".join(f"{cut.section} {cut.tokens}" for cut in found.cuts)
            lines.append(f"病历超出模型的输入长度，下列部分被截短（token 数），模型没有看到全文：{cuts}。")
        if found.drugs and all(drug.p_include is None for drug in found.drugs):
            lines.append("入选概率没有估计（predict --strategy expected 才有），因此也没有“考虑过而未列出”的药品。")
        return lines

    def keys_of(self, diagnosis: DiagnosisView) -> list[str]:
        """Marks of the drugs that a diagnosis carries, of missed ones too."""
        return [drug.key for drug in self.view.drugs if any(one.carrier.diagnosis == diagnosis.name for one in drug.carrying)]

    def gold_mark(self, label: str) -> str:
        """Tells a label that was prescribed."""
        return "（实际带药）" if label in (self.view.gold or ()) else ""


@dataclass(frozen=True, slots=True)
class Row:
    """A record in the index."""

    id: str
    place: int
    href: str
    jaccard: float | None
    wrong: tuple[str, ...]
    missed: tuple[str, ...]
    correct: int
    drugs: tuple[str, ...]
    flags: tuple[str, ...]
    """Kinds, one a flag."""

    @classmethod
    def of(cls, view: RecordView, place: int, href: str) -> Row:
        """The row of a view."""
        by_state = {state: tuple(drug.label for drug in view.drugs if drug.state == state) for state in STATES}
        return cls(
            id=view.record.id,
            place=place,
            href=href,
            jaccard=view.jaccard,
            wrong=by_state["wrong"],
            missed=by_state["missed"],
            correct=len(by_state["correct"]),
            drugs=tuple(drug.label for drug in view.drugs),
            flags=tuple(flag.kind for flag in view.flags),
        )

    @property
    def flag_counts(self) -> str:
        """`无指征用药 2`."""
        return "；".join(f"{kind} {self.flags.count(kind)}" for kind in FLAGS if kind in self.flags)


def records_page(
    title: str,
    shown: Sequence[Shown],
    about: Mapping[str, str],
    *,
    index: str = "",
    before: str = "",
    after: str = "",
) -> str:
    """A page of one or more records; `index`, `before` and `after` are links, escaped for a URL, or empty."""
    return _render("records.html", title, about, shown=shown, index=index, before=before, after=after)


def index_page(title: str, rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """The page with a row a record and filters; worst first, as the script keeps it."""
    labels = sorted({label for row in rows for label in row.drugs})
    worst_first = sorted(rows, key=lambda row: (2 if row.jaccard is None else row.jaccard, row.place))
    return _render("index.html", title, about, rows=worst_first, labels=labels, flag_kinds=FLAGS)


def _render(name: str, title: str, about: Mapping[str, str], **values: object) -> str:
    return _environment().get_template(name).render(title=title, about=about, **values)


@cache
def _environment() -> Environment:
    """The templates, with what all of them show. Nothing is left unescaped but our own script."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    environment.globals |= {
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "confidential": CONFIDENTIAL,
        "research_only": RESEARCH_ONLY,
        "no_data_note": NO_DATA_NOTE,
        "states": STATES,
        "diagnosis_states": DIAGNOSIS_STATES,
        "strengths": STRENGTHS,
        "kinds": KINDS,
        "marks": MARKS,
        "atc": _code,
    }
    return environment


def _spans(view: RecordView) -> dict[str, list[Span]]:
    """The spans of every drug by section: its supports, and the pieces that the model leans on."""
    found: dict[str, list[Span]] = {}
    for drug in view.drugs:
        for mention in drug.supports:
            style = _CLASSES[mention.kind] + (" denied" if mention.denied else "")
            found.setdefault(mention.section, []).append(Span(mention.start, mention.end, drug.key, style))
        for effect in drug.effects:
            found.setdefault(effect.section, []).append(Span(effect.start, effect.end, drug.key, "model"))
    return found


def _amount(value: float | None, unit: str, digits: int) -> str:
    return "不详" if value is None else f"{value:.{digits}f}{unit}"


def _code(atc: str) -> str:
    """A WHO code as it stands; the class of a drug without one is marked as provisional."""
    return f"{atc[1:]}（暂定）" if atc.startswith("~") else atc
