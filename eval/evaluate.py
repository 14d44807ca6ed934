"""Score a submission against gold drug lists: accuracy at three levels, lists, strata, subgroups, ranking, diagnoses.

Works on names by 就诊标识, already read (`eval/reading.py`), and prints nothing: `app/evaluate.py` does. Knows no models.
Records whose diagnoses were given to the model and records whose diagnoses it generated are never pooled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from yaofang.data.facts import facts_of
from yaofang.data.recommendation import Recommendation
from yaofang.data.records import Record
from yaofang.eval.confusion import Confusion, confusion
from yaofang.eval.diagnoses import exact_f1, normalised_f1
from yaofang.eval.intervals import Array, Figure, Sample
from yaofang.eval.levels import LEVELS, Comparison, Level
from yaofang.eval.lists import ListFigures, ListReader, Names, counts_json, patient_json
from yaofang.eval.metrics import board_score, score_record
from yaofang.eval.probabilities import Probabilities, calibration_json, judged
from yaofang.eval.strata import Stratum, by_stratum
from yaofang.eval.subgroups import Gap, Subgroup, by_subgroup, groups_of, widest_gap
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.patient import PatientFacts

__all__ = ["Evaluation", "Figure", "ListFigures", "ModeResult", "Training", "diagnosis_mode", "evaluate", "modes_of"]


@dataclass(frozen=True, slots=True)
class Training:
    """What the records were that a model learned from."""

    drugs: Mapping[str, int]
    """Label -> training records that list it."""
    diagnoses: Mapping[str, int] | None = None
    """`subgroups.diagnosis_counts`, where the records themselves are at hand."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The competition's figures at one level."""

    jaccard: Figure
    precision: Figure
    recall: Figure
    f1: Figure
    board: Figure


@dataclass(frozen=True, slots=True)
class ModeResult:
    """The figures of all records whose diagnoses came from the same place."""

    diagnoses: str
    """`given`, `generated`, or `not stated` where no details say so."""
    records: int
    patients: int
    missing: tuple[str, ...]
    """就诊标识 that the submission leaves out; each scores 0."""
    truncated: int | None
    """Lists cut by the token budget; None without details."""
    jaccard: Figure
    precision: Figure
    recall: Figure
    f1: Figure
    board: Figure
    """These five at the level that was asked for; `levels` holds them at every level."""
    gold: ListFigures
    predicted: ListFigures
    diagnosis_f1: Figure | None
    """Exact F1 of the generated diagnoses; None where they were given or there is no gold for them."""
    diagnosis_f1_normalised: Figure | None
    """The same after normalisation (`diagnoses.plain`)."""
    levels: Mapping[Level, Accuracy]
    strata: tuple[Stratum, ...]
    """At the level that was asked for; empty where nothing is known of the training."""
    subgroups: tuple[Subgroup, ...]
    """Empty without records. Their Jaccard is at the level that was asked for."""
    gap: Gap | None
    probabilities: Probabilities
    """PRAUC and calibration of the labels' own probabilities."""
    confusion: Confusion | None
    """Which name is taken for which, at the level that was asked for; None at ATC-4."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One submission against one gold."""

    level: Level
    results: tuple[ModeResult, ...]
    """One entry for each way in which the diagnoses came about; usually one."""
    unknown_ids: tuple[str, ...]
    """Entries of the submission that the gold does not hold; they are not scored."""
    patients_from: str
    """`患者序号`, or `就诊标识` where only a gold file was given and patients were read off the IDs."""
    resamples: int
    seed: int
    vocabulary: str
    conflicts: str
    labels: tuple[str, ...] = field(repr=False, default=())
    """Of the vocabulary, in its order; not in the JSON."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, with the conflict rates and shares beside their counts."""
        value = asdict(self)
        del value["labels"]
        for shown, result in zip(value["results"], self.results, strict=True):
            for side, figures in (("gold", result.gold), ("predicted", result.predicted)):
                shown[side]["conflicts"] = counts_json(figures.conflicts)
                shown[side]["patient"] = patient_json(figures.patient)
            shown["probabilities"]["calibration"] = calibration_json(result.probabilities.calibration, self.labels)
        return value


def evaluate(
    gold: Names,
    predictions: Names,
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    *,
    level: Level = "label",
    patients: Mapping[str, int | str] | None = None,
    gold_diagnoses: Names | None = None,
    details: Mapping[str, Recommendation] | None = None,
    records: Sequence[Record] | None = None,
    training: Training | None = None,
    modes: Mapping[str, Sequence[str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score `predictions` against `gold`, both 就诊标识 -> drug names.

    At level `generic` or `atc4` the names of both sides are turned into generic roots or classes before they are compared as
    sets; conflicts are always counted on labels. `patients` maps 就诊标识 to 患者序号; without it the patient is what stands
    before the last hyphen of the ID ("2-1" is a visit of patient 2). `records` bring subgroups and drugs against the patient,
    `training` the strata. `modes` puts the records into the groups of another evaluation (`modes_of`), to compare with it.
    Raises InputError if no gold list holds a drug, or if the details belong to another submission.
    """
    if not any(gold.values()):
        way_out = "Give the drugs in the records' 出院带药列表 or in a file {ID: [names]} with --gold."
        raise InputError("the gold holds no drug at all", way_out=way_out)
    _check_details(predictions, details or {})
    facts = {record.id: facts_of(record) for record in records or () if record.id in gold}
    scorer = _Scorer(
        predictions=predictions,
        comparisons={one: Comparison(one, vocabulary) for one in LEVELS},
        lists=ListReader(
            comparison=Comparison(level, vocabulary),
            vocabulary=vocabulary,
            conflicts=conflicts,
            facts=None if records is None else facts,
        ),
        level=level,
        patients=patients_of(gold, patients),
        gold_diagnoses=gold_diagnoses or {},
        details=details,
        groups=_groups([record for record in records or () if record.id in gold], facts, training),
        training=training,
        resamples=resamples,
        seed=seed,
    )
    grouped = modes_of(list(gold), details) if modes is None else modes
    return Evaluation(
        level=level,
        results=tuple(scorer.result(mode, {id_: gold[id_] for id_ in ids}) for mode, ids in grouped.items()),
        unknown_ids=tuple(id_ for id_ in predictions if id_ not in gold),
        patients_from="患者序号" if patients is not None else "就诊标识",
        resamples=resamples,
        seed=seed,
        vocabulary=vocabulary.version,
        conflicts=conflicts.version,
        labels=vocabulary.labels,
    )


def _check_details(predictions: Names, details: Mapping[str, Recommendation]) -> None:
    for id_, one in details.items():
        if id_ in predictions and list(predictions[id_]) != one.labels:
            way_out = "Give the --details that predict wrote together with this submission."
            raise InputError(f"the details of {id_} list other drugs than the submission", way_out=way_out)


def patients_of(gold: Names, patients: Mapping[str, int | str] | None) -> Mapping[str, int | str]:
    """就诊标识 -> patient, read off the IDs where `patients` is None."""
    return patients if patients is not None else {id_: id_.rpartition("-")[0] or id_ for id_ in gold}


def _groups(
    records: Sequence[Record], facts: Mapping[str, PatientFacts], training: Training | None
) -> dict[str, dict[str, str]]:
    """就诊标识 -> attribute -> group."""
    visits = Counter(record.patient for record in records)
    trained = None if training is None else training.diagnoses
    return {record.id: groups_of(record, visits[record.patient], trained, facts[record.id]) for record in records}


def diagnosis_mode(recommendation: Recommendation) -> str:
    """`given` or `generated`. Raises InputError if one record has both, which no version of predict writes."""
    sources = {diagnosis.source for diagnosis in recommendation.diagnoses}
    if len(sources) > 1:
        raise InputError(f"the details of {recommendation.id} mix given and generated diagnoses")
    return "given" if sources == {"given"} else "generated"


def modes_of(ids: Sequence[str], details: Mapping[str, Recommendation] | None) -> dict[str, list[str]]:
    """Group IDs by where their diagnoses came from; a record without details joins the only mode there is, if one."""
    if details is None:
        return {"not stated": list(ids)}
    stated = {id_: diagnosis_mode(details[id_]) for id_ in ids if id_ in details}
    modes = sorted(set(stated.values()))
    rest = modes[0] if len(modes) == 1 else "not stated"
    groups: dict[str, list[str]] = {}
    for id_ in ids:
        groups.setdefault(stated.get(id_, rest), []).append(id_)
    return dict(sorted(groups.items()))


def record_values(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], comparison: Comparison) -> Array:
    """[records, 5]: Jaccard, precision, recall, F1 and board score of each record at one level.

    The board score is a mean of means, so the mean over records of its parts is the same.
    """
    pairs = zip(gold, predicted, strict=True)
    scores = [score_record(comparison.keys(y), comparison.keys(p)) for y, p in pairs]
    return np.array([(s.jaccard, s.precision, s.recall, s.f1, board_score(s.jaccard, s.f1)) for s in scores])


@dataclass(frozen=True, slots=True)
class _Scorer:
    """The inputs that all modes share."""

    predictions: Names
    comparisons: Mapping[Level, Comparison]
    lists: ListReader
    level: Level
    patients: Mapping[str, int | str]
    gold_diagnoses: Names
    details: Mapping[str, Recommendation] | None
    groups: Mapping[str, Mapping[str, str]]
    training: Training | None
    resamples: int
    seed: int

    def result(self, mode: str, gold: Names) -> ModeResult:
        """Score the records of one mode."""
        ids = list(gold)
        predicted = {id_: self.predictions.get(id_, ()) for id_ in ids}
        sample = self._sample(ids)
        values = {one: record_values(list(gold.values()), list(predicted.values()), c) for one, c in self.comparisons.items()}
        levels = {one: Accuracy(*sample.means(found)) for one, found in values.items()}
        asked, jaccard = levels[self.level], values[self.level][:, 0]
        groups = [self.groups.get(id_, {}) for id_ in ids]
        subgroups = by_subgroup(groups, jaccard, sample)
        details = self.details
        exact, normalised = self._diagnosis_f1(ids) if mode == "generated" else (None, None)
        return ModeResult(
            diagnoses=mode,
            records=len(ids),
            patients=len({self.patients[id_] for id_ in ids}),
            missing=tuple(id_ for id_ in ids if id_ not in self.predictions),
            truncated=None if details is None else sum(details[id_].truncated for id_ in ids if id_ in details),
            jaccard=asked.jaccard,
            precision=asked.precision,
            recall=asked.recall,
            f1=asked.f1,
            board=asked.board,
            gold=self.lists.figures(gold, sample, link=self.level != "label"),
            predicted=self.lists.figures(predicted, sample, link=self.level != "label"),
            diagnosis_f1=exact,
            diagnosis_f1_normalised=normalised,
            levels=levels,
            strata=self._strata(gold, predicted, sample),
            subgroups=subgroups,
            gap=widest_gap(subgroups, groups, jaccard, sample),
            probabilities=judged(gold, self.details, self.lists.vocabulary, self.level, sample),
            confusion=self._confusion(gold, predicted),
        )

    def _confusion(self, gold: Names, predicted: Names) -> Confusion | None:
        if self.level == "atc4":
            return None
        keys = self.comparisons[self.level].keys
        y, p = ([keys(names) for names in lists.values()] for lists in (gold, predicted))
        return confusion(y, p, self.comparisons["atc4"].key, self.comparisons["generic"].key)

    def _sample(self, ids: Sequence[str]) -> Sample:
        return Sample([self.patients[id_] for id_ in ids], self.resamples, self.seed)

    def _strata(self, gold: Names, predicted: Names, sample: Sample) -> tuple[Stratum, ...]:
        if self.training is None:
            return ()
        comparison = self.comparisons[self.level]
        known = {*self.lists.vocabulary.labels, *(name for names in gold.values() for name in names)}
        if self.level == "label":  # what nobody could prescribe is in no stratum
            predicted = {id_: [name for name in names if name in known] for id_, names in predicted.items()}
        keys, found = ([comparison.keys(names) for names in lists.values()] for lists in (gold, predicted))
        return by_stratum(keys, found, comparison.counts(self.training.drugs), sample)

    def _diagnosis_f1(self, ids: Sequence[str]) -> tuple[Figure | None, Figure | None]:
        """Means over records of 2PR/(P+R) of the diagnoses' names as sets, exact and normalised.

        Over the records that have gold diagnoses; one without details scores 0. Source: the definition for drugs, on diagnoses.
        """
        known = [id_ for id_ in ids if self.gold_diagnoses.get(id_)]
        if not known or self.details is None:
            return None, None
        details = self.details
        pairs = [(self.gold_diagnoses[i], [one.name for one in details[i].diagnoses] if i in details else []) for i in known]
        values = np.array([(exact_f1(gold, predicted), normalised_f1(gold, predicted)) for gold, predicted in pairs])
        exact, normalised = self._sample(known).means(values)
        return exact, normalised
