"""From a record to a `Recommendation`: prompt, constrained generation, reading, and the reasons for what is not listed.

    rx = Recommender.from_pretrained("path/to/model")
    rx(record); rx.batch(records); rx.stream(record)

Knows records, labels and models' folders; which token may come next is `decoding.constraint`'s, how prompts look
`data.prompts`'. Every label it returns is in the vocabulary, none twice, no two of tier T1: checked once more at the end.

What the numbers beside a drug mean is said in `decoding.reasons`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaofang
from yaofang.data.answer import OPENING, clean_diagnosis, diagnosis_pieces
from yaofang.data.facts import facts_of
from yaofang.data.prompts import SYSTEM, Prompt, build_prompt
from yaofang.data.recommendation import Diagnosis, Drug, Recommendation
from yaofang.data.records import Record
from yaofang.decoding.constraint import Phase, State
from yaofang.decoding.generation import Generation, Row, check_same_tokenizer
from yaofang.decoding.processors import constraint_for
from yaofang.decoding.reasons import blocked_of, check_list, drugs_of, with_patient_warnings
from yaofang.glm.loading import LoadedModel, load_model
from yaofang.vocab.conflicts import ConflictTable, load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.patient import PatientFacts, load_patient_rules

Diagnoses = Literal["auto", "given", "generated"]
MOST_DRUGS = 30
DIAGNOSIS_TOKENS = 256
LIST_TOKENS = 256
"""The longest list known to us has 21 drugs, some 140 tokens."""


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


class Recommender:
    """Recommends discharge drugs with one model, or with several that vote (folds of one base).

    `diagnoses`: "given" puts the record's 出院诊断 into the answer, "generated" has the model write them, "auto" does the
    first where a record has any. `audit` also reports the labels that a conflict kept out. Drugs that the tables call
    contraindicated in the patient are warned of; `mask_patient` keeps them out of the list. Raises InputError if the models'
    tokenizers differ or have more ids than a model has rows.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        vocabulary: Vocabulary,
        conflicts: ConflictTable,
        *,
        diagnoses: Diagnoses = "auto",
        max_drugs: int | None = MOST_DRUGS,
        max_diagnosis_tokens: int = DIAGNOSIS_TOKENS,
        max_list_tokens: int = LIST_TOKENS,
        audit: bool = True,
        mask_patient: bool = False,
    ) -> None:
        _check_models(models)
        if diagnoses not in get_args(Diagnoses):
            raise InputError(f"--diagnoses {diagnoses} is unknown", way_out=f"Use {', '.join(get_args(Diagnoses))}.")
        self.models = tuple(models)
        self.vocabulary = vocabulary
        self.conflicts = conflicts
        self.template = models[0].template
        self.context = min(loaded.context for loaded in models)
        # A record is fitted to what the models saw in training, where they say so.
        self._trained = min(loaded.prompt_tokens or loaded.context for loaded in models)
        self.constraint = constraint_for(
            self.template,
            vocabulary,
            conflicts,
            max_drugs=max_drugs,
            max_diagnosis_tokens=max_diagnosis_tokens,
        )
        turns = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": ""})
        self._overhead = len(self.template.prompt_ids(turns))
        self._diagnoses = diagnoses
        self._max_list_tokens = max_list_tokens
        self._audit = audit
        self._mask_patient = mask_patient
        self._rules = load_patient_rules()
        self.versions = {
            "model": "+".join(loaded.version for loaded in models),
            "vocab": vocabulary.version,
            "conflicts": conflicts.version,
            "code": yaofang.__version__,
        }

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Sequence[str | Path] | None = None,
        vocabulary: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        **settings: Any,
    ) -> Recommender:
        """Load model folders (None: the bundled one) and a list of labels (None: the bundled one); settings as in the class."""
        folders = [model] if model is None or isinstance(model, str | Path) else list(model)
        labels = load_vocabulary(vocabulary)
        loaded = [load_model(folder, device=device, dtype=dtype) for folder in folders]
        return cls(loaded, labels, load_conflicts(labels), **settings)

    def __call__(self, record: Record) -> Recommendation:
        """The recommendation for one record. Raises InputError if it cannot be made to fit the model's context."""
        return self.batch([record])[0]

    def batch(self, records: Iterable[Record], batch_size: int = 8) -> list[Recommendation]:
        """Recommendations in the order of the records. Raises InputError before the first if one cannot be made to fit."""
        done = dict(self.completed(list(records), batch_size))
        return [done[place] for place in sorted(done)]

    def completed(
        self,
        records: Sequence[Record],
        batch_size: int = 8,
        *,
        skip: Callable[[Record, InputError], None] | None = None,
    ) -> Iterator[tuple[int, Recommendation]]:
        """(place in `records`, recommendation) as batches finish, longest prompts first, for progress bars and journals.

        A record that cannot be made to fit raises InputError before anything is generated; with `skip` it is handed
        there and left out.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}", field="batch-size", way_out="Use 1 or more.")
        tasks: list[tuple[int, Task]] = []
        for place, record in enumerate(records):
            try:
                tasks.append((place, self.prepare(record)))
            except InputError as error:
                if skip is None:
                    raise
                skip(record, error)
        # Longest first: what does not fit into memory shows at once.
        tasks.sort(key=lambda item: -len(item[1].ids))
        for at in range(0, len(tasks), batch_size):
            chunk = tasks[at : at + batch_size]
            yield from zip([place for place, _ in chunk], self._recommend([task for _, task in chunk]), strict=True)

    def stream(self, record: Record) -> Iterator[Diagnosis | Drug | Recommendation]:
        """Diagnoses and drugs as they are completed, and the whole recommendation last.

        A streamed drug carries warnings against the drugs before it; in the recommendation they name later ones too.
        """
        begun = time.perf_counter()
        task = self.prepare(record)
        generation = self._generation([task])
        row, listed, named = generation.rows[0], 0, 0
        for _ in generation.steps():
            reading = self.constraint.read(row.start, row.ids)
            closed = len(reading.diagnoses) - (reading.state.phase == Phase.DIAGNOSES and reading.state.open)
            names = self._diagnoses_of(task, row, reading.diagnoses[:closed])
            yield from names[named:]
            named = len(names)
            yield from drugs_of(row, reading, self.constraint, self.conflicts)[listed:]
            listed = len(reading.drugs)
        yield self._recommendation(task, generation, 0, time.perf_counter() - begun)

    def prepare(self, record: Record) -> Task:
        """The record's prompt, fitted to the context. Raises InputError that names the record and the field."""
        given = self._has_given(record)
        pieces = diagnosis_pieces(record.diagnoses) if given else ["\n", OPENING.removeprefix("\n")]
        opened = [token for piece in pieces for token in self.template.encode(piece)]
        free = 0 if given else self.constraint.max_diagnosis_tokens + 1 + len(self.constraint.ids.header)
        limit = free + self._max_list_tokens
        budget = min(self._trained, self.context - self._overhead - len(opened) - limit)
        if budget < 1:
            raise _too_long(record, self.context)
        try:
            prompt = build_prompt(record, budget=budget, count=self.template.count)
        except InputError as error:
            raise InputError(f"record {record.id}: {error.problem}", field=error.field, way_out=error.way_out) from error
        ids = self.template.prompt_ids(prompt.messages)
        if len(ids) + len(opened) + limit > self.context:
            raise _too_long(record, self.context)
        # Where the diagnoses are generated, the record's own are not looked at, for the facts either.
        facts = facts_of(record if given else record.model_copy(update={"diagnoses": ()}))
        banned = self._rules.contraindicated(facts, self.vocabulary.drugs) if self._mask_patient else ()
        start = self.constraint.start(Phase.LIST if given else Phase.DIAGNOSES, banned=banned)
        return Task(record, prompt, ids + opened, len(ids), given, start, limit, facts)

    def _has_given(self, record: Record) -> bool:
        has_any = any(clean_diagnosis(name) for name in record.diagnoses)
        if self._diagnoses == "given" and not has_any:
            raise InputError(
                f"record {record.id} has no diagnoses", field="出院诊断", way_out="Use --diagnoses auto or generated."
            )
        return has_any and self._diagnoses != "generated"

    def _generation(self, tasks: Sequence[Task]) -> Generation:
        return Generation(
            self.models,
            self.constraint,
            [task.ids for task in tasks],
            [task.start for task in tasks],
            [task.limit for task in tasks],
        )

    def _recommend(self, tasks: Sequence[Task]) -> list[Recommendation]:
        begun = time.perf_counter()
        generation = self._generation(tasks)
        generation.run()
        share = (time.perf_counter() - begun) / len(tasks)
        return [self._recommendation(task, generation, number, share) for number, task in enumerate(tasks)]

    def _recommendation(self, task: Task, generation: Generation, number: int, seconds: float) -> Recommendation:
        begun = time.perf_counter()
        row = generation.rows[number]
        reading = self.constraint.read(row.start, row.ids)
        drugs = drugs_of(row, reading, self.constraint, self.conflicts)
        check_list([drug.label for drug in drugs], self.conflicts)
        blocked = blocked_of(generation, number, reading, self.vocabulary) if self._audit else ()
        diagnoses = tuple(self._diagnoses_of(task, row, reading.diagnoses))
        facts = replace(task.facts, diagnoses=tuple(diagnosis.name for diagnosis in diagnoses))
        return Recommendation(
            id=task.record.id,
            diagnoses=diagnoses,
            drugs=tuple(with_patient_warnings(drugs, facts, self.vocabulary, self._rules)),
            blocked=blocked,
            cuts=task.prompt.cuts,
            truncated=reading.truncated,
            tokens=task.prompt_tokens,
            seconds=round(seconds + time.perf_counter() - begun, 4),
            versions=dict(self.versions),
        )

    def _diagnoses_of(self, task: Task, row: Row, spans: Sequence[tuple[int, int]]) -> list[Diagnosis]:
        if task.given:
            return [Diagnosis(name, "given") for name in task.record.diagnoses if clean_diagnosis(name)]
        texts = (self.template.decode(row.ids[first:end]).replace("\ufffd", "") for first, end in spans)
        return [Diagnosis(name, "generated") for text in texts if (name := clean_diagnosis(text))]


def _check_models(models: Sequence[LoadedModel]) -> None:
    if not models:
        raise InputError("no model", field="model", way_out="Give at least one model folder.")
    check_same_tokenizer(models)
    for loaded in models:
        rows = int(loaded.model.config.vocab_size)
        if rows < loaded.template.size:
            raise InputError(
                f"model {loaded.name} has {rows} rows, its tokenizer {loaded.template.size} ids",
                field="model",
                way_out="Use the tokenizer that belongs to the model.",
            )


def _too_long(record: Record, context: int) -> InputError:
    return InputError(
        f"record {record.id} leaves no room for an answer in the model's context of {context} tokens",
        field="出院诊断",
        way_out="Shorten the record, or use a model of a longer context.",
    )
