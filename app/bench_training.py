"""The verb `bench training`: which options of training help, and how fast training is.

yaofang bench training --resume --seeds 3 --jobs 2
yaofang bench training --speed
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from yaofang.app.tables import Cell as Shown
from yaofang.app.tables import print_json, say, show

NOT_RUN = "not run"
RESULTS = Path("docs/results")
COLUMNS = ("jaccard", "f1", "f1_head", "f1_middle", "f1_tail", "recall_unseen")
HEADS = ("Jaccard", "F1", "F1 head", "F1 middle", "F1 tail", "recall unseen")
MORE = ("T1", "masked", "seconds", "tokens/s", "loss")


def training(
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the result file: finished runs are kept.")] = False,
    cells: Annotated[str, typer.Option("--cells", help="Names of cells, with commas; base is always one. Default: all.")] = "",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each cell.")] = 3,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at once, on a thread each.")] = 1,
    work: Annotated[Path, typer.Option("--work", help="Folder for records and logs.")] = Path("runs/ablation"),
    out: Annotated[
        Path | None, typer.Option("--out", help="Result file. Default: docs/results/ablation.json, or as --speed says.")
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Measure tokens a second and memory instead: docs/results/training_speed.json.")
    ] = False,
    device: Annotated[
        str,
        typer.Option("--device", help="With --speed: cpu, or cuda for GLM-4-9B: docs/results/training_accelerator.json."),
    ] = "cpu",
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as docs/ablation.md holds it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Compare options of training cell by cell and seed by seed on the simulated ward, or measure training's speed."""
    from yaofang.vocab.files import check_place

    file = out or RESULTS / _file(speed, device)
    check_place(file)
    command = "yaofang " + " ".join(sys.argv[1:])
    if speed:
        _speed(file, command, device, as_json)
        return
    from yaofang.sft.ablation.bench import Plan, cells_of

    names = [name for name in cells.split(",") if name]
    plan = Plan(file, work, command, cells=cells_of(names), seeds=seeds, jobs=jobs)
    with _ended_by_sigterm():
        result = _ablation(plan, resume)
    _print(result, as_markdown, as_json)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM an exception, so that the processes of the runs end with this one."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _file(speed: bool, device: str) -> str:
    if not speed:
        return "ablation.json"
    return "training_speed.json" if device == "cpu" else "training_accelerator.json"


def _ablation(plan: Any, resume: bool) -> dict[str, Any]:
    from yaofang.sft.ablation.bench import bench, make_board
    from yaofang.sft.recipe import wards
    from yaofang.vocab.conflicts import load_conflicts
    from yaofang.vocab.drugs import load_vocabulary

    vocabulary = load_vocabulary()
    ((patients, seed),) = wards((plan.recipe,))
    conflicts = load_conflicts(vocabulary)
    return bench(plan, lambda: make_board(patients, seed), vocabulary, conflicts, resume=resume, report=say)


def _print(result: Mapping[str, Any], as_markdown: bool, as_json: bool) -> None:
    if as_json:
        print_json({key: value for key, value in result.items() if key != "runs"})
    elif as_markdown:
        sys.stdout.write("\n".join(markdown(result)) + "\n")
    else:
        board = result["board"]
        title = f"{board['test_records']} records of {board['test_patients']} unseen patients"
        notes = (
            "Second line of a cell: what it has more than base, with the 95% interval over seeds and patients.",
            "T1: pairs in 100 lists that were written without masking conflicts. Masked: probability that the mask took away.",
        )
        show(
            title, ("cell", "单元", "diagnoses", "seeds", *HEADS, *MORE), rows(result), as_json=False, data=result, notes=notes
        )


def rows(result: Mapping[str, Any]) -> Iterable[list[Shown]]:
    """Two lines for each cell and mode of the table: figures, and differences to base with their intervals."""
    for name, cell in result["cells"].items():
        found = result["table"].get(name)
        if found is None:
            yield [name, cell["chinese"], NOT_RUN, *[None] * (len(COLUMNS) + len(MORE) + 1)]
            continue
        for mode in (mode for mode in ("given", "generated") if mode in found):
            unsafe, spent = found["unsafe"]["t1_pairs"], found["training"]
            last = [found["masked_mass"], spent["seconds"], spent["tokens_a_second"], spent["loss"]]
            own = [found[mode][key]["mean"] for key in COLUMNS]
            yield [name, cell["chinese"], mode, found["seeds"], *own, 100 * unsafe["mean"], *last]
            if "difference" in found[mode]["jaccard"]:
                less = [_less(found[mode][key]) for key in COLUMNS]
                yield ["", "", "", "", *less, _less(unsafe, 100), *[None] * 4]


def _less(value: Mapping[str, Any], times: int = 1) -> str:
    if value.get("difference") is None:
        return "-"
    shown = f"{times * value['difference']:+.3f}"
    return shown if value["low"] is None else f"{shown} ({times * value['low']:+.3f} to {times * value['high']:+.3f})"


def markdown(result: Mapping[str, Any], file: str = "ablation.json") -> list[str]:
    """The table's lines for a document, every figure with the mark that holds it to the result file
    (tests/test_documents.py)."""
    lines = [
        f"| cell | diagnoses | {' | '.join(HEADS)} | Jaccard less base's (95%) | T1 pairs a record, unmasked | training, s |",
        "|---" * (len(HEADS) + 5) + "|",
    ]
    for name in result["cells"]:
        found = result["table"].get(name)
        if found is None:
            lines.append(f"| `{name}` | {NOT_RUN} |" + "  |" * (len(HEADS) + 3))
            continue
        for mode in (mode for mode in ("given", "generated") if mode in found):
            at = f"table.{name}.{mode}"
            cells = [mark(result, file, f"{at}.{key}.mean") for key in COLUMNS]
            cells += [_marked_less(result, file, f"{at}.jaccard"), mark(result, file, f"table.{name}.unsafe.t1_pairs.mean")]
            cells.append(mark(result, file, f"table.{name}.training.seconds", 0))
            lines.append(f"| `{name}` | {mode} | {' | '.join(cells)} |")
    return lines


def _marked_less(result: Mapping[str, Any], file: str, key: str) -> str:
    value = value_at(result, key)
    if value.get("difference") is None:
        return ""
    shown = mark(result, file, f"{key}.difference")
    low, high = (mark(result, file, f"{key}.{side}") for side in ("low", "high"))
    return shown if value["low"] is None else f"{shown} ({low} to {high})"


def mark(result: Mapping[str, Any], file: str, key: str, decimals: int = 3) -> str:
    """A figure between its marks; nothing where there is none."""
    value = value_at(result, key)
    return "" if value is None else f"<!-- result: {file} {key} -->{value:.{decimals}f}<!-- -->"


def value_at(result: Mapping[str, Any], key: str) -> Any:
    """What stands at a key with dots."""
    value: Any = result
    for name in key.split("."):
        value = value[name]
    return value


def _speed(file: Path, command: str, device: str, as_json: bool) -> None:
    from yaofang.data.provenance import write_result
    from yaofang.sft.speed import accelerator, benchmark

    result = benchmark.speed(report=say) if device == "cpu" else accelerator.measure(device, report=say)
    write_result(file, command, result)
    keys = result["columns"]
    lines = [[name, *(["not measured"] if row is None else [row[key] for key in keys])] for name, row in result["rows"].items()]
    whole = [[*line, *[None] * (len(keys) + 1 - len(line))] for line in lines]
    show(result["title"], ("what", *keys), whole, as_json=as_json, data=result, notes=result["notes"])
