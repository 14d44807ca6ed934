"""Records with drugs, and conversations, become training examples: input ids and a completion mask. No example is ever lost.

A record is fitted to the token budget section by section (`data.prompts`) and its answer is never shortened; a conversation
leaves out its oldest exchanges whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from yaofang.data.answer import Answer, canonical_order, drug_frequency, pieces
from yaofang.data.conversations import Conversation, Turn
from yaofang.data.parallel import spread
from yaofang.data.prompts import SYSTEM, build_prompt
from yaofang.data.recommendation import Cut
from yaofang.data.records import Record
from yaofang.glm.template import ChatTemplate
from yaofang.vocab.errors import InputError

EARLIER_TURNS = "较早的对话"
"""Name of what a conversation leaves out, among the sections of `Cut`."""


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
    record: Record,
    template: ChatTemplate,
    max_length: int,
    budget: int,
    frequency: Mapping[str, int] | None,
    *,
    diagnoses: bool = True,
) -> Example:
    """One record as ids of at most `max_length`. `frequency` None keeps the drugs in the order in which they were written.

    Without `diagnoses` their part of the answer is empty. The record's turn gets `budget` tokens, and fewer only where the
    answer needs more than was kept free for it. Raises InputError that names the record if the answer and the sections that
    are never cut do not fit.
    """
    drugs = record.drugs if frequency is None else canonical_order(record.drugs, frequency)
    answer = pieces(Answer(record.diagnoses if diagnoses else (), drugs))
    room = prompt_budget(template, max_length, len(template.completion_ids(answer)))
    try:
        prompt = build_prompt(record, budget=min(budget, room), count=template.count)
    except InputError as error:
        way_out = "Make data.max_length larger."
        raise InputError(f"record {record.id}: {error.problem}", field=error.field, way_out=way_out) from error
    ids, mask = template.example(prompt.messages, answer)
    return Example(record.id, ids, mask, prompt.cuts)


def build_conversation(conversation: Conversation, template: ChatTemplate, max_length: int) -> Example:
    """One conversation as ids of at most `max_length`: every assistant's turn is trained, with the marker that ends it.

    Where it is longer, the oldest exchanges of user and assistant are left out whole; system turn and last exchange stay.
    Raises InputError that names the row if these do not fit.
    """
    start = int(conversation.turns[0].role == "system")
    system, talk = conversation.turns[:start], conversation.turns[start:]
    exchanges = list(zip(talk[::2], talk[1::2], strict=True))
    whole = first = _ids(system, exchanges, template)
    while len(first[0]) > max_length and len(exchanges) > 1:
        exchanges = exchanges[1:]
        first = _ids(system, exchanges, template)
    ids, mask = first
    if len(ids) > max_length:
        problem = f"conversation {conversation.id}: its last exchange needs {len(ids)} tokens, data.max_length is {max_length}"
        raise InputError(problem, way_out="Make data.max_length larger, or take the row out.")
    gone = len(whole[0]) - len(ids)
    return Example(conversation.id, ids, mask, (Cut(EARLIER_TURNS, gone),) if gone else ())


def _ids(system: Sequence[Turn], exchanges: Sequence[tuple[Turn, Turn]], template: ChatTemplate) -> tuple[list[int], list[int]]:
    """Ids and completion mask. The stop id of an assistant's turn is the marker of the user's turn after it, written once."""
    ids: list[int] = []
    mask: list[int] = []
    for user, assistant in exchanges:
        turns = [{"role": turn.role, "content": turn.content} for turn in ((user,) if ids else (*system, user))]
        asked, answered = template.example(turns, ("\n", assistant.content))
        known = len(template.prefix) + 1 if ids else 0
        ids += asked[known:]
        mask += answered[known:]
    return ids, mask


def _built(records: Sequence[Record], **settings: Any) -> list[Example]:
    return [build_example(record, **settings) for record in records]


def _built_conversations(conversations: Sequence[Conversation], **settings: Any) -> list[Example]:
    return [build_conversation(conversation, **settings) for conversation in conversations]


def build_examples(
    records: Sequence[Record],
    template: ChatTemplate,
    max_length: int,
    *,
    answer_tokens: int = 0,
    canonical: bool = True,
    frequency: Mapping[str, int] | None = None,
    diagnoses: bool = True,
) -> list[Example]:
    """All records as examples, one each, in the same order. `frequency` None counts the drugs of these records.

    Not `canonical`: drugs in the order in which they were written. Without `diagnoses` their part of the answers is empty.
    """
    counted = (drug_frequency(records) if frequency is None else frequency) if canonical else None
    settings: dict[str, Any] = {
        "template": template,
        "max_length": max_length,
        "budget": prompt_budget(template, max_length, answer_tokens),
        "frequency": counted,
        "diagnoses": diagnoses,
    }
    return _whole(spread(partial(_built, **settings), records), len(records), template, max_length)


def build_conversations(conversations: Sequence[Conversation], template: ChatTemplate, max_length: int) -> list[Example]:
    """All conversations as examples, one each, in the same order."""
    settings: dict[str, Any] = {"template": template, "max_length": max_length}
    examples = spread(partial(_built_conversations, **settings), conversations)
    return _whole(examples, len(conversations), template, max_length)


def _whole(examples: list[Example], number: int, template: ChatTemplate, max_length: int) -> list[Example]:
    assert len(examples) == number, "an example was lost"
    for example in examples:
        assert len(example.input_ids) <= max_length, f"{example.id}: {len(example.input_ids)} tokens"
        assert example.completion_mask[-1] == 1, f"{example.id}: the stop id is not trained"
        assert example.input_ids[-1] == template.stop_id
    return examples
