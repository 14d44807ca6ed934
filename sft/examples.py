"""Records with drugs become training examples: input ids and a completion mask. No example is ever lost or cut off blindly.

The record is fitted to the token budget section by section (`data.prompts`); the answer is never shortened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from yaofang.data.answer import Answer, canonical_order, drug_frequency, pieces
from yaofang.data.parallel import spread
from yaofang.data.prompts import SYSTEM, build_prompt
from yaofang.data.recommendation import Cut
from yaofang.data.records import Record
from yaofang.glm.template import ChatTemplate
from yaofang.vocab.errors import InputError


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: `input_ids` and `completion_mask` of the same length, and what was cut to fit."""

    id: str
    input_ids: list[int]
    completion_mask: list[int]
    cuts: tuple[Cut, ...]


def prompt_budget(template: ChatTemplate, max_length: int, answer_tokens: int) -> int:
    """Tokens that the record's turn may have, the same for every record: what neither the frame nor the answer needs."""
    turns = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": ""})
    return max_length - len(template.prompt_ids(turns)) - answer_tokens


def build_example(
    record: Record, template: ChatTemplate, max_length: int, budget: int, frequency: Mapping[str, int] | None
) -> Example:
    """One record as ids of at most `max_length`. `frequency` None keeps the drugs in the order in which they were written.

    The record's turn gets `budget` tokens, and fewer only where the answer needs more than was kept free for it.
    Raises InputError that names the record if the answer and the sections that are never cut do not fit.
    """
    drugs = record.drugs if frequency is None else canonical_order(record.drugs, frequency)
    answer = pieces(Answer(record.diagnoses, tuple(drugs)))
    room = prompt_budget(template, max_length, len(template.completion_ids(answer)))
    try:
        prompt = build_prompt(record, budget=min(budget, room), count=template.count)
    except InputError as error:
        way_out = "Make data.max_length larger."
        raise InputError(f"record {record.id}: {error.problem}", field=error.field, way_out=way_out) from error
    ids, mask = template.example(prompt.messages, answer)
    return Example(record.id, ids, mask, prompt.cuts)


def _built(records: Sequence[Record], **settings: Any) -> list[Example]:
    return [build_example(record, **settings) for record in records]


def build_examples(
    records: Sequence[Record],
    template: ChatTemplate,
    max_length: int,
    *,
    answer_tokens: int = 0,
    canonical: bool = True,
) -> list[Example]:
    """All records as examples, one each, in the same order."""
    frequency = drug_frequency(records) if canonical else None
    budget = prompt_budget(template, max_length, answer_tokens)
    settings: dict[str, Any] = {"template": template, "max_length": max_length, "budget": budget, "frequency": frequency}
    examples = spread(partial(_built, **settings), records)
    assert len(examples) == len(records), "an example was lost"
    for example in examples:
        assert len(example.input_ids) <= max_length, f"{example.id}: {len(example.input_ids)} tokens"
        assert example.completion_mask[-1] == 1, f"{example.id}: the stop id is not trained"
        assert example.input_ids[-1] == template.stop_id
    return examples
