import pytest

from yaofang.eval.diagnoses import exact_f1, normalised_f1, plain

SAME = [
    ("高血压3级（极高危）", "高血压Ⅲ级 很高危组"),
    ("高血压3级(极高危)", "高血压３级，高危"),
    ("II型糖尿病", "二型糖尿病"),
    ("Ⅱ 型糖尿病", "2型糖尿病"),
    ("慢性肾脏病三期", "慢性肾脏病3期"),
    ("心功能III级（NYHA分级（纽约））", "心功能3级"),
    ("ckd 3期", "CKD3期"),
    ("I度房室传导阻滞", "一度房室传导阻滞"),
]
DIFFERENT = [
    ("1型糖尿病", "2型糖尿病"),
    ("III型糖尿病", "II型糖尿病"),
    ("高血压2级", "高血压3级"),
    ("高危妊娠", "妊娠"),
    ("XI因子缺乏", "11因子缺乏"),
    ("血压140/90", "血压14/090"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_names_that_differ_in_writing_alone_are_one(one, other):
    assert plain(one) == plain(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_names_that_differ_in_meaning_stay_two(one, other):
    assert plain(one) != plain(other)


@pytest.mark.parametrize(
    ("name", "form"),
    [("（待查）", "待查"), ("高危", "高危"), ("", ""), ("心功能Ⅱ-Ⅲ级", "心功能2-3级"), ("心功能NYHA II级", "心功能NYHA2级")],
)
def test_a_name_that_is_only_a_remark_or_a_range_is_not_lost(name, form):
    assert plain(name) == form


def test_the_exact_figure_counts_writing_as_a_difference_and_the_normalised_does_not():
    gold, predicted = ["2型糖尿病", "高血压3级（极高危）"], ["Ⅱ型糖尿病", "高血压3级", "高血压3级(高危)"]
    assert exact_f1(gold, predicted) == 0
    assert normalised_f1(gold, predicted) == 1
    assert normalised_f1(gold, ["2型糖尿病"]) == pytest.approx(2 / 3)
    assert normalised_f1(gold, []) == exact_f1([], predicted) == 0
