"""`yaofang show`: one record's Recommendation as a pharmacist reads it on a terminal. Reads details files only; knows no model.

yaofang show out/demo/details.jsonl --id 12-1
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yaofang.data.recommendation import Drug, Recommendation

RESEARCH_ONLY = "本程序是研究软件，其输出不是处方，不能代替医师和药师的判断。"
NO_DATA = "没有列出相互作用只表示所用资料中查不到，不表示安全。"
SOURCES = {"given": "病历给出", "generated": "模型生成"}


COLUMNS = ("", "药品", "通用名", "ATC", "条件概率", "入选概率", "排除", "提示")


def show(
    details: Annotated[Path, typer.Argument(help="File written by `yaofang predict --details`.")],
    id: Annotated[str | None, typer.Option("--id", help="就诊标识; without it the first record.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the Recommendation as JSON alone.")] = False,
) -> None:
    """Print one record's diagnoses, drugs, warnings and what was kept out."""
    from yaofang.app.tables import print_json

    found = read_recommendation(details, id)
    if as_json:
        print_json(found.to_json())
    else:
        print_recommendation(found)


def read_recommendation(details: Path, id: str | None) -> Recommendation:
    """The record `id` of a details file, or its first. Raises InputError for another kind of file or an unknown ID."""
    import json

    from yaofang.data.recommendation import SCHEMA, Recommendation
    from yaofang.vocab.errors import InputError

    if not details.is_file():
        raise InputError("there is no such file", file=details, way_out="Write one with `yaofang predict --details`.")
    with details.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                if id is None or value["id"] == id:
                    return Recommendation.from_json(value)
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"the line is no Recommendation ({SCHEMA})",
                    file=details,
                    line=number,
                    way_out="Give the file that `yaofang predict --details` wrote.",
                ) from None
    problem = "the file is empty" if id is None else f"no record has 就诊标识 {id}"
    raise InputError(problem, file=details, field="id", way_out="Look at the IDs in the file.")


def print_recommendation(found: Recommendation) -> None:
    """Three tables (diagnoses, drugs, kept out), the remarks, and the sentence that this is no prescription."""
    from yaofang.app.tables import show as table
    from yaofang.data.answer import clean_diagnosis

    table(
        f"就诊标识 {found.id}　出院诊断",
        ("出院诊断", "来源"),
        [(clean_diagnosis(diagnosis.name), SOURCES[diagnosis.source]) for diagnosis in found.diagnoses],
        as_json=False,
        data=None,
    )
    table("\n出院带药", COLUMNS, drug_rows(found), as_json=False, data=None)
    if found.blocked:
        table("\n被排除", ("药品", "因已列出", "级别", "条件概率"), blocked_rows(found), as_json=False, data=None)
    for remark in remarks(found):
        typer.echo(remark)


def drug_rows(found: Recommendation) -> list[tuple[int, str, str, str, float, float | None, int, str]]:
    """Rows of the drug table, in the order in which the model wrote the list; 排除 counts the labels that a drug rules out."""
    return [
        (place, drug.label, drug.generic, _code(drug.atc), drug.p_step, drug.p_include, len(drug.kept_out), _warnings(drug))
        for place, drug in enumerate(found.drugs, 1)
    ]


def blocked_rows(found: Recommendation) -> list[tuple[str, str, str, float]]:
    """Rows of what the mask kept out: the label, the listed drug that did so, the tier, the probability without the mask."""
    return [(blocked.label, blocked.by, blocked.tier, blocked.p_step) for blocked in found.blocked]


def remarks(found: Recommendation) -> list[str]:
    """What a reader must know beside the tables, each a line in Chinese."""
    lines = ["", "条件概率：模型写到清单此处时选中该药的概率，不是该药应当使用的概率。"]
    if any(drug.p_include is not None for drug in found.drugs):
        curve = "已在模拟或自有患者上校准" if "calibration" in found.versions else "未校准"
        lines.append(f"入选概率：模型认为该药属于这份清单的概率（{curve}），不是用药依据。")
    if found.below_minimum:
        lines.append("药品数少于要求的最少数：冲突与排除之后没有更多可列。")
    if any(drug.kept_out for drug in found.drugs):
        lines.append("排除：该药列入后，有多少个药品因 T1 级冲突不能再列。")
    if found.blocked:
        lines.append("被排除：模型原会考虑、但与已列出药品不可同用（T1）而被屏蔽的药品；其条件概率为未屏蔽时的值。")
    if found.truncated:
        lines.append("清单因长度上限提前结束，可能不完整。")
    if found.cuts:
        cuts = "，".join(f"{cut.section} {cut.tokens}" for cut in found.cuts)
        lines.append(f"病历超出模型训练时的长度，下列部分被截短（token 数）：{cuts}。")
    return [*lines, NO_DATA, RESEARCH_ONLY]


def _code(atc: str) -> str:
    """A WHO code as it stands; the class of a drug without one is marked as provisional."""
    return f"{atc[1:]}（暂定）" if atc.startswith("~") else atc


def _warnings(drug: Drug) -> str:
    return "；".join(f"[{warning.tier}] {warning.text}" for warning in drug.warnings)
