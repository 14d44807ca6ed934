"""What was scored, with what, on which data: the first tables of the page, and what the card says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yaofang.reports import words
from yaofang.reports.cells import Cell, Table, missing, number, text
from yaofang.reports.systems import System

SHOWN = 5
"""IDs or names of a long list that a cell shows."""
NO_COMMAND = "JSON 中没有 provenance"


def about(systems: Sequence[System]) -> list[Table]:
    """One table of everything that decides the figures, a column a system; and one of file hashes."""
    columns = ("项目", *(one.name for one in systems))
    facts = [dict(_facts(one)) for one in systems]
    rows = [[text(name), *(one.get(name, missing(words.ABSENT)) for one in facts)] for name in _names(facts)]
    hashes = [
        [text(name), *(text(one.hashes[key]) if key in one.hashes else missing("未给出此文件") for one in systems)]
        for key, name in words.FILES.items()
        if any(key in one.hashes for one in systems)
    ]
    return [
        Table("来历", columns, rows),
        Table("文件的 SHA-256（前 12 位）", columns, hashes, why_empty="JSON 中没有文件的哈希"),
    ]


def _names(facts: Sequence[Mapping[str, Cell]]) -> list[str]:
    return list(dict.fromkeys(name for one in facts for name in one))


def _facts(system: System) -> Iterator[tuple[str, Cell]]:
    result, source = system.result, system.provenance or {}
    yield "命令", _maybe(source.get("command"), NO_COMMAND)
    yield "日期", _maybe(source.get("date"), NO_COMMAND)
    yield "git", _maybe(source.get("git"), NO_COMMAND)
    yield "版本", _maybe(joined(source.get("versions")), NO_COMMAND)
    yield "机器", _maybe(joined(source.get("machine")), NO_COMMAND)
    yield "词表版本", _maybe(result.get("vocabulary"), words.ABSENT)
    yield "冲突表版本", _maybe(result.get("conflicts"), words.ABSENT)
    yield "比较层次", text(words.LEVELS.get(result["level"], result["level"]))
    for mode in result["results"]:
        name = words.MODES[mode["diagnoses"]]
        yield f"记录：{name}", number(mode["records"], words.ABSENT)
        yield f"患者：{name}", number(mode["patients"], words.ABSENT)
        yield f"提交中缺少的记录（各计 0 分）：{name}", _listed(mode.get("missing"))
        yield f"因长度截断的列表：{name}", number(mode.get("truncated"), words.NO_TRUNCATION)
    yield "不在金标准中的就诊标识（未计分）", _listed(result.get("unknown_ids"))
    yield "患者取自", _maybe(result.get("patients_from"), words.ABSENT)
    yield "重抽样次数", number(result.get("resamples"), words.ABSENT)
    yield "随机种子", number(result.get("seed"), words.ABSENT)
    yield from _answers(result.get("answers"))
    yield from _training(result.get("training"))


def _answers(answers: Mapping[str, Any] | None) -> Iterator[tuple[str, Cell]]:
    if answers is None:
        yield "答案的形式", missing(words.ABSENT)
        return
    yield "答案的形式", text(words.SHAPES.get(answers["shape"], answers["shape"]))
    yield "答案条数", number(answers["entries"], words.ABSENT)
    yield "无法解析的答案（按空列表计）", number(answers["unparsed"], words.ABSENT)
    yield "未匹配到词表的药名", number(answers["unmatched"], words.ABSENT)
    yield "药名", text("已匹配到词表" if answers["links"] else "按原样计分")


def _training(training: Mapping[str, Any] | None) -> Iterator[tuple[str, Cell]]:
    if training is None:
        yield "训练记录", missing(words.NO_TRAINING)
        return
    yield "训练记录", number(training["records"], "只有训练频次 (--counts)")
    yield "训练中出现的药名", number(training["drugs"], words.ABSENT)
    yield "与训练记录相同的患者序号", _listed(training["shared_patients"])


def _maybe(value: object, why: str) -> Cell:
    return text(value) if value else missing(why)


def joined(value: Mapping[str, Any] | None) -> str:
    """Names with their values, as a sentence's part; empty for None."""
    return "，".join(f"{name} {one}" for name, one in (value or {}).items())


def _listed(value: Sequence[object] | None) -> Cell:
    """How many, and the first few."""
    if value is None:
        return missing(words.ABSENT)
    shown = "、".join(str(one) for one in value[:SHOWN])
    return number(0, "") if not value else text(f"{len(value)}：{shown}{' ……' if len(value) > SHOWN else ''}")
