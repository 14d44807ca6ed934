"""Times of the constraint, beside the other libraries that mask logits: microseconds a step of writing drug lists.

    yaofang bench decoding --out docs/results/decoding.json

In a round every library writes the same lists, one library after the other, so that what else the machine does hits all
alike; a step's time is its median over rounds, and a figure the mean over the steps. Says nothing about what is written,
nor about the time of a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from yaofang.decoding.constraint import Constraint, Phase
from yaofang.decoding.peers import PEERS, Peer, Task, build
from yaofang.decoding.processors import MASKED_TIER, AnswerProcessor, answer_ids
from yaofang.decoding.states import StatesByIds
from yaofang.glm.loading import load_tokenizer
from yaofang.glm.template import ChatTemplate
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary

TINY = Path(__file__).parents[1] / "glm" / "tiny"
ROWS = (1, 8, 32, 128, 512)
WIDTH = 151_552
"""Logits of GLM-4-9B: rows of its embedding, the spare ones included."""
PROMPT = 512
"""Ids before each row's own."""
OURS = "yaofang"
STATE_ROUNDS = 15
"""Rounds of the states alone, at least: each takes some microseconds, and a step of them is easily disturbed."""
SHORT = {"transformers": 128, "xgrammar": 128}
"""From so many rows on only the first quarter of the steps is taken: each may need a second."""
LATER = "later"

WHAT_IT_IS = {
    "state_us_per_row": "microseconds a row and step: the row's state from its ids, and the ids allowed next (T1 conflicts "
    "and repeats kept out); no tensor; timed by itself, the other libraries not between its rounds",
    "processor_us": "microseconds a step: ids [rows, prompt + written] and scores [rows, width] float32 on the CPU -> masked "
    "scores; each step's median over rounds, then the mean over a list's steps, the first and buffers made in it included",
    "processor_later_us": "the same without the first two steps, in which buffers are made",
    "peer_parts_us": "of processor_us: advance takes each row's last token, fill writes the bitmask, apply writes the scores",
    "vs_": "the library's processor_us over ours, for the same rows: above 1 ours is faster. No library but ours keeps "
    "conflicts or repeats out",
    "lists": "random: at each step a token that the constraint allows, the end only where nothing else is, so that every row "
    "writes at every step; the same in each round, with a constraint that remembers nothing of the last one",
    "setup_s": "seconds to build, once: of ours the trie and the sets; of a library also the check that it constrains, in "
    "which kernels are compiled",
    "transformers": "PrefixConstrainedLogitsProcessor with a trie of plain dicts, walked along the row's ids",
    "xgrammar": "a matcher a row made before the time starts, filled as a batch; its default kernel for scores on a CPU",
    "xgrammar_compiled": "the same with its torch.compile kernel, which one has to ask for",
    "llguidance": "a matcher a row made before the time starts, filled by its threads where rows are more than one",
    "outlines": "its own processor of a regex, as shipped; lists of the labels counted under `labels` only",
}


class _Ours:
    """The constraint in front of `generate`, made new for each round so that it remembers no set of ids."""

    def __init__(self, make: Callable[[], Constraint], task: Task) -> None:
        self.labels, self._make, self._prompt = task.labels, make, task.prompt
        self.parts: dict[str, float] = {}
        self._process: AnswerProcessor

    def begin(self, rows: int) -> None:
        """One processor serves one call of `generate`, at any number of rows."""
        constraint = self._make()
        self._process = AnswerProcessor(constraint, self._prompt, (constraint.start(Phase.LIST),))

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._process(ids, scores)


def measure(
    tokenizer: Path | None = None,
    vocabulary: Vocabulary | None = None,
    *,
    rows: Sequence[int] = ROWS,
    rounds: int = 5,
    steps: int = 40,
    width: int = WIDTH,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures as one JSON object; `WHAT_IT_IS` says what each is, and numbers of rows are keys as text.

    `tokenizer` is the folder of a GLM-4 tokenizer, or None for the bundled one, whose ids lie within the same `width`.
    A library that is absent, or that cannot do the task, is None; `reasons` says why. Raises ValueError for fewer than
    1 round or 3 steps.
    """
    if rounds < 1 or steps < 3:
        raise ValueError(f"{rounds} rounds of {steps} steps: at least 1 of 3")
    template = ChatTemplate(load_tokenizer(tokenizer or TINY))
    vocabulary = vocabulary or load_vocabulary()
    task = Task(template, vocabulary.labels, width, PROMPT)
    names, ids, masked = task.names, answer_ids(template), load_conflicts(vocabulary).tiers == MASKED_TIER

    def make() -> Constraint:
        return Constraint(names, masked, ids)

    started = perf_counter()
    make()
    seconds = {OURS: round(perf_counter() - started, 2)}
    peers, reasons = _peers(task, seconds)
    writers: dict[str, Peer] = {OURS: _Ours(make, task), **peers}
    times = {}
    for count in rows:
        of_labels = {
            labels: random_lists(make(), [vocabulary.index(label) for label in labels], count, steps, random.Random(seed))
            for labels in {writer.labels for writer in writers.values()}
        }
        known = [vocabulary.index(label) for label in writers[OURS].labels]
        another = random_lists(make(), known, 1, steps, random.Random(seed + 1))
        alone = _time_states(make, of_labels[writers[OURS].labels], another, max(rounds, STATE_ROUNDS))
        times[count] = {"state": alone, **_rounds(writers, of_labels, rounds, width)}
    return {
        "labels": {name: len(writer.labels) for name, writer in writers.items()},
        "width": width,
        "tokens": template.size,
        "prompt": PROMPT,
        "steps": steps,
        "rounds": rounds,
        "state_rounds": max(rounds, STATE_ROUNDS),
        "threads": torch.get_num_threads(),
        "state_us_per_row": {str(count): _round(found["state"] / count) for count, found in times.items()},
        **_compared(times, tuple(peers)),
        "setup_s": seconds,
        "reasons": reasons,
        "versions": {name: version(name) for name in ("torch", *peers) if name != "xgrammar_compiled"},
        "what_it_is": WHAT_IT_IS,
    }


def _peers(task: Task, seconds: dict[str, float]) -> tuple[dict[str, Peer], dict[str, str]]:
    """The libraries that can be timed, and why others cannot; adds the `seconds` of setting each up, its check included."""
    peers: dict[str, Peer] = {}
    reasons: dict[str, str] = {}
    for name in PEERS:
        started = perf_counter()
        try:
            peers[name] = build(name, task)
        except (ImportError, RuntimeError, ValueError) as error:
            reasons[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        seconds[name] = round(perf_counter() - started, 2)
        if limit := getattr(peers[name], "limit", ""):
            reasons[name] = limit[:300]
    return peers, reasons


def random_lists(constraint: Constraint, only: Sequence[int], rows: int, steps: int, rng: random.Random) -> torch.Tensor:
    """Ids [rows, PROMPT + steps] of lists of some labels, none of them ended.

    RuntimeError if the labels (`only`, positions in the vocabulary) are too few to write on for so many steps.
    """
    start, end = constraint.start(Phase.LIST, only=only), constraint.ids.end
    ids = torch.zeros(rows, PROMPT + steps, dtype=torch.int64)
    for row in range(rows):
        state, tokens = start, []
        for _ in range(steps):
            going_on = [token for token in constraint.allowed(state).tolist() if token != end]
            if not going_on:
                raise RuntimeError(f"{len(only)} labels are too few for lists of {steps} tokens")
            tokens.append(rng.choice(going_on))
            state = constraint.step(state, tokens[-1])
        ids[row, PROMPT:] = torch.tensor(tokens)
    return ids


def _rounds(
    writers: Mapping[str, Peer],
    of_labels: Mapping[tuple[str, ...], torch.Tensor],
    rounds: int,
    width: int,
) -> dict[str, float]:
    """Microseconds a step at one number of rows, by writer and by writer/part."""
    rows = len(of_labels[writers[OURS].labels])
    scores = torch.randn(rows, width)
    # Some libraries leave -inf behind. The time of their masks does not depend on the scores.
    changed = scores.clone()
    found: dict[str, list[list[float]]] = {}
    for round_ in range(rounds + 1):
        taken: dict[str, list[float]] = {}
        for name, writer in writers.items():
            lists = of_labels[writer.labels]
            steps = (lists.shape[1] - PROMPT) // (4 if rows >= SHORT.get(name, rows + 1) else 1)
            taken |= _time_writer(name, writer, lists[:, : PROMPT + max(3, steps)], scores if name == OURS else changed)
        if round_:  # the first one warms up: kernels are compiled for their shapes in it
            for name, seconds in taken.items():
                found.setdefault(name, []).append(seconds)
    of_steps = {name: np.median(seconds, axis=0) * 1e6 for name, seconds in found.items()}
    later = {f"{name}/{LATER}": times[2:].mean() for name, times in of_steps.items() if name in writers}
    return {name: float(times.mean()) for name, times in (of_steps | later).items()}


def _time_writer(name: str, writer: Peer, lists: torch.Tensor, scores: torch.Tensor) -> dict[str, list[float]]:
    """Seconds of each step, by writer and by writer/part."""
    writer.begin(len(lists))
    taken: dict[str, list[float]] = {}
    for place in range(PROMPT, lists.shape[1]):
        ids = lists[:, :place].contiguous()
        started = perf_counter()
        writer(ids, scores)
        spent = perf_counter() - started
        for key, seconds in {name: spent, **{f"{name}/{part}": of_part for part, of_part in writer.parts.items()}}.items():
            taken.setdefault(key, []).append(seconds)
    return taken


def _time_states(make: Callable[[], Constraint], lists: torch.Tensor, another: torch.Tensor, rounds: int) -> float:
    """Microseconds a step for all rows, handed in as `AnswerProcessor` does: by themselves, since no library is beside them.

    A constraint has decoded one other list before, as in a process that has begun its work; the timed ones are new to it.
    """
    taken = []
    for _ in range(rounds + 1):
        constraint = make()
        _read_list(constraint, another)
        taken.append(_read_list(constraint, lists))
    return float(np.median(taken[1:], axis=0).mean() * 1e6)


def _read_list(constraint: Constraint, lists: torch.Tensor) -> list[float]:
    """Seconds of each step: the states of all rows, and what each may go on with."""
    spent = []
    states, starts = StatesByIds(constraint), (constraint.start(Phase.LIST),) * len(lists)
    for place in range(PROMPT, lists.shape[1]):
        rows = lists[:, :place].contiguous().numpy()[:, PROMPT:]
        started = perf_counter()
        for state in states.of(starts, rows):
            constraint.allowed(state)
        spent.append(perf_counter() - started)
    return spent


def _compared(times: Mapping[int, Mapping[str, float]], peers: Sequence[str]) -> dict[str, Any]:
    """The tables by writer and number of rows; a library that was not timed is None in each."""

    def table(key: str) -> dict[str, float]:
        return {str(rows): _round(found[key]) for rows, found in times.items()}

    keys = {key for found in times.values() for key in found if "/" in key and not key.endswith(LATER)}
    parts = {key: table(key) for key in sorted(keys)}
    return {
        "processor_us": {OURS: table(OURS), **{name: table(name) if name in peers else None for name in PEERS}},
        "processor_later_us": {name: table(f"{name}/{LATER}") for name in (OURS, *peers)},
        "peer_parts_us": {
            name: {key.split("/")[1]: of_rows for key, of_rows in parts.items() if key.split("/")[0] == name}
            for name in dict.fromkeys(key.split("/")[0] for key in parts)
        },
        **{
            f"vs_{name}": {str(rows): _round(found[name] / found[OURS]) for rows, found in times.items()}
            if name in peers
            else None
            for name in PEERS
        },
    }


def _round(value: float) -> float:
    """Three significant digits: more would be noise."""
    return float(f"{value:.3g}")
