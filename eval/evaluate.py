"""Score a submission against gold drug lists: accuracy, list lengths, conflicts by tier, intervals over patients.

Works on names by 就诊标识, already read (`eval/reading.py`), and prints nothing: `app/evaluate.py` does. Knows no models.
Records whose diagnoses were given to the model and records whose diagnoses it generated are never pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from yaofang.data.answer import clean_diagnosis
from yaofang.data.recommendation import Recommendation
from yaofang.eval.metrics import (
    ConflictCounts,
    board_score,
    bootstrap_means,
    count_conflicts,
    f1,
    outside,
    percentile_interval,
    repeats,
    score_record,
)
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.matching import generic_of, match

Level = Literal["label", "generic"]
Names = Mapping[str, Sequence[str]]
"""就诊标识 -> names."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over records with its 95% bootstrap interval over patients; the bounds are None for fewer than two patients."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ListFigures:
    """What can be said of one side's lists, gold or predicted, without the other side."""

    mean_drugs: float
    """Mean number of distinct names a record, at the level of the evaluation, over all records (a missing one has 0)."""
    empty: int
    """Records with an empty list."""
    repeats: int
    """Entries that repeat an earlier entry of their list; a set counts them once."""
    outside: int
    """Distinct names a record that the vocabulary does not hold, summed over records."""
    outside_names: tuple[str, ...]
    conflicts: ConflictCounts


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
    gold: ListFigures
    predicted: ListFigures
    diagnosis_f1: Figure | None
    """Exact F1 of the generated diagnoses; None where they were given or there is no gold for them."""


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

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, with the conflict rates and shares beside their counts."""
        value = asdict(self)
        for shown, result in zip(value["results"], self.results, strict=True):
            shown["gold"]["conflicts"] = _counts_json(result.gold.conflicts)
            shown["predicted"]["conflicts"] = _counts_json(result.predicted.conflicts)
        return value


def _counts_json(counts: ConflictCounts) -> dict[str, Any]:
    tiers = {
        f"T{tier}": {
            "pairs": counts.conflicts[tier],
            "rate": counts.rate(tier),
            "records": counts.records_with[tier],
            "share": counts.share(tier),
        }
        for tier in counts.conflicts
    }
    return {"pairs": counts.pairs, **tiers}


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
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score `predictions` against `gold`, both 就诊标识 -> drug names.

    At level `generic` the names of both sides are turned into generic roots before they are compared as sets; conflicts
    are always counted on labels. `patients` maps 就诊标识 to 患者序号; without it the patient is what stands before the last
    hyphen of the ID ("2-1" is a visit of patient 2).
    Raises InputError if no gold list holds a drug, or if the details belong to another submission.
    """
    if not any(gold.values()):
        way_out = "Give the drugs in the records' 出院带药列表 or in a file {ID: [names]} with --gold."
        raise InputError("the gold holds no drug at all", way_out=way_out)
    for id_, one in (details or {}).items():
        if id_ in predictions and list(predictions[id_]) != one.labels:
            way_out = "Give the --details that predict wrote together with this submission."
            raise InputError(f"the details of {id_} list other drugs than the submission", way_out=way_out)
    whose = patients if patients is not None else {id_: id_.rpartition("-")[0] or id_ for id_ in gold}
    scorer = _Scorer(predictions, vocabulary, conflicts, level, whose, gold_diagnoses or {}, details, resamples, seed)
    modes = _by_mode(list(gold), details)
    return Evaluation(
        level=level,
        results=tuple(scorer.result(mode, {id_: gold[id_] for id_ in ids}) for mode, ids in modes.items()),
        unknown_ids=tuple(id_ for id_ in predictions if id_ not in gold),
        patients_from="患者序号" if patients is not None else "就诊标识",
        resamples=resamples,
        seed=seed,
        vocabulary=vocabulary.version,
        conflicts=conflicts.version,
    )


def diagnosis_mode(recommendation: Recommendation) -> str:
    """`given` or `generated`. Raises InputError if one record has both, which no version of predict writes."""
    sources = {diagnosis.source for diagnosis in recommendation.diagnoses}
    if len(sources) > 1:
        raise InputError(f"the details of {recommendation.id} mix given and generated diagnoses")
    return "given" if sources == {"given"} else "generated"


def _by_mode(ids: list[str], details: Mapping[str, Recommendation] | None) -> dict[str, list[str]]:
    """Group IDs by where their diagnoses came from; a record without details joins the only mode there is, if one."""
    if details is None:
        return {"not stated": ids}
    stated = {id_: diagnosis_mode(details[id_]) for id_ in ids if id_ in details}
    modes = sorted(set(stated.values()))
    rest = modes[0] if len(modes) == 1 else "not stated"
    groups: dict[str, list[str]] = {}
    for id_ in ids:
        groups.setdefault(stated.get(id_, rest), []).append(id_)
    return dict(sorted(groups.items()))


@dataclass(frozen=True, slots=True)
class _Scorer:
    """The inputs that all modes share."""

    predictions: Names
    vocabulary: Vocabulary
    conflicts: ConflictTable
    level: Level
    patients: Mapping[str, int | str]
    gold_diagnoses: Names
    details: Mapping[str, Recommendation] | None
    resamples: int
    seed: int

    def result(self, mode: str, gold: Names) -> ModeResult:
        """Score the records of one mode."""
        ids = list(gold)
        predicted = {id_: self.predictions.get(id_, ()) for id_ in ids}
        scores = [score_record(self._comparable(gold[id_]), self._comparable(predicted[id_])) for id_ in ids]
        values = np.array([(s.jaccard, s.precision, s.recall, s.f1, board_score(s.jaccard, s.f1)) for s in scores])
        figures = self._figures(values, ids)
        details = self.details
        return ModeResult(
            diagnoses=mode,
            records=len(ids),
            patients=len({self.patients[id_] for id_ in ids}),
            missing=tuple(id_ for id_ in ids if id_ not in self.predictions),
            truncated=None if details is None else sum(details[id_].truncated for id_ in ids if id_ in details),
            jaccard=figures[0],
            precision=figures[1],
            recall=figures[2],
            f1=figures[3],
            board=figures[4],
            gold=self._list_figures(gold, link=self.level == "generic"),
            predicted=self._list_figures(predicted, link=False),
            diagnosis_f1=self._diagnosis_f1(ids) if mode == "generated" else None,
        )

    def _comparable(self, names: Sequence[str]) -> set[str]:
        return set(names) if self.level == "label" else {generic_of(name) for name in names}

    def _figures(self, values: NDArray[np.float64], ids: Sequence[str]) -> list[Figure]:
        """One Figure a column. The board score is a mean of means, so the mean over records of its parts is the same."""
        patients = [self.patients[id_] for id_ in ids]
        if len(set(patients)) < 2:
            return [Figure(float(mean), None, None) for mean in values.mean(axis=0)]
        drawn = bootstrap_means(values, patients, resamples=self.resamples, seed=self.seed)
        intervals = [percentile_interval(column) for column in drawn.T]
        return [Figure(float(m), low, high) for m, (low, high) in zip(values.mean(axis=0), intervals, strict=True)]

    def _list_figures(self, lists: Names, *, link: bool) -> ListFigures:
        """`link`: names of a gold of another shape are linked to labels by matching, to count their conflicts."""
        index = {label: row for row, label in enumerate(self.vocabulary.labels)}
        linked = [[self._label(name) for name in names] if link else list(names) for names in lists.values()]
        strangers = [outside(names, index) for names in linked]
        return ListFigures(
            mean_drugs=sum(len(self._comparable(names)) for names in lists.values()) / len(lists),
            empty=sum(not names for names in lists.values()),
            repeats=sum(repeats(names) for names in lists.values()),
            outside=sum(map(len, strangers)),
            outside_names=tuple(sorted({name for names in strangers for name in names})),
            conflicts=count_conflicts(linked, index, self.conflicts.tiers),
        )

    def _label(self, name: str) -> str:
        """The label that a name links to, or the name itself if none."""
        drug = None if name in self.vocabulary else match(name, self.vocabulary).drug
        return name if drug is None else drug.label

    def _diagnosis_f1(self, ids: Sequence[str]) -> Figure | None:
        """Mean over records of 2PR/(P+R) of the diagnoses' names as sets, exact after the answer's own rewriting of separators.

        Over the records that have gold diagnoses; one without details scores 0. Source: the definition for drugs, on diagnoses.
        """
        known = [id_ for id_ in ids if self.gold_diagnoses.get(id_)]
        if not known or self.details is None:
            return None
        details = self.details
        pairs = (
            ({clean_diagnosis(d) for d in self.gold_diagnoses[i]}, details[i].diagnoses if i in details else ()) for i in known
        )
        values = np.array([[f1(gold, {clean_diagnosis(d.name) for d in predicted})] for gold, predicted in pairs])
        return self._figures(values, known)[0]
