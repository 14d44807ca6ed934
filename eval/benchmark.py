"""Quality on the simulated ward: a model beside the baselines and the ceiling, on patients that none of them saw.

    yaofang bench quality --out docs/results/quality.json

The baselines learn from the ward's training patients; the model runs on the ward's test board twice, with the diagnoses given
and with diagnoses that it generates; `evaluate` scores all of them. Says nothing about real patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any

from yaofang.data.records import Record
from yaofang.data.ward.ceiling import measure_ceiling
from yaofang.data.ward.figures import measure
from yaofang.data.ward.simulate import draft, simulate, write
from yaofang.data.ward.tables import load_tables
from yaofang.data.ward.therapy import Prescriber
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.settings import Diagnoses
from yaofang.eval.baselines.choice import DEFINITIONS, run_baseline
from yaofang.eval.evaluate import ModeResult, evaluate
from yaofang.glm.loading import LoadedModel
from yaofang.vocab.conflicts import ConflictTable
from yaofang.vocab.drugs import Vocabulary
from yaofang.vocab.errors import InputError

NAMES = {
    "most_frequent": "most frequent k",
    "last_visit": "last visit's drugs",
    "neighbours": "nearest neighbours by diagnosis",
    "tfidf": "TF-IDF + logistic regression",
    "trees": "gradient-boosted trees",
    "tfidf_same": "the same, on the model's training patients",
    "model_given": "model, diagnoses given",
    "model_generated": "model, diagnoses generated",
}
"""What people read for the keys of `systems`."""
QUICK = ("most-frequent", "tfidf")
"""The baselines that the ward's own figures are held against."""
Lists = Mapping[str, Sequence[str]]
Report = Callable[[str], None]


def ward(
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    *,
    patients: int = 1910,
    seed: int = 1,
    draws: int = 60,
    count: Callable[[str], int] | None = None,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """Figures of the ward itself: distributions, broken rules, ceiling, and the two baselines on its test board."""
    tables = load_tables()
    figures = measure(patients, seed, count=count, draws=draws, tables=tables)
    drafts = draft(patients, seed, tables)
    train, _ = write(drafts.train, seed, tables)
    test, _ = write(drafts.test, seed, tables)
    judge = _Judge(test, vocabulary, conflicts, figures["ceiling"]["mean"], report)
    return {**figures, "baselines": judge.baselines(train, QUICK)}


def quality(
    loaded: LoadedModel,
    vocabulary: Vocabulary,
    conflicts: ConflictTable,
    *,
    patients: int = 1910,
    seed: int = 1,
    draws: int = 60,
    batch_size: int = 16,
    trained_on: Sequence[tuple[int, int]] = (),
    same: bool = False,
    report: Report = lambda _: None,
) -> dict[str, Any]:
    """All figures of one ward: sizes, ceiling, and one entry a system under `systems`.

    `patients` and `seed` are the ward's. `trained_on` says patients and seed of the wards that the model was trained on; this
    ward may not be one of them. `same` fits the regression on those patients too, so that it has as much to learn from (some
    ten minutes for the bundled model). `share_of_ceiling` of a system is its Jaccard over the ceiling's.
    """
    if seed in {trained for _, trained in trained_on}:
        way_out = "Measure on a ward of another seed."
        raise InputError(f"the model was trained on the ward of seed {seed}", field="--seed", way_out=way_out)
    tables = load_tables()
    drafts = draft(patients, seed, tables)
    train, _ = write(drafts.train, seed, tables)
    test, _ = write(drafts.test, seed, tables)
    ceiling = measure_ceiling(drafts.test, Prescriber(tables), draws=draws, seed=seed)
    report(f"ceiling: Jaccard {ceiling.mean:.4f} on {len(test)} records")
    judge = _Judge(test, vocabulary, conflicts, ceiling.mean, report)
    systems = {
        **judge.baselines(train, tuple(DEFINITIONS)),
        **(judge.same(trained_on) if same else {}),
        "model_given": judge.model("given", loaded, batch_size),
        "model_generated": judge.model("generated", loaded, batch_size),
    }
    return {
        "ward": {
            "patients": patients,
            "seed": seed,
            "records": len(train),
            "test_records": len(test),
            "tables": tables.version,
        },
        "ceiling": asdict(ceiling),
        "model": {"name": loaded.name, "version": loaded.version, "trained_on": [list(one) for one in trained_on]},
        "vocabulary": vocabulary.version,
        "conflicts": conflicts.version,
        "systems": systems,
    }


class _Judge:
    """Scores lists for the test board."""

    def __init__(
        self, test: Sequence[Record], vocabulary: Vocabulary, conflicts: ConflictTable, ceiling: float, report: Report
    ) -> None:
        self.test, self.vocabulary, self.conflicts, self.ceiling, self.report = test, vocabulary, conflicts, ceiling, report

    def baselines(self, train: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
        """The baselines of these names, tuned on validation patients out of `train`, under their keys of `NAMES`."""
        keys = {name.replace("-", "_"): name for name in names}
        return {key: self.baseline(key, name, train) for key, name in keys.items()}

    def same(self, wards: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The regression once more, on other wards' training patients, numbered apart."""
        train: list[Record] = []
        for place, (patients, seed) in enumerate(wards):
            step = place * 10_000_000
            made = simulate(patients, seed).train
            train += [r.model_copy(update={"patient": r.patient + step, "id": f"{place}/{r.id}"}) for r in made]
        return {"tfidf_same": self.baseline("tfidf_same", "tfidf", train)}

    def baseline(self, key: str, name: str, train: Sequence[Record]) -> dict[str, Any]:
        lists, tuning = run_baseline(name, train, self.test, report=self.report)
        return {"definition": DEFINITIONS[name], **self._score(key, dict(lists)), "tuning": tuning.to_json()}

    def model(self, diagnoses: Diagnoses, loaded: LoadedModel, batch_size: int) -> dict[str, Any]:
        """The records are given to the model without their drugs, and without diagnoses where it has to generate them."""
        hidden = {"drugs": ()} if diagnoses == "given" else {"drugs": (), "diagnoses": ()}
        board = [record.model_copy(update=hidden) for record in self.test]
        recommender = Recommender([loaded], self.vocabulary, self.conflicts, diagnoses=diagnoses, audit=False)
        start = perf_counter()
        done = recommender.batch(board, batch_size)
        seconds = perf_counter() - start
        details = {one.id: replace(one, seconds=0.0) for one in done}
        lists = {one.id: one.labels for one in done}
        return {**self._score(f"model_{diagnoses}", lists, details), "records_per_second": round(len(done) / seconds, 2)}

    def _score(self, key: str, lists: Lists, details: Any = None) -> dict[str, Any]:
        made = evaluate(
            {record.id: record.drugs for record in self.test},
            lists,
            self.vocabulary,
            self.conflicts,
            patients={record.id: record.patient for record in self.test},
            gold_diagnoses={record.id: record.diagnoses for record in self.test},
            details=details,
        )
        (value,) = made.to_json()["results"]
        (result,) = made.results
        self.report(_line(NAMES[key], result, self.ceiling))
        return {**_short(value), "share_of_ceiling": result.jaccard.value / self.ceiling}


def _short(value: dict[str, Any]) -> dict[str, Any]:
    """Without what fills pages: which drug is taken for which, and the calibration of single drugs and classes."""
    calibration = value["probabilities"]["calibration"]
    kept = None if calibration is None else {key: calibration[key] for key in ("binning", "overall")}
    drawn = {key: one for key, one in value["probabilities"]["intervals"].items() if key.startswith("overall")}
    rest = {key: part for key, part in value.items() if key != "confusion"}
    return {**rest, "probabilities": {**value["probabilities"], "calibration": kept, "intervals": drawn}}


def _line(name: str, result: ModeResult, ceiling: float) -> str:
    share = result.jaccard.value / ceiling
    return f"{name}: Jaccard {result.jaccard.value:.4f} ({share:.0%} of the ceiling), F1 {result.f1.value:.4f}"
