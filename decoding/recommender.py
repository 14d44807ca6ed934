"""From a record to a `Recommendation`: prompt, constrained generation, reading, and the reasons for what is not listed.

    rx = Recommender.from_pretrained("path/to/model")
    rx(record); rx.batch(records); rx.stream(record)

Knows records, labels and models' folders; which token may come next is `decoding.constraint`'s, how prompts look
`data.prompts`'. Every label it returns is in the vocabulary, none twice, no two of tier T1: checked once more at the end.

What the numbers beside a drug mean is said in `decoding.reasons`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import yaofang
from yaofang.data.answer import clean_diagnosis
from yaofang.data.recommendation import Blocked, Diagnosis, Drug, Recommendation
from yaofang.data.records import Record
from yaofang.decoding.bias import Bias
from yaofang.decoding.calibration import load_calibration
from yaofang.decoding.constraint import Constraint, Phase
from yaofang.decoding.generation import Generation, Row
from yaofang.decoding.preparation import Preparer, Task
from yaofang.decoding.processors import constraint_for
from yaofang.decoding.reading import Reading, read
from yaofang.decoding.reasons import blocked_of, check_list, considered_of, drugs_of, with_patient_warnings
from yaofang.decoding.running import check_same_tokenizer
from yaofang.decoding.settings import Settings
from yaofang.decoding.writing import Writer, Written
from yaofang.glm.loading import LoadedModel, load_model
from yaofang.vocab.conflicts import ConflictTable, load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.patient import load_patient_rules

PENALISED_TIER = 2


class Recommender:
    """Recommends discharge drugs with one model, or with several that vote (folds of one base).

    `settings` say how; each of them may also be given by its name. Drugs that the tables call contraindicated in the patient
    are warned of, or kept out with `mask_patient`. Raises InputError if the models' tokenizers differ or have more ids than a
    model has rows, and for settings that do not fit the vocabulary or the model.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        vocabulary: Vocabulary,
        conflicts: ConflictTable,
        settings: Settings | None = None,
        **changes: Any,
    ) -> None:
        _check_models(models)
        self.settings = replace(settings or Settings(), **changes)
        self.models = tuple(models)
        self.vocabulary = vocabulary
        self.conflicts = conflicts
        self.template = models[0].template
        self.constraint = constraint_for(
            self.template,
            vocabulary,
            conflicts,
            min_drugs=self.settings.min_drugs,
            max_drugs=self.settings.max_drugs,
            max_diagnosis_tokens=self.settings.max_diagnosis_tokens,
            diagnoses=self.settings.diagnosis_names,
        )
        self.bias = bias_for(self.constraint, models, vocabulary, conflicts, self.settings)
        self._rules = load_patient_rules()
        self.prepare = Preparer(models, vocabulary, self.constraint, self._rules, self.settings)
        # A vote of several models has a curve of its own, which nobody has measured.
        calibration = load_calibration(models[0].folder) if len(models) == 1 else None
        self.writer = Writer(self.models, self.constraint, self.settings, self.bias, calibration)
        self.versions = {
            "model": "+".join(loaded.version for loaded in models),
            "vocab": vocabulary.version,
            "conflicts": conflicts.version,
            "code": yaofang.__version__,
            **({"calibration": calibration.version} if calibration and self.settings.strategy == "expected" else {}),
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
        """(place in `records`, recommendation) as they finish, longest prompts first, for progress bars and journals.

        Greedy lists run on in a batch that stays full: where some have ended, the next records take their places.

        A record that cannot be made to fit raises InputError before anything is generated; with `skip` it is handed
        there and left out.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}", field="batch-size", way_out="Use 1 or more.")
        tasks: list[tuple[int, Task]] = []
        for place, found in enumerate(self.prepare.each(records)):
            if isinstance(found, Task):
                tasks.append((place, found))
            elif skip is None:
                raise found
            else:
                skip(records[place], found)
        # Longest first: what does not fit into memory shows at once.
        tasks.sort(key=lambda item: -len(item[1].ids))
        for chunk, done in self._chunks([task for _, task in tasks], batch_size):
            yield from zip([tasks[at][0] for at in chunk], done, strict=True)

    def _chunks(self, tasks: Sequence[Task], batch_size: int) -> Iterator[tuple[Sequence[int], list[Recommendation]]]:
        """(places in `tasks`, recommendations) of all tasks, some at a time."""
        if self.settings.strategy == "greedy":
            for generation, done in self.writer.ended(tasks, batch_size):
                of_row = {number: tasks[row.task] for number, row in done.items()}
                seconds = {number: row.seconds for number, row in done.items()}
                yield [row.task for row in done.values()], self._recommendations(of_row, generation, {}, seconds)
        else:
            for begin in range(0, len(tasks), batch_size):
                chunk = range(begin, min(begin + batch_size, len(tasks)))
                yield chunk, self._recommend([tasks[at] for at in chunk])

    def stream(self, record: Record) -> Iterator[Diagnosis | Drug | Recommendation]:
        """Diagnoses and drugs as they are completed, and the whole recommendation last.

        A streamed drug carries warnings against the drugs before it; in the recommendation they name later ones too. With the
        strategy `expected` nothing is known before the end, so all come then.
        """
        begun = time.perf_counter()
        task = self.prepare(record)
        if self.settings.strategy == "expected":
            (found,) = self._recommend([task])
            yield from found.diagnoses
            yield from found.drugs
            yield found
            return
        generation = self.writer.greedy([task])
        row, listed, named = generation.rows[0], 0, 0
        for _ in generation.steps():
            reading = read(self.constraint, row.start, row.ids[: len(row.chosen)])
            closed = len(reading.diagnoses) - (reading.state.phase == Phase.DIAGNOSES and reading.state.open)
            names = self._diagnoses_of(task, row, reading.diagnoses[:closed])
            yield from names[named:]
            named = len(names)
            yield from drugs_of(row, reading, self.constraint, self.conflicts)[listed:]
            listed = len(reading.drugs)
        (whole,) = self._recommendations({row.number: task}, generation, {}, {row.number: time.perf_counter() - begun})
        yield from whole.diagnoses[named:]
        yield from whole.drugs[listed:]
        yield whole

    def _recommend(self, tasks: Sequence[Task]) -> list[Recommendation]:
        begun = time.perf_counter()
        written: Written = self.writer(tasks)
        inclusion = dict(enumerate(written.inclusion))
        seconds = dict.fromkeys(inclusion, (time.perf_counter() - begun) / len(tasks))
        return self._recommendations(dict(enumerate(tasks)), written.generation, inclusion, seconds)

    def _recommendations(
        self,
        tasks: Mapping[int, Task],
        generation: Generation,
        inclusion: Mapping[int, npt.NDArray[np.float64] | None],
        seconds: Mapping[int, float],
    ) -> list[Recommendation]:
        """What some rows say, by their numbers, in the order of `tasks`; `seconds` were spent on writing each."""
        begun = time.perf_counter()
        rows = {number: generation.rows[number] for number in tasks}
        readings = {number: read(self.constraint, row.start, row.ids) for number, row in rows.items()}
        blocked = blocked_of(generation, readings, self.vocabulary) if self.settings.audit else {}
        share = (time.perf_counter() - begun) / len(tasks)
        return [
            self._recommendation(task, rows[at], readings[at], inclusion.get(at), blocked.get(at, ()), seconds[at] + share)
            for at, task in tasks.items()
        ]

    def _recommendation(
        self,
        task: Task,
        row: Row,
        reading: Reading,
        inclusion: npt.NDArray[np.float64] | None,
        blocked: tuple[Blocked, ...],
        seconds: float,
    ) -> Recommendation:
        begun = time.perf_counter()
        drugs = drugs_of(row, reading, self.constraint, self.conflicts, inclusion)
        check_list([drug.label for drug in drugs], self.conflicts)
        diagnoses = tuple(self._diagnoses_of(task, row, reading.diagnoses))
        facts = replace(task.facts, diagnoses=tuple(diagnosis.name for diagnosis in diagnoses))
        return Recommendation(
            id=task.record.id,
            diagnoses=diagnoses,
            drugs=tuple(with_patient_warnings(drugs, facts, self.vocabulary, self._rules)),
            blocked=blocked,
            considered=considered_of([drug.label for drug in drugs], inclusion, self.vocabulary),
            cuts=task.prompt.cuts,
            truncated=reading.truncated,
            below_minimum=len(drugs) < self.settings.min_drugs,
            tokens=task.prompt_tokens,
            seconds=round(seconds + time.perf_counter() - begun, 4),
            versions=dict(self.versions),
        )

    def _diagnoses_of(self, task: Task, row: Row, spans: Sequence[tuple[int, int]]) -> list[Diagnosis]:
        if task.given:
            return [Diagnosis(name, "given") for name in task.record.diagnoses if clean_diagnosis(name)]
        texts = (self.template.decode(row.ids[first:end]).replace("\ufffd", "") for first, end in spans)
        return [Diagnosis(name, "generated") for text in texts if (name := clean_diagnosis(text))]


def bias_for(
    constraint: Constraint,
    models: Sequence[LoadedModel],
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    settings: Settings,
) -> Bias | None:
    """The leanings that the settings ask for; None for none.

    The prior of a label is its count in training plus one, over all. Raises InputError if a model does not know its counts.
    """
    if not settings.t2_penalty and not settings.prior_correction:
        return None
    prior = None
    if settings.prior_correction:
        counts = np.ones(len(vocabulary))
        for loaded in models:
            if loaded.drug_counts is None:
                way_out = "Use a model trained by this version of yaofang sft."
                raise InputError(
                    f"model {loaded.name} does not say how often it saw each drug", field="--prior-correction", way_out=way_out
                )
            counts += [loaded.drug_counts.get(label, 0) / len(models) for label in vocabulary.labels]
        prior = counts / counts.sum()
    return Bias(
        constraint,
        prior=prior,
        prior_weight=settings.prior_correction,
        warned=conflicts.tiers == PENALISED_TIER,
        warned_weight=settings.t2_penalty,
    )


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
