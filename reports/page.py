"""One HTML page of one or several evaluations, self-contained: it opens from a file, without a network, and runs no script.

    write_page(json.loads(Path("result.json").read_text()), Path("report.html"))

Everything of the JSON is escaped by the template (jinja2, autoescape on); plots are inline SVG. Computes no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from yaofang.reports import plots, tables, words
from yaofang.reports.cells import Table
from yaofang.reports.plots import Plot
from yaofang.reports.provenance import about
from yaofang.reports.systems import System, as_results, differences_of, modes_of, paired_of, systems_of
from yaofang.vocab.files import whole_file

TEMPLATES = Path(__file__).parent / "templates"
Draw = Callable[[Sequence[System], str, str], Plot | None]


@dataclass(frozen=True, slots=True)
class Part:
    """Plots and tables of one question."""

    title: str
    plots: Sequence[Plot]
    tables: Sequence[Table]
    no_plot: str = ""
    """Why there is no plot, where one belongs."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """All records whose diagnoses came about in one way."""

    key: str
    title: str
    sizes: str
    parts: Sequence[Part]


def write_page(results: Mapping[str, Any] | Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write the page of one result of `yaofang evaluate --out`, or of several side by side; whole or not at all.

    A result that was compared (`compared`) brings both of its systems. Raises InputError for what is no such result, and for a
    place where no file can be written.
    """
    html = page(results)
    with whole_file(out) as handle:
        handle.write(html)


def page(results: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """The page's HTML."""
    found = as_results(results)
    systems = systems_of(found)
    return _template("page.html").render(
        title="用药推荐评测：" + "、".join(one.name for one in systems),
        warnings=list(warnings_of(systems)),
        about=about(systems),
        chapters=[_chapter(systems, mode, number) for number, mode in enumerate(modes_of(systems), 1)],
        paired=tables.paired(list(paired_of(found))),
        no_compare=words.NO_COMPARE,
        definitions=words.DEFINITIONS,
    )


def warnings_of(systems: Sequence[System]) -> list[str]:
    """What a reader must know before the first figure."""
    found = [f"{line}，并列的数字不能直接比较。" for line in differences_of(systems)]
    if len(modes_of(systems)) > 1:
        found.append("诊断来源不同的记录分开计分，不合并。")
    for one in systems:
        if one.result.get("stated") is False and any(mode["diagnoses"] != "not stated" for mode in one.result["results"]):
            found.append(f"{one.name}：{words.NOT_STATED_BESIDE}")
        if (one.result.get("training") or {}).get("shared_patients"):
            found.append(f"{one.name}：训练记录与金标准有相同的患者序号；若是同一批患者，结果偏高。")
        if (one.provenance or {}).get("git", "").endswith("+"):
            found.append(f"{one.name}：运行时源代码有未提交的改动。")
    if len(systems) > plots.MOST:
        found.append(f"图中只画前 {plots.MOST} 个系统，表中全有。")
    return found


def _chapter(systems: Sequence[System], mode: str, number: int) -> Chapter:
    sizes = [
        f"{one.name}：{found['records']} 条记录，{found['patients']} 名患者"
        for one in systems
        if (found := one.mode(mode)) is not None
    ]
    return Chapter(f"m{number}", words.MODES[mode], "；".join(sizes), _parts(systems, mode, f"m{number}"))


def _parts(systems: Sequence[System], mode: str, key: str) -> list[Part]:
    def drawn(draw: Draw, name: str) -> list[Plot]:
        plot = draw(systems, mode, f"{key}{name}")
        return [] if plot is None else [plot]

    own = [one for one in systems if one.mode(mode) is not None]
    matrices = [plots.confusion(one, mode, f"{key}c{at}") for at, one in enumerate(own[: plots.MOST])]
    return [
        Part("主要结果", [], [tables.headline(systems, mode)]),
        Part("三个层次", [], [tables.levels(systems, mode)]),
        Part(
            "安全性",
            drawn(plots.safety, "s"),
            [tables.safety(systems, mode), tables.safety_counts(systems, mode)],
            words.NO_PAIRS,
        ),
        Part("药数", [], [tables.list_lengths(systems, mode)]),
        Part("头部到尾部", drawn(plots.head_to_tail, "h"), [tables.strata(systems, mode)], words.NO_TRAINING),
        Part(
            "亚组",
            drawn(plots.subgroups, "g"),
            [tables.gaps(systems, mode), tables.subgroups(systems, mode)],
            words.NO_RECORDS,
        ),
        Part(
            "校准",
            drawn(plots.reliability, "r"),
            [tables.calibration(systems, mode), tables.bins(systems, mode)],
            tables.no_calibration(systems, mode),
        ),
        Part(
            "混淆",
            [plot for plot in matrices if plot is not None],
            [one for system in own for one in tables.confused(system, mode)],
            "没有可画的药对",
        ),
    ]


@cache
def _template(name: str) -> Template:
    loaded = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    return loaded.get_template(name)
