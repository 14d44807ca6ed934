import copy
import re

import pytest

from yaofang.reports.card import NOT_MEASURED, NOT_STATED, card, escaped, write_card

HEADINGS = (
    "Title, Objectives",
    "Intended use",
    "Data",
    "Analytical methods",
    "LLM output",
    "Annotation",
    "Prompting",
    "Instruction tuning, alignment",
    "Compute",
    "Ethical approval",
    "Open science",
    "Participants",
    "Performance",
    "LLM updating",
    "Interpretation",
    "Limitations",
    "Usability of the model in context of current care",
)


def section(text: str, heading: str) -> str:
    """What stands under a heading."""
    return re.search(rf"^## [^\n]*（{re.escape(heading)}）[^\n]*\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE).group(1)


def tables(text: str) -> list[list[str]]:
    """Cells of every table row; a backslash before a bar does not end a cell."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_heading_of_tripod_llm_that_applies_has_a_text(full, bare, heading):
    for value in (full, bare):
        assert section(card(value), heading).strip()


def test_what_the_json_lacks_is_not_measured(bare):
    text = card(bare)
    assert f"**亚组**：{NOT_MEASURED}：没有病历 (--records)" in section(text, "Participants")
    performance = section(text, "Performance")
    assert f"**头部到尾部**：{NOT_MEASURED}：没有训练记录" in performance
    assert f"{NOT_MEASURED}：没有对照提交" in performance
    assert "概率的排序与校准未测量 (not measured)：没有 --details" in section(text, "Limitations")
    assert "患者由就诊标识推断" in section(text, "Limitations")
    for heading in ("Prompting", "Ethical approval"):
        assert section(text, heading).strip() == NOT_STATED


def test_a_limit_that_does_not_hold_is_not_written(full):
    limits = section(card(full), "Limitations")
    assert "未测量 (not measured)：没有" not in limits
    assert "由就诊标识推断" not in limits


def test_shared_patients_are_a_limit(full):
    value = copy.deepcopy(full)
    value["training"]["shared_patients"] = [7]
    assert "有相同的患者序号" in section(card(value), "Limitations")


def test_the_figures_are_those_of_the_json(full):
    rows = {row[0]: row[1:] for row in tables(section(card(full), "Performance"))}
    jaccard, tier = full["results"][0]["jaccard"], full["results"][0]["gold"]["figures"]["T3_rate"]
    assert rows["Jaccard"][:2] != ["1.0000", "1.0000 至 1.0000"]
    first = next(row for row in tables(section(card(full), "Performance")) if row[0] == "Jaccard")
    assert first[1:] == [f"{jaccard['value']:.4f}", f"{jaccard['low']:.4f} 至 {jaccard['high']:.4f}"]
    assert rows["T3 药对占比"][2] == f"{tier['value']:.2%}"


def test_every_row_has_as_many_cells_as_its_header(full):
    for block in re.split(r"\n\n", card(full)):
        widths = {len(row) for row in tables(block)}
        assert len(widths) <= 1


def test_models_are_named_where_the_json_names_them(full):
    assert f"模型名称与版本：{NOT_STATED}" in card({**full, "model_versions": None})
    assert "model glm-x" in card({**full, "model_versions": [{"model": "glm-x"}]})


def test_nothing_of_the_json_becomes_markdown_or_html(full):
    bad = "a|b<img src=x>`*_[x](y)\n# no"
    assert escaped(bad) == r"a\|b&lt;img src=x&gt;\`\*\_\[x\](y) \# no"
    text = card({**copy.deepcopy(full), "vocabulary": bad})
    assert "<img" not in text
    assert "\n# no" not in text


def test_the_card_is_written_whole(full, tmp_path):
    write_card(full, tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == card(full)
