"""Plots as SVG text that stands in a page: reliability, head to tail, safety against accuracy, subgroups, confusion.

Text stays text (`svg.fonttype: none`), written by the reader's own fonts. Colours are those of Okabe and Ito (2008, Color
Universal Design), and nothing is told by colour alone: systems differ in marker, line and hatching too. Each plot has a text
alternative; its numbers stand in the table below it. Matplotlib cannot measure Chinese without a font: margins are
reckoned here.
"""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from yaofang.reports import words
from yaofang.reports.systems import Json, System

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dv*"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
SIZE = 10
"""Points of the text."""
INCH = 72
MOST = len(COLOURS)
"""Systems that one plot tells apart."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot for the page."""

    title: str
    svg: str
    """Without XML head and without any address."""
    alternative: str
    """What the plot shows, in a sentence or two."""
    note: str
    """What its marks and intervals are, and the n."""


def reliability(systems: Sequence[System], mode: str, key: str) -> Plot | None:
    """Observed share against mean probability, bin by bin; None where no system has probabilities."""
    curves = [(one.name, table["overall"]) for one, table in _calibrations(systems, mode)][:MOST]
    if not curves:
        return None
    figure, axes = _axes(4.2, 4.2, [name for name, _ in curves])
    axes.plot([0, 1], [0, 1], color="#666666", linewidth=1, linestyle=(0, (2, 2)), label="完全校准")
    for at, (name, curve) in enumerate(curves):
        points = curve["bins"]
        x, y = ([point[which] for point in points] for which in ("predicted", "observed"))
        axes.errorbar(x, y, yerr=_bars(points, "observed"), label=name, linestyle=LINES[at], **_marks(at))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="平均概率 p_include", ylabel="实际在列表中的占比")
    _legend(axes)
    said = [f"{name}：ECE {curve['ece']:.5f}，{_slope(curve)}" for name, curve in curves]
    cells = "，".join(f"{name} {curve['count']} 格、阳性 {curve['positives']}" for name, curve in curves)
    return Plot(
        "可靠性曲线",
        _svg(figure, key),
        f"横轴为平均概率，纵轴为实际占比，虚线为完全校准。{'；'.join(said)}。",
        f"竖线为 95% Wilson 区间。n：{cells}。",
    )


def head_to_tail(systems: Sequence[System], mode: str, key: str) -> Plot | None:
    """Recall and precision by stratum; None where nothing is known of the training."""
    found = [(one.name, own["strata"]) for one in systems if (own := one.mode(mode)) and own.get("strata")][:MOST]
    if not found:
        return None
    names = [one["name"] for one in found[0][1]]
    figure = Figure(figsize=(7.6, 6.2))
    for row, (score, title) in enumerate((("recall", "召回率"), ("precision", "精确率"))):
        axes = figure.add_axes((0.09, 0.56 - row * 0.48, 0.89, 0.36))
        for at, (name, strata) in enumerate(found):
            _stratum_bars(axes, strata, score, at, len(found), name)
        counts = [
            "/".join(str(one["gold" if score == "recall" else "predicted"]) for one in _nth(found, k))
            for k in range(len(names))
        ]
        ticks = [f"{words.STRATA[name]} (n={count})" for name, count in zip(names, counts, strict=True)]
        axes.set_xticks(range(len(names)), ticks)
        axes.set(ylabel=title, xlim=(-0.5, len(names) - 0.5), ylim=(0, 1.05))
        axes.grid(axis="y", color="#dddddd")
        axes.set_axisbelow(True)
        if row == 0:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, ncols=1 if len(found) < 2 else 2)
    said = "；".join(f"{name}：" + "，".join(_stratum_words(one) for one in strata) for name, strata in found)
    note = "竖线为按患者重抽样的 95% 区间；召回率的 n 为该层金标准药数，精确率的 n 为预测药数"
    note += "（多个系统依次以 / 分开）。没有柱子表示没有数值，原因见表。"
    return Plot("头部到尾部", _svg(figure, key), f"按训练频次分层的召回率与精确率。{said}。", note)


def safety(systems: Sequence[System], mode: str, key: str) -> Plot | None:
    """Share of pairs at each tier against Jaccard; the gold's share is a line. None where no list has a pair."""
    found = [(one.name, own) for one in systems if (own := one.mode(mode))][:MOST]
    if not any(own["predicted"]["figures"].get(f"T{tier}_rate") for _, own in found for tier in (1, 2, 3)):
        return None
    figure = Figure(figsize=(8.4, 3.9 + 0.22 * len(found)))
    legend = 0.28 * (len(found) + 1) / figure.get_figheight()
    for column in range(3):
        axes = figure.add_axes((0.08 + column * 0.315, 0.15, 0.27, 0.78 - legend))
        _tier_panel(axes, found, f"T{column + 1}")
        if column == 0:
            axes.set_ylabel("Jaccard")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), frameon=False)
    said = "；".join(f"{name}：Jaccard {own['jaccard']['value']:.4f}，{_tier_words(own['predicted'])}" for name, own in found)
    n = "，".join(f"{name} {own['predicted']['conflicts']['pairs']} 个药对、{own['records']} 条记录" for name, own in found)
    text = f"越靠左冲突越少，越靠上越准确。{said}。金标准：{_tier_words(found[0][1]['gold'])}。"
    return Plot("安全性与准确性", _svg(figure, key), text, f"点的横、竖线为 95% 区间，竖虚线为金标准的占比。n：{n}。")


def subgroups(systems: Sequence[System], mode: str, key: str) -> Plot | None:
    """Jaccard of each group with its interval; None without records."""
    found = [(one.name, own["subgroups"]) for one in systems if (own := one.mode(mode)) and own.get("subgroups")][:MOST]
    if not found:
        return None
    names = list(dict.fromkeys((one["attribute"], one["group"]) for _, groups in found for one in groups))
    sizes = {(one["attribute"], one["group"]): one["records"] for _, groups in found for one in groups}
    labels = [f"{words.ATTRIBUTES[a]} {words.GROUPS.get(g, g)} (n={sizes[a, g]})" for a, g in names]
    figure, axes = _axes(4.4, 0.32 * len(names) + 0.2, [name for name, _ in found], left=_width(labels))
    for at, (name, groups) in enumerate(found):
        shift = (at - (len(found) - 1) / 2) * 0.7 / len(found)
        y = [names.index((one["attribute"], one["group"])) + shift for one in groups]
        figures = [one["jaccard"] for one in groups]
        axes.errorbar([one["value"] for one in figures], y, xerr=_bars(figures), linestyle="none", label=name, **_marks(at))
    axes.set_yticks(range(len(names)), labels)
    axes.set(xlabel="Jaccard", ylim=(len(names) - 0.5, -0.5))
    axes.grid(axis="x", color="#dddddd")
    _legend(axes)
    said = "；".join(f"{name}：" + "，".join(_subgroup_words(one) for one in groups) for name, groups in found)
    return Plot(
        "亚组的 Jaccard", _svg(figure, key), f"各亚组的 Jaccard。{said}。", "横线为按患者重抽样的 95% 区间，n 为记录数。"
    )


def confusion(system: System, mode: str, key: str) -> Plot | None:
    """A matrix of the most frequent pairs: missed drugs by row, what stands in their place by column. None without pairs."""
    found = (system.mode(mode) or {}).get("confusion") or {}
    pairs = found.get("pairs") or ()
    if not pairs:
        return None
    rows, columns = (_by_class(pairs, side) for side in ("gold", "predicted"))
    step, left, bottom = 0.42, _width(rows), _width(columns) * 0.78 + 0.1
    figure, axes = _axes(
        max(step * len(columns), 1.4), max(step * len(rows), 1.4), (), left=left, bottom=bottom + 0.45, right=0.5
    )
    most = max(one["count"] for one in pairs)
    for one in pairs:
        x, y, depth = columns.index(one["predicted"]), rows.index(one["gold"]), one["count"] / most
        edge, line = ("black", 2.2) if one["same_generic"] else ("#888888", 0.6)
        fill = mpl.colormaps["Blues"](0.1 + 0.8 * depth)
        axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=fill, edgecolor=edge, linewidth=line))
        ink = "white" if depth > 0.6 else "black"
        axes.text(x, y, f"{one['count']:.2f}".rstrip("0").rstrip("."), ha="center", va="center", color=ink, fontsize=SIZE - 1)
    axes.set_xticks(range(len(columns)), columns, rotation=50, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel="预测（多列）", ylabel="金标准（漏列）")
    first = pairs[0]
    said = f"最常见：{first['gold']} 被列为 {first['predicted']}，{first['count']:.2f} 次。"
    note = "格中为次数，粗框为同一通用名，药名按 ATC-4 类排列。"
    note += f"n：{found['records']} 条记录，漏列 {found['missed']}，多列 {found['extra']}。"
    return Plot(f"哪种药被当成哪种药：{system.name}", _svg(figure, key), f"行为漏列的药，列为代之以列出的同类药。{said}", note)


def _by_class(pairs: Sequence[Json], side: str) -> list[str]:
    """The names of one side, class by class."""
    return [name for _, name in sorted({(one["group"], one[side]) for one in pairs})]


def _calibrations(systems: Sequence[System], mode: str) -> list[tuple[System, Json]]:
    found = ((one, ((one.mode(mode) or {}).get("probabilities") or {}).get("calibration")) for one in systems)
    return [(one, table) for one, table in found if table is not None]


def _slope(curve: Json) -> str:
    slope = curve["recalibration"]["slope"]
    return "斜率无有限的估计" if slope is None else f"校准斜率 {slope:.3f}"


def _stratum_bars(axes: Axes, strata: Sequence[Json], score: str, at: int, systems: int, name: str) -> None:
    width = 0.8 / systems
    there = [(k, one[score]) for k, one in enumerate(strata) if one[score] is not None]
    x = [k + (at - (systems - 1) / 2) * width for k, _ in there]
    figures = [one for _, one in there]
    style: dict[str, Any] = {"facecolor": COLOURS[at], "hatch": HATCHES[at], "edgecolor": "white", "label": name}
    axes.bar(x, [one["value"] for one in figures], width * 0.92, **style)
    axes.errorbar(x, [one["value"] for one in figures], yerr=_bars(figures), linestyle="none", color="black", capsize=3)


def _nth(found: Sequence[tuple[str, Sequence[Json]]], k: int) -> list[Json]:
    return [strata[k] for _, strata in found]


def _stratum_words(one: Json) -> str:
    recall = "无召回率" if one["recall"] is None else f"召回率 {one['recall']['value']:.4f}"
    return f"{words.STRATA[one['name']]}{recall}"


def _tier_panel(axes: Axes, found: Sequence[tuple[str, Json]], tier: str) -> None:
    gold = found[0][1]["gold"]["figures"].get(f"{tier}_rate")
    if gold is not None:
        axes.axvline(gold["value"], color="#444444", linestyle="--", linewidth=1.2, label="金标准")
    for at, (name, mode) in enumerate(found):
        rate, jaccard = mode["predicted"]["figures"].get(f"{tier}_rate"), mode["jaccard"]
        if rate is not None:
            x, y = rate["value"], jaccard["value"]
            axes.errorbar([x], [y], xerr=_bars([rate]), yerr=_bars([jaccard]), linestyle="none", label=name, **_marks(at))
    axes.set_xlabel(f"{tier} 药对占比")
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
    axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=2))
    axes.margins(0.25)
    axes.grid(color="#dddddd")


def _tier_words(side: Json) -> str:
    rates = ((tier, side["figures"].get(f"{tier}_rate")) for tier in ("T1", "T2", "T3"))
    return "，".join(f"{tier} {'无可比药对' if rate is None else format(rate['value'], '.2%')}" for tier, rate in rates)


def _subgroup_words(one: Json) -> str:
    group = words.GROUPS.get(one["group"], one["group"])
    return f"{words.ATTRIBUTES[one['attribute']]} {group} {one['jaccard']['value']:.4f}"


def _bars(figures: Sequence[Mapping[str, Any]], key: str = "value") -> list[list[float]]:
    """[2, N] distances to the bounds; 0 where there is no interval. A bound on the wrong side by rounding counts as 0."""
    bounds = [(one[key], one["low"], one["high"]) for one in figures]
    below = [0.0 if low is None else max(0.0, value - low) for value, low, _ in bounds]
    return [below, [0.0 if high is None else max(0.0, high - value) for value, _, high in bounds]]


def _marks(at: int) -> dict[str, Any]:
    return {"color": COLOURS[at], "marker": MARKERS[at], "markersize": 6, "capsize": 3, "linewidth": 1.6}


def _width(labels: Sequence[str]) -> float:
    """Inches of the longest label: a wide character is one em, any other 0.6."""
    ems = (sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in label) for label in labels)
    return max(ems, default=0.0) * SIZE / INCH


def _axes(
    width: float, height: float, names: Sequence[str], *, left: float = 0.3, bottom: float = 0.6, right: float = 0.2
) -> tuple[Figure, Axes]:
    """Axes of this size in inches, with room for tick labels on the left and a legend line a name above."""
    left, top = left + 0.6, 0.15 + 0.24 * (len(names) + 1 if names else 0)
    whole = (max(left + width + right, 3.0), bottom + height + top)
    figure = Figure(figsize=whole)
    return figure, figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, ncols=1)


def _svg(figure: Figure, key: str) -> str:
    """The figure as one <svg> element whose ids begin with `key`, without namespaces, metadata and style sheet."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "axes.unicode_minus": False}), warnings.catch_warnings():
        # Only the measuring needs a font with Chinese; the text is written by the browser's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;\"]*;?", "", text)  # the page's style sheet names the fonts
    return re.sub(r'( id="|url\(#|xlink:href="#)', rf"\1{key}-", text)
