import copy
import json
import re
from html.parser import HTMLParser

import pytest

from yaofang.eval.probabilities import NO_SCORE
from yaofang.reports.page import page, write_page
from yaofang.reports.systems import systems_of
from yaofang.reports.tables import headline
from yaofang.reports.words import DEFINITIONS
from yaofang.vocab.errors import InputError

VOID = {"meta", "br", "img", "link", "input"}
FORMS = (".4f", ".2%", ".5f", ".3f", ".2f", "+.4f", "d")


class Page(HTMLParser):
    """Cells by class, ids, addresses, text, and whether every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: dict[str, list[str]] = {"number": [], "missing": [], "": []}
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.labels: list[str] = []
        self.text: list[str] = []
        self.cell: str | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [value for key, value in given.items() if key in ("src", "href", "xlink:href", "action", "data")]
        self.labels += [given["aria-label"]] if given.get("role") == "img" else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cell = given.get("class", "")
            self.cells[self.cell].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.cell = None if tag == "td" else self.cell

    def handle_data(self, data):
        if self.cell is not None:
            self.cells[self.cell][-1] += data
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def numbers_of(value) -> set[float]:
    """Every number of a JSON value, and the length of every list (how many are listed)."""
    if isinstance(value, dict):
        return set().union(*(numbers_of(one) for one in value.values()))
    if isinstance(value, list):
        return {len(value)}.union(*(numbers_of(one) for one in value))
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def shown_forms(value) -> set[str]:
    """Every number of a JSON value in every form that the page may show."""
    return {format(one, form) for one in numbers_of(value) for form in FORMS if form != "d" or type(one) is int}


def values_of(html: str, caption: str) -> list[list[str]]:
    """The cells of the table with this caption, row by row."""
    body = re.search(rf"<caption>{re.escape(caption)}</caption>.*?<tbody>(.*?)</tbody>", html, re.DOTALL).group(1)
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]


@pytest.fixture(scope="module")
def html(full):
    return page(full)


@pytest.fixture(scope="module")
def bare_html(bare):
    return page(bare)


def test_every_number_of_every_table_stands_in_the_json(html, full):
    known = shown_forms(full)
    cells = Page(html).cells["number"]
    shown = [part for cell in cells for part in cell.split(" 至 ")]
    assert len(shown) > 300
    assert [one for one in shown if one not in known] == []


def test_the_alternative_texts_of_the_plots_hold_no_number_of_their_own(html, full):
    known = shown_forms(full)
    labels = Page(html).labels
    assert len(labels) == 5
    for label in labels:
        assert [one for one in re.findall(r"(?<![\w.])\d+\.\d+%?", label) if one not in known] == []


def test_nothing_is_loaded_and_nothing_is_run(html):
    found = Page(html)
    assert {address[:1] for address in found.addresses} == {"#"}
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(found.tags)
    assert re.search(r"https?://|@import|url\((?!#)", html) is None


def test_ids_are_unique_and_every_reference_has_its_target(html):
    found = Page(html)
    assert len(found.ids) == len(set(found.ids))
    wanted = {address[1:] for address in found.addresses} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert wanted <= set(found.ids)


def test_no_cell_is_empty(html, bare_html):
    for one in (html, bare_html):
        assert all(text.strip() for cells in Page(one).cells.values() for text in cells)


def test_what_is_missing_says_why_and_is_never_a_number(bare_html):
    found = Page(bare_html)
    text, reasons = "".join(found.text), set(found.cells["missing"])
    assert "无：没有 --details，不知道每种药的概率" in reasons
    assert "无：没有病历 (--records)" in reasons
    for line in (
        "头部到尾部：无（没有训练记录",
        "亚组：无（没有病历",
        "混淆：a.json：无（JSON 中没有混淆表",
        "无配对比较（没有对照提交",
    ):
        assert line in text
    rows = dict((row[0], row[1:]) for row in values_of(bare_html, "主要结果"))
    assert rows["PRAUC (p_include)"] == ["无：没有 --details，不知道每种药的概率"] * 2


def test_details_without_p_include_are_named_as_the_reason(bare):
    value = copy.deepcopy(bare)
    value["results"][0]["probabilities"]["reason"] = NO_SCORE
    html = page(value)
    assert "无图（details 中没有 p_include" in html
    assert "无：details 中没有 p_include" in Page(html).cells["missing"]


def test_a_figure_without_interval_says_that_one_patient_gives_none(bare):
    value = copy.deepcopy(bare)
    value["results"][0]["jaccard"] |= {"low": None, "high": None}
    row = headline(systems_of([value]), "not stated").rows[0]
    assert row[2].text == "无：患者少于 2 名，无区间"


def test_known_confusions_give_the_known_table(bare):
    value = copy.deepcopy(bare)
    pair = {"gold": "卡格列净片", "predicted": "达格列净片", "group": "A10BK", "same_generic": False}
    other = {"gold": "氨氯地平片", "predicted": "氨氯地平", "group": "C08CA", "same_generic": True}
    value["results"][0]["confusion"] = {
        "records": 10,
        "missed": 5,
        "extra": 4,
        "paired": 3.5,
        "same_generic": 1.0,
        "pairs": [
            {**pair, "count": 2.5, "records": 3, "of_gold": 8, "of_predicted": 6},
            {**other, "count": 1.0, "records": 1, "of_gold": 4, "of_predicted": 2},
        ],
        "missed_alone": [{"name": "甲钴胺", "group": "B03BA", "count": 1.5, "of": 7}],
        "extra_alone": [],
    }
    html = page(value)
    assert values_of(html, "哪种药被当成哪种药：a.json") == [
        ["卡格列净片", "达格列净片", "A10BK", "否", "2.50", "3", "8", "6"],
        ["氨氯地平片", "氨氯地平", "C08CA", "是", "1.00", "1", "4", "2"],
    ]
    assert values_of(html, "漏列而无同类替代：a.json") == [["甲钴胺", "B03BA", "1.50", "7"]]
    assert "多列而无同类漏列：a.json：无（没有）" in html
    plot = next(text for text in Page(html).labels if "卡格列净片" in text)
    assert "卡格列净片 被列为 达格列净片，2.50 次" in plot


def test_both_systems_of_a_comparison_stand_beside_the_gold(html, full):
    own, other = full["results"][0], full["compared"]["results"][0]
    row = next(row for row in values_of(html, "安全性（与金标准并列）") if row[0] == "T1 药对占比")
    shown = [
        own["predicted"]["figures"]["T1_rate"],
        other["predicted"]["figures"]["T1_rate"],
        own["gold"]["figures"]["T1_rate"],
    ]
    assert [row[1], row[3], row[5]] == [f"{one['value']:.2%}" for one in shown]
    differences = full["compared"]["paired"][0]["differences"]
    caption = "a.json 减 b.json：诊断由模型生成 (generated)"
    assert [row[5] for row in values_of(html, caption)] == [f"{one['p_value']:.4f}" for one in differences]


def test_results_of_other_data_are_told_apart(bare):
    other = copy.deepcopy(bare)
    other["sha256"]["gold"], other["results"][0]["diagnoses"] = "0" * 12, "given"
    html = page([bare, other])
    assert "各系统的金标准文件不同，并列的数字不能直接比较" in html
    assert "诊断来源不同的记录分开计分，不合并" in html
    assert html.count('<h2 id="m') == 2
    assert "a.json (2)" in html


def test_names_are_escaped_everywhere(bare, full):
    value = copy.deepcopy(bare)
    bad = '<script>alert("x")</script>&'
    value["provenance"]["command"] = f"yaofang evaluate --predictions '{bad}'"
    value["unknown_ids"] = [bad]
    value["results"][0]["confusion"] = copy.deepcopy(full["results"][0]["confusion"])
    for one in value["results"][0]["confusion"]["pairs"]:
        one["gold"] = bad + one["gold"]
    found = Page(page(value))
    assert "script" not in found.tags
    assert bad in "".join(found.text)


def test_provenance_and_definitions_are_shown(html, full):
    source = full["provenance"]
    for one in (
        source["git"],
        source["date"],
        full["conflicts"],
        *full["sha256"].values(),
        f"numpy {source['versions']['numpy']}",
    ):
        assert one in html
    assert {name for name, _, _ in DEFINITIONS} <= {row[0] for row in definitions(html)}


def definitions(html):
    body = re.search(r'id="definition-list".*?<tbody>(.*?)</tbody>', html, re.DOTALL).group(1)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)]


def test_the_same_json_gives_the_same_page(full, html, tmp_path):
    write_page(json.loads(json.dumps(full)), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == html


@pytest.mark.parametrize("value", [[], {}, {"level": "label", "results": []}])
def test_what_is_no_result_is_refused(value, tmp_path):
    with pytest.raises(InputError, match="yaofang evaluate wrote"):
        write_page(value, tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
