"""The prompt of a record, and fitting it to a token budget."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaofang.data.fitting import ELLIPSIS, Part, fit, joined
from yaofang.data.prompts import SECTIONS, SYSTEM, age_at_visit, build_prompt
from yaofang.data.records import Record
from yaofang.vocab.errors import InputError

GLM4 = Path(__file__).resolve().parents[3] / "shared" / "tokenizers" / "glm4-hf" / "tokenizer.json"

RECORD = Record(
    patient=2,
    id="2-1",
    sex="女",
    birth="1940-12",
    ethnicity="汉族",
    bmi=27.3,
    visit="2015-03",
    course="入院后查：尿白细胞62.25/HP。",
    admission="T36.6℃，BP160/80mmHg。",
    present_illness="患者5年前出现多饮。",
    past_history="否认冠心病病史。",
    chief_complaint="多饮5年。",
    diagnoses=("糖尿病酮症",),
    drugs=("瑞格列奈",),
)
LONG = RECORD.model_copy(
    update={
        "course": "查糖化血红蛋白9.1%。" * 150,
        "admission": "神志清，双肺呼吸音清。" * 60,
        "present_illness": "口服二甲双胍0.5g日三次。" * 90,
        "past_history": "高血压病史10年。" * 40,
    }
)


def by_runs(text: str) -> int:
    """Tokens that merge equal neighbours in pairs, so that the count of a whole is not the sum of its parts."""
    return sum((len(list(run)) + 1) // 2 for _, run in groupby(text))


class Counted:
    """A count function that knows how often it was called."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self.count = count
        self.calls = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        return self.count(text)


def user_turn(record: Record, budget: int | None = None, count: Callable[[str], int] | None = None) -> str:
    return build_prompt(record, budget=budget, count=count).messages[-1]["content"]


def test_the_prompt_is_a_system_turn_and_the_sections_under_their_own_names() -> None:
    prompt = build_prompt(RECORD)
    assert prompt.messages[0] == {"role": "system", "content": SYSTEM}
    assert prompt.messages[1]["role"] == "user"
    assert prompt.messages[1]["content"] == (
        "性别：女\n年龄：74岁\n民族：汉族\nBMI：27.3\n就诊时间：2015-03\n主诉：多饮5年。\n现病史：患者5年前出现多饮。\n"
        "既往史：否认冠心病病史。\n入院情况：T36.6℃，BP160/80mmHg。\n诊疗过程描述：入院后查：尿白细胞62.25/HP。"
    )
    assert prompt.cuts == ()


def test_neither_diagnoses_nor_drugs_are_in_the_prompt() -> None:
    assert "糖尿病酮症" not in user_turn(RECORD)
    assert "瑞格列奈" not in user_turn(RECORD)


def test_empty_sections_are_left_out() -> None:
    assert user_turn(Record(patient=1, id="1-1", chief_complaint="多饮。")) == "主诉：多饮。"
    assert user_turn(Record(patient=1, id="1-1")) == ""


@pytest.mark.parametrize(
    ("birth", "visit", "age"),
    [
        ("1940-12", "2015-03", 74),
        ("1940-03", "2015-03", 75),
        ("1940-03-31", "2015-3", 75),
        ("1940年3月", "2015/04", 75),
        ("2015-04", "2015-03", None),
        ("1940", "2015-03", None),
        (None, "2015-03", None),
        ("1940-12", None, None),
    ],
)
def test_the_age_is_counted_in_whole_years_at_the_visit(birth: str | None, visit: str | None, age: int | None) -> None:
    assert age_at_visit(Record(patient=1, id="1-1", birth=birth, visit=visit)) == age


def test_the_month_of_birth_stands_in_for_an_age_that_cannot_be_counted() -> None:
    assert user_turn(Record(patient=1, id="1-1", birth="1940-12")) == "出生日期：1940-12"


def test_a_budget_without_a_count_is_refused() -> None:
    with pytest.raises(ValueError, match="count"):
        build_prompt(RECORD, budget=100)


def test_what_fits_is_not_cut_and_is_counted_once() -> None:
    count = Counted(len)
    prompt = build_prompt(RECORD, budget=len(user_turn(RECORD)), count=count)
    assert prompt == build_prompt(RECORD)
    assert count.calls == 1


def test_what_fits_although_it_has_many_characters_a_token_is_not_cut() -> None:
    parts = [Part("检验", "a" * 900, "tail"), Part("主诉", "b" * 90)]
    for budget in (100, 101, 150):
        counted = Counted(lambda text: -(-len(text) // 10))
        assert fit(parts, budget, counted) == (joined(parts, [900, 90]), ())
        assert counted.calls <= 3
    assert fit(parts, 99, lambda text: -(-len(text) // 10))[1]


def test_a_part_that_goes_whole_loses_the_tokens_of_its_text() -> None:
    parts = [Part("现病史", "a" * 50, "tail"), Part("主诉", "b" * 20)]
    text, (cut,) = fit(parts, 24, len)
    assert text == "主诉：" + "b" * 20
    assert (cut.section, cut.tokens) == ("现病史", 50)


@pytest.mark.parametrize("count", [len, by_runs, lambda text: len(text.encode())])
@pytest.mark.parametrize("budget", [200, 400, 700, 1100, 1700, 2600, 3500])
def test_a_cut_prompt_fits_by_the_count_of_the_whole_in_at_most_30_calls(budget: int, count: Callable[[str], int]) -> None:
    counted = Counted(count)
    prompt = build_prompt(LONG, budget=budget, count=counted)
    assert count(prompt.messages[-1]["content"]) <= budget
    assert counted.calls <= 30
    assert prompt.cuts
    assert prompt == build_prompt(LONG, budget=budget, count=count)


@pytest.mark.parametrize("budget", range(150, 3700, 71))
def test_the_budget_is_used_as_far_as_the_next_character(budget: int) -> None:
    assert budget - 1 <= len(user_turn(LONG, budget, len)) <= budget or not build_prompt(LONG, budget=budget, count=len).cuts


def test_sections_go_in_turn_admission_first_and_the_course_last() -> None:
    whole = len(user_turn(LONG))
    cut = [
        [part.section for part in build_prompt(LONG, budget=budget, count=len).cuts]
        for budget in (whole - 100, whole - 1000, whole - 1650, whole - 2200)
    ]
    assert cut == [
        ["入院情况"],
        ["现病史", "入院情况"],
        ["现病史", "既往史", "入院情况"],
        ["现病史", "既往史", "入院情况", "诊疗过程描述"],
    ]


def test_a_section_is_shortened_from_its_middle_and_the_gap_is_marked() -> None:
    record = RECORD.model_copy(update={"course": "开头" + "中" * 3000 + "结尾"})
    text = user_turn(record, 900, len)
    assert "诊疗过程描述：开头" in text
    assert text.endswith("结尾")
    assert text.count(ELLIPSIS) == 1


def test_cuts_report_the_tokens_that_went() -> None:
    whole = len(user_turn(LONG))
    (cut,) = build_prompt(LONG, budget=whole - 100, count=len).cuts
    assert (cut.section, cut.tokens) == ("入院情况", 100)


@pytest.mark.parametrize("budget", [60, 80, 120, 300])
def test_demographics_and_the_chief_complaint_are_never_cut(budget: int) -> None:
    assert user_turn(LONG, budget, len).startswith(user_turn(RECORD).split("\n现病史")[0])


@pytest.mark.parametrize("budget", [10, 0, -5])
def test_a_record_whose_uncut_part_does_not_fit_is_refused(budget: int) -> None:
    with pytest.raises(InputError, match="never cut") as caught:
        build_prompt(LONG, budget=budget, count=len)
    assert caught.value.way_out
    assert "汉族" not in str(caught.value)
    assert "多饮" not in str(caught.value)


def test_demographics_longer_than_the_context_are_named() -> None:
    record = RECORD.model_copy(update={"ethnicity": "汉族" * 500})
    with pytest.raises(InputError, match="never cut") as caught:
        build_prompt(record, budget=400, count=len)
    assert caught.value.field == "民族"


def test_a_chief_complaint_is_shortened_last_and_the_cut_is_reported() -> None:
    record = RECORD.model_copy(update={"chief_complaint": "多饮" * 500})
    prompt = build_prompt(record, budget=400, count=len)
    assert "主诉：多饮多饮" in prompt.messages[-1]["content"]
    assert [(cut.section, cut.tokens > 500) for cut in prompt.cuts if cut.section == "主诉"] == [("主诉", True)]
    assert [cut.section for cut in build_prompt(RECORD, budget=100, count=len).cuts if cut.section == "主诉"] == []


def test_the_table_shortens_in_turns_that_differ_and_never_the_demographics() -> None:
    turns = [section.turn for section in SECTIONS if section.shorten != "never"]
    assert sorted(turns) == [1, 2, 3, 4, 5]
    never = {section.name for section in SECTIONS if section.shorten == "never"}
    assert never == {"性别", "年龄", "出生日期", "民族", "BMI", "就诊时间"}


PARTS = st.lists(
    st.builds(
        Part,
        name=st.sampled_from("甲乙丙丁"),
        text=st.text("aab。\n中", max_size=60),
        shorten=st.sampled_from(["middle", "tail"]),
        turn=st.integers(0, 3),
        floor=st.integers(0, 20),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(PARTS, st.integers(0, 200), st.sampled_from([len, by_runs]))
def test_fitting_never_passes_the_budget_and_reports_every_cut(
    parts: list[Part], budget: int, count: Callable[[str], int]
) -> None:
    text, cuts = fit(parts, budget, count)
    assert count(text) <= budget
    assert all(cut.tokens > 0 for cut in cuts)
    assert bool(cuts) == (text != joined(parts, [len(part.text) for part in parts]))


@pytest.mark.skipif(not GLM4.exists(), reason="../shared/tokenizers/glm4-hf is absent")
def test_a_cut_prompt_fits_by_the_real_tokenizer_and_fills_the_budget() -> None:
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(GLM4))
    counted = Counted(lambda text: len(encoder.encode(text, add_special_tokens=False).ids))
    tokens = counted.count(user_turn(LONG, 900, counted))
    assert 895 <= tokens <= 900
    assert counted.calls <= 30
