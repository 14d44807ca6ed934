"""The card of the bundled model is filled from files, and the bundled folder is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from yaofang.decoding.calibration import load_calibration
from yaofang.glm.loading import BUNDLED, load_model
from yaofang.sft import tiny
from yaofang.sft.recipe import wards

ROOT = Path(__file__).resolve().parents[2]


def test_the_card_in_the_tree_is_the_one_that_the_files_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(BUNDLED, folder)
    monkeypatch.setattr(tiny, "RESULT", ROOT / "docs" / "results" / "quality.json")
    tiny.write_card(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == (BUNDLED / "README.md").read_text(encoding="utf-8")


def test_the_result_is_of_the_bundled_weights_and_of_patients_that_training_did_not_see() -> None:
    result = json.loads((ROOT / "docs" / "results" / "quality.json").read_text(encoding="utf-8"))
    assert result["model"]["version"] == load_model(device="cpu").version
    assert result["ward"]["seed"] not in {seed for _, seed in wards()}
    assert result["model"]["trained_on"] == [list(one) for one in wards()]


def test_the_curve_and_the_ways_to_decode_are_those_of_the_bundled_weights() -> None:
    loaded = load_model(device="cpu")
    curve = load_calibration(loaded.folder)
    assert curve is not None
    result = json.loads((ROOT / "docs" / "results" / "modes.json").read_text(encoding="utf-8"))
    assert curve.about["model"] == result["model"]["version"] == loaded.version


def test_a_card_says_so_when_the_model_stays_under_the_baseline() -> None:
    def systems(model: float) -> dict[str, dict[str, dict[str, float]]]:
        return {
            "model_given": {"jaccard": {"value": model}},
            "tfidf": {"jaccard": {"value": 0.4}},
        }

    assert "stays 0.100 under" in tiny._verdict(systems(0.3))
    assert "0.100 above" in tiny._verdict(systems(0.5))


def test_weights_too_large_for_git_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "LARGEST", 1000)
    shutil.copytree(BUNDLED, tmp_path / "run")
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="at most 1,000"):
        tiny.export(tmp_path / "run", tmp_path / "out")
