"""The answer's text: rendering and parsing are inverse, separators never stand inside a name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaofang.data.answer import (
    HEADER,
    OPENING,
    Answer,
    canonical_order,
    clean_diagnosis,
    diagnosis_pieces,
    drug_frequency,
    parse,
    pieces,
    render,
)
from yaofang.data.records import Record

ENDINGS = st.sampled_from([")", "）", "。", "?", "？", "3", "级", "：", ""])
LETTERS = st.text("高血压3级（极危）()。?：:出院诊断带药 aR0\n；;、，", min_size=1, max_size=12)
DIAGNOSES = st.builds(lambda text, end: clean_diagnosis(text + end), LETTERS, ENDINGS).filter(bool)
DRUGS = st.builds(lambda text, end: "诺" + text + end, st.text("和灵片)）。?30R", max_size=8), ENDINGS)
ANSWERS = st.builds(
    lambda diagnoses, drugs: Answer(tuple(diagnoses), tuple(drugs)),
    st.lists(DIAGNOSES, max_size=6),
    st.lists(DRUGS, max_size=6),
)


def test_the_answer_is_two_lines_with_headers() -> None:
    answer = Answer(("2型糖尿病", "高血压3级（极高危）"), ("阿卡波糖", "诺和灵30R"))
    assert render(answer) == "\n出院诊断：2型糖尿病；高血压3级（极高危）\n出院带药：阿卡波糖、诺和灵30R"
    assert pieces(answer) == [
        *("\n", "出院诊断：", "2型糖尿病", "；", "高血压3级（极高危）"),
        *("\n", "出院带药：", "阿卡波糖", "、", "诺和灵30R"),
    ]


@settings(deadline=None)
@given(ANSWERS)
def test_parsing_is_the_inverse_of_rendering(answer: Answer) -> None:
    assert parse(render(answer)) == answer


@settings(deadline=None)
@given(ANSWERS)
def test_the_answer_starts_with_the_pieces_of_its_diagnoses(answer: Answer) -> None:
    given_part = diagnosis_pieces(answer.diagnoses)
    assert pieces(answer)[: len(given_part)] == given_part
    assert "".join(given_part).startswith(OPENING)
    assert "".join(given_part).endswith(HEADER)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_a_cleaned_diagnosis_holds_no_separator_and_cleaning_again_changes_nothing(name: str) -> None:
    clean = clean_diagnosis(name)
    assert not set(clean) & set("；;\n\r\u2028")
    assert clean_diagnosis(clean) == clean


@settings(deadline=None)
@given(st.text("出院诊断带药：；、\n药", max_size=60))
def test_any_text_can_be_parsed_and_the_result_rendered_and_parsed_again(text: str) -> None:
    answer = parse(text)
    assert parse(render(answer)) == answer


def test_a_separator_inside_a_diagnosis_is_rewritten() -> None:
    assert clean_diagnosis(" 2型糖尿病；肾病;眼病\n足病 ") == "2型糖尿病，肾病,眼病 足病"
    assert parse(render(Answer(("甲；乙", "丙"), ()))).diagnoses == ("甲，乙", "丙")


@pytest.mark.parametrize("name", ["甲、乙", "甲\n乙"])
def test_a_drug_that_holds_a_separator_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="separator"):
        render(Answer((), (name,)))


@pytest.mark.parametrize(
    ("text", "diagnoses", "drugs"),
    [
        ("出院诊断：甲；乙\n出院带药：丙、丁", ("甲", "乙"), ("丙", "丁")),
        ("\n\n出院诊断： 甲 ；；乙\n出院带药：丙、、丁、\n以上", ("甲", "乙"), ("丙", "丁")),
        ("甲；乙\n出院带药：丙", ("甲", "乙"), ("丙",)),
        ("出院带药：丙、丁", (), ("丙", "丁")),
        ("出院诊断：甲；乙", ("甲", "乙"), ()),
        ("出院诊断：\n出院带药：", (), ()),
        ("出院诊断：甲\n出院带药：丙、丙", ("甲",), ("丙", "丙")),
        ("", (), ()),
        ("别的话", (), ()),
    ],
)
def test_parsing_tolerates_a_missing_part(text: str, diagnoses: tuple[str, ...], drugs: tuple[str, ...]) -> None:
    assert parse(text) == Answer(diagnoses, drugs)


def test_the_canonical_order_is_by_training_frequency_then_label() -> None:
    records = [Record(patient=i, id=str(i), drugs=drugs) for i, drugs in enumerate([("乙", "甲"), ("乙",), ("丙",)])]
    frequency = drug_frequency(records)
    assert frequency == {"乙": 2, "甲": 1, "丙": 1}
    assert canonical_order(["新", "甲", "丙", "乙"], frequency) == ("乙", "丙", "甲", "新")
