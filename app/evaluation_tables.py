"""The tables and remarks that `yaofang evaluate` shows, in Chinese, from what `evaluation_job` found.

Knows names of figures and cells; computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from yaofang.app.evaluation_job import Outcome
from yaofang.app.tables import Cell, show
from yaofang.eval.evaluate import Evaluation, ModeResult
from yaofang.eval.intervals import Figure
from yaofang.eval.lists import PATIENT_TIERS, ListFigures
from yaofang.eval.paired import PairedDifference
from yaofang.eval.probabilities import NO_DETAILS, NO_LABELS, NO_RANKING, NO_SCORE, SOME_SCORE, part_key
from yaofang.eval.reading import Answers

Row = tuple[Cell, Cell, Cell, Cell]
"""Name, prediction, its 95% interval, gold."""
SHOWN = 5
"""Names or IDs of a long list that a remark shows: the rest is in --json."""

MODES = {"given": "诊断已给出 (given)", "generated": "诊断由模型生成 (generated)", "not stated": "诊断来源未说明"}
LEVELS = {"label": "药名逐字", "generic": "通用名", "atc4": "ATC-4 类"}
STRATA = {"head": "头部（最常见 9.90%）", "middle": "中部", "tail": "尾部（最少见 10.07%）", "unseen": "训练中未出现"}
ATTRIBUTES = {"age": "年龄", "sex": "性别", "diagnoses": "诊断数", "visits": "就诊次数", "rare_diagnosis": "含罕见诊断"}
GROUPS = {"male": "男", "female": "女", "single": "单次", "multi": "多次", "yes": "是", "no": "否", "not stated": "未说明"}
UNDEFINED = {
    NO_DETAILS: "未定义（没有 --details）",
    NO_LABELS: "未定义（p_include 属于药名，此处不比较药名）",
    NO_SCORE: "未定义（details 中没有 p_include）",
    SOME_SCORE: "未定义（details 中部分药物没有 p_include）",
    NO_RANKING: "未定义（p_include 只有 0 和 1）",
}
PAIRED = {
    "jaccard": "Jaccard",
    "precision": "精确率",
    "recall": "召回率",
    "f1": "F1",
    "board": "榜单分 (J+F1)/2",
    "mean_drugs": "每条记录药数",
    "T1_share": "含 T1 药对的记录",
}


def print_tables(outcome: Outcome) -> None:
    """The main table, then strata, subgroups and the comparison where there are any."""
    result = outcome.evaluation
    level = LEVELS[result.level]
    title = f"评测（{level}比较；词表 {result.vocabulary}，冲突表 {result.conflicts}）"
    rows, columns = _rows(result, outcome.answers), ("指标", "预测", "95% 区间", "金标准")
    if outcome.other is None:
        _print(title, columns, chain.from_iterable(rows))
    else:
        other = _rows(outcome.other.evaluation, outcome.other.answers)
        _print(title, (*columns[:3], "对照", "对照 95% 区间", columns[3]), _beside(rows, other))
    for mode in result.results:
        name = MODES[mode.diagnoses]
        head = ("训练频次", "药名数", "金标准", "预测", "命中", "精确率", "召回率", "F1", "F1 的 95% 区间")
        _print(f"按药名在训练记录中的频次（汇总计算）— {name}", head, _stratum_rows(mode))
        _print(f"亚组 — {name}", ("亚组", "记录", "患者", "Jaccard", "95% 区间"), _subgroup_rows(mode))
    if outcome.other is not None:
        title = f"与 {outcome.other.file} 的配对比较（按患者置换检验，未做多重校正）"
        _print(title, ("指标", "本提交", "对照", "差", "差的 95% 区间", "p"), _paired_rows(outcome))


def _print(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    listed = list(rows)
    if listed:
        show(title, columns, listed, as_json=False, data=None)


def _rows(result: Evaluation, answers: Answers) -> list[list[Row]]:
    """One section a mode, and one of how the answers were read."""
    return [*(list(_mode_rows(mode)) for mode in result.results), list(_answer_rows(answers))]


def _beside(own: Sequence[Sequence[Row]], other: Sequence[Sequence[Row]]) -> Iterator[Sequence[Cell]]:
    """The rows of one submission with those of the same name of another, section by section."""
    for mine, theirs in zip(own, other, strict=True):
        named = {row[0]: row for row in theirs}
        for name, value, interval, gold in mine:
            _, beside, other_interval, _ = named.get(name, (name, None, None, None))
            yield (name, value, interval, beside, other_interval, gold)


def _mode_rows(mode: ModeResult) -> Iterator[Row]:
    gold, predicted = mode.gold, mode.predicted
    yield (f"— {MODES[mode.diagnoses]}：{mode.records} 条记录，{mode.patients} 名患者", None, None, None)
    yield _figure("Jaccard", mode.jaccard)
    yield _figure("F1", mode.f1)
    yield _figure("榜单分 (J+F1)/2", mode.board)
    yield _figure("精确率", mode.precision)
    yield _figure("召回率", mode.recall)
    yield from _probability_rows(mode)
    if mode.diagnosis_f1 is not None:
        yield _figure("诊断 F1（逐字）", mode.diagnosis_f1)
    if mode.diagnosis_f1_normalised is not None:
        yield _figure("诊断 F1（规范写法后）", mode.diagnosis_f1_normalised)
    yield ("每条记录药数", predicted.mean_drugs, _interval(predicted.figures["mean_drugs"]), gold.mean_drugs)
    for tier in predicted.conflicts.conflicts:
        yield _share(f"T{tier} 药对占比", f"T{tier}_rate", predicted, gold)
    yield _share("含 T1 药对的记录", "T1_share", predicted, gold)
    yield ("可比药对总数", predicted.conflicts.pairs, None, gold.conflicts.pairs)
    yield from _patient_rows(predicted, gold)
    yield _count("同一药物的多个药名", predicted.duplicates, gold.duplicates)
    yield _count("词表外药名", predicted.outside, gold.outside)
    yield _count("重复药名", predicted.repeats, gold.repeats)
    yield _count("空列表", predicted.empty, gold.empty)
    yield ("提交中缺少的记录", len(mode.missing), None, None)
    if mode.truncated is not None:
        yield ("因长度截断的列表", mode.truncated, None, None)


def _probability_rows(mode: ModeResult) -> Iterator[Row]:
    found = mode.probabilities
    if found.prauc is None:
        yield ("PRAUC", None if found.reason is None else UNDEFINED[found.reason], None, None)
        return
    yield _figure(f"PRAUC（{found.score}）", found.prauc)
    if found.brier is not None:
        yield _figure("Brier", found.brier, ".5f")
    if found.calibration is not None:
        overall = found.calibration.overall
        slope = overall.recalibration.slope
        yield ("ECE", f"{overall.ece:.5f}", None, None)
        drawn = found.intervals.get(part_key(overall))
        around = None if drawn is None else drawn.slope
        interval = None if around is None else f"{around[0]:.3f}–{around[1]:.3f}"
        yield ("校准斜率", None if slope is None else f"{slope:.3f}", interval, None)


def _patient_rows(predicted: ListFigures, gold: ListFigures) -> Iterator[Row]:
    if predicted.patient is None or gold.patient is None:
        return
    for tier, name in zip(PATIENT_TIERS.values(), ("禁忌", "慎用"), strict=True):
        yield _count(f"患者{name}的药 (T{tier})", predicted.patient.against[tier], gold.patient.against[tier])
        yield _share(f"含患者{name}药的记录", f"patient_T{tier}_share", predicted, gold)


def _answer_rows(answers: Answers) -> Iterator[Row]:
    yield ("— 读入的答案", None, None, None)
    yield ("形式", answers.shape, None, None)
    yield ("无法解析的答案", answers.unparsed, None, None)
    yield ("未匹配到词表的药名", answers.unmatched, None, None)


def _figure(name: str, figure: Figure, form: str = ".4f") -> Row:
    return (name, f"{figure.value:{form}}", _interval(figure, form), None)


def _share(name: str, key: str, predicted: ListFigures, gold: ListFigures) -> Row:
    own, theirs = predicted.figures[key], gold.figures[key]
    shown, other = (None if one is None else f"{one.value:.2%}" for one in (own, theirs))
    return (name, shown, _interval(own, ".2%"), other)


def _count(name: str, predicted: int, gold: int) -> Row:
    return (name, predicted, None, gold)


def _interval(figure: Figure | None, form: str = ".4f") -> str | None:
    if figure is None or figure.low is None or figure.high is None:
        return None
    return f"{figure.low:{form}}–{figure.high:{form}}"


def _stratum_rows(mode: ModeResult) -> Iterator[Sequence[Cell]]:
    for one in mode.strata:
        shown = (None if figure is None else f"{figure.value:.4f}" for figure in (one.precision, one.recall, one.f1))
        yield (STRATA[one.name], one.labels, one.gold, one.predicted, one.hits, *shown, _interval(one.f1))


def _subgroup_rows(mode: ModeResult) -> Iterator[Sequence[Cell]]:
    for one in mode.subgroups:
        name = f"{ATTRIBUTES[one.attribute]} {GROUPS.get(one.group, one.group)}"
        yield (name, one.records, one.patients, f"{one.jaccard.value:.4f}", _interval(one.jaccard))
    if mode.gap is not None:
        gap = mode.gap
        name = f"最大差距：{ATTRIBUTES[gap.attribute]} {GROUPS.get(gap.high, gap.high)} 与 {GROUPS.get(gap.low, gap.low)}"
        yield (name, None, None, f"{gap.difference.value:.4f}", _interval(gap.difference))


def _paired_rows(outcome: Outcome) -> Iterator[Sequence[Cell]]:
    for mode in outcome.other.paired if outcome.other is not None else ():
        yield (f"— {MODES[mode.diagnoses]}", None, None, None, None, None)
        for one in mode.differences:
            yield _paired_row(one)


def _paired_row(one: PairedDifference) -> Sequence[Cell]:
    interval = _interval(Figure(one.difference, one.low, one.high), "+.4f")
    return (PAIRED[one.name], f"{one.a:.4f}", f"{one.b:.4f}", f"{one.difference:+.4f}", interval, f"{one.p_value:.4f}")


def remarks(outcome: Outcome) -> Iterator[str]:
    """What a reader of the tables must know, for stderr."""
    result = outcome.evaluation
    if len(result.results) > 1:
        yield "诊断来源不同的记录分开计分，不合并。"
    if outcome.answers.other_names:
        done = "已按名称匹配到词表" if outcome.answers.links else "可匹配到词表，但竞赛按原样计分，未匹配（用 --link 匹配）"
        yield f"提交中有 {outcome.answers.other_names} 个药名不是词表中的写法，{done}。"
    if outcome.learned is not None and outcome.learned.shared:
        yield f"训练记录与金标准有 {len(outcome.learned.shared)} 个相同的患者序号：若是同一批患者，结果偏高。"
    if outcome.other is not None and not outcome.other.stated:
        yield "对照提交没有 --compare-details，其诊断来源未说明。"
    if result.unknown_ids:
        yield f"提交中有 {len(result.unknown_ids)} 个就诊标识不在金标准中，未计分：{_some(result.unknown_ids)}"
    for mode in result.results:
        if mode.missing:
            yield f"提交缺少 {len(mode.missing)} 条记录，各计 0 分：{_some(mode.missing)}"
        for side, names in (("金标准", mode.gold.outside_names), ("预测", mode.predicted.outside_names)):
            if names:
                yield f"{side}中有 {len(names)} 个药名不在词表中：{_some(names)}"


def _some(names: tuple[str, ...]) -> str:
    return "、".join(names[:SHOWN]) + (" ……" if len(names) > SHOWN else "")
