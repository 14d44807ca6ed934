"""A model card in Markdown, filled from the JSON of one evaluation, under the headings of TRIPOD-LLM that apply.

    write_card(json.loads(Path("result.json").read_text()), Path("card.md"))

TRIPOD-LLM: Gallifant et al., Nature Medicine 31:60-69 (2025). The card says nothing that the JSON does not: what it lacks is
"not measured" (a result) or "not stated" (a fact about the model). Computes no figure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from yaofang.reports import tables, words
from yaofang.reports.cells import Table
from yaofang.reports.provenance import about, joined
from yaofang.reports.systems import Json, System, as_results, modes_of, paired_of, systems_of
from yaofang.vocab.files import whole_file

TEMPLATES = Path(__file__).parent / "templates"
NOT_MEASURED = "未测量 (not measured)"
NOT_STATED = "未说明 (not stated)"


@dataclass(frozen=True, slots=True)
class Chapter:
    """All records whose diagnoses came about in one way."""

    title: str
    sizes: str
    subgroups: Table
    performance: Sequence[Table]
    gap: Table


def write_card(result: Mapping[str, Any], out: Path) -> None:
    """Write the card of one result of `yaofang evaluate --out`; whole or not at all.

    What it was compared with appears in the paired table only. Raises InputError for what is no such result, and for a place
    where no file can be written.
    """
    text = card(result)
    with whole_file(out) as handle:
        handle.write(text)


def card(result: Mapping[str, Any]) -> str:
    """The card's Markdown."""
    found = as_results(result)
    system = systems_of(found)[0]
    facts, hashes = about([system])
    source = system.provenance or {}
    rendered = _template().render(
        name=system.name,
        not_measured=NOT_MEASURED,
        not_stated=NOT_STATED,
        hashes=hashes,
        sizes=_rows(facts, ("记录：", "患者：", "提交中缺少", "答案条数", "无法解析", "因长度截断"), "规模"),
        training=_training(result),
        models=_models(result),
        about=_rows(facts, ("版本", "词表版本", "冲突表版本", "比较层次", "患者取自", "重抽样", "随机种子", "药名"), "设置"),
        definitions=words.DEFINITIONS,
        machine=joined(source.get("machine")) or NOT_STATED,
        command=source.get("command"),
        git=source.get("git") or NOT_STATED,
        chapters=[_chapter(system, mode) for mode in modes_of([system])],
        paired=tables.paired(list(paired_of(found))),
        no_compare=words.NO_COMPARE,
        limits=limits(system),
    )
    return re.sub(r"\n{3,}", "\n\n", rendered).rstrip() + "\n"


def limits(system: System) -> list[str]:
    """What the reader must hold against the figures: always true, then what this JSON shows."""
    result = system.result
    found = [
        "金标准是医师实际写下的药，不是唯一正确的处方；合理而不同的药也计为错误。",
        "没有查到的药对是“无数据”，不是“安全”；冲突数取决于冲突表的版本。",
        "区间只反映患者抽样的波动，不反映换医院、换时期后的变化。",
        "没有在前瞻或临床使用中评测过：临床结局未测量 (not measured)。",
    ]
    if result.get("training") is None:
        found.append("没有给出训练记录：训练与评测的患者是否重叠未测量 (not measured)。")
    elif result["training"]["shared_patients"] is None:
        found.append("训练与评测的患者是否重叠未测量 (not measured)：两边的记录没有都给出。")
    elif result["training"]["shared_patients"]:
        found.append("训练记录与金标准有相同的患者序号；若是同一批患者，结果偏高。")
    if result.get("stated") is False and any(mode["diagnoses"] != "not stated" for mode in result["results"]):
        found.append(words.NOT_STATED_BESIDE)
    if result.get("patients_from") == "就诊标识":
        found.append("患者由就诊标识推断，不是取自患者序号。")
    for mode in result["results"]:
        name = words.MODES[mode["diagnoses"]]
        if mode["diagnoses"] == "not stated":
            found.append("诊断是给出的还是模型生成的，没有说明；不可与说明了的结果同列。")
        if mode.get("missing"):
            found.append(f"{name}：提交缺少 {len(mode['missing'])} 条记录，各计 0 分。")
        if (reason := (mode.get("probabilities") or {}).get("reason")) is not None:
            found.append(f"{name}：概率的排序与校准未测量 (not measured)：{words.REASONS.get(reason, reason)}。")
        if not mode.get("subgroups"):
            found.append(f"{name}：亚组间的差异未测量 (not measured)：{words.NO_RECORDS}。")
    if (system.provenance or {}).get("git", "").endswith("+"):
        found.append("运行时源代码有未提交的改动，git 号不足以重现。")
    return found


def _chapter(system: System, mode: str) -> Chapter:
    one = [system]
    found = system.mode(mode)
    sizes = "" if found is None else f"{found['records']} 条记录，{found['patients']} 名患者。"
    performance = [make(one, mode) for make in (tables.headline, tables.levels, tables.safety, tables.safety_counts)]
    performance += [make(one, mode) for make in (tables.list_lengths, tables.strata, tables.calibration)]
    return Chapter(words.MODES[mode], sizes, tables.subgroups(one, mode), performance, tables.gaps(one, mode))


def _rows(table: Table, beginnings: tuple[str, ...], caption: str) -> Table:
    return Table(
        caption, table.columns, [row for row in table.rows if row[0].text.startswith(beginnings)], why_empty=words.ABSENT
    )


def _training(result: Json) -> str:
    training = result.get("training")
    if training is None:
        return NOT_STATED
    if training["records"] is None:
        return f"{training['drugs']} 种药名的频次；记录数 {NOT_STATED}"
    known = training["shared_patients"]
    shared = NOT_MEASURED if known is None else f"{len(known)} 个"
    return f"{training['records']} 条记录，{training['drugs']} 种药名；与评测相同的患者序号 {shared}"


def _models(result: Json) -> str:
    """Of `model_versions`, the versions that the details name; older results have no such key."""
    found = result.get("model_versions")
    return "；".join(joined(one) for one in found) if found else NOT_STATED


def as_markdown(table: Table) -> str:
    """A pipe table under its caption, or the reason why there is none."""
    if not table.rows:
        return f"**{escaped(table.caption)}**：{NOT_MEASURED}：{escaped(table.why_empty)}\n\n"
    lines = [f"**{escaped(table.caption)}**", "", _line(table.columns), _line(["---"] * len(table.columns), escape=False)]
    lines += [_line([cell.text for cell in row]) for row in table.rows]
    return "\n".join([*lines, "", *([escaped(table.note), ""] if table.note else [])]) + "\n"


def _line(cells: Sequence[str], *, escape: bool = True) -> str:
    return "| " + " | ".join(escaped(cell) if escape else cell for cell in cells) + " |"


def escaped(value: object) -> str:
    """Text that Markdown and the HTML in it take for nothing but text, on one line."""
    text = re.sub(r"\s*[\r\n]+\s*", " ", str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def _code(value: object) -> str:
    """Text between two backticks: one line, without any backtick of its own."""
    return re.sub(r"\s+", " ", str(value)).replace("`", "'")


@cache
def _template() -> Template:
    # Markdown, not HTML: each value is escaped by its filter, which StrictUndefined and the tests hold to.
    made = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False)
    made.filters.update(md=escaped, code=_code, table=as_markdown)
    return made.get_template("card.md")
