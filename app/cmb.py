"""`yaofang evaluate cmb`: the CMB-Exam benchmark on the user's own copy of its files.

    yaofang evaluate cmb --questions CMB-test-choice-question-merge.json --answers CMB-test-choice-answer.json --model DIR
    yaofang evaluate cmb --questions FILE --predictions answers.jsonl --out result.json

Knows options, files and tables; the work is in `yaofang.eval.cmb.exam` and its neighbours.
"""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yaofang.app.tables import Cell
    from yaofang.eval.cmb.exam import Question, Result, Share

Row = tuple["Cell", "Cell", "Cell", "Cell", "Cell", "Cell"]
COLUMNS = ("分组", "题数", "答对", "准确率", "95% 区间", "随机猜测")
SHOWN = 5
"""IDs of a long list that a remark shows: the rest is in --json."""


def cmb(
    questions: Annotated[list[Path], typer.Option(help="Questions, a JSON array or one a line; give it again for more files.")],
    answers: Annotated[
        Path | None, typer.Option(help='Their answers, [{"id", "answer"}]. Default: those in the questions.')
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model folder. Default: the bundled one, which guesses.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help='Free answers of another system, {"id", "output"} a line, in place of a model.')
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Examples before each question, out of --examples.")] = 0,
    examples: Annotated[Path | None, typer.Option(help="Questions with answers to take examples from: CMB-val.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions asked at once.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the result, with provenance, to this JSON file.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad questions out and list them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score CMB-Exam by class and type: a model's choices among the options, or another system's free answers."""
    from yaofang.app.input_files import say_skipped
    from yaofang.app.tables import say, show
    from yaofang.data.provenance import provenance, write_result
    from yaofang.eval.cmb.exam import read_answers, read_questions, score
    from yaofang.vocab.files import check_place

    check_place(out)
    _check(model, predictions, shots, examples)
    skip = say_skipped if skip_bad else None
    asked = read_questions(questions, None if answers is None else read_answers(answers), skip)
    shown = [] if examples is None else read_questions([examples], skip=skip)
    if predictions is not None:
        chosen, system = _read(asked, predictions)
    else:
        chosen, system = _ask(asked, model, shown, shots, batch_size, device, dtype)
    result = score(asked, chosen)
    given = {"answers": answers, "model": model, "predictions": predictions, "shots": shots or None, "examples": examples}
    command = _command(questions, **given, skip_bad=skip_bad or None)
    data = {
        "system": system,
        "sha256": _hashes(questions, answers=answers, predictions=predictions, examples=examples),
        **result.to_json(),
        "chosen": _letters(chosen),
    }
    if out is not None:
        write_result(out, command, data)
    with_provenance = {"provenance": provenance(command), **data} if as_json else None
    show(f"CMB-Exam：{system['name']}", COLUMNS, _rows(result), as_json=as_json, data=with_provenance)
    for remark in _remarks(result, system):
        say(remark)


def _check(model: Path | None, predictions: Path | None, shots: int, examples: Path | None) -> None:
    """Raise InputError for options that contradict each other."""
    from yaofang.vocab.errors import InputError

    if predictions is not None and (model is not None or shots):
        raise InputError("--predictions are answered already", way_out="Leave out --model and --shots, or --predictions.")
    if (shots > 0) != (examples is not None):
        raise InputError("--shots and --examples go together", way_out="Give both, or neither.")


def _hashes(questions: list[Path], **others: Path | None) -> dict[str, list[str]]:
    """Option -> first 12 hex digits of the SHA-256 of each of its files, by which a result names its data."""
    given = {"questions": questions, **{name: [file] for name, file in others.items() if file is not None}}
    return {name: [hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files] for name, files in given.items()}


def _read(questions: list[Question], file: Path) -> tuple[dict[str, frozenset[str] | None], dict[str, Any]]:
    """The letters in another system's answers."""
    from yaofang.eval.cmb.answers import letters_in, read_free_answers

    texts = read_free_answers(file)
    known = {question.id for question in questions}
    system = {"name": file.name, "decoding": "free answers", "unknown_ids": [id_ for id_ in texts if id_ not in known]}
    return {q.id: letters_in(texts[q.id], q) for q in questions if q.id in texts}, system


def _ask(
    questions: list[Question],
    model: Path | None,
    examples: list[Question],
    shots: int,
    batch_size: int,
    device: str,
    dtype: str,
) -> tuple[dict[str, frozenset[str] | None], dict[str, Any]]:
    """A model's choices."""
    from yaofang.app.progress import progress
    from yaofang.eval.cmb.model import Examinee
    from yaofang.glm.loading import load_model

    loaded = load_model(model, device=device, dtype=dtype)
    examinee = Examinee(loaded, examples, shots)
    with progress("cmb", len(questions)) as advance:
        choices = list(examinee.answers(questions, batch_size, advance))
    system = {
        "name": loaded.name,
        "version": loaded.version,
        "decoding": "constrained to the options",
        "shots": shots,
        "fewer_shots": [choice.id for choice in choices if choice.shots < shots],
        "bundled": model is None,
    }
    return {choice.id: choice.letters for choice in choices}, system


def _letters(chosen: dict[str, frozenset[str] | None]) -> dict[str, str | None]:
    return {id_: None if letters is None else "".join(sorted(letters)) for id_, letters in chosen.items()}


def _rows(result: Result) -> list[Row]:
    return [
        _row("全部（微平均）", result.micro),
        ("考试类别宏平均", None, None, f"{result.macro_class:.4f}", None, None),
        ("考试大类宏平均", None, None, f"{result.macro_type:.4f}", None, None),
        *(_row(share.question_type or "", share) for share in result.kinds),
        *((f"{name}（其类别的平均）", None, None, f"{value:.4f}", None, None) for name, value in result.types),
        *(_row(f"{share.exam_type} / {share.exam_class}", share) for share in result.classes),
        ("未能解析的答案", None, len(result.unparsed), None, None, None),
        ("没有答案的题", None, len(result.missing), None, None, None),
    ]


def _row(name: str, share: Share) -> Row:
    interval = f"{share.low:.4f}–{share.high:.4f}"
    return (name, share.questions, share.right, f"{share.accuracy:.4f}", interval, f"{share.chance:.4f}")


def _remarks(result: Result, system: dict[str, Any]) -> list[str]:
    """What a reader of the table must know, for stderr."""
    remarks = []
    if system.get("bundled"):
        remarks.append("随包的小模型只学过模拟病历，没有学过医学考试：它的答案只是随机猜测水平。请用 --model 指定 GLM-4 模型。")
    lists = {
        "个答案中找不到选项字母，计为错误": result.unparsed,
        "道题没有答案，计为错误": result.missing,
        "个答案的 id 不在题目中，未计分": system.get("unknown_ids", ()),
        "道题的示例放不下，少于 --shots": system.get("fewer_shots", ()),
    }
    remarks += [f"有 {len(ids)} {text}：{_some(ids)}" for text, ids in lists.items() if ids]
    return remarks


def _some(names: tuple[str, ...] | list[str]) -> str:
    return "、".join(names[:SHOWN]) + (" ……" if len(names) > SHOWN else "")


def _command(questions: list[Path], **options: object) -> str:
    """The command line that repeats this run."""
    words = ["yaofang", "evaluate", "cmb"]
    for file in questions:
        words += ["--questions", str(file)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)
