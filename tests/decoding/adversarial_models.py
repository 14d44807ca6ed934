"""Random tasks for the constraint, models that tempt it, and a check of lists that shares no code with it.

A model here is a table of random logits, looked up by a hash of all ids so far: `generate` treats it as any causal model, and
thousands of lists cost seconds. Its `Temptation` sees what the constraint would allow, only to put the worst numbers there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationMixin, LogitsProcessor, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from yaofang.decoding.answer_ids import AnswerIds
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.processors import AnswerProcessor
from yaofang.decoding.reading import read

WIDTH = 64
NAME_TOKENS = 24
"""Names are made of ids below this; those up to `SPECIAL` are text that no name holds."""
SPECIAL = 50
PAD = 63
IDS = AnswerIds(
    opening=(52, 40, 41),
    diagnosis_separator=53,
    newline=52,
    header=(42, 43),
    drug_separator=54,
    end=61,
    ends=frozenset({60, 61, 62}),
    text=np.array([*range(SPECIAL), 54], dtype=np.int64),
)
KINDS = ("uniform", "random", "ties", "loud ends", "forbidden peaks", "allowed never", "huge")
BEAM_KINDS = (*KINDS[:-1], "large")
"""Beam search of transformers marks what is no beam with a score of -1e9, so a model must not go below that itself."""
Matrix = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
    """A vocabulary, its conflicts (as drawn: one way only), limits, and each row's bans. `ids` are the answer's fixed parts."""

    names: list[tuple[int, ...]]
    conflicts: Matrix
    banned: list[set[int]]
    min_drugs: int
    max_drugs: int
    ids: AnswerIds = field(repr=False, default=IDS)
    phase: Phase = Phase.LIST
    max_diagnosis_tokens: int = 6

    def constraint(self) -> Constraint:
        return Constraint(
            self.names,
            self.conflicts,
            self.ids,
            min_drugs=self.min_drugs,
            max_drugs=self.max_drugs,
            max_diagnosis_tokens=self.max_diagnosis_tokens,
        )

    def starts(self, constraint: Constraint) -> list[State]:
        return [constraint.start(self.phase, banned=banned) for banned in self.banned]

    @property
    def longest(self) -> int:
        """Ids that any answer fits into."""
        answer = len(self.ids.opening) + self.max_diagnosis_tokens + 1 + len(self.ids.header)
        return self.max_drugs * (1 + max(map(len, self.names))) + answer * (self.phase != Phase.LIST)


def random_task(
    rng: np.random.Generator,
    rows: int,
    *,
    ids: AnswerIds = IDS,
    tokens: Sequence[int] = range(NAME_TOKENS),
    phase: Phase = Phase.LIST,
) -> Task:
    """5 to 40 names of 1 to 5 tokens that share beginnings and continue each other, with conflicts, bans and limits."""
    size, few = int(rng.integers(5, 41)), rng.permutation(tokens)[: int(rng.integers(4, 13))]
    names: list[tuple[int, ...]] = []
    while len(names) < size:
        new = tuple(int(token) for token in rng.choice(few, rng.integers(1, 6)))
        if names and rng.random() < 0.3:  # go on from another name, or cut one short
            other = names[int(rng.integers(len(names)))]
            new = ((*other, new[0]) if rng.random() < 0.5 else other[:-1] or new)[:5]
        if new not in names:
            names.append(new)
    conflicts = rng.random((size, size)) < rng.choice([0.0, 0.02, 0.1, 0.3, 0.9], p=[0.2, 0.4, 0.2, 0.1, 0.1])
    shares = rng.choice([0.0, 0.2, 0.6, 1.0], p=[0.4, 0.4, 0.15, 0.05], size=rows)
    banned = [{int(drug) for drug in np.flatnonzero(rng.random(size) < share)} for share in shares]
    most = int(rng.integers(1, 9))
    return Task(names, conflicts, banned, int(rng.integers(1, most + 1)), most, ids, phase)


class Temptation(LogitsProcessor):  # type: ignore[misc]
    """Makes the numbers of a model as bad as its kind says, by what the constraint would allow next."""

    def __init__(self, kind: str, task: Task, prompt_length: int) -> None:
        constraint = task.constraint()
        self.kind, self._ids = kind, task.ids
        self._peek = AnswerProcessor(constraint, prompt_length, task.starts(constraint))
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] of the same shape, from random ones."""
        quiet = scores.clone()
        quiet[:, self._ids.end] -= 4.0
        if self.kind == "uniform":
            return torch.zeros_like(scores)
        if self.kind == "random":
            return quiet
        if self.kind == "ties":
            return quiet.round().clamp(-1, 1)
        if self.kind in ("huge", "large"):
            return scores.sign() * (1e30 if self.kind == "huge" else 1e6)
        if self.kind == "loud ends":
            return self._loud(input_ids, scores)
        allowed = torch.isfinite(self._peek(input_ids, torch.zeros_like(scores)))
        if self.kind == "forbidden peaks":
            return torch.where(allowed, quiet, 1e4)
        if self.kind == "allowed never":
            return torch.where(allowed, -torch.inf, scores)
        if self.kind == "nan":
            return torch.where(allowed, torch.nan, scores)
        if self.kind == "inf":
            return torch.where(allowed, torch.inf, scores)
        raise ValueError(self.kind)

    def _loud(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Every end, special id and id outside the names, and every id of the row so far, is 50 above the rest."""
        loud = scores.clone()
        loud[:, SPECIAL:] += 50.0
        loud[:, [*self._ids.ends]] += 50.0
        loud.scatter_add_(1, input_ids[:, self._prompt_length :], torch.full(input_ids.shape, 50.0)[:, self._prompt_length :])
        return loud


class TableConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "random-table"


class TableModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Logits from a random table by a hash of the attended ids: no weights worth the name, no attention, no cache."""

    config_class = TableConfig
    ENTRIES = 4099

    def __init__(self, seed: int, spread: float = 2.0) -> None:
        super().__init__(TableConfig(vocab_size=WIDTH, pad_token_id=PAD, eos_token_id=sorted(IDS.ends)))
        drawn = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(self.ENTRIES, WIDTH, generator=drawn) * spread, requires_grad=False)
        self._factors = torch.randint(1, self.ENTRIES, (512,), generator=drawn)
        self.temptation: Temptation | None = None

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """The whole row each time: there is no cache."""
        return {"input_ids": input_ids, "attention_mask": kwargs["attention_mask"]}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> CausalLMOutput:
        """Logits [rows, 1, vocabulary] after the last id; what is padded on the left changes nothing."""
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        entry = ((input_ids + 1) * self._factors[seen.cumsum(1)] * seen).sum(1) % self.ENTRIES
        logits = self.table[entry]
        return CausalLMOutput(logits=(self.temptation(input_ids, logits) if self.temptation else logits)[:, None])


def prompts_of(rng: np.random.Generator, rows: int, *, longest: int = 7, unequal: bool = True) -> dict[str, torch.Tensor]:
    """Random prompts, padded on the left to one width."""
    ids = torch.from_numpy(rng.integers(0, SPECIAL, (rows, longest)))
    short = torch.from_numpy(rng.integers(0, longest, rows)) if unequal else torch.zeros(rows, dtype=torch.long)
    seen = (torch.arange(longest)[None] >= short[:, None]).long()
    return {"input_ids": torch.where(seen.bool(), ids, PAD), "attention_mask": seen}


def split(ids: Sequence[int], separator: int) -> list[tuple[int, ...]]:
    """The runs of ids between separators; at least one, each possibly empty."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    return [tuple(part) for part in parts]


def without_answer(task: Task, ids: list[int]) -> list[int] | None:
    """The list's ids of a whole answer, or None if it was cut before its list; checks all before the list."""
    opening, header = list(task.ids.opening), list(task.ids.header)
    assert ids[: len(opening)] == opening[: len(ids)], "another opening"
    rest = ids[len(opening) :]
    diagnoses = rest[: rest.index(task.ids.newline)] if task.ids.newline in rest else rest
    assert len(diagnoses) <= task.max_diagnosis_tokens, "more diagnoses than their budget"
    parts = split(diagnoses, task.ids.diagnosis_separator)
    assert all(parts[:-1]), "an empty diagnosis"
    text = set(task.ids.text.tolist())
    assert all(text.issuperset(part) for part in parts), "no text in a diagnosis"
    if len(diagnoses) == len(rest):
        return None
    # The budget may close after a separator: what is empty then is no diagnosis.
    assert parts[-1] or len(diagnoses) == task.max_diagnosis_tokens
    after = rest[len(diagnoses) + 1 :]
    assert after[: len(header)] == header[: len(after)], "another header"
    return after[len(header) :] if len(after) >= len(header) else None


def check(task: Task, row: int, written: Sequence[int], limit: int, state: State, constraint: Constraint) -> int:
    """Assert that a row's ids are a list that the task allows; the number of its drugs.

    `written` are the ids after the prompt, `limit` how many might be written. `state` is the row's start, for `read`.
    """
    ends = [at for at, token in enumerate(written) if token in task.ids.ends]
    ids = list(written[: ends[0]] if ends else written)
    if ends:
        assert written[ends[0]] == task.ids.end, "an end that training did not teach"
    else:
        assert len(ids) == limit, "stopped without an end"
    reading = read(constraint, state, list(written))
    listed = ids if task.phase == Phase.LIST else without_answer(task, ids)
    assert listed is not None or not ends, "ended before the list"
    drugs = [] if listed is None else whole_drugs(task, row, listed, ended=bool(ends))
    assert reading.drugs == drugs, "read as other drugs"
    assert reading.truncated == (not ends), "cut rows and ended rows are told apart"
    return len(drugs)


def whole_drugs(task: Task, row: int, listed: list[int], *, ended: bool) -> list[int]:
    """The drugs of a list, from its ids and a dict of names; asserts the task's whole rule."""
    number = {name: drug for drug, name in enumerate(task.names)}
    *done, last = split(listed, task.ids.drug_separator)
    assert all(name in number for name in done), "a name outside the vocabulary"
    drugs = [number[name] for name in done]
    possible = may_follow(task, row, drugs)
    begun = [drug for drug in possible if task.names[drug][: len(last)] == last]
    if ended and last:
        assert last in number, "a name outside the vocabulary"
        drugs.append(number[last])
    elif ended:
        assert not done, "an end after a separator"
        assert not possible, "an empty list though a drug was allowed"
    else:
        assert begun or not listed, "cut on the way to nowhere"
        if last in number and [number[last]] == begun:
            drugs.append(number[last])
    check_drugs(task, row, drugs)
    if ended and len(drugs) < task.min_drugs:
        assert not may_follow(task, row, drugs), "fewer than the least though a drug could follow"
    return drugs


def check_drugs(task: Task, row: int, drugs: Sequence[int]) -> None:
    """What holds for the drugs of any row, a filler's too."""
    assert len(set(drugs)) == len(drugs), "a repeat"
    assert not task.banned[row].intersection(drugs), "a banned drug"
    assert not task.conflicts[np.ix_(drugs, drugs)][~np.eye(len(drugs), dtype=np.bool_)].any(), "a pair in conflict"
    assert len(drugs) <= task.max_drugs, "more than the most"


def may_follow(task: Task, row: int, drugs: Sequence[int]) -> list[int]:
    """Drugs that are neither banned nor listed nor in conflict with a listed one."""
    closed: Matrix = np.any(task.conflicts[list(drugs)], axis=0) | np.any(task.conflicts[:, list(drugs)], axis=1)
    return [d for d in range(len(task.names)) if d not in task.banned[row] and d not in drugs and not closed[d]]
