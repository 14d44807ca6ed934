"""The plan's prediction beside the measured peak of training processes on a CPU, in float32.

    yaofang bench plan --out docs/results/plan.json

Every case trains a random model of GLM-4's architecture through the trainer of `sft.build` in processes of its own. Measured is
the highest resident size (VmHWM of /proc/self/status) over the resident size after a first training, of a model of one layer on
the same rows, when libraries, kernels and their work areas (some 10 MB) are there and that model is gone. The
allocator gives freed blocks back at once, so that what is resident is what is held. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yaofang.data.provenance import write_result
from yaofang.sft.memory.job import Sizes
from yaofang.sft.memory.plan import make_job
from yaofang.sft.memory.step import peak
from yaofang.sft.parts import Recipe
from yaofang.vocab.errors import InputError

MIB = 1 << 20
STEPS = 2
"""From the second step on the optimiser has its states."""
HONEST = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""glibc: every block from 64 KiB on is mapped alone and given back when it is freed."""
TIMEOUT = 900
COMMAND = "yaofang bench plan --out docs/results/plan.json"


@dataclass(frozen=True)
class Case:
    """One training to predict and to measure. `training`, `data` and `lora` are parts of a recipe."""

    what: str
    architecture: str = "glm"
    hidden: int = 256
    layers: int = 4
    intermediate: int = 704
    length: int = 4096
    labelled: int = 128
    training: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    prefix_lm: bool = False
    processes: int = 1

    def recipe(self) -> Recipe:
        """The recipe that predictor and trainer both read. Its model is made, not read from the path."""
        steps = {"max_steps": STEPS, "save_every": 10_000, "bf16": False, "learning_rate": 1e-4}
        value = {
            "model": {"path": "none", "dtype": "float32", "prefix_lm": self.prefix_lm},
            "data": {"train": "none", "max_length": self.length, "answer_tokens": self.labelled},
            "training": {**steps, **self.training},
            "lora": {} if self.lora else None,
        }
        return Recipe.model_validate(value)


WIDE: dict[str, Any] = {"hidden": 512, "intermediate": 1408, "length": 1024}
CHECKPOINTED = {"gradient_checkpointing": True}
SHARED = {"sequence_parallel_size": 2}
CASES = {
    "full": Case("all weights"),
    "full_checkpointing": Case("all weights, gradient checkpointing", training=CHECKPOINTED),
    "full_wide": Case("all weights, a wider model, fewer tokens", **WIDE),
    "full_accumulation": Case("a wider model, two batches a step", training={"accumulation": 2}, **WIDE),
    "full_muon": Case("a wider model, Muon", training={"optimizer": "muon"}, **WIDE),
    "full_batch": Case("all weights, 8 rows of 512 tokens", length=512, training={"batch_size": 8}),
    "full_glm4": Case("all weights, model_type glm4", architecture="glm4"),
    "full_answers": Case("all weights, every second token labelled", length=2048, labelled=1024),
    "full_prefix_lm": Case("all weights, prefix-LM", length=2048, prefix_lm=True),
    "lora": Case("LoRA", lora=True),
    "lora_checkpointing": Case("LoRA, gradient checkpointing", lora=True, length=4096, training=CHECKPOINTED),
    "lora_prefix_lm": Case("LoRA, prefix-LM, checkpointing", lora=True, prefix_lm=True, training=CHECKPOINTED),
    "two_processes": Case("all weights, two processes with a row each", length=2048, processes=2),
    "shared_full": Case("all weights, two processes share each row", processes=2, training=SHARED),
    "shared_lora": Case(
        "LoRA, two processes share each row, checkpointing",
        lora=True,
        length=4096,
        processes=2,
        training={**SHARED, **CHECKPOINTED},
    ),
}


def measure(
    names: Sequence[str] = (), report: Callable[[str], None] = print, *, out: Path | None = None, resume: bool = False
) -> dict[str, Any]:
    """Every case (or those named) in processes of its own: predicted and measured peak over base, MB of 2^20 bytes.

    The result file `out` is written anew after each case; with `resume` the cases that it holds are not run again. A case that
    was not run stands in `not_run`. Raises InputError for a name that is no case, and for a training that failed.
    """
    for name in names:
        if name not in CASES:
            raise InputError(f"there is no case {name}", field="--only", way_out=f"Take some of: {', '.join(CASES)}.")
    cases = json.loads(out.read_text(encoding="utf-8"))["cases"] if resume and out is not None and out.exists() else {}
    skipped = {name: "not measured" for name in CASES if name not in cases}
    for name in names or CASES:
        if name in cases:
            continue
        cases[name] = found = _run(name)
        del skipped[name]
        report("{0}: predicted {predicted:.0f} MB, measured {measured:.0f} MB, error {error:+.1%}".format(name, **found))
        if out is not None:
            write_result(out, COMMAND, _result(cases, skipped))
    return _result(cases, skipped)


def _result(cases: dict[str, Any], skipped: dict[str, str]) -> dict[str, Any]:
    errors = [abs(case["error"]) for case in cases.values()]
    return {
        "what_it_is": "Peak memory of a training process over its base, CPU, float32; error = predicted / measured - 1",
        "largest_error": max(errors, default=None),
        "mean_error": sum(errors) / len(errors) if errors else None,
        "count": len(errors),
        "cases": cases,
        "not_run": skipped,
    }


def _run(name: str) -> dict[str, Any]:
    """One case in fresh processes; the largest of their peaks counts."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m"]
        if case.processes > 1:
            launch += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes), "-m"]
        command = [*launch, "yaofang.sft.memory.benchmark", "--case", name, "--out", folder]
        done = subprocess.run(command, env={**os.environ, **HONEST}, capture_output=True, text=True, timeout=TIMEOUT)
        found = [json.loads(file.read_text(encoding="utf-8")) for file in Path(folder).glob("rank*.json")]
    if done.returncode or len(found) != case.processes:
        raise InputError(f"case {name} failed: {done.stderr[-2000:]}", way_out="Run it alone with --case.")
    measured = max(value["measured"] for value in found)
    predicted = found[0]["predicted"]
    return {
        "what": case.what,
        "processes": case.processes,
        "tokens": case.length * case.training.get("batch_size", 1),
        "parameters": found[0]["parameters"],
        "moment": found[0]["moment"],
        "predicted": predicted,
        "measured": measured,
        "error": predicted / measured - 1,
    }


def train_case(case: Case, out: Path) -> None:
    """Train one case in this process and write what was predicted and measured to `out/rankN.json`."""
    from yaofang.sft import ranks

    with ranks.joined():
        _train(replace(case, layers=1), out / "warm")  # so that the kernels' work areas are there
        base = _reset()
        highest, sizes = _train(case, out / "run")
        moment, items = peak(sizes, make_job(case.recipe(), cards=case.processes, device="cpu", autocast=False))
        body = {
            "measured": (highest - base) / MIB,
            "predicted": sum(items.values()) / MIB,
            "moment": moment,
            "items": {name: value / MIB for name, value in items.items()},
            "parameters": sizes.parameters,
        }
        (out / f"rank{ranks.rank()}.json").write_text(json.dumps(body), encoding="utf-8")


def _train(case: Case, out: Path) -> tuple[int, Sizes]:
    """Train; the highest resident size up to the last step, before anything is saved, and the model's sizes."""
    from transformers import TrainerCallback

    from yaofang.glm.loading import BUNDLED, load_tokenizer
    from yaofang.glm.template import ChatTemplate
    from yaofang.glm.tiny import new_model, tiny_config
    from yaofang.sft.build import build_trainer, training_arguments
    from yaofang.sft.start import Start

    seen = [0]

    class Watch(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            seen[0] = max(seen[0], _status("VmHWM"))
            return control

    recipe = case.recipe()
    args = training_arguments(recipe, out)
    args.save_strategy = "no"
    template = ChatTemplate(load_tokenizer(BUNDLED))
    config = tiny_config(
        template,
        architecture="glm4" if case.architecture == "glm4" else "glm",
        hidden=case.hidden,
        layers=case.layers,
        heads=8,
        kv_heads=2,
        intermediate=case.intermediate,
        context=16384,
    )
    start = Start(new_model(config, 0), template)
    trainer = build_trainer(recipe, start, _examples(case, template), args)
    trainer.add_callback(Watch())
    trainer.train()
    return seen[0], Sizes.of(config.to_dict())


def _examples(case: Case, template: Any) -> list[Any]:
    """Rows of exactly `case.length` tokens: a record's turn, and an answer with the labelled tokens."""
    from yaofang.sft.examples import Example

    head = template.prompt_ids(({"role": "user", "content": ""},))
    opening = [token for token in head if token != template.roles["assistant"]]
    record = [300 + place % 2000 for place in range(case.length - case.labelled - len(opening) - 1)]
    answer = [400 + place % 1000 for place in range(case.labelled)]
    ids = [*opening, *record, template.roles["assistant"], *answer]
    mask = [0] * (len(ids) - len(answer)) + [1] * len(answer)
    count = STEPS * case.processes * case.training.get("batch_size", 1) * case.training.get("accumulation", 1)
    return [Example(str(number), ids, mask, ()) for number in range(count)]


def _reset() -> int:
    """Forget the highest resident size so far; the present one, in bytes."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise InputError(
            f"the peak cannot be reset ({error})", way_out="Run it on Linux, as the owner of /proc/self."
        ) from error
    return _status("VmRSS")


def _status(name: str) -> int:
    """A field of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status has no {name}", way_out="Run it on Linux.")


def main(arguments: Sequence[str] | None = None) -> None:
    """One case in this process, into a folder."""
    parser = argparse.ArgumentParser(prog="python -m yaofang.sft.memory.benchmark", description=__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    train_case(CASES[given.case], given.out)


if __name__ == "__main__":
    main()
