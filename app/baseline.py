"""`yaofang baseline`: write the submission of a baseline, to score beside another.

    yaofang baseline tfidf --train train.jsonl --records board.jsonl --out sub.json

Knows options, files and tables; the work is in `yaofang.eval.baselines`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yaofang.app.input_files import good_records, say_skipped
from yaofang.eval.baselines.definitions import DEFINITIONS

if TYPE_CHECKING:
    from yaofang.app.tables import Cell
    from yaofang.data.records import Record
    from yaofang.eval.baselines.choice import Tuning


class Baseline(StrEnum):
    """The baselines of `DEFINITIONS`."""

    most_frequent = "most-frequent"
    last_visit = "last-visit"
    neighbours = "neighbours"
    tfidf = "tfidf"
    trees = "trees"


Vocab = Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")]


def baseline(
    name: Annotated[Baseline, typer.Argument(help="Which one.")],
    train: Annotated[Path, typer.Option(help="Training records with 出院带药列表.")],
    records: Annotated[Path, typer.Option(help="Records to predict; their drugs are not read.")],
    out: Annotated[Path, typer.Option(help="Submission to write.")],
    known: Annotated[
        Path | None, typer.Option(help="last-visit: further records whose 出院带药列表 may be read (earlier visits).")
    ] = None,
    vocab: Vocab = None,
    seed: Annotated[int, typer.Option(help="Seed of the split that settings are tuned on.")] = 0,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Write the submission of a baseline, to score beside another; its settings are tuned on training patients."""
    from yaofang.app.tables import say, show
    from yaofang.data.submission import write_submission
    from yaofang.eval.baselines.choice import run_baseline
    from yaofang.vocab.files import check_place

    check_place(out)
    learned = _usable(good_records(train, skip_bad), train, vocab, skip_bad)
    board = good_records(records, skip_bad)
    earlier = [] if known is None else _usable([r for r in good_records(known, skip_bad) if r.drugs], known, vocab, skip_bad)
    predictions, tuning = run_baseline(name.value, learned, board, seed=seed, known=earlier, report=say)
    write_submission(out, predictions)
    definition = DEFINITIONS[name.value]
    data = {"submission": str(out), "records": len(board), "seed": seed, "definition": definition, **tuning.to_json()}
    title = f"{name.value}：{len(board)} 条记录写入 {out}"
    rows = _tuning_rows(tuning)
    show(title, ("在验证患者上选定", "值"), rows, as_json=as_json, data=data, notes=(f"方法：{definition}",))


baseline.__doc__ = "\n\n".join((baseline.__doc__ or "", *(f"{name}: {sentence}" for name, sentence in DEFINITIONS.items())))


def _usable(records: list[Record], file: Path, vocab: Path | None, skip_bad: bool) -> list[Record]:
    """The records whose drugs can be learned from; what is wrong with another is raised, or listed with `skip_bad`."""
    from yaofang.eval.baselines.choice import usable_training
    from yaofang.vocab.drugs import load_vocabulary

    good, errors = usable_training(records, load_vocabulary(vocab), file)
    if errors and not (skip_bad and good):
        raise errors[0]
    for error in errors:
        say_skipped(error)
    return good


SOURCES = {
    "previous visit": "来自上次就诊的出院带药",
    "named in the record": "来自现病史、既往史所述用药",
    "most frequent": "来自最常用药",
}
"""What people read for the keys of `Tuning.sources`."""


def _tuning_rows(tuning: Tuning) -> list[tuple[Cell, Cell]]:
    rule = "取前 k 个药，k" if tuning.rule.kind == "top" else "分值不低于"
    return [
        (rule, f"{tuning.rule.value:g}"),
        *((_SETTINGS.get(key, key), f"{value:g}") for key, value in tuning.settings.items()),
        ("验证患者 / 记录", f"{tuning.validation_patients} / {tuning.validation_records}"),
        ("验证 Jaccard", tuning.jaccard),
        ("验证 F1", tuning.f1),
        ("验证榜单分 (J+F1)/2", tuning.board),
        *((f"{SOURCES[source]}（记录数）", count) for source, count in tuning.sources.items()),
    ]


_SETTINGS = {"k": "近邻数 k", "trees": "树的棵数"}
