"""A record made ready for a model: prompt fitted to the context, given diagnoses put into the answer, bans as a start state.

Knows records, labels and the template; nothing is generated here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from yaofang.data.answer import OPENING, clean_diagnosis, diagnosis_pieces
from yaofang.data.facts import facts_of
from yaofang.data.prompts import SYSTEM, Prompt, build_prompt
from yaofang.data.records import Record
from yaofang.decoding.constraint import Constraint, Phase, State
from yaofang.decoding.settings import Settings
from yaofang.glm.loading import LoadedModel
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.patient import PatientFacts, PatientRules

THREADS = 4
"""Threads that prepare records, at most: only the tokenizer lets others work meanwhile."""


@dataclass(frozen=True, slots=True)
class Task:
    """A record made ready: ids up to where the model goes on, and the state it goes on from."""

    record: Record
    prompt: Prompt
    ids: list[int]
    prompt_tokens: int
    given: bool
    start: State
    limit: int
    facts: PatientFacts


class Preparer:
    """Makes tasks. For models that were trained to write drugs alone the diagnoses' part of the answer is given, and empty.

    Raises InputError for a formulary or a ban that names a label outside the vocabulary, for models that were trained to write
    different parts, and for given diagnoses where the model takes none.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        vocabulary: Vocabulary,
        constraint: Constraint,
        rules: PatientRules,
        settings: Settings,
    ) -> None:
        self._template = models[0].template
        self._vocabulary = vocabulary
        self._constraint = constraint
        self._rules = rules
        self._settings = settings
        self._drugs_only = _drugs_only(models, settings)
        self._context = min(loaded.context for loaded in models)
        # A record is fitted to what the models saw in training, where they say so.
        self._trained = min(loaded.prompt_tokens or loaded.context for loaded in models)
        turns = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": ""})
        self._overhead = len(self._template.prompt_ids(turns))
        self._only = None if settings.formulary is None else self._places(settings.formulary, "--formulary")
        self._banned = {record: self._places(labels, "--ban") for record, labels in settings.banned.items()}

    def _places(self, labels: Sequence[str], field: str) -> list[int]:
        for label in labels:
            if label not in self._vocabulary:
                way_out = "Use labels of the vocabulary; `yaofang vocab match` finds the label of a name."
                raise InputError(f"{label} is not in the vocabulary", field=field, way_out=way_out)
        return [self._vocabulary.index(label) for label in labels]

    def __call__(self, record: Record) -> Task:
        """The record's task. Raises InputError that names the record and the field if it cannot be made to fit."""
        if self._drugs_only:
            record = record.model_copy(update={"diagnoses": ()})
        given = self._drugs_only or self._has_given(record)
        pieces = diagnosis_pieces(record.diagnoses) if given else ["\n", OPENING.removeprefix("\n")]
        opened = [token for piece in pieces for token in self._template.encode(piece)]
        free = 0 if given else self._settings.max_diagnosis_tokens + 1 + len(self._constraint.ids.header)
        limit = free + self._settings.max_list_tokens
        budget = min(self._trained, self._context - self._overhead - len(opened) - limit)
        if budget < 1:
            raise self._too_long(record)
        try:
            prompt = build_prompt(record, budget=budget, count=self._template.count)
        except InputError as error:
            raise InputError(f"record {record.id}: {error.problem}", field=error.field, way_out=error.way_out) from error
        ids = self._template.prompt_ids(prompt.messages)
        if len(ids) + len(opened) + limit > self._context:
            raise self._too_long(record)
        # Where the diagnoses are generated, the record's own are not looked at, for the facts either.
        facts = facts_of(record if given else record.model_copy(update={"diagnoses": ()}))
        start = self._constraint.start(
            Phase.LIST if given else Phase.DIAGNOSES, banned=self._bans(record, facts), only=self._only
        )
        return Task(record, prompt, ids + opened, len(ids), given, start, limit, facts)

    def each(self, records: Sequence[Record]) -> Iterator[Task | InputError]:
        """The records' tasks in their order, or what is wrong with a record; by several threads if torch works with several."""
        # The first one alone fills what is remembered of the tables, which each thread would fill for itself otherwise.
        yield from map(self._task_or_error, records[:1])
        with ThreadPoolExecutor(min(THREADS, torch.get_num_threads())) as pool:
            yield from pool.map(self._task_or_error, records[1:])

    def _task_or_error(self, record: Record) -> Task | InputError:
        try:
            return self(record)
        except InputError as error:
            return error

    def _bans(self, record: Record, facts: PatientFacts) -> list[int]:
        bans = list(self._banned.get(record.id, ()))
        if self._settings.mask_patient:
            bans += self._rules.contraindicated(facts, self._vocabulary.drugs)
        return bans

    def _has_given(self, record: Record) -> bool:
        has_any = any(clean_diagnosis(name) for name in record.diagnoses)
        if self._settings.diagnoses == "given" and not has_any:
            raise InputError(
                f"record {record.id} has no diagnoses", field="出院诊断", way_out="Use --diagnoses auto or generated."
            )
        return has_any and self._settings.diagnoses != "generated"

    def _too_long(self, record: Record) -> InputError:
        return InputError(
            f"record {record.id} leaves no room for an answer in the model's context of {self._context} tokens",
            field="出院诊断",
            way_out="Shorten the record, or use a model of a longer context.",
        )


def _drugs_only(models: Sequence[LoadedModel], settings: Settings) -> bool:
    if len(answers := {loaded.answer for loaded in models}) > 1:
        named = ", ".join(f"{loaded.name}: {loaded.answer}" for loaded in models)
        way_out = "Let only models vote that were trained with the same data.answer."
        raise InputError(f"the models write different answers ({named})", field="model", way_out=way_out)
    only = answers == {"drugs_only"}
    if only and settings.diagnoses == "given":
        way_out = "Leave --diagnoses out, or take a model that writes diagnoses and drugs."
        problem = "the model was trained to write drugs alone: it takes no diagnoses"
        raise InputError(problem, field="--diagnoses", way_out=way_out)
    return only
