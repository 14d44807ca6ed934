"""What `yaofang evaluate` does between its options and its tables: read the files, score, compare, collect the JSON.

Knows files and `yaofang.eval`; prints nothing but what `--skip-bad` leaves out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yaofang.app.input_files import good_records, say_skipped
from yaofang.data.answer import drug_frequency
from yaofang.data.recommendation import Recommendation
from yaofang.data.records import Record
from yaofang.eval.compare import PairedMode, compare, shared_modes
from yaofang.eval.evaluate import Evaluation, Training, evaluate, patients_of
from yaofang.eval.levels import Comparison, Level
from yaofang.eval.reading import Answers, gold_of, read_answers, read_details, read_drug_counts, read_gold
from yaofang.eval.subgroups import diagnosis_counts
from yaofang.glm.loading import TRAINED
from yaofang.vocab.conflicts import ConflictTable, load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError


@dataclass(frozen=True, slots=True)
class Files:
    """What the options name; None is not given."""

    predictions: Path
    records: Path | None = None
    gold: Path | None = None
    vocab: Path | None = None
    details: Path | None = None
    train: Path | None = None
    counts: Path | None = None
    compare: Path | None = None
    compare_details: Path | None = None

    def check(self) -> None:
        """Raise InputError for options that do not go together."""
        if self.records is None and self.gold is None:
            raise InputError("there is no gold", way_out="Give --records FILE, or --gold FILE.json, or both.")
        if self.train is not None and self.counts is not None:
            raise InputError("--train and --counts both count drugs", way_out="Give one of them.")
        if self.compare_details is not None and self.compare is None:
            raise InputError("--compare-details without --compare", way_out="Give the second submission too.")

    def hashes(self) -> dict[str, str]:
        """Option -> first 12 hex digits of the SHA-256 of its file, by which a result names its data."""
        given = {name: path for name, path in asdict(self).items() if path is not None}
        named = {name: path / TRAINED if path.is_dir() else path for name, path in given.items()}
        return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for name, path in named.items() if path.is_file()}


@dataclass(frozen=True, slots=True)
class Learned:
    """Which records a model learned from, as far as --train or --counts tell."""

    training: Training
    records: int | None
    shared: tuple[int, ...] | None
    """Patients (患者序号) that are in the training records and in the gold's; None where one of the two is not known."""

    def to_json(self) -> dict[str, Any]:
        """Sizes, without the counts."""
        shared = None if self.shared is None else list(self.shared)
        return {"drugs": len(self.training.drugs), "records": self.records, "shared_patients": shared}


@dataclass(frozen=True, slots=True)
class Other:
    """The second submission."""

    file: Path
    answers: Answers
    evaluation: Evaluation
    paired: tuple[PairedMode, ...]
    stated: bool
    """Details say how its diagnoses came about."""

    def to_json(self) -> dict[str, Any]:
        """Its own figures, and the paired differences: first submission minus this one."""
        paired = [asdict(one) for one in self.paired]
        return {
            "predictions": str(self.file),
            "answers": self.answers.to_json(),
            "stated": self.stated,
            **self.evaluation.to_json(),
            "paired": paired,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that one run of the verb found."""

    file: Path
    answers: Answers
    evaluation: Evaluation
    models: tuple[Mapping[str, str], ...]
    """The distinct `versions` of the details."""
    learned: Learned | None
    other: Other | None
    hashes: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The evaluation's keys at the top, what surrounds it under keys of their own."""
        return {
            **self.evaluation.to_json(),
            "predictions": str(self.file),
            "stated": bool(self.models),
            "model_versions": [dict(one) for one in self.models],
            "answers": self.answers.to_json(),
            "training": None if self.learned is None else self.learned.to_json(),
            "compared": None if self.other is None else self.other.to_json(),
            "sha256": self.hashes,
        }


def run(files: Files, *, level: Level, link: bool, resamples: int, seed: int, skip_bad: bool) -> Outcome:
    """Read everything, score, and compare if there is a second submission. Raises InputError for what cannot be used."""
    files.check()
    skip = say_skipped if skip_bad else None
    gold = None if files.gold is None else read_gold(files.gold, skip)
    records = None if files.records is None else good_records(files.records, skip_bad)
    learned = _learned(files, records, skip_bad)
    vocabulary = load_vocabulary(files.vocab)
    task = _Task(
        gold=gold or {} if records is None else gold_of(records, gold, skip),
        records=records,
        vocabulary=vocabulary,
        conflicts=load_conflicts(vocabulary),
        training=None if learned is None else learned.training,
        level=level,
        resamples=resamples,
        seed=seed,
    )
    answers = read_answers(files.predictions, vocabulary, link=link, skip=skip)
    details = None if files.details is None else read_details(files.details, skip)
    other, modes = None, None
    if files.compare is not None:
        second = read_answers(files.compare, vocabulary, link=link, skip=skip)
        theirs = None if files.compare_details is None else read_details(files.compare_details, skip)
        modes = shared_modes(list(task.gold), details, theirs)
        other = task.other(files.compare, answers, second, theirs, modes)
    versions = {json.dumps(one.versions, sort_keys=True): one.versions for one in (details or {}).values()}
    models = tuple(versions.values())
    return Outcome(files.predictions, answers, task.score(answers, details, modes), models, learned, other, files.hashes())


@dataclass(frozen=True, slots=True)
class _Task:
    """What both submissions are scored against, and how."""

    gold: dict[str, Sequence[str]] | dict[str, list[str]]
    records: list[Record] | None
    vocabulary: Vocabulary
    conflicts: ConflictTable
    training: Training | None
    level: Level
    resamples: int
    seed: int

    def score(
        self,
        answers: Answers,
        details: Mapping[str, Recommendation] | None,
        modes: Mapping[str, Sequence[str]] | None = None,
    ) -> Evaluation:
        """One submission's figures."""
        return evaluate(
            self.gold,
            answers.lists,
            self.vocabulary,
            self.conflicts,
            level=self.level,
            patients=self.patients,
            gold_diagnoses={record.id: record.diagnoses for record in self.records or ()},
            details=details,
            records=self.records,
            training=self.training,
            modes=modes,
            resamples=self.resamples,
            seed=self.seed,
        )

    @property
    def patients(self) -> dict[str, int | str] | None:
        """就诊标识 -> 患者序号; None without records."""
        return None if self.records is None else {record.id: record.patient for record in self.records}

    def other(
        self,
        file: Path,
        answers: Answers,
        second: Answers,
        details: Mapping[str, Recommendation] | None,
        modes: Mapping[str, Sequence[str]],
    ) -> Other:
        """The second submission beside the first, in the same groups of records."""
        paired = compare(
            self.gold,
            answers.lists,
            second.lists,
            Comparison(self.level, self.vocabulary),
            self.conflicts,
            patients_of(self.gold, self.patients),
            modes,
            resamples=self.resamples,
            seed=self.seed,
        )
        return Other(file, second, self.score(second, details, modes), paired, details is not None)


def _learned(files: Files, records: Sequence[Record] | None, skip_bad: bool) -> Learned | None:
    if files.counts is not None:
        return Learned(Training(read_drug_counts(files.counts)), None, None)
    if files.train is None:
        return None
    trained = good_records(files.train, skip_bad)
    training = Training(drug_frequency(trained), diagnosis_counts(trained))
    if records is None:
        return Learned(training, len(trained), None)
    shared = {record.patient for record in trained} & {record.patient for record in records}
    return Learned(training, len(trained), tuple(sorted(shared)))
