"""The tables of the page: which figures of the JSON stand in which row. Computes nothing; every number is one of the JSON's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from yaofang.eval.probabilities import NO_DETAILS
from yaofang.reports import words
from yaofang.reports.cells import SCORE, SHARE, Cell, Table, figure, missing, number, text
from yaofang.reports.systems import Json, System, same_gold

Row = list[Cell]
Get = Callable[[Json], Mapping[str, Any] | None]
TIERS = ("T1", "T2", "T3")


def headline(systems: Sequence[System], mode: str) -> Table:
    """The competition's figures at the level that was asked for, PRAUC, Brier and diagnosis F1."""
    rows = [_beside(systems, mode, name, _take(key)) for key, name in words.SCORES.items()]
    rows.append(_beside(systems, mode, "PRAUC (p_include)", _probability("prauc"), why=_no_probability))
    rows.append(_beside(systems, mode, "Brier", _probability("brier"), why=_no_probability, form=".5f"))
    if mode == "generated":
        for key, name in (("diagnosis_f1", "诊断 F1（逐字）"), ("diagnosis_f1_normalised", "诊断 F1（规范写法后）")):
            rows.append(_beside(systems, mode, name, _take(key), why=_no_diagnoses))
    return Table("主要结果", _columns(systems), rows)


def levels(systems: Sequence[System], mode: str) -> Table:
    """The same figures at every level."""
    rows = [
        _beside(systems, mode, f"{level_name} · {name}", _at_level(level, key))
        for level, level_name in words.LEVELS.items()
        for key, name in words.SCORES.items()
    ]
    return Table("三个层次", _columns(systems), rows)


def safety(systems: Sequence[System], mode: str) -> Table:
    """Conflicts by tier and drugs against the patient, beside the gold's."""
    rows = []
    for tier in TIERS:
        rows.append(_with_gold(systems, mode, f"{tier} 药对占比", f"{tier}_rate", words.NO_PAIRS, SHARE))
        rows.append(_with_gold(systems, mode, f"含 {tier} 药对的记录", f"{tier}_share", words.NO_PAIRS, SHARE))
    for tier, name in words.PATIENT.items():
        rows.append(_with_gold(systems, mode, f"{name}：占药数", f"patient_{tier}_rate", words.NO_CHECKED, SHARE))
        rows.append(_with_gold(systems, mode, f"{name}：涉及记录", f"patient_{tier}_share", words.NO_CHECKED, SHARE))
    note = "没有查到的药对是“无数据”，不是“安全”。占比须与金标准和每条记录药数同看。"
    return Table("安全性（与金标准并列）", _columns(systems, _golds(systems, mode)), rows, note=note)


def safety_counts(systems: Sequence[System], mode: str) -> Table:
    """The counts behind the shares."""
    sides = [(one.name, _side(one, mode, "predicted")) for one in systems] + _golds(systems, mode)
    rows: list[Row] = [
        [text("可比药对总数"), *(_count(side, "conflicts", "pairs") for _, side in sides)],
        *([text(f"{tier} 药对"), *(_count(side, "conflicts", tier, "pairs") for _, side in sides)] for tier in TIERS),
        *(
            [text(f"含 {tier} 药对的记录"), *(_count(side, "conflicts", tier, "records") for _, side in sides)]
            for tier in TIERS
        ),
        [text("可与患者核对的药"), *(_count(side, "patient", "drugs") for _, side in sides)],
    ]
    for tier, name in words.PATIENT.items():
        rows.append([text(name), *(_count(side, "patient", tier, "drugs") for _, side in sides)])
    return Table("安全性：计数", ("计数", *(name for name, _ in sides)), rows)


def list_lengths(systems: Sequence[System], mode: str) -> Table:
    """Number of drugs and what else can be said of the lists."""
    rows = [_with_gold(systems, mode, "每条记录药数", "mean_drugs", words.ABSENT)]
    rows += [_with_gold(systems, mode, name, key, words.ABSENT) for key, name in words.LISTS.items()]
    return Table("药数与列表", _columns(systems, _golds(systems, mode)), rows)


def strata(systems: Sequence[System], mode: str) -> Table:
    """Precision, recall and F1 by how often the training records hold a drug."""
    rows: list[Row] = []
    for system, found in _modes(systems, mode):
        for one in found.get("strata") or ():
            counts = (number(one[key], words.ABSENT) for key in ("labels", "gold", "predicted", "hits"))
            scores = (
                cell
                for key, why in (("precision", words.NO_PREDICTED), ("recall", words.NO_GOLD), ("f1", words.NO_PREDICTED))
                for cell in figure(one[key], why)
            )
            rows.append([text(words.STRATA[one["name"]]), text(system.name), *counts, *scores])
    columns = (
        "训练频次",
        "系统",
        "药名数",
        "金标准",
        "预测",
        "命中",
        "精确率",
        "95% 区间",
        "召回率",
        "95% 区间",
        "F1",
        "95% 区间",
    )
    return Table("头部到尾部", columns, rows, why_empty=words.NO_TRAINING)


def subgroups(systems: Sequence[System], mode: str) -> Table:
    """Jaccard of each group of records."""
    rows: list[Row] = []
    for system, found in _modes(systems, mode):
        for one in found.get("subgroups") or ():
            name = f"{words.ATTRIBUTES[one['attribute']]} {words.GROUPS.get(one['group'], one['group'])}"
            counts = (number(one[key], words.ABSENT) for key in ("records", "patients"))
            rows.append([text(name), text(system.name), *counts, *figure(one["jaccard"], words.ABSENT)])
    return Table("亚组", ("亚组", "系统", "记录", "患者", "Jaccard", "95% 区间"), rows, why_empty=words.NO_RECORDS)


def gaps(systems: Sequence[System], mode: str) -> Table:
    """The widest gap between two groups."""
    rows: list[Row] = []
    for system, found in _modes(systems, mode):
        gap = found.get("gap")
        why = words.NO_GAP if found.get("subgroups") else words.NO_RECORDS
        if gap is None:
            rows.append([text(system.name), *(missing(why) for _ in range(5))])
            continue
        groups = (text(words.GROUPS.get(gap[side], gap[side])) for side in ("high", "low"))
        rows.append([text(system.name), text(words.ATTRIBUTES[gap["attribute"]]), *groups, *figure(gap["difference"], why)])
    note = "这一差距是在各组中挑选出来的，区间偏窄，仅供提示。"
    return Table("最大差距", ("系统", "分组依据", "较高", "较低", "Jaccard 之差", "95% 区间"), rows, note=note)


def calibration(systems: Sequence[System], mode: str) -> Table:
    """Overall, each frequent drug, each class, and the rest."""
    rows = [row for system, found in _modes(systems, mode) for row in _calibration_rows(system, found)]
    columns = (
        "范围",
        "系统",
        "格数",
        "阳性",
        "平均概率",
        "实际占比",
        "Brier",
        "ECE",
        "斜率",
        "截距",
        "总体截距",
        "p 为 0（或不到 0.001）或 1",
        "其中不符",
    )
    return Table("校准", columns, rows)


def bins(systems: Sequence[System], mode: str) -> Table:
    """The points of the reliability curves."""
    rows: list[Row] = []
    for system, found in _modes(systems, mode):
        table = (found.get("probabilities") or {}).get("calibration")
        for at, one in enumerate(() if table is None else table["overall"]["bins"], 1):
            low_high = {"value": one["observed"], "low": one["low"], "high": one["high"]}
            values = number(one["count"], ""), number(one["predicted"], "", SCORE), *figure(low_high, "")
            rows.append([text(f"第 {at} 箱"), text(system.name), *values])
    columns = ("箱", "系统", "格数", "平均概率", "实际占比", "95% 区间 (Wilson)")
    return Table("可靠性曲线的数值", columns, rows, why_empty=no_calibration(systems, mode))


def no_calibration(systems: Sequence[System], mode: str) -> str:
    """Why no system has a curve."""
    return "；".join(dict.fromkeys(_no_probability(found) for _, found in _modes(systems, mode)))


def confused(system: System, mode: str) -> list[Table]:
    """Pairs of drugs, and what was missed or added without a counterpart; one list of tables a system."""
    found = (system.mode(mode) or {}).get("confusion")
    if found is None:
        return [Table(f"混淆：{system.name}", (), why_empty=words.NO_CONFUSION)]
    pairs = [_pair_row(one) for one in found["pairs"]]
    columns = ("金标准（漏列）", "预测（多列）", "类", "同一通用名", "次数", "记录", "金标准含前者", "预测含后者")
    note = f"共 {found['records']} 条记录，漏列 {found['missed']}，多列 {found['extra']}；配对 {found['paired']:.2f}，"
    note += f"其中同一通用名 {found['same_generic']:.2f}。次数是计数，没有区间。"
    tables = [Table(f"哪种药被当成哪种药：{system.name}", columns, pairs, why_empty="没有同类的漏列与多列", note=note)]
    for key, name, of in (
        ("missed_alone", "漏列而无同类替代", "金标准含此药"),
        ("extra_alone", "多列而无同类漏列", "预测含此药"),
    ):
        rows: list[Row] = [
            [text(one["name"]), text(one["group"]), number(one["count"], "", ".2f"), number(one["of"], "")]
            for one in found[key]
        ]
        tables.append(Table(f"{name}：{system.name}", ("药名", "类", "次数", of), rows, why_empty="没有"))
    return tables


def paired(compared: Sequence[tuple[str, str, Json]]) -> list[Table]:
    """One table for each comparison and mode."""
    tables = []
    columns = ("指标", "本系统", "对照", "差", "差的 95% 区间", "p", "检验", "记录", "患者")
    for this, other, mode in compared:
        rows: list[Row] = []
        for one in mode["differences"]:
            means = (number(one[key], "", SCORE) for key in ("a", "b"))
            low_high = {"value": one["difference"], "low": one["low"], "high": one["high"]}
            tested = number(one["p_value"], "", SCORE), text("精确" if one["exact"] else "随机抽取的置换")
            sizes = (number(one[key], "") for key in ("records", "patients"))
            difference = figure(low_high, "", "+.4f")
            rows.append([text(words.PAIRED.get(one["name"], one["name"])), *means, *difference, *tested, *sizes])
        tables.append(Table(f"{this} 减 {other}：{words.MODES[mode['diagnoses']]}", columns, rows))
    return tables


def _pair_row(one: Json) -> Row:
    names = (text(one[key]) for key in ("gold", "predicted", "group"))
    counts = (number(one[key], "") for key in ("records", "of_gold", "of_predicted"))
    return [*names, text("是" if one["same_generic"] else "否"), number(one["count"], "", ".2f"), *counts]


def _calibration_rows(system: System, mode: Json) -> Iterator[Row]:
    table = (mode.get("probabilities") or {}).get("calibration")
    if table is None:
        yield [text("全部"), text(system.name), *(missing(_no_probability(mode)) for _ in range(11))]
        return
    drawn = (mode.get("probabilities") or {}).get("intervals") or {}
    for one in (table["overall"], *table["drugs"], *table["groups"], *([table["rest"]] if table["rest"] else [])):
        name = words.KINDS[one["kind"]] if one["kind"] in ("overall", "rest") else f"{words.KINDS[one['kind']]} {one['name']}"
        counts = (number(one[key], "") for key in ("count", "positives"))
        around = drawn.get(f"{one['kind']}/{one['name']}") or {}
        shares = (_with_interval(one[key], around.get(key), ".5f") for key in ("predicted", "observed", "brier", "ece"))
        fits = ((one["recalibration"][key], around.get(key)) for key in ("slope", "intercept", "in_the_large"))
        fit = (_with_interval(value, interval, ".3f") for value, interval in fits)
        extreme = (number(one[key], "") for key in ("extreme", "surprises"))
        yield [text(name), text(system.name), *counts, *shares, *fit, *extreme]


def _with_interval(value: float | None, interval: Sequence[float] | None, form: str) -> Cell:
    """A figure with its interval in brackets, where there is one."""
    if value is None or interval is None:
        return number(value, words.NO_FIT, form)
    return text(f"{value:{form}}（{interval[0]:{form}} 至 {interval[1]:{form}}）")


def _modes(systems: Sequence[System], mode: str) -> Iterator[tuple[System, Json]]:
    yield from ((one, found) for one in systems if (found := one.mode(mode)) is not None)


def _columns(systems: Sequence[System], golds: Sequence[tuple[str, Json | None]] = ()) -> list[str]:
    names = [one.name for one in systems] + [name for name, _ in golds]
    return ["指标", *(column for name in names for column in (name, "95% 区间"))]


def _beside(
    systems: Sequence[System],
    mode: str,
    name: str,
    get: Get,
    why: Callable[[Json], str] = lambda _: words.ABSENT,
    form: str = SCORE,
) -> Row:
    """One row: a figure of every system."""
    row = [text(name)]
    for one in systems:
        found = one.mode(mode)
        row += figure(None, words.NO_MODE) if found is None else figure(get(found), why(found), form)
    return row


def _with_gold(systems: Sequence[System], mode: str, name: str, key: str, why: str, form: str = SCORE) -> Row:
    """One row of list figures: every system's, then the gold's."""
    row = [text(name)]
    for _, side in [("", _side(one, mode, "predicted")) for one in systems] + _golds(systems, mode):
        if side is not None and side["patient"] is None and key.startswith("patient_"):
            why = words.NO_RECORDS
        row += figure(None, words.NO_MODE) if side is None else figure(side["figures"].get(key), why, form)
    return row


def _golds(systems: Sequence[System], mode: str) -> list[tuple[str, Json | None]]:
    """The gold once, or one a system where they differ."""
    sides = [(one, found["gold"]) for one, found in _modes(systems, mode)]
    if same_gold([found for _, found in _modes(systems, mode)]):
        return [("金标准", sides[0][1])]
    return [(f"金标准（{one.name}）", gold) for one, gold in sides]


def _side(system: System, mode: str, side: str) -> Json | None:
    found = system.mode(mode)
    return None if found is None else found[side]


def _count(side: Json | None, *path: str) -> Cell:
    value: Any = side
    for key in path:
        if value is None:
            return missing(words.NO_MODE if side is None else words.NO_RECORDS)
        value = value.get(key)
    return number(value, words.NO_RECORDS)


def _take(key: str) -> Get:
    return lambda mode: mode.get(key)


def _at_level(level: str, key: str) -> Get:
    return lambda mode: (mode.get("levels") or {}).get(level, {}).get(key)


def _probability(key: str) -> Get:
    return lambda mode: (mode.get("probabilities") or {}).get(key)


def _no_diagnoses(mode: Json) -> str:
    has_details = (mode.get("probabilities") or {}).get("reason") != NO_DETAILS
    return words.NO_DIAGNOSES if has_details else words.NO_DETAILS_DIAGNOSES


def _no_probability(mode: Json) -> str:
    reason = (mode.get("probabilities") or {}).get("reason")
    return words.ABSENT if reason is None else words.REASONS.get(reason, str(reason))
