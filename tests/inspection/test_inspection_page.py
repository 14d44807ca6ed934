from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from yaofang.data.recommendation import Blocked, Considered, Diagnosis, Drug, Recommendation, Warning
from yaofang.data.records import Record
from yaofang.inspection.page import CONFIDENTIAL, RESEARCH_ONLY, Row, Shown, index_page, records_page
from yaofang.inspection.site import MARK, ON_ONE_PAGE, check_target, write_report
from yaofang.inspection.view import RecordView, Viewer
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

VIEWER = Viewer(load_vocabulary())
EVIL = "<script>alert(1)</script><img src=\"http://x/\" onerror='x()'>&amp;"


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


def drug(label: str, **changes: object) -> Drug:
    values = {"generic": "", "atc": "", "p_step": 0.5, "p_include": None, "masked_mass": 0.0, **changes}
    return Drug(label=label, **values)  # type: ignore[arg-type]


def view(
    id: str = "1-1", *labels: str, gold: list[str] | None = None, diagnoses: tuple[str, ...] = (), **fields: object
) -> RecordView:
    record = Record.model_validate({"patient": 1, "id": id, "diagnoses": diagnoses, **fields})
    found = Recommendation(
        id, tuple(Diagnosis(name, "given") for name in diagnoses), tuple(map(drug, labels)), versions={"model": "m"}
    )
    return VIEWER.view(record, found, gold=gold)


def page(*views: RecordView) -> Page:
    return Page(records_page("检查", [Shown(number, one) for number, one in enumerate(views, 1)], {"模型": "m"}))


def test_what_a_record_says_is_never_markup() -> None:
    record = Record.model_validate(
        {
            "patient": 1,
            "id": EVIL,
            "diagnoses": [EVIL],
            "present_illness": f"口服二甲双胍{EVIL}",
            "past_history": f"对{EVIL}过敏",
        }
    )
    evil_drug = drug(EVIL, warnings=(Warning("patient", "T1", EVIL, EVIL),), p_include=0.5)
    found = Recommendation(
        EVIL,
        (Diagnosis(EVIL, "given"),),
        (evil_drug, drug("二甲双胍")),
        blocked=(Blocked(EVIL, EVIL, "T1", 0.1),),
        considered=(Considered(EVIL + "2", 0.1),),
    )
    seen = VIEWER.view(record, found, gold=[EVIL + "3"])
    rendered = records_page(EVIL, [Shown(1, seen)], {"模型": EVIL})
    listed = index_page(EVIL, [Row.of(seen, 1, "a/1.html")], {"模型": EVIL})
    for html in (rendered, listed):
        parsed = Page(html)
        assert len(parsed.scripts) == 1
        assert "alert" not in parsed.scripts[0]
        assert "img" not in {tag for tag, _ in parsed.tags}
        assert parsed.all("onerror") == []
        assert EVIL in parsed.text
    assert EVIL in Page(listed).all("data-id")


def test_the_text_of_a_section_is_kept_to_the_character() -> None:
    text = "口服二甲双胍\n  及阿卡波糖。  血糖升高"
    html = records_page("检查", [Shown(1, view("1-1", "二甲双胍", present_illness=text))], {})
    (shown,) = re.findall(r"<h4>现病史</h4>\n<p>(.*?)</p>", html, re.S)
    assert re.sub(r"<[^>]+>", "", re.sub(r"<sup>.*?</sup>", "", shown)) == text


def test_a_span_names_the_drugs_that_it_speaks_for_by_number_and_kind() -> None:
    seen = view(
        "1-1",
        "二甲双胍",
        "阿卡波糖",
        diagnoses=("2型糖尿病",),
        present_illness="2型糖尿病口服二甲双胍",
        gold=["二甲双胍", "阿卡波糖"],
    )
    (text,) = [one for one in Shown(1, seen).sections if one.name == "现病史"]
    assert [(part.text, part.keys, part.classes, part.ends) for part in text.parts] == [
        ("2型糖尿病", ("1", "2"), "diagnosis", ("1", "2")),
        ("口服", (), "", ()),
        ("二甲双胍", ("1",), "drug-name", ("1",)),
    ]


def test_spans_that_overlap_are_cut_where_either_ends() -> None:
    seen = view("1-1", "二甲双胍", course="甘油三酯2.3mmol/L", gold=["阿托伐他汀钙片", "二甲双胍"])
    (text,) = Shown(1, seen).sections
    assert "".join(part.text for part in text.parts) == "甘油三酯2.3mmol/L"
    assert {key for part in text.parts for key in part.keys} == {"漏1"}


def test_every_link_of_a_page_leads_to_a_place_in_it() -> None:
    text = "2型糖尿病10年，口服二甲双胍，HbA1c9.0%。对二甲双胍过敏"
    found = page(
        view("1-1", "二甲双胍", "雷贝拉唑", diagnoses=("2型糖尿病",), present_illness=text, course=text, gold=["阿卡波糖"]),
        view("1-2", "二甲双胍", present_illness=text),
    )
    links = [link.removeprefix("#") for link in found.all("href")]
    places = found.all("id")
    assert len(links) > 10
    assert len(places) == len(set(places))
    assert set(links) <= set(places)


def test_a_page_loads_nothing_and_runs_its_own_script_alone() -> None:
    html = records_page("检查", [Shown(1, view("1-1", "二甲双胍"))], {})
    parsed = Page(html)
    assert parsed.all("src") == []
    assert not {"link", "iframe", "img", "object"} & {tag for tag, _ in parsed.tags}
    assert "url(" not in html
    assert "@import" not in html
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[0].encode()).digest()).decode()
    policy = next(value for value in parsed.all("content") if "script-src" in value)
    assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_page_says_that_it_holds_records_and_is_no_prescription() -> None:
    seen = view("1-1", "二甲双胍")
    for html in (records_page("检查", [Shown(1, seen)], {}), index_page("检查", [Row.of(seen, 1, "x")], {})):
        text = Page(html).text
        assert CONFIDENTIAL in text
        assert RESEARCH_ONLY in text


def test_no_data_is_told_apart_from_no_indication() -> None:
    unknown = page(view("1-1", "雷贝拉唑", diagnoses=("没有这种病",))).text
    known = page(view("1-1", "雷贝拉唑", diagnoses=("2型糖尿病",))).text
    assert "本例诊断中没有表中的适应证" in known
    assert "⚑ 无指征用药" in known
    assert "本例诊断中没有表中的适应证" not in unknown
    assert "⚑" not in unknown
    assert "表中无数据" in unknown


def test_the_index_lists_the_worst_first_and_what_its_filters_need() -> None:
    views = [
        view("good", "二甲双胍", gold=["二甲双胍"]),
        view("bad", "雷贝拉唑", gold=["二甲双胍"], diagnoses=("2型糖尿病",)),
        view("unknown", "二甲双胍"),
    ]
    parsed = Page(index_page("检查", [Row.of(one, place, f"x/{place}.html") for place, one in enumerate(views, 1)], {}))
    rows = [attributes for tag, attributes in parsed.tags if tag == "tr" and "data-id" in attributes]
    assert [row["data-id"] for row in rows] == ["bad", "good", "unknown"]
    assert (rows[0]["data-wrong"], rows[0]["data-missed"], rows[0]["data-flags"]) == (
        "雷贝拉唑",
        "二甲双胍",
        "无指征用药、有指征未用药",
    )
    assert (rows[1]["data-wrong"], rows[1]["data-flags"], rows[1]["data-count"]) == ("", "", "0")
    assert parsed.all("href") == ["x/2.html", "x/1.html", "x/3.html"]


# Reports on a disk


def many(count: int) -> Iterator[RecordView]:
    for number in range(count):
        yield view(f"{number}-1", "二甲双胍", gold=["二甲双胍"] if number % 2 else ["阿卡波糖"])


def test_up_to_fifty_records_are_one_page_with_the_worst_first(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert write_report(out, many(4), count=4, about={}) == [out]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    titles = re.findall(r"<h2>就诊标识 (\S+)", out.read_text(encoding="utf-8"))
    assert titles == ["0-1", "2-1", "1-1", "3-1"]


def test_more_records_are_an_index_with_a_page_each_that_lead_to_one_another(tmp_path: Path) -> None:
    out = tmp_path / "报告 1.html"
    count = ON_ONE_PAGE + 1
    assert write_report(out, many(count), count=count, about={}) == [out, tmp_path / "报告 1"]
    pages = sorted((tmp_path / "报告 1").glob("*.html"))
    assert len(pages) == count
    links = Page(out.read_text(encoding="utf-8")).all("href")
    assert sorted(links) == [f"%E6%8A%A5%E5%91%8A%201/{path.name}" for path in pages]
    first = Page(pages[0].read_text(encoding="utf-8")).all("href")
    assert first[:2] == ["../%E6%8A%A5%E5%91%8A%201.html", "00002.html"]


def test_a_report_that_fails_on_the_way_leaves_the_old_one_and_nothing_half_written(tmp_path: Path) -> None:
    out, count = tmp_path / "report.html", ON_ONE_PAGE + 1
    write_report(out, many(count), count=count, about={"模型": "old"})
    before = out.read_bytes()

    def failing() -> Iterator[RecordView]:
        yield from many(3)
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        write_report(out, failing(), count=count, about={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report.html"]
    assert out.read_bytes() == before
    assert len(list((tmp_path / "report").glob("*.html"))) == count


def test_a_smaller_report_of_the_same_name_takes_the_old_pages_away(tmp_path: Path) -> None:
    out, count = tmp_path / "report.html", ON_ONE_PAGE + 1
    write_report(out, many(count), count=count, about={})
    assert (tmp_path / "report" / MARK).is_file()
    write_report(out, many(1), count=1, about={})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_what_a_killed_run_has_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".report.part"
    left.mkdir()
    for name in (MARK, "00001.html"):
        (left / name).write_text("", encoding="utf-8")
    write_report(tmp_path / "report.html", many(51), count=51, about={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "report.html"]


def test_a_folder_that_no_report_has_made_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="no report has made"):
        write_report(tmp_path / "report.html", many(51), count=51, about={})
    write_report(tmp_path / "report.html", many(1), count=1, about={})
    assert (tmp_path / "report" / "mine.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["report", "report.pdf", "nowhere/report.html"])
def test_a_report_needs_a_name_in_html_and_a_folder_that_is_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        check_target(tmp_path / name, 1)
