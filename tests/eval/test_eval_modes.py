"""Ways to decode side by side: three sets of patients that share none, and figures that follow from the lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yaofang.eval.calibration import reliability
from yaofang.eval.modes import modes
from yaofang.glm.tiny import random_tiny
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_random_model_is_measured_in_every_way() -> None:
    vocabulary = load_vocabulary()
    conflicts = load_conflicts(vocabulary)
    loaded = random_tiny(context=700)
    result, curve = modes(loaded, vocabulary, conflicts, patients=24, ward_patients=24, samples=3)
    sets = result["sets"]
    assert sets["calibration"]["patients"] == sets["choice"]["patients"] == 12
    assert set(result["test"]["ways"]) == {"greedy", "beam_4", "expected_jaccard", "expected_f1"}
    for way in result["test"]["ways"].values():
        assert way["t1_pairs"] == 0
        assert way["drugs"] >= 1
        assert way["jaccard"]["low"] <= way["jaccard"]["value"] <= way["jaccard"]["high"]
    assert set(result["test"]["less_greedy"]) == {"beam_4", "expected_jaccard", "expected_f1"}
    less = result["test"]["less_greedy"]["expected_jaccard"]["jaccard"]
    ways = result["test"]["ways"]
    assert less["value"] == pytest.approx(ways["expected_jaccard"]["jaccard"]["value"] - ways["greedy"]["jaccard"]["value"])
    judged = result["calibration"]["choice"]
    assert judged["calibrated"]["brier"] < judged["raw"]["brier"], "a random model is badly calibrated"
    assert curve.samples == 3


def test_a_ward_that_the_model_was_trained_on_is_refused() -> None:
    vocabulary = load_vocabulary()
    with pytest.raises(InputError, match="used before"):
        modes(random_tiny(), vocabulary, load_conflicts(vocabulary), trained_on=[(100, 2)])
    with pytest.raises(InputError, match="used before"):
        modes(random_tiny(), vocabulary, load_conflicts(vocabulary), seed=2)


def test_reliability_of_known_numbers() -> None:
    p = np.array([0.05, 0.05, 0.95, 0.95])
    held = np.array([0.0, 0.0, 1.0, 0.0])
    found = reliability(p, held)
    assert found["brier"] == pytest.approx((0.05**2 * 2 + 0.05**2 + 0.95**2) / 4)
    assert found["ece"] == pytest.approx((0.05 * 2 + 0.45 * 2) / 4)
    assert [one["drugs"] for one in found["bins"]] == [2, 2]
