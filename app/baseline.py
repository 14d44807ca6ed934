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

if TYPE_CHECKING:
    from yaofang.app.tables import Cell
    from yaofang.data.records import Record
    from yaofang.eval.baselines import Tuning


class Baseline(StrEnum):
    """The two baselines."""

    most_frequent = "most-frequent"
    tfidf = "tfidf"


Vocab = Annotated[Path | None, typer.Option(help="Drug list (.json, .txt or .tsv). Default: the bundled 651.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and list them.")]


def baseline(
    name: Annotated[Baseline, typer.Argument(help="Which one.")],
    train: Annotated[Path, typer.Option(help="Training records with 出院带药列表.")],
    records: Annotated[Path, typer.Option(help="Records to predict; their drugs are not read.")],
    out: Annotated[Path, typer.Option(help="Submission to write.")],
    vocab: Vocab = None,
    seed: Annotated[int, typer.Option(help="Seed of the split that settings are tuned on.")] = 0,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Write a baseline's submission: the k most frequent drugs, or TF-IDF + logistic regression; tuned on training patients."""
    from yaofang.app.tables import say, show
    from yaofang.data.submission import write_submission
    from yaofang.eval.baselines import most_frequent, tfidf
    from yaofang.vocab.files import check_place

    check_place(out)
    learned, board = _training(train, vocab, skip_bad), good_records(records, skip_bad)
    if name is Baseline.most_frequent:
        predictions, tuning = most_frequent(learned, board, seed=seed)
    else:
        predictions, tuning = tfidf(learned, board, seed=seed, report=say)
    write_submission(out, predictions)
    data = {"submission": str(out), "records": len(board), "seed": seed, **tuning.to_json()}
    title = f"{name.value}：{len(board)} 条记录写入 {out}"
    show(title, ("在验证患者上选定", "值"), _tuning_rows(tuning), as_json=as_json, data=data)


def _training(file: Path, vocab: Path | None, skip_bad: bool) -> list[Record]:
    """The records that a baseline can learn from; what is wrong with another is raised, or listed with `skip_bad`."""
    from yaofang.eval.baselines import usable_training
    from yaofang.vocab.drugs import load_vocabulary

    good, errors = usable_training(good_records(file, skip_bad), load_vocabulary(vocab), file)
    if errors and not (skip_bad and good):
        raise errors[0]
    for error in errors:
        say_skipped(error)
    return good


def _tuning_rows(tuning: Tuning) -> list[tuple[Cell, Cell]]:
    rule = "取前 k 个药，k" if tuning.rule.kind == "top" else "概率不低于"
    return [
        (rule, f"{tuning.rule.value:g}"),
        *((key, f"{value:g}") for key, value in tuning.settings.items()),
        ("验证患者 / 记录", f"{tuning.validation_patients} / {tuning.validation_records}"),
        ("验证 Jaccard", tuning.jaccard),
        ("验证 F1", tuning.f1),
        ("验证榜单分 (J+F1)/2", tuning.board),
    ]
