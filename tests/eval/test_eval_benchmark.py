"""The quality benchmark on a very small ward, with a random model: its bookkeeping, not its figures."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from yaofang.data.ward.simulate import simulate
from yaofang.eval.baselines.definitions import DEFINITIONS
from yaofang.eval.benchmark import NAMES, quality
from yaofang.glm.tiny import random_tiny
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

MODEL = "model_given"


@lru_cache
def result() -> dict[str, Any]:
    vocabulary = load_vocabulary()
    return quality(
        random_tiny(),
        vocabulary,
        load_conflicts(vocabulary),
        patients=40,
        seed=3,
        draws=6,
        trained_on=[(20, 4), (20, 5)],
        same=True,
    )


def test_every_system_is_scored_on_the_same_unseen_records() -> None:
    found = result()
    test = simulate(40, 3).test
    assert found["ward"]["test_records"] == len(test)
    for value in found["systems"].values():
        assert value["records"] == len(test)
        assert value["gold"]["mean_drugs"] == pytest.approx(sum(len(set(r.drugs)) for r in test) / len(test))
        assert value["share_of_ceiling"] == pytest.approx(value["jaccard"]["value"] / found["ceiling"]["mean"])


def test_given_and_generated_diagnoses_are_two_systems_and_only_the_latter_has_a_diagnosis_score() -> None:
    systems = result()["systems"]
    assert systems[MODEL]["diagnoses"] == "given"
    assert systems[MODEL]["diagnosis_f1"] is None
    generated = systems["model_generated"]
    assert generated["diagnoses"] == "generated"
    assert 0 <= generated["diagnosis_f1"]["value"] < 1


def test_even_a_random_model_writes_no_conflict_no_repeat_and_no_stranger() -> None:
    for name, value in result()["systems"].items():
        if name.startswith("model"):
            assert value["predicted"]["conflicts"]["T1"]["pairs"] == 0
            assert value["predicted"]["repeats"] == 0
            assert value["predicted"]["outside"] == 0
            assert value["predicted"]["mean_drugs"] > 1


def test_a_baseline_tells_what_was_tuned() -> None:
    tuning = result()["systems"]["tfidf"]["tuning"]
    assert tuning["settings"]["C"] > 0
    assert tuning["validation_patients"] > 0


def test_every_baseline_stands_beside_the_model_with_its_definition() -> None:
    systems = result()["systems"]
    for name, sentence in DEFINITIONS.items():
        value = systems[name.replace("-", "_")]
        assert value["definition"] == sentence
        assert value["tuning"]["baseline"] == name
    assert systems["tfidf_same"]["definition"] == DEFINITIONS["tfidf"]
    assert list(systems) == list(NAMES)
    assert sum(systems["last_visit"]["tuning"]["sources"].values()) == systems["last_visit"]["records"]


def test_the_ward_that_the_model_was_trained_on_is_refused() -> None:
    vocabulary = load_vocabulary()
    with pytest.raises(InputError, match="trained on the ward of seed 3"):
        quality(random_tiny(), vocabulary, load_conflicts(vocabulary), patients=40, seed=3, trained_on=[(40, 3)])
