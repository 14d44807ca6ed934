"""The ablation: its cells, what is held out, the journal of its runs, and the statistics of its table."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from yaofang.app.bench_training import COLUMNS, HEADS, MORE, markdown, rows, training
from yaofang.data.records import Record, write_records
from yaofang.eval.metrics import jaccard
from yaofang.eval.strata import by_stratum, strata_of
from yaofang.glm.tiny import random_tiny
from yaofang.sft.ablation import bench as ablation
from yaofang.sft.ablation import run as ablation_run
from yaofang.sft.ablation import table as ablation_table
from yaofang.sft.ablation.bench import CELLS, Board, Cell, Plan, bench, cells_of, hold_out, side_by_side
from yaofang.sft.ablation.table import figures_of, interval, packed, t1_pairs, table, unpacked
from yaofang.sft.recipe import load_recipe
from yaofang.vocab.conflicts import ConflictTable, load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError

DRUGS = [["阿卡波糖", "二甲双胍"], ["阿托伐他汀钙片"], ["甘精胰岛素", "阿卡波糖", "依帕司他"]]
BASE, OTHER = Cell("base", "基准", "nothing"), Cell("adamw", "AdamW", "AdamW instead of Muon", ("training.optimizer=adamw",))


def record(number: int, drugs: list[str]) -> Record:
    return Record.model_validate(
        {
            "患者序号": number,
            "就诊标识": f"{number}-1",
            "性别": "女",
            "主诉": "烦渴、多饮5年。",
            "出院诊断": ["2型糖尿病"],
            "出院带药列表": drugs,
        }
    )


def records(count: int = 9) -> list[Record]:
    return [record(n, DRUGS[n % 3]) for n in range(1, count + 1)]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary()


@pytest.fixture(scope="module")
def conflicts(vocabulary: Vocabulary) -> ConflictTable:
    return load_conflicts(vocabulary)


def run_of(cell: Cell, seed: int, lists: list[list[str]], vocabulary: Vocabulary, **unsafe: list[list[str]]) -> dict[str, Any]:
    """A run as `ablation_run` writes it, with these lists in every mode."""
    modes = {mode: lists for mode in (*cell.modes, "unsafe")} | unsafe
    return {
        "cell": cell.name,
        "seed": seed,
        "set": list(cell.overrides),
        "training": {"seconds": 10.0 + seed, "tokens_a_second": 100.0, "loss": 1.0},
        "figures": {mode: {"jaccard": 0.5, "masked_mass": 0.1} for mode in modes},
        "lists": {mode: packed(own, vocabulary) for mode, own in modes.items()},
    }


def test_every_cell_is_a_recipe_and_changes_what_base_does() -> None:
    base = load_recipe("ablation")
    assert CELLS[0].name == "base"
    assert CELLS[0].overrides == ()
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert all(load_recipe("ablation", cell.overrides) != base for cell in CELLS[1:])


def test_only_depth_costs_a_cell_steps_and_packed_records_keep_their_budget() -> None:
    base = load_recipe("ablation")
    for cell in CELLS[1:]:
        recipe = load_recipe("ablation", cell.overrides)
        assert (recipe.training.max_steps < base.training.max_steps) == (cell.name == "layers_4")
        assert recipe.data.max_length - recipe.data.answer_tokens == base.data.max_length - base.data.answer_tokens


def test_the_last_step_of_every_cell_is_logged_so_that_its_tokens_are_known() -> None:
    plans = [load_recipe("ablation", cell.overrides).training for cell in CELLS]
    assert all(plan.max_steps % plan.log_every == 0 for plan in plans)


def test_the_recipe_reads_no_more_than_its_epochs_hold() -> None:
    plan = load_recipe("ablation").training
    assert 6089 <= plan.max_steps * plan.batch_size <= 6089 * plan.epochs


def test_chosen_cells_come_with_base_first_and_an_unknown_one_is_named() -> None:
    assert [cell.name for cell in cells_of(["adamw"])] == ["base", "adamw"]
    assert cells_of() == CELLS
    with pytest.raises(InputError, match="there is no cell depth"):
        cells_of(["depth"])


def test_held_out_labels_are_in_no_training_record_and_rare_ones_in_one() -> None:
    names = [f"药{n:02}" for n in range(40)]
    made = [record(10 * n + copy, [name, "常用药"]) for n, name in enumerate(names, 1) for copy in range(2 + n % 7)]
    kept, unseen, once = hold_out(made, every=8)
    counts = Counter(label for one in kept for label in one.drugs)
    before = Counter(label for one in made for label in one.drugs)
    assert len(unseen) >= 3
    assert len(once) >= 3
    assert all(counts[label] == 0 for label in unseen)
    assert all(counts[label] == 1 for label in once)
    untouched = set(before) - {*unseen, *once, "常用药"}
    assert all(counts[label] == before[label] for label in untouched)
    assert [one.id for one in kept] == [one.id for one in made if one in kept]


def test_a_label_whose_records_all_hold_other_thinned_labels_counts_as_unseen() -> None:
    names = [f"药{n:02}" for n in range(40)]
    _, _, (a, b, c, *_) = hold_out([record(n, [name]) for n, name in enumerate(names * 3)], every=8)
    lists = [[name] for name in names if name != b] + [[name] for name in names * 2 if name not in (a, b, c)]
    lists += [[a, b], [a, b], [b, c], [c]]
    kept, unseen, once = hold_out([record(n, own) for n, own in enumerate(lists)], every=8)
    counts = Counter(label for one in kept for label in one.drugs)
    assert b in unseen
    assert counts[b] == 0
    assert {a, c} <= set(once)
    assert all(counts[label] == 1 for label in once)


def test_packed_lists_come_back(vocabulary: Vocabulary) -> None:
    lists = [list(vocabulary.labels[:5]), [], [vocabulary.labels[-1]]]
    assert unpacked(packed(lists, vocabulary), vocabulary) == lists


def test_figures_are_those_of_the_evaluation(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    board = records()
    lists = [["阿卡波糖"], ["阿托伐他汀钙片", "依帕司他"], ["甘精胰岛素"]] * 3
    strata = strata_of({"阿卡波糖": 9, "二甲双胍": 5, "阿托伐他汀钙片": 4, "甘精胰岛素": 1})
    found = table([run_of(BASE, 0, lists, vocabulary)], [BASE], board, strata, vocabulary, conflicts)["base"]["given"]
    gold, said = [set(one.drugs) for one in board], [set(own) for own in lists]
    expected = np.mean([jaccard(y, p) for y, p in zip(gold, said, strict=True)])
    assert found["jaccard"]["mean"] == pytest.approx(expected)
    counts = {"阿卡波糖": 9, "二甲双胍": 5, "阿托伐他汀钙片": 4, "甘精胰岛素": 1}
    for stratum in by_stratum(gold, said, counts, ablation_table.Sample([one.patient for one in board])):
        for name, figure in (("recall", stratum.recall), ("f1", stratum.f1)):
            value = found[f"{name}_{stratum.name}"]["mean"]
            assert value is None if figure is None else value == pytest.approx(figure.value)
    assert figures_of(board, lists, vocabulary, conflicts)["jaccard"] == pytest.approx(expected)


def test_a_cell_that_was_not_run_is_empty_and_base_has_no_difference(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    lists = [one.drugs for one in records()]
    found = table(
        [run_of(BASE, 0, [list(own) for own in lists], vocabulary)], [BASE, OTHER], records(), {}, vocabulary, conflicts
    )
    assert found["adamw"] is None
    assert found["base"]["given"]["jaccard"] == {"mean": 1.0}


def test_differences_are_paired_by_seed_and_a_common_shift_of_all_seeds_has_no_seed_variance(
    vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    board = records(30)
    right = [list(one.drugs) for one in board]
    wrong = [right[0][:0] or ["依帕司他"]] * 15 + right[15:]
    runs = [run_of(BASE, seed, wrong, vocabulary) for seed in range(3)] + [
        run_of(OTHER, seed, right, vocabulary) for seed in (0, 1, 5)
    ]
    found = table(runs, [BASE, OTHER], board, {}, vocabulary, conflicts)["adamw"]
    value = found["given"]["jaccard"]
    assert found["seeds"] == 3
    assert value["difference"] == pytest.approx(
        1 - np.mean([jaccard(set(a.drugs), set(b)) for a, b in zip(board, wrong, strict=True)])
    )
    assert 0 < value["low"] < value["difference"] < value["high"]
    one = table(runs[:1] + runs[3:4], [BASE, OTHER], board, {}, vocabulary, conflicts)["adamw"]["given"]["jaccard"]
    assert one["difference"] == pytest.approx(value["difference"])
    assert (one["low"], one["high"]) == (None, None)


def test_t1_pairs_are_counted_in_unmasked_lists_and_not_compared_across_modes(
    vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    a, b = np.argwhere(conflicts.tiers == 1)[0]
    pair, board = [vocabulary.labels[a], vocabulary.labels[b]], records(4)
    alone = [list(one.drugs)[:1] for one in board]
    only = Cell("drugs_only", "仅药物", "no diagnoses", ("data.answer=drugs_only",), ("generated",))
    runs = [run_of(BASE, seed, alone, vocabulary, unsafe=[pair] * 4) for seed in (0, 1)]
    runs += [run_of(cell, seed, alone, vocabulary) for cell in (OTHER, only) for seed in (0, 1)]
    found = table(runs, [BASE, OTHER, only], board, {}, vocabulary, conflicts)
    assert t1_pairs(pair, vocabulary, conflicts) == 1
    assert found["base"]["unsafe"]["t1_pairs"]["mean"] == 1
    assert found["adamw"]["unsafe"]["t1_pairs"] == {"mean": 0.0, "difference": -1.0, "low": -1.0, "high": -1.0}
    assert found["drugs_only"]["unsafe"]["t1_pairs"] == {"mean": 0.0}
    assert "difference" in found["drugs_only"]["generated"]["jaccard"]


def test_the_interval_covers_the_true_difference_of_crossed_seeds_and_patients() -> None:
    chance, hits, count, patients = np.random.default_rng(0), 0, 400, 60
    for _ in range(count):
        values = (
            0.1 + chance.normal(0, 0.02, (3, 1)) + chance.normal(0, 0.15, (1, patients)) + chance.normal(0, 0.1, (3, patients))
        )
        draws = chance.multinomial(patients, np.full(patients, 1 / patients), size=200) / patients
        low, high = interval(values.mean(axis=1), draws @ values.mean(axis=0), patients)
        assert low is not None
        assert high is not None
        hits += low <= 0.1 <= high
    assert 0.94 <= hits / count <= 0.995


def test_an_interval_between_seeds_alone_is_students() -> None:
    by_seed = np.array([0.1, 0.2, 0.3])
    low, high = interval(by_seed, np.full(100, 0.2), 50)
    assert (low, high) == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5))


WRITES = """
import json, sys, time
from pathlib import Path
out, lists, cell, seed, settings, wait = Path(sys.argv[1]), *sys.argv[2:6], float(sys.argv[6])
with open(out.parent / "started", "a") as log: print(cell, seed, file=log)
time.sleep(wait)
if cell == "adamw" and seed == "1" and (out.parent / "broken").exists(): sys.exit("no luck")
modes = ("given", "generated", "unsafe")
out.write_text(json.dumps({"cell": cell, "seed": int(seed), "set": json.loads(settings), "lists": dict.fromkeys(modes, lists),
    "training": {"seconds": 1.0, "tokens_a_second": None, "loss": 2.0},
    "figures": {mode: {"jaccard": 0.5, "masked_mass": 0.1} for mode in modes}}))
"""


def launcher(vocabulary: Vocabulary, wait: float = 0.0) -> Callable[[Plan, Cell, int, Path], list[str]]:
    """The command of a run that trains nothing: a process that leaves the gold lists, and a line in `started`."""
    lists = packed([list(one.drugs) for one in records()], vocabulary)

    def launch(plan: Plan, cell: Cell, seed: int, out: Path) -> list[str]:
        given = [str(out), lists, cell.name, str(seed), json.dumps(cell.overrides), str(wait)]
        return [sys.executable, "-S", "-c", WRITES, *given]

    return launch


def plan_in(folder: Path, **changes: Any) -> Plan:
    settings: dict[str, Any] = {"cells": cells_of(["adamw"]), "seeds": 2, "jobs": 2}
    return Plan(folder / "ablation.json", folder / "work", "yaofang bench training", **{**settings, **changes})


def board() -> Board:
    return Board(records(), records(), ("甲",), ("乙",))


def started(folder: Path) -> list[str]:
    return (folder / "work" / "started").read_text().splitlines()


def test_a_resumed_bench_does_what_is_missing_and_nothing_twice(
    tmp_path: Path, vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "broken").touch()
    with pytest.raises(InputError, match="adamw, seed 1"):
        bench(plan_in(tmp_path), board, vocabulary, conflicts, launch=launcher(vocabulary))
    assert "no luck" in (tmp_path / "work" / "adamw-1.log").read_text()
    with pytest.raises(InputError, match="holds runs already"):
        bench(plan_in(tmp_path), board, vocabulary, conflicts, launch=launcher(vocabulary))
    (tmp_path / "work" / "broken").unlink()
    result = bench(plan_in(tmp_path), board, vocabulary, conflicts, resume=True, launch=launcher(vocabulary))
    assert sorted(started(tmp_path)) == sorted(["base 0", "base 1", "adamw 0", "adamw 1", "adamw 1"])
    assert [(run["cell"], run["seed"]) for run in result["runs"]] == [("base", 0), ("base", 1), ("adamw", 0), ("adamw", 1)]
    assert result["table"]["adamw"]["given"]["jaccard"]["difference"] == 0
    assert result["table"]["packing"] is None
    assert result["provenance"]["command"] == "yaofang bench training"

    def never() -> Board:
        raise AssertionError("nothing is left to do")

    assert bench(plan_in(tmp_path), never, vocabulary, conflicts, resume=True) == result


def test_a_bench_with_nothing_left_to_do_still_refuses_another_recipe_and_drops_cells_that_changed(
    tmp_path: Path, vocabulary: Vocabulary, conflicts: ConflictTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path, seeds=1)
    bench(plan, board, vocabulary, conflicts, launch=launcher(vocabulary))
    with pytest.raises(InputError, match="its runs had another recipe"):
        bench(replace(plan, recipe="tiny"), board, vocabulary, conflicts, resume=True)
    changed = tuple(Cell("adamw", "AdamW", "b", ("training.adam_beta2=0.9",)) if c.name == "adamw" else c for c in CELLS)
    monkeypatch.setattr(ablation, "CELLS", changed)
    result = bench(replace(plan, cells=cells_of(["repeat"])[:1]), board, vocabulary, conflicts, resume=True)
    assert [run["cell"] for run in result["runs"]] == ["base"]
    assert result["table"]["adamw"] is None


@pytest.mark.parametrize("text", ['{"rows": {}}', "[]", '{"runs"'])
def test_a_file_that_is_no_result_of_this_bench_is_not_overwritten(
    text: str, tmp_path: Path, vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    (tmp_path / "ablation.json").write_text(text)
    with pytest.raises(InputError, match=r"no result of this bench|no valid JSON"):
        bench(plan_in(tmp_path), board, vocabulary, conflicts, launch=launcher(vocabulary))
    assert (tmp_path / "ablation.json").read_text() == text


def test_runs_of_other_records_or_of_a_cell_that_changed_are_not_gone_on_with(
    tmp_path: Path, vocabulary: Vocabulary, conflicts: ConflictTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, said = plan_in(tmp_path, seeds=1), list[str]()
    bench(first, board, vocabulary, conflicts, launch=launcher(vocabulary))
    other = lambda: Board(records(8), records(), (), ())  # noqa: E731
    with pytest.raises(InputError, match="its runs had another train"):
        bench(plan_in(tmp_path), other, vocabulary, conflicts, resume=True, launch=launcher(vocabulary))
    changed = tuple(Cell("adamw", "AdamW", "b", ("training.adam_beta2=0.9",)) if c.name == "adamw" else c for c in CELLS)
    monkeypatch.setattr(ablation, "CELLS", changed)
    again = plan_in(tmp_path, seeds=1, cells=cells_of(["adamw"]))
    result = bench(again, board, vocabulary, conflicts, resume=True, report=said.append, launch=launcher(vocabulary))
    assert "adamw, seed 0: left out, the cell has changed since" in said
    assert started(tmp_path) == ["base 0", "adamw 0", "adamw 0"] or started(tmp_path) == ["adamw 0", "base 0", "adamw 0"]
    assert result["runs"][1]["set"] == ["training.adam_beta2=0.9"]


def test_so_many_processes_run_at_once_as_there_are_jobs(tmp_path: Path) -> None:
    code = (
        "import sys,time; from pathlib import Path; p=Path(sys.argv[1]); p.write_text(str(time.time())); time.sleep(.2); "
        + ("p.with_suffix('.end').write_text(str(time.time()))")
    )
    runs, ended = [("a", n) for n in range(4)], list[tuple[str, int]]()
    start = lambda run: subprocess.Popen([sys.executable, "-S", "-c", code, str(tmp_path / f"{run[1]}.begin")])  # noqa: E731
    side_by_side(runs, 2, start, lambda run, status: ended.append(run) if status == 0 else None, pause=0.01)
    times = sorted((float(file.read_text()), file.suffix == ".begin") for file in tmp_path.iterdir())
    assert sorted(ended) == runs
    assert max(np.cumsum([1 if begins else -1 for _, begins in times])) == 2
    assert all(a <= b for a, b in pairwise(time for time, _ in times))


def test_the_runs_end_with_a_bench_that_is_broken_off() -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def start(run: tuple[str, int]) -> subprocess.Popen[bytes]:
        if run[1]:
            raise KeyboardInterrupt
        processes.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]))
        return processes[0]

    with pytest.raises(KeyboardInterrupt):
        side_by_side([("a", 0), ("a", 1)], 2, start, lambda *_: None)
    assert processes[0].returncode == -signal.SIGTERM


def test_the_unsafe_pass_alone_writes_conflicts(
    vocabulary: Vocabulary, conflicts: ConflictTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pairs come from a table in which all labels exclude each other, so that any list of two shows it."""
    tiers = np.ones_like(conflicts.tiers)
    np.fill_diagonal(tiers, 0)
    all_of_them = ConflictTable(vocabulary, lambda: pytest.fail("no reason is asked for"), "all", tiers)
    found = ablation_run.measure(BASE, random_tiny(hidden=32, layers=1), records(3), vocabulary, all_of_them)
    assert [len(own) for own in unpacked(found["lists"]["given"], vocabulary)] == [1, 1, 1]
    assert found["figures"]["given"]["t1_pairs"] == 0
    assert max(len(own) for own in unpacked(found["lists"]["unsafe"], vocabulary)) > 1
    assert found["figures"]["unsafe"]["t1_pairs"] > 0
    assert 0 <= found["figures"]["generated"]["diagnosis_f1"] <= 1
    assert set(found["figures"]) == {"given", "generated", "unsafe"}


def test_a_model_that_writes_drugs_alone_has_no_figure_of_diagnoses(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    only = replace(random_tiny(hidden=32, layers=1), answer="drugs_only")
    cell = next(cell for cell in CELLS if cell.name == "drugs_only")
    found = ablation_run.measure(cell, only, records(2), vocabulary, conflicts)["figures"]
    assert set(found) == {"generated", "unsafe"}
    assert "diagnosis_f1" not in found["generated"]


def test_a_run_trains_the_cell_and_leaves_nothing_but_its_result(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write_records(tmp_path / "train.jsonl", records())
    write_records(tmp_path / "test.jsonl", records(2))
    fresh = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 48, "tokenizer_size": 700}
    small = (
        "training.max_steps=2",
        "training.log_every=1",
        "training.batch_size=2",
        "data.max_length=400",
        "data.answer_tokens=120",
    )
    cell = Cell("adamw", "AdamW", "AdamW", (*(f"model.fresh.{key}={value}" for key, value in fresh.items()), *small))
    found = ablation_run.run(cell, 3, "ablation", tmp_path)
    assert (found["cell"], found["seed"], found["set"]) == ("adamw", 3, list(cell.overrides))
    assert found["training"]["records"] == 9
    assert found["training"]["loss"] > 1
    assert 4 * 60 < found["training"]["tokens"] <= 4 * 400
    assert len(unpacked(found["lists"]["given"], vocabulary)) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["test.jsonl", "train.jsonl"]


def test_the_tables_say_what_was_not_run_and_every_marked_figure_is_in_the_result(
    vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    lists = [list(one.drugs) for one in records()]
    runs = [run_of(cell, seed, lists, vocabulary) for cell in (BASE, OTHER) for seed in (0, 1)]
    cells = (BASE, OTHER, Cell("packing", "打包", "packing"))
    result = {
        "cells": {cell.name: {"chinese": cell.chinese} for cell in cells},
        "table": table(runs, cells, records(), {}, vocabulary, conflicts),
    }
    shown = list(rows(result))
    assert {len(row) for row in shown} == {4 + len(HEADS) + len(MORE)}
    assert [row[0] for row in shown] == ["base", "base", "adamw", "", "adamw", "", "packing"]
    assert shown[-1][2] == "not run"
    lines = markdown(result)
    assert len({line.count("|") for line in lines}) == 1
    assert "not run" in lines[-1]
    assert len(COLUMNS) == len(HEADS)
    assert "<!-- result: ablation.json table.adamw.given.jaccard.mean -->1.000<!-- -->" in lines[4]


def test_the_verb_prints_what_was_run_and_starts_nothing_when_all_is_done(
    tmp_path: Path, vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    result = bench(plan_in(tmp_path, seeds=1), board, vocabulary, conflicts, launch=launcher(vocabulary))
    app = typer.Typer()
    app.command()(training)
    given = ["--resume", "--cells", "adamw", "--seeds", "1", "--out", str(tmp_path / "ablation.json")]
    said = {kind: CliRunner().invoke(app, [*given, *kind]) for kind in ((), ("--json",), ("--markdown",))}
    assert all(one.exit_code == 0 for one in said.values()), said
    assert "AdamW" in said[()].stdout
    assert said[()].stdout.count("not run") == len(CELLS) - 2
    assert json.loads(said[("--json",)].stdout)["table"] == result["table"]
    assert said[("--markdown",)].stdout.splitlines() == markdown(result)
    assert len(started(tmp_path)) == 2
