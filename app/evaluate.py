"""`yaofang evaluate`: score a submission.

    yaofang evaluate --records gold.jsonl --predictions sub.json
    yaofang evaluate --gold gold.json --predictions sub.json --level generic

Knows options, files and tables; the work is in `yaofang.eval`.
"""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yaofang.app.input_files import good_records, say_skipped

if TYPE_CHECKING:
    from yaofang.app.tables import Cell
    from yaofang.eval.evaluate import Evaluation, Figure, ListFigures, ModeResult

Row = tuple["Cell", "Cell", "Cell", "Cell"]
SHOWN = 5
"""Names or IDs of a long list that a remark shows: the rest is in --json."""

MODES = {"given": "诊断已给出 (given)", "generated": "诊断由模型生成 (generated)", "not stated": "诊断来源未说明"}


class Level(StrEnum):
    """What is compared."""

    label = "label"
    generic = "generic"


Vocab = Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")]


def evaluate(
    predictions: Annotated[Path, typer.Option(help='Submission: [{"ID": ..., "prediction": [...]}, ...].')],
    records: Annotated[Path | None, typer.Option(help="Gold records with 出院带药列表.")] = None,
    gold: Annotated[
        Path | None, typer.Option(help="Gold of another shape, {ID: [names]}, in place of the records' drugs.")
    ] = None,
    level: Annotated[Level, typer.Option(help="Compare labels, or generic names on both sides.")] = Level.label,
    vocab: Vocab = None,
    details: Annotated[
        Path | None, typer.Option(help="What predict wrote with --details: says if diagnoses were given or generated.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of patients.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the result, with provenance, to this JSON file.")] = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Score a submission: Jaccard, F1, board score with 95% intervals, number of drugs, conflicts beside the gold's."""
    from yaofang.app.tables import say, show
    from yaofang.data.provenance import provenance, write_result
    from yaofang.data.submission import read_submission
    from yaofang.eval.evaluate import evaluate as score
    from yaofang.eval.reading import gold_of, read_details, read_gold
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary
    from yaofang.vocab.errors import InputError
    from yaofang.vocab.files import check_place

    check_place(out)
    if records is None and gold is None:
        raise InputError("there is no gold", way_out="Give --records FILE, or --gold FILE.json, or both.")
    vocabulary = load_vocabulary(vocab)
    skip = say_skipped if skip_bad else None
    gold_lists = None if gold is None else read_gold(gold, skip)
    read = [] if records is None else good_records(records, skip_bad)
    result = score(
        gold_of(read, gold_lists, skip) if records is not None else gold_lists or {},
        read_submission(predictions),
        vocabulary,
        load_conflicts(vocabulary),
        level=level.value,
        patients=None if records is None else {record.id: record.patient for record in read},
        gold_diagnoses={record.id: record.diagnoses for record in read},
        details=None if details is None else read_details(details, skip),
        resamples=resamples,
        seed=seed,
    )
    options = {"records": records, "gold": gold, "predictions": predictions, "level": level, "vocab": vocab}
    command = _command("evaluate", **options, details=details, seed=seed, skip_bad=skip_bad)
    if out is not None:
        write_result(out, command, result.to_json())
    data = {"provenance": provenance(command), **result.to_json()} if as_json else None
    show(_title(result), ("指标", "预测", "95% 区间", "金标准"), _rows(result), as_json=as_json, data=data)
    for remark in _remarks(result):
        say(remark)


def _title(result: Evaluation) -> str:
    level = "药名逐字" if result.level == "label" else "通用名"
    return f"评测（{level}比较；词表 {result.vocabulary}，冲突表 {result.conflicts}）"


def _rows(result: Evaluation) -> list[Row]:
    return [row for mode in result.results for row in _mode_rows(mode)]


def _mode_rows(mode: ModeResult) -> list[Row]:
    gold, predicted = mode.gold, mode.predicted
    return [
        (f"— {MODES[mode.diagnoses]}：{mode.records} 条记录，{mode.patients} 名患者", None, None, None),
        _figure("Jaccard", mode.jaccard),
        _figure("F1", mode.f1),
        _figure("榜单分 (J+F1)/2", mode.board),
        _figure("精确率", mode.precision),
        _figure("召回率", mode.recall),
        *([_figure("诊断 F1（逐字）", mode.diagnosis_f1)] if mode.diagnosis_f1 else []),
        ("每条记录药数", predicted.mean_drugs, None, gold.mean_drugs),
        *(_tier_row(tier, predicted, gold) for tier in predicted.conflicts.conflicts),
        ("含 T1 药对的记录", f"{predicted.conflicts.share(1):.2%}", None, f"{gold.conflicts.share(1):.2%}"),
        ("可比药对总数", predicted.conflicts.pairs, None, gold.conflicts.pairs),
        ("词表外药名", predicted.outside, None, gold.outside),
        ("重复药名", predicted.repeats, None, gold.repeats),
        ("空列表", predicted.empty, None, gold.empty),
        ("提交中缺少的记录", len(mode.missing), None, None),
        *([("因长度截断的列表", mode.truncated, None, None)] if mode.truncated is not None else []),
    ]


def _figure(name: str, figure: Figure) -> Row:
    interval = None if figure.low is None or figure.high is None else f"{figure.low:.4f}–{figure.high:.4f}"
    return (name, f"{figure.value:.4f}", interval, None)


def _tier_row(tier: int, predicted: ListFigures, gold: ListFigures) -> Row:
    return (f"T{tier} 药对占比", f"{predicted.conflicts.rate(tier):.2%}", None, f"{gold.conflicts.rate(tier):.2%}")


def _remarks(result: Evaluation) -> list[str]:
    """What a reader of the table must know, for stderr."""
    remarks = []
    if len(result.results) > 1:
        remarks.append("诊断来源不同的记录分开计分，不合并。")
    if result.unknown_ids:
        remarks.append(f"提交中有 {len(result.unknown_ids)} 个就诊标识不在金标准中，未计分：{_some(result.unknown_ids)}")
    for mode in result.results:
        if mode.missing:
            remarks.append(f"提交缺少 {len(mode.missing)} 条记录，各计 0 分：{_some(mode.missing)}")
        for side, names in (("金标准", mode.gold.outside_names), ("预测", mode.predicted.outside_names)):
            if names:
                remarks.append(f"{side}中有 {len(names)} 个药名不在词表中：{_some(names)}")
    return remarks


def _some(names: tuple[str, ...]) -> str:
    return "、".join(names[:SHOWN]) + (" ……" if len(names) > SHOWN else "")


def _command(verb: str, **options: object) -> str:
    """The command line that repeats this run; a flag that is off is left out."""
    words = ["yaofang", verb]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)
