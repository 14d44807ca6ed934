"""Pieces of evidence: they cover the record, and a prompt without one is the fitted prompt less its characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaofang.data.prompts import build_prompt
from yaofang.data.records import Record
from yaofang.inspection.evidence import (
    LONG,
    Shown,
    added_diagnosis,
    finest,
    pieces,
    sentences,
    with_diagnosis,
    without,
)

RECORD = Record(
    patient=1,
    id="1-1",
    sex="女",
    birth="1950-03",
    ethnicity="汉族",
    bmi=24.5,
    visit="2020-05",
    chief_complaint="发现血糖升高10年。",
    present_illness="  10年前体检发现血糖升高；长期口服二甲双胍、阿卡波糖。\n近1月口干、多饮，血压150/90mmHg。未规律监测。" * 3,
    past_history="高血压病史5年，口服氨氯地平片。否认药物过敏史。",
    admission="神志清，双肺呼吸音清，心率80次/分，律齐。双下肢无水肿。",
    course="完善检查：" + "，".join(f"指标{n}为{n}.50mmol/L" for n in range(12)) + "。予降糖、降压治疗，血糖平稳。准予出院。",
    diagnoses=("2型糖尿病", "高血压病3级（极高危）", "糖尿病周围神经病变"),
)


@settings(max_examples=60, deadline=None)
@given(st.text("血糖，。；\n a", max_size=200))
def test_sentences_cover_all_but_blanks_and_do_not_overlap(text: str) -> None:
    spans = sentences(text)
    covered = [at for start, end in spans for at in range(start, end)]
    assert covered == sorted(set(covered))
    assert "".join(text[at] for at in range(len(text)) if at not in set(covered)).strip() == ""


def test_long_sentences_are_divided_at_commas_and_short_ones_are_not() -> None:
    long = "，".join("甲" * 20 for _ in range(6)) + "。"
    assert [end - start for start, end in sentences(long)] == [42, 42, 42]
    assert sentences("一，二。三；四") == [(0, 4), (4, 6), (6, 7)]
    assert sentences("乙" * 90 + "，丙。") == [(0, 91), (91, 93)], "where no comma allows it, a run may be longer than 60"


def test_pieces_are_the_records_own_characters() -> None:
    found = pieces(RECORD)
    for piece in found:
        if piece.section == "现病史":
            assert RECORD.present_illness[piece.start : piece.end] == piece.text
    assert [piece.text for piece in found if piece.kind == "diagnosis"] == list(RECORD.diagnoses)
    assert max(len(piece.text) for piece in found if piece.kind == "sentence") <= LONG
    smallest = [found[at] for at in finest(found)]
    assert {piece.section for piece in smallest if piece.kind == "section"} == {
        "性别",
        "年龄",
        "民族",
        "BMI",
        "就诊时间",
        "主诉",
    }


@pytest.mark.parametrize("place", range(len(pieces(RECORD))))
def test_a_prompt_that_was_not_cut_is_the_prompt_of_the_record_without_the_piece(place: int) -> None:
    piece = pieces(RECORD)[place]
    changed = without(RECORD, piece)
    if piece.section == "出院诊断":
        assert changed.diagnoses == tuple(name for name in RECORD.diagnoses if name != piece.text)
        return
    if piece.section == "就诊时间":
        return  # the record without it has no age; the prompt keeps it
    shown = Shown.of(RECORD, build_prompt(RECORD))
    assert shown.without(piece) == build_prompt(changed).messages[-1]["content"]


@pytest.mark.parametrize("budget", [60, 130, 200, 300, 420])
def test_a_fitted_prompt_is_read_back_and_a_piece_takes_its_own_characters_with_it(budget: int) -> None:
    prompt = build_prompt(RECORD, budget=budget, count=len)
    shown = Shown.of(RECORD, prompt)
    content = prompt.messages[-1]["content"]
    assert "\n".join(f"{line.part.name}：{line.part.kept(line.kept)}" for line in shown.lines) == content
    texts = {"现病史": RECORD.present_illness, "诊疗过程描述": RECORD.course, "既往史": RECORD.past_history}
    for section, start, end, at in shown.places():
        if section in texts:
            assert content[at : at + end - start] == texts[section][start:end]
    for piece in (one for one in pieces(RECORD) if one.kind == "sentence"):
        left = shown.without(piece)
        visible = sum(max(0, min(e, piece.end) - max(s, piece.start)) for n, s, e, _ in shown.places() if n == piece.section)
        line = shown.line(piece.section)
        whole = line is not None and line.text_without(piece.start, piece.end) == ""
        assert shown.touches(piece) == bool(visible)
        if not whole:
            assert len(content) - len(left) == visible
        assert not shown.shows(piece.section, piece.start, piece.end) or piece.text.strip() in content


def test_a_prompt_of_another_record_is_refused() -> None:
    other = RECORD.model_copy(update={"course": "准予出院。"})
    with pytest.raises(ValueError, match="not one of record"):
        Shown.of(RECORD, build_prompt(other))


def test_a_diagnosis_is_put_in_once() -> None:
    added = with_diagnosis(RECORD, "痛风")
    assert added.diagnoses == (*RECORD.diagnoses, "痛风")
    assert with_diagnosis(added, "痛风") is added
    assert with_diagnosis(RECORD, "痛风", 1).diagnoses[1] == "痛风"
    assert without(added, added_diagnosis(RECORD, "痛风")) == RECORD
