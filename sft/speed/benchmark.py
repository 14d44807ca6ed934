"""How fast training is on a CPU: tokens and records a second, and memory, of real runs.

    yaofang bench training --speed

Every row is one epoch of `sft.train` over the same records of the simulated ward, at the lengths they have by themselves:
the rows are long enough for all of them (the result says how many were shortened). Processes are torchrun's over gloo, one
thread each. Padding and packing are compared at as many real tokens an optimiser step, hence as many steps: 8 padded records,
or the packed rows that hold as many. Memory is the largest process' peak less what it held before training began.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from yaofang.data.records import Record, write_records
from yaofang.data.ward.simulate import simulate
from yaofang.sft.ablation.bench import ONE_THREAD, RECIPE
from yaofang.sft.ablation.run import tokens_seen
from yaofang.sft.recipe import load_recipe
from yaofang.sft.train import train
from yaofang.sft.trainer import autocast
from yaofang.vocab.errors import InputError

NOT_MEASURED = "not measured"
WARD = (200, 31)
"""Patients and seed of the ward whose records are trained on."""
RECORDS = 96
LENGTH = 2560
"""Tokens of a row: more than any of these records has."""
LONG = (
    "model.fresh.context=4096",
    "training.epochs=1",
    "training.max_steps=-1",
    "training.log_every=1",
    "data.answer_tokens=256",
)
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the CPU's table."""

    name: str
    overrides: tuple[str, ...] = ()
    processes: int = 1
    bf16: bool = False

    def settings(self, train_file: Path, length: int) -> list[str]:
        """The recipe's overrides."""
        fixed = [
            "data.ward=",
            f"data.train={train_file}",
            f"data.max_length={length}",
            f"training.bf16={str(self.bf16).lower()}",
        ]
        parallel = f"training.sequence_parallel_size={self.processes}"
        # Muon needs whole matrices in one process; all rows take AdamW, so that they differ in what they name alone.
        return [*LONG, *fixed, "training.optimizer=adamw", "training.batch_size=8", parallel, *self.overrides]


CASES = (
    Case("padding"),
    Case("packing", ("data.packing=true", "training.batch_size=3")),
    Case("padding_bfloat16", bf16=True),
    Case("sequence_parallel_2", processes=2),
    Case("sequence_parallel_4", processes=4),
)


def speed(
    recipe: str = RECIPE,
    cases: Sequence[Case] = CASES,
    *,
    records: Sequence[Record] | None = None,
    length: int = LENGTH,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """The CPU's table. A row is None where it was not measured: bfloat16 on a processor that would emulate it."""
    board = simulate(*WARD).train[:RECORDS] if records is None else records
    rows: dict[str, dict[str, float] | None] = {}
    with tempfile.TemporaryDirectory(prefix="yaofang-speed-") as place:
        file = Path(place) / "train.jsonl"
        write_records(file, board)
        for case in cases:
            able, reason = autocast(True)
            if case.bf16 and not able:
                report(f"{case.name}: {NOT_MEASURED} ({reason})")
                rows[case.name] = None
                continue
            rows[case.name] = _row(_train_apart(recipe, case, file, length))
            report(f"{case.name}: {rows[case.name]}")
    return {
        "title": f"Training on a CPU of {os.cpu_count()} cores, a thread a process: {len(board)} records of the simulated ward",
        "columns": ["records_a_second", "tokens_a_second", "steps", "seconds", "peak_mb"],
        "notes": _notes(rows),
        "settings": {"recipe": recipe, "ward": list(WARD), "records": len(board), "length": length},
        "rows": rows,
        "packing_over_padding": _ratio(rows, "packing", "padding"),
    }


def _row(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One case from what its processes measured: the slowest one's time, the largest one's memory."""
    seconds, first = max(part["seconds"] for part in parts), parts[0]
    return {
        "records_a_second": first["records"] / seconds,
        "tokens_a_second": first["tokens"] / seconds,
        "steps": first["steps"],
        "seconds": seconds,
        "peak_mb": max(part["peak_mb"] for part in parts),
        "cut": first["cut"],
    }


def _ratio(rows: Mapping[str, Mapping[str, float] | None], above: str, below: str) -> float | None:
    first, second = rows.get(above), rows.get(below)
    return None if first is None or second is None else first["records_a_second"] / second["records_a_second"]


def _notes(rows: Mapping[str, Mapping[str, float] | None]) -> list[str]:
    gain = _ratio(rows, "packing", "padding")
    cut = [int(row["cut"]) for row in rows.values() if row is not None]
    notes = [f"records that were shortened: {max(cut)}"] if cut else []
    return notes if gain is None else [*notes, f"packing over padding: {gain:.2f} times the records a second"]


def _train_apart(recipe: str, case: Case, file: Path, length: int, timeout: float = 1800) -> list[dict[str, float]]:
    """Train in processes of their own; what each of them measured. Raises InputError with the end of what they said."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=file.parent) as place:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
        start = [sys.executable, *(torchrun if case.processes > 1 else []), "-m", "yaofang.sft.speed.benchmark"]
        command = [*start, "--recipe", recipe, "--out", place]
        for setting in case.settings(file, length):
            command += ["--set", setting]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **ONE_THREAD}, check=False
        )
        if done.returncode:
            end = done.stderr[-2000:]
            raise InputError(f"{case.name} failed: {end}", way_out="Train the recipe by itself to see more.")
        return [json.loads(part.read_text(encoding="utf-8")) for part in sorted(Path(place).glob("measured-*.json"))]


def worker(recipe: str, overrides: Sequence[str], out: Path) -> dict[str, float]:
    """One process of a case: train, and say what was seen in how long."""
    settings = load_recipe(recipe, overrides)
    before = _peak_mb()
    metrics = train(settings, out / "run", command="yaofang bench training --speed")
    tokens = tokens_seen(out / "run")
    assert tokens is not None, "the last step was not logged"
    return {
        "seconds": metrics["train_runtime"],
        "records": metrics["records"],
        "tokens": tokens,
        "steps": round(metrics["train_steps_per_second"] * metrics["train_runtime"]),
        "peak_mb": _peak_mb() - before,
        "cut": metrics["cut"],
    }


def _peak_mb() -> float:
    """This process' largest resident memory so far, in 10^6 bytes (Linux counts in units of 1,024)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(arguments: list[str] | None = None) -> None:
    """One process of a CPU case: train, and write `measured-RANK.json`."""
    parser = argparse.ArgumentParser(prog="python -m yaofang.sft.speed.benchmark", description=__doc__)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    measured = worker(given.recipe, given.set, given.out)
    (given.out / f"measured-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
