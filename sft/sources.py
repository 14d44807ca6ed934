"""What a run trains on: records with drugs and conversations, from the recipe's file or ward and from the files mixed in.

    sources = read_sources(recipe, vocabulary, skip_bad=False)
    examples = examples_of(sources, template, recipe)

What a file holds is read from its fields (`data.conversations`). A weight says how often a row is seen an epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from yaofang.data.conversations import Conversation, form_of, read_conversations
from yaofang.data.records import Record, read_records
from yaofang.data.ward.simulate import simulate
from yaofang.eval.baselines.choice import usable_training
from yaofang.glm.template import ChatTemplate
from yaofang.sft.examples import Example, build_conversations, build_examples
from yaofang.sft.parts import Recipe
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of

log = logging.getLogger(__name__)


@dataclass
class Sources:
    """Records (each with drugs of the vocabulary) and conversations, in the order of the recipe.

    The drugs' counts and their canonical order come from the records alone, each counted once whatever its weight.
    """

    records: list[Record] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)
    record_weights: list[float] = field(default_factory=list)
    conversation_weights: list[float] = field(default_factory=list)
    skipped: list[InputError] = field(default_factory=list)
    """Rows that `skip_bad` left out."""

    @property
    def weights(self) -> list[float]:
        """How often each row is seen an epoch: the records', then the conversations'."""
        return [*self.record_weights, *self.conversation_weights]

    @property
    def texts(self) -> list[str]:
        """What the conversations say, for a new tokenizer."""
        return [turn.content for conversation in self.conversations for turn in conversation.turns]

    @property
    def version(self) -> str:
        """Twelve hex digits over all rows and, where they are not all 1, the weights; of records alone, `data_hash`'s."""
        rows = [record.model_dump_json(by_alias=True) for record in self.records]
        said = [repr(conversation.turns) for conversation in self.conversations]
        return sha256_of(*rows, *said, *(map(str, self.weights) if set(self.weights) != {1.0} else ()))[:12]

    def only(self, records: Iterable[Record]) -> Sources:
        """The same with these of its records alone: the others are held out for validation."""
        kept = {id(record) for record in records}
        pairs = [(record, w) for record, w in zip(self.records, self.record_weights, strict=True) if id(record) in kept]
        return replace(self, records=[record for record, _ in pairs], record_weights=[weight for _, weight in pairs])


def read_sources(recipe: Recipe, vocabulary: Vocabulary, skip_bad: bool) -> Sources:
    """Everything that the recipe names. Raises the first error, or with `skip_bad` lists and logs what cannot be trained on."""
    found, data = Sources(), recipe.data
    if data.ward is not None:
        _add_records(found, simulate(data.ward.patients, data.ward.seed).train, 1.0, None, vocabulary, skip_bad)
    if data.train is not None:
        _read(found, data.train, 1.0, vocabulary, skip_bad)
    for source in data.mix:
        _read(found, source.path, source.weight, vocabulary, skip_bad)
    for error in found.skipped:
        log.warning("skipped: %s", error)
    return found


def _read(found: Sources, path: Path, weight: float, vocabulary: Vocabulary, skip_bad: bool) -> None:
    form = form_of(path)
    if form == "records":
        read = read_records(path, skip_bad=skip_bad)
        found.skipped += read.skipped
        rows = _add_records(found, read.records, weight, path, vocabulary, skip_bad)
    else:
        talks = read_conversations(path, skip_bad=skip_bad)
        found.skipped += talks.skipped
        found.conversations += talks.conversations
        rows = len(talks.conversations)
        found.conversation_weights += [weight] * rows
    log.info("%s: %d rows (%s), weight %g", path.name, rows, form, weight)


def _add_records(
    found: Sources, records: Sequence[Record], weight: float, path: Path | None, vocabulary: Vocabulary, skip_bad: bool
) -> int:
    good, unusable = usable_training(records, vocabulary, path)
    if unusable and not (skip_bad and good):
        raise unusable[0]
    found.records += good
    found.record_weights += [weight] * len(good)
    found.skipped += unusable
    return len(good)


def examples_of(sources: Sources, template: ChatTemplate, recipe: Recipe) -> list[Example]:
    """One example a row, records before conversations, as `sources.weights` has them; how often each is seen is planned later.

    Raises InputError for a row that does not fit.
    """
    plan = recipe.data
    examples = build_examples(
        sources.records,
        template,
        plan.max_length,
        answer_tokens=plan.answer_tokens,
        canonical=plan.drug_order == "canonical",
        diagnoses=plan.answer == "diagnoses_and_drugs",
    )
    return examples + build_conversations(sources.conversations, template, plan.max_length)
