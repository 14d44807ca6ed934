"""One run of an ablation: train a cell of the recipe with one seed, and measure the model on the board.

    python -m yaofang.sft.ablation.run --cell base --seed 0 --work runs/ablation --out runs/ablation/base-0.json

`sft/ablation/bench.py` starts it, one process a run, and has written `train.jsonl` and `test.jsonl` into the work folder.
Lists are greedy and constrained. In one more pass, the `unsafe` one, conflicts are not masked: its T1 pairs are what the model
itself would write. Such lists are counted here and shown to nobody; there is no switch for them anywhere else.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from yaofang.data.provenance import git_hash
from yaofang.data.recommendation import Recommendation
from yaofang.data.records import Record, read_records
from yaofang.decoding.recommender import Recommender
from yaofang.eval.diagnoses import exact_f1
from yaofang.glm.loading import LoadedModel, load_model
from yaofang.sft.ablation.bench import RECIPE, Cell, cells_of
from yaofang.sft.ablation.table import figures_of, packed
from yaofang.sft.checkpoints import state_of, whole_checkpoints
from yaofang.sft.recipe import load_recipe
from yaofang.sft.train import train
from yaofang.vocab.conflicts import ConflictTable, load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.files import whole_file

UNSAFE = "unsafe"
BATCH = 16
DIAGNOSIS_TOKENS = 96
"""Room for generated diagnoses: as many tokens as the recipe keeps free for a whole answer."""


def run(cell: Cell, seed: int, recipe: str, work: Path) -> dict[str, Any]:
    """Train and measure; what the result file keeps of one run. The run's folder is gone afterwards."""
    fixed = ("data.ward=", f"data.train={work / 'train.jsonl'}", f"training.seed={seed}")
    settings = load_recipe(recipe, [*fixed, *cell.overrides])
    with tempfile.TemporaryDirectory(prefix=f"{cell.name}-{seed}-", dir=work) as place:
        out = Path(place) / "run"
        metrics = train(settings, out, command=f"yaofang bench training --cells {cell.name}")
        metrics["tokens"] = tokens_seen(out)
        loaded = load_model(out, device="cpu")
    begun = perf_counter()
    vocabulary = load_vocabulary(settings.data.vocabulary)
    board = read_records(work / "test.jsonl").records
    measured = measure(cell, loaded, board, vocabulary, load_conflicts(vocabulary))
    return {
        "cell": cell.name,
        "seed": seed,
        "set": list(cell.overrides),
        "git": git_hash(),
        "training": _training(metrics, loaded),
        "measured_in": round(perf_counter() - begun, 1),
        **measured,
    }


def tokens_seen(folder: Path) -> int | None:
    """Tokens of prompts and answers that a run read, no padding among them; None if its last step was not logged."""
    state = state_of(whole_checkpoints(folder / "checkpoints")[-1])
    found = [row["num_tokens"] for row in state.log_history if row["step"] == state.global_step and "num_tokens" in row]
    return int(found[-1]) if found else None


def _training(metrics: dict[str, Any], loaded: LoadedModel) -> dict[str, Any]:
    seconds, tokens = metrics["train_runtime"], metrics["tokens"]
    return {
        "parameters": loaded.model.num_parameters(),
        "records": metrics["records"],
        "seconds": seconds,
        "tokens": tokens,
        "tokens_a_second": None if tokens is None else tokens / seconds,
        "loss": metrics["train_loss"],
    }


def measure(
    cell: Cell, loaded: LoadedModel, board: Sequence[Record], vocabulary: Vocabulary, conflicts: ConflictTable
) -> dict[str, Any]:
    """The model's lists for the board in each of the cell's modes and in the unsafe pass, and the figures of each.

    `lists` are packed (`ablation_table.packed`), in the order of `board`. The unsafe pass has the diagnoses of the first mode.
    """
    figures: dict[str, dict[str, float | None]] = {}
    lists: dict[str, str] = {}
    for mode in (*cell.modes, UNSAFE):
        known = without_conflicts(conflicts) if mode == UNSAFE else conflicts
        done = recommend(loaded, board, vocabulary, known, cell.modes[0] if mode == UNSAFE else mode)
        named = [one.labels for one in done]
        lists[mode] = packed(named, vocabulary)
        figures[mode] = {**figures_of(board, named, vocabulary, conflicts), **_more(board, done, mode, loaded.answer)}
    return {"figures": figures, "lists": lists}


def recommend(
    loaded: LoadedModel, board: Sequence[Record], vocabulary: Vocabulary, conflicts: ConflictTable, diagnoses: str
) -> list[Recommendation]:
    """Greedy lists in the board's order; the model does not see the records' drugs, nor diagnoses that it has to generate."""
    hidden: dict[str, Any] = {"drugs": ()} if diagnoses == "given" else {"drugs": (), "diagnoses": ()}
    recommender = Recommender(
        [loaded],
        vocabulary,
        conflicts,
        diagnoses=diagnoses,
        strategy="greedy",
        audit=False,
        max_diagnosis_tokens=DIAGNOSIS_TOKENS,
    )
    return recommender.batch([record.model_copy(update=hidden) for record in board], BATCH)


def without_conflicts(conflicts: ConflictTable) -> ConflictTable:
    """A table of the same vocabulary in which no pair has a tier: the trie alone is left of the constraint."""

    def no_sources() -> Any:
        raise ValueError("a table without conflicts has no reasons")

    return ConflictTable(conflicts.vocabulary, no_sources, "none", np.zeros_like(conflicts.tiers))


def _more(board: Sequence[Record], done: Sequence[Recommendation], mode: str, answer: str) -> dict[str, float | None]:
    """The mass that the mask took away, a mean over all drugs listed; and the exact F1 of diagnoses that were generated, if
    the model was trained to write any."""
    masses = [drug.masked_mass for one in done for drug in one.drugs]
    found: dict[str, float | None] = {"masked_mass": float(np.mean(masses))}
    if mode == "generated" and answer != "drugs_only":
        names = [[diagnosis.name for diagnosis in one.diagnoses] for one in done]
        values = [exact_f1(record.diagnoses, own) for record, own in zip(board, names, strict=True) if record.diagnoses]
        found["diagnosis_f1"] = float(np.mean(values))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Do one run and write its result, whole or not at all."""
    parser = argparse.ArgumentParser(prog="python -m yaofang.sft.ablation.run", description=__doc__)
    parser.add_argument("--cell", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    cell = next(cell for cell in cells_of([given.cell]) if cell.name == given.cell)
    result = run(cell, given.seed, given.recipe, given.work)
    with whole_file(given.out) as handle:
        json.dump(result, handle, ensure_ascii=False)


if __name__ == "__main__":
    main()
