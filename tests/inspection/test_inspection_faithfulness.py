"""Faithfulness: what counts as the true cause, what is left out and counted, and the figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yaofang.data.prompts import build_prompt
from yaofang.data.records import Record
from yaofang.data.ward.text import Truth
from yaofang.glm.loading import load_model
from yaofang.inspection.counterfactual import Counterfactual
from yaofang.inspection.evidence import Shown, pieces
from yaofang.inspection.faithfulness import RANKINGS, Judged, faithfulness, figures, judge_drug
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

RECORD = Record(
    patient=7,
    id="7-1",
    present_illness="长期口服二甲双胍。近日口干。",
    past_history="有痛风病史。否认过敏史。",
    course="入院后继续二甲双胍。血钾3.1mmol/L。准予出院。",
    diagnoses=("2型糖尿病", "痛风"),
)
PIECES = tuple(pieces(RECORD))
TEXTS = [piece.text for piece in PIECES]


def judged_by(top: str, cause: Truth, *, budget: int | None = None, attention: str = "否认过敏史。") -> Judged:
    """One drug judged, for which the piece `top` has the greatest effect."""
    prompt = build_prompt(RECORD, budget=budget, count=len if budget else None)
    shown = Shown.of(RECORD, prompt)
    effect = np.array([[float(text == top) for text in TEXTS]])
    seen = np.array([piece.section == "出院诊断" or shown.touches(piece) for piece in PIECES])
    found = Counterfactual(PIECES, (cause.label,), effect, np.ones(1), effect, np.ones(1), seen)
    judged = Judged()
    judge_drug(RECORD, cause, found, np.array([float(text == attention) for text in TEXTS]), shown, judged)
    return judged


def cause(kind: str, section: str, said: str) -> Truth:
    if section == "出院诊断":
        place = RECORD.diagnoses.index(said)
        return Truth("7-1", "非布司他片", kind, (section, place, place + 1), None)
    text = {"现病史": RECORD.present_illness, "诊疗过程描述": RECORD.course}[section]
    return Truth("7-1", "二甲双胍", kind, (section, text.index(said), text.index(said) + len(said)), None)


HOME = cause("earlier drug", "现病史", "二甲双胍")
FINDING = cause("finding", "诊疗过程描述", "3.1mmol/L")
GOUT = cause("diagnosis", "出院诊断", "痛风")


@pytest.mark.parametrize(
    ("top", "truth", "hit", "span_hit"),
    [
        ("长期口服二甲双胍。", HOME, 1.0, 1.0),
        ("入院后继续二甲双胍。", HOME, 1.0, 0.0),
        ("近日口干。", HOME, 0.0, 0.0),
        ("痛风", GOUT, 1.0, 1.0),
        ("有痛风病史。", GOUT, 1.0, 0.0),
        ("2型糖尿病", GOUT, 0.0, 0.0),
        ("血钾3.1mmol/L。", FINDING, 1.0, 1.0),
        ("准予出院。", FINDING, 0.0, 0.0),
    ],
)
def test_the_true_cause_is_the_span_or_another_piece_that_names_it(top: str, truth: Truth, hit: float, span_hit: float) -> None:
    judged = judged_by(top, truth)
    assert judged.hits[0][:3] == [hit, hit, 0.0]
    assert judged.span_hits[0][:3] == [span_hit, span_hit, 0.0]
    stating = {HOME: 2, GOUT: 2, FINDING: 1}[truth]
    assert judged.hits[0][3] == pytest.approx(stating / 9), "nine pieces: two diagnoses, seven sentences"


def test_habits_and_causes_that_fitting_has_cut_are_counted_apart() -> None:
    habit = Truth("7-1", "维生素C", "habit", ("入院情况", 0, 1), None)
    assert judged_by("痛风", habit).left_out == {"habit": 1}
    cut = judged_by("痛风", FINDING, budget=20)
    assert cut.left_out == {"cut": 1}
    assert not cut.hits
    assert judged_by("痛风", GOUT, budget=20).hits[0][0] == 1.0, "a given diagnosis is never cut"


def test_a_drug_whose_span_was_cut_but_that_stands_elsewhere_is_judged_but_not_strictly() -> None:
    content = build_prompt(RECORD, budget=45, count=len).messages[-1]["content"]
    assert "长期口服" not in content
    assert "入院后继续二甲双胍" in content
    judged = judged_by("入院后继续二甲双胍。", HOME, budget=45)
    assert judged.hits[0][0] == 1.0
    assert np.isnan(judged.span_hits[0]).all()


def test_figures_are_shares_of_drugs_with_intervals_over_patients() -> None:
    judged = Judged(
        patients=[1, 1, 2, 3],
        causes=["diagnosis", "finding", "diagnosis", "diagnosis"],
        hits=[[1, 0, 1, 0.1], [1, 0, 0, 0.1], [0, 0, 0, 0.2], [1, 1, 0, 0.2]],
        span_hits=[[1, 0, 1, 0.1], [np.nan] * 4, [0, 0, 0, 0.2], [1, 1, 0, 0.2]],
    )
    judged.left_out.update({"cut": 2, "habit": 1})
    found = figures(judged)
    assert found["drugs"] == {"judged": 4, "cut": 2, "habit": 1, "not_in_gold": 0}
    values = {name: found["top_is_cause"][name]["value"] for name in RANKINGS}
    assert values == pytest.approx(dict(zip(RANKINGS, (0.75, 0.25, 0.25, 0.15), strict=True)))
    assert found["top_is_span"]["drugs"] == 3
    assert found["top_is_span"]["counterfactual"]["value"] == pytest.approx(2 / 3)
    assert found["by_cause"]["finding"]["counterfactual"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    row = found["top_is_cause"]["counterfactual"]
    assert row["low"] == 0.0, "one resample in 27 has the second patient alone"
    assert row["high"] == 1.0
    assert figures(Judged())["top_is_cause"] == {"drugs": 0}


def test_on_the_ward_the_top_evidence_is_the_true_cause_more_often_than_chance() -> None:
    torch.set_num_threads(1)
    vocabulary = load_vocabulary()
    loaded = load_model(device="cpu")
    with pytest.raises(InputError, match="trained on"):
        faithfulness(loaded, vocabulary, load_conflicts(vocabulary), seed=5, trained_on=[(9, 5)])
    found = faithfulness(loaded, vocabulary, load_conflicts(vocabulary), records=2, patients=12, seed=5)
    assert found["ward"]["records"] == 2
    assert found["drugs"]["judged"] == sum(found["judged_by_cause"].values()) > 0
    table = found["top_is_cause"]
    assert table["counterfactual"]["value"] > 2 * table["random"]["value"]
    assert set(RANKINGS) <= set(found["legend"])
