"""Which options of training help: one recipe in cells that each change one thing, trained seed by seed and held against `base`.

    yaofang bench training --resume --seeds 3 --jobs 2 --out docs/results/ablation.json

Every cell and seed is one run in a process and on a thread of its own (`sft/ablation/run.py`). A finished run stands in the
result file at once, so that a killed bench repeats none. All cells train on the same records and are measured on the same
records of patients that none of them saw. Figures and intervals are `sft/ablation/table.py`'s.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import Any

from yaofang.data.answer import drug_frequency
from yaofang.data.provenance import write_result
from yaofang.data.records import Record, write_records
from yaofang.data.ward.simulate import simulate
from yaofang.eval.strata import strata_of
from yaofang.sft.ablation.table import table
from yaofang.sft.recipe import dump_recipe, load_recipe
from yaofang.sft.run_folder import data_hash
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of

RECIPE = "ablation"
BASE = "base"
BOARD = (1200, 29)
"""Training patients and seed of the ward whose test board is measured; neither the recipe's ward nor those of the other
benchmarks."""
HELD_OUT = 16
"""Of the middle labels, ranked by frequency, one in so many is held out of training and one in so many left in a single
record."""
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
Report = Callable[[str], None]
Run = tuple[str, int]
"""Name of the cell, and seed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The recipe with some fields changed."""

    name: str
    chinese: str
    changes: str
    """What it changes, in words."""
    overrides: tuple[str, ...] = ()
    """As of `--set`."""
    modes: tuple[str, ...] = ("given", "generated")
    """How the diagnoses of the measured records come about: the first is what the cell is compared in."""


CELLS = (
    Cell(BASE, "基准", "nothing: canonical order, every record alike, causal attention, Muon, two layers"),
    Cell("repeat", "重复因子采样", "records of rare drugs are seen more often, at most 3 times", ("tail.repeat_below=0.01",)),
    Cell("balance", "分布平衡权重", "distribution-balanced weight where a drug's name is decided", ("tail.balance=1",)),
    Cell("shuffled", "乱序药物", "another order of the drugs each time that a record is seen", ("data.drug_order=shuffled",)),
    Cell("as_written", "原始顺序", "drugs in the order in which the doctor wrote them", ("data.drug_order=as_written",)),
    Cell("conflict_penalty", "冲突惩罚", "the loss counts the probability of conflicting drugs", ("tail.conflict_penalty=1",)),
    Cell("diagnosis_03", "诊断权重0.3", "the diagnoses' tokens weigh 0.3", ("training.diagnosis_weight=0.3",)),
    Cell("drugs_only", "仅药物", "no diagnoses in the answer", ("data.answer=drugs_only",), ("generated",)),
    Cell("prefix_lm", "前缀语言模型", "the record's tokens see each other in both directions", ("model.prefix_lm=true",)),
    Cell(
        "adamw",
        "AdamW",
        "AdamW at 2e-3 instead of Muon at 4e-3",
        ("training.optimizer=adamw", "training.learning_rate=2.0e-3"),
    ),
    Cell(
        "layers_4",
        "四层",
        "four layers, and as many steps as fit into the same time",
        ("model.fresh.layers=4", "training.max_steps=550"),
    ),
    Cell(
        "packing",
        "打包",
        "several records in a row, as many tokens a step",
        # The record's turn keeps its budget: it is what the answer's room leaves of the length.
        ("data.packing=true", "data.max_length=740", "data.answer_tokens=609", "training.batch_size=2"),
    ),
)


@dataclass(frozen=True, slots=True)
class Board:
    """What all cells have in common: records to train on and to be measured on, and what the former make of the labels."""

    train: Sequence[Record]
    test: Sequence[Record]
    unseen: tuple[str, ...]
    """Labels held out of training, beside those that only the ward's test board has."""
    once: tuple[str, ...]
    """Labels left in one training record."""

    def strata(self) -> dict[str, str]:
        """Label -> stratum by its training records; a label that is not in it is unseen."""
        return strata_of(drug_frequency(self.train))


def make_board(patients: int, seed: int, test: tuple[int, int] = BOARD) -> Board:
    """The training records of a ward without what is held out, and another ward's test board."""
    train, unseen, once = hold_out(simulate(patients, seed).train)
    return Board(train, simulate(*test).test, unseen, once)


def hold_out(records: Sequence[Record], every: int = HELD_OUT) -> tuple[list[Record], tuple[str, ...], tuple[str, ...]]:
    """Records without any drug of a set of labels, and with one record each for the drugs of another; and the two sets.

    The ward places the labels that chance would leave out at a patient's last visit, where no record before speaks of them:
    nobody can name them but by chance. Most labels that are rare or new in a hospital do stand in the record, among what was
    taken at home. So of the labels that are neither frequent nor rare, every 16th is held out and every 16th is made rare;
    the test board keeps them all.
    """
    counts = drug_frequency(records)
    strata = strata_of(counts)
    middle = sorted((label for label in counts if strata[label] == "middle"), key=lambda label: (-counts[label], label))
    unseen, once = middle[every // 4 :: every], middle[every // 4 + every // 2 :: every]
    kept, there = [], set[str]()
    for record in records:
        thin = {label for label in record.drugs if label in once}
        if there & thin or any(label in unseen for label in record.drugs):
            continue
        there |= thin
        kept.append(record)
    lost = [label for label in once if label not in there]  # its records all hold another of these labels
    return kept, (*unseen, *lost), tuple(label for label in once if label in there)


def cells_of(names: Sequence[str] = ()) -> tuple[Cell, ...]:
    """The cells of these names, `base` always first; all without names. Raises InputError for an unknown name."""
    known = {cell.name: cell for cell in CELLS}
    for name in names:
        if name not in known:
            raise InputError(f"there is no cell {name}", field="--cells", way_out=f"Take some of: {', '.join(known)}.")
    return tuple(cell for cell in CELLS if not names or cell.name in {BASE, *names})


@dataclass(frozen=True, slots=True)
class Plan:
    """What a bench is: which runs, from which recipe, and where they are kept."""

    out: Path
    """Result file, which is the journal too."""
    work: Path
    """Folder for the records and the logs; each run's own folder in it goes when the run is done."""
    command: str
    recipe: str = RECIPE
    cells: tuple[Cell, ...] = CELLS
    seeds: int = 3
    jobs: int = 1


def bench(
    plan: Plan,
    board: Callable[[], Board],
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    *,
    resume: bool = False,
    report: Report = lambda _: None,
    launch: Callable[[Plan, Cell, int, Path], list[str]] | None = None,
) -> dict[str, Any]:
    """Do the runs that are not in the result file yet, and return the file's content. `board` is called if there are any,
    or if the file is out of date.

    `launch` makes the command of a run that leaves its result in the given file (default: `sft/ablation/run.py`). Raises
    InputError if the file holds runs and is not to be gone on with, or if its runs came from other records or another recipe.
    """
    result = _read(plan.out, resume)
    wanted = {(cell.name, seed): cell for cell in plan.cells for seed in range(plan.seeds)}
    known = _usable(result.get("runs", []), report)
    todo = [run for run in wanted if run not in known]
    report(f"{len(wanted) - len(todo)} runs are done, {len(todo)} to do")
    if not todo and len(known) == len(result["runs"]) and not _changed(result, _common(plan, vocabulary, conflicts)):
        return result
    made = board()
    state = _State(plan, made, vocabulary, conflicts, known)
    state.check(result)
    _write_records(plan.work, made)
    failed: list[str] = []

    def done(run: Run, code: int) -> None:
        file, log = state.place(run, "json"), state.place(run, "log")
        if code or not file.exists():
            failed.append(f"{run[0]}, seed {run[1]}: see {log}")
            report(f"{run[0]}, seed {run[1]}: failed, see {log}")
            return
        known[run] = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        state.write()
        report(_line(known[run]))

    def start(run: Run) -> Popen[bytes]:
        command = (launch or _command)(plan, wanted[run], run[1], state.place(run, "json"))
        with state.place(run, "log").open("wb") as log:
            return Popen(command, stdin=DEVNULL, stdout=log, stderr=STDOUT, env={**os.environ, **ONE_THREAD})

    side_by_side(todo, plan.jobs, start, done)
    if failed:
        raise InputError(f"{len(failed)} runs failed: {'; '.join(failed)}", way_out="Go on with --resume once it is mended.")
    return state.write()


def side_by_side(
    todo: Sequence[Run], jobs: int, start: Callable[[Run], Popen[bytes]], done: Callable[[Run, int], None], pause: float = 0.2
) -> None:
    """Keep `jobs` processes running until all of `todo` are done, and end those that run when this is broken off."""
    waiting, running = list(todo), dict[Run, Popen[bytes]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = start(run)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                done(run, running.pop(run).wait())
            time.sleep(pause)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


class _State:
    """The result file as it grows."""

    def __init__(
        self, plan: Plan, board: Board, vocabulary: Vocabulary, conflicts: ConflictTable, known: dict[Run, dict[str, Any]]
    ) -> None:
        self.plan, self.board, self.vocabulary, self.conflicts, self.known = plan, board, vocabulary, conflicts, known
        self.setting = {
            **_common(plan, vocabulary, conflicts),
            "train": data_hash(board.train),
            "test": data_hash(board.test),
        }

    def check(self, result: Mapping[str, Any]) -> None:
        """Raise InputError if the runs of the result file came from something else."""
        other = _changed(result, self.setting)
        if self.known and other:
            way_out = "Give another file with --out, or remove this one."
            raise InputError(f"its runs had another {', '.join(other)}", file=self.plan.out, way_out=way_out)

    def place(self, run: Run, kind: str) -> Path:
        return self.plan.work / f"{run[0]}-{run[1]}.{kind}"

    def write(self) -> dict[str, Any]:
        """The result file with all runs so far, and the table of them."""
        runs = [self.known[run] for run in sorted(self.known, key=_order)]
        board = self.board
        result = {
            "setting": self.setting,
            "board": {
                "train_records": len(board.train),
                "test_records": len(board.test),
                "test_patients": len({record.patient for record in board.test}),
                "held_out": list(board.unseen),
                "made_rare": list(board.once),
            },
            "cells": {cell.name: {"chinese": cell.chinese, "changes": cell.changes, "set": cell.overrides} for cell in CELLS},
            "table": table(runs, CELLS, board.test, board.strata(), self.vocabulary, self.conflicts),
            "runs": runs,
        }
        write_result(self.plan.out, self.plan.command, result)
        written: dict[str, Any] = json.loads(self.plan.out.read_text(encoding="utf-8"))
        return written


def _common(plan: Plan, vocabulary: Vocabulary, conflicts: ConflictTable) -> dict[str, str]:
    """What all runs share beside their records, as versions."""
    recipe = sha256_of(dump_recipe(load_recipe(plan.recipe)))[:12]
    return {"recipe": recipe, "vocabulary": vocabulary.version, "conflicts": conflicts.version}


def _changed(result: Mapping[str, Any], setting: Mapping[str, str]) -> list[str]:
    """In what the runs of a result file came from something else."""
    before = result.get("setting", setting)
    return [key for key, value in setting.items() if before.get(key) != value]


def _order(run: Run) -> tuple[int, int]:
    return [cell.name for cell in CELLS].index(run[0]), run[1]


def _read(out: Path, resume: bool) -> dict[str, Any]:
    if not out.exists():
        return {}
    try:
        result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"no valid JSON ({error})", file=out, way_out="Give another file with --out.") from error
    if not isinstance(result, dict) or not isinstance(result.get("runs"), list):
        raise InputError("this is no result of this bench", file=out, way_out="Give another file with --out.")
    if result["runs"] and not resume:
        way_out = "Go on with --resume, or give another file with --out."
        raise InputError("the file holds runs already", file=out, way_out=way_out)
    return result


def _usable(runs: Sequence[dict[str, Any]], report: Report) -> dict[Run, dict[str, Any]]:
    """The runs of cells that are still what they were when they ran."""
    now = {cell.name: list(cell.overrides) for cell in CELLS}
    known = {}
    for run in runs:
        if run["set"] == now.get(run["cell"]):
            known[run["cell"], run["seed"]] = run
        else:
            report(f"{run['cell']}, seed {run['seed']}: left out, the cell has changed since")
    return known


def _write_records(work: Path, board: Board) -> None:
    work.mkdir(parents=True, exist_ok=True)
    write_records(work / "train.jsonl", board.train)
    write_records(work / "test.jsonl", board.test)


def _command(plan: Plan, cell: Cell, seed: int, out: Path) -> list[str]:
    module = "yaofang.sft.ablation.run"
    settings = ["--cell", cell.name, "--seed", str(seed), "--recipe", plan.recipe, "--work", str(plan.work), "--out", str(out)]
    return [sys.executable, "-m", module, *settings]


def _line(run: Mapping[str, Any]) -> str:
    mode, figures = next(iter(run["figures"].items()))
    score, seconds = figures["jaccard"], run["training"]["seconds"]
    return f"{run['cell']}, seed {run['seed']}: Jaccard {score:.4f} (diagnoses {mode}), trained in {seconds:.0f} s"
