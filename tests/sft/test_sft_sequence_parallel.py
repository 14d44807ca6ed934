"""Sequence parallelism changes no number: forwards, TRL's trainers and the command line against one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parallel.worker import FORWARDS, RUNS, expected
from test_sft_train import records

from yaofang.app.cli import main
from yaofang.data.records import write_records
from yaofang.glm.masks import document_numbers
from yaofang.glm.tiny import random_tiny
from yaofang.sft.sequence_parallel import IMPLEMENTATION, check_size, choose_kernel, packed_bounds, sequence_group
from yaofang.vocab.errors import InputError

WORKER = Path(__file__).parent / "parallel" / "worker.py"
TWO_READERS = [case for case in RUNS if "two readers" in case]
ONE_READER = [case for case in RUNS if case not in TWO_READERS]


def torchrun(processes: int, *arguments: str, timeout: int = 300) -> None:
    """Run to the end, one thread a process; whatever happens, no process is left."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *arguments]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as started:
        try:
            said, _ = started.communicate(timeout=timeout)
        except BaseException:
            os.killpg(started.pid, signal.SIGKILL)
            raise
    assert started.returncode == 0, said[-3000:]


Results = dict[str, dict[str, list[float]]]


def measured(folder: Path, processes: int, size: int, cases: list[str]) -> Results:
    out = folder / f"{processes}-{size}.json"
    torchrun(processes, str(WORKER), str(out), str(size), *cases)
    found: Results = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What two processes that share each sequence find."""
    return measured(tmp_path_factory.mktemp("two"), 2, 2, [*FORWARDS, *ONE_READER])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Results]:
    """What four processes find, in groups of 4 or of 2."""
    done: dict[int, Results] = {}

    def of(size: int) -> Results:
        cases = [*FORWARDS, *(ONE_READER if size == 4 else TWO_READERS)]
        if size not in done:
            done[size] = measured(tmp_path_factory.mktemp("four"), 4, size, cases)
        return done[size]

    return of


def assert_equal(found: dict[str, list[float]], case: str) -> None:
    wanted = expected(case)
    assert found.keys() == wanted.keys()
    # TRL means these over a step's batches, whatever their tokens: with two readers a step has one batch instead of two.
    unlike = {"entropy", "mean_token_accuracy"} if case in TWO_READERS else set()
    for name, values in wanted.items():
        assert len(values) > 0
        if name in unlike:
            continue
        assert found[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("case", FORWARDS)
def test_two_processes_find_every_score_and_gradient_of_one(case: str, two: Results) -> None:
    assert_equal(two[case], case)


@pytest.mark.parametrize("case", ONE_READER)
def test_two_processes_train_and_evaluate_as_one(case: str, two: Results) -> None:
    assert_equal(two[case], case)


@pytest.mark.nightly
@pytest.mark.parametrize("case", [*FORWARDS, *ONE_READER])
def test_four_processes_on_one_sequence_find_what_one_finds(case: str, four: Callable[[int], Results]) -> None:
    assert_equal(four(4)[case], case)


@pytest.mark.nightly
@pytest.mark.parametrize("case", [*FORWARDS, *TWO_READERS])
def test_two_groups_of_two_processes_find_what_one_process_finds(case: str, four: Callable[[int], Results]) -> None:
    assert_equal(four(2)[case], case)


def test_the_cases_would_notice_what_they_are_about() -> None:
    """Packing, prefix-LM, weights and padding change the numbers that are compared."""
    plain = expected("two key-value heads")["log_probs"]
    for other in ("prefix-LM", "weights and a penalty", "four key-value heads", "the 0414 architecture"):
        assert max(abs(a - b) for a, b in zip(plain, expected(other)["log_probs"], strict=True)) > 1e-2


RECIPE = """
model:
  fresh: {hidden: 32, layers: 2, heads: 4, kv_heads: 2, intermediate: 48, context: 1024, tokenizer_size: 700}
  prefix_lm: true
data: {train: TRAIN, max_length: 512}
training:
  {max_steps: 3, batch_size: 2, accumulation: 2, learning_rate: 1.0e-3, diagnosis_weight: 0.3, log_every: 1, save_every: 1,
   bf16: false, gradient_checkpointing: true}
tail: {conflict_penalty: 0.5}
"""


def trajectory(out: Path) -> list[float]:
    """Loss and gradient norm of each step in turn, from the last checkpoint."""
    (file,) = out.glob("checkpoints/checkpoint-3/trainer_state.json")
    logs = json.loads(file.read_text(encoding="utf-8"))["log_history"]
    return [log[name] for log in logs if "loss" in log for name in ("loss", "grad_norm")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="one process on a CUDA device is no reference for gloo")
@pytest.mark.parametrize(
    ("processes", "settings", "resumed"),
    [
        (2, ("training.deepspeed=zero2.json",), False),
        pytest.param(2, (), True, marks=pytest.mark.nightly),
        pytest.param(2, ("training.deepspeed=zero3.json", "data.packing=true"), True, marks=pytest.mark.nightly),
        pytest.param(4, ("training.deepspeed=zero3.json", "training.accumulation=1"), False, marks=pytest.mark.nightly),
    ],
)
def test_the_command_line_trains_as_one_process(
    processes: int, settings: tuple[str, ...], resumed: bool, tmp_path: Path
) -> None:
    write_records(tmp_path / "train.jsonl", records(12))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("TRAIN", str(tmp_path / "train.jsonl")), encoding="utf-8")
    plain = [part for setting in settings if "packing" in setting for part in ("--set", setting)]
    with pytest.raises(SystemExit) as ended:
        main(["sft", "--config", str(recipe), *plain, "--out", str(tmp_path / "one")])
    assert ended.value.code == 0
    changed = [part for setting in settings for part in ("--set", setting)]
    arguments = ["--config", str(recipe), "--sequence-parallel-size", "2", *changed, "--out", str(tmp_path / "shared")]
    for more in [["--set", "training.stop_at=2"], ["--resume"]] if resumed else [[]]:
        torchrun(processes, "-m", "yaofang.app.cli", "sft", *arguments, *more)
    one, shared = trajectory(tmp_path / "one"), trajectory(tmp_path / "shared")
    assert len(one) == 6
    assert shared == pytest.approx(one, rel=1e-5, abs=1e-5)
    assert torch.isfinite(torch.tensor(one)).all()
    configurations = [(tmp_path / out / "config.json").read_text(encoding="utf-8") for out in ("one", "shared")]
    assert configurations[0] == configurations[1]


@pytest.mark.parametrize(
    ("size", "world", "heads", "kv_heads", "fits", "model_fits"),
    [
        (3, 4, 32, 2, "use 1, 2, 4;", "allows 1, 2, 4, 8, 16, 32"),
        (4, 2, 32, 2, "use 1, 2;", "allows 1, 2, 4, 8, 16, 32"),
        (3, 6, 32, 2, "use 1, 2;", "allows 1, 2, 4, 8, 16, 32"),
        (2, 1, 32, 2, "use 1;", "allows 1, 2, 4, 8, 16, 32"),
        (2, 2, 12, 3, "use 1;", "allows 1, 3, 6, 12"),
    ],
)
def test_a_size_that_cannot_work_is_refused_with_the_sizes_that_do(
    size: int, world: int, heads: int, kv_heads: int, fits: str, model_fits: str
) -> None:
    with pytest.raises(InputError) as error:
        check_size(size, world, heads, kv_heads)
    assert error.value.field == "training.sequence_parallel_size"
    assert fits in str(error.value)
    assert model_fits in str(error.value)


def test_every_size_of_glm4_9b_is_accepted_and_one_needs_no_group() -> None:
    for size in (1, 2, 4, 8, 16, 32):
        check_size(size, 32, 32, 2)
    assert sequence_group(1, 32, 2) is None
    with pytest.raises(InputError, match="1 were started"):
        sequence_group(2, 32, 2)


def test_a_call_outside_training_is_plain_attention_padding_and_all() -> None:
    made = random_tiny(hidden=32)
    ids = torch.tensor([[made.template.pad_id] * 2 + [7, 8, 9], [4, 5, 6, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(5) >= torch.tensor([[2], [0]])).long()}
    before = made.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    logits = made.model(**inputs).logits
    made.model.set_attn_implementation(IMPLEMENTATION)
    assert torch.equal(made.model(**inputs).logits, logits)
    assert torch.equal(made.model.generate(**inputs, max_new_tokens=4, do_sample=False), before)


def test_the_kernel_is_chosen_with_a_reason() -> None:
    assert choose_kernel("flash_attention_2", prefix_lm=False) == (
        True,
        "sequence parallelism round flash-attn: the model was loaded with it",
    )
    flash, reason = choose_kernel("flash_attention_2", prefix_lm=True)
    assert not flash
    assert "flash-attn cannot do prefix-LM" in reason
    assert not choose_kernel("sdpa", prefix_lm=False)[0]


def test_padding_is_one_example_however_many_tokens_it_has() -> None:
    numbers = document_numbers(torch.tensor([[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 0, 1, 2, 3, 4, 5]]))
    assert numbers[0].tolist() == [0, 0, 0, 1, 1, 2, 3, 4]
    assert packed_bounds(numbers)[0].tolist() == [0, 3, 5, 8, 10, 16]


def test_flash_attn_is_told_where_each_packed_example_begins() -> None:
    bounds, longest = packed_bounds(torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 1, 1]]))
    assert bounds.tolist() == [0, 3, 5, 6, 7, 12]
    assert bounds.dtype == torch.int32
    assert longest == 5
