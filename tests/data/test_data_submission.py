"""Submission files: exactly the competition's shape, and every way to miss it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from yaofang.data.records import Record
from yaofang.data.submission import check_submission, examine_submission, read_submission, write_submission
from yaofang.vocab.errors import InputError

if TYPE_CHECKING:
    from yaofang.vocab.conflicts import ConflictTable

LABELS = ["二甲双胍", "贝那普利", "替米沙坦", "诺和灵30R"]
RECORDS = [Record(patient=1, id="1-1"), Record(patient=2, id="2-1")]
GOOD = [("1-1", ["二甲双胍", "替米沙坦"]), ("2-1", ["诺和灵30R"])]


@dataclass(frozen=True)
class Pair:
    a: str
    b: str
    tier: int


class OnePair:
    """A conflict table that knows one pair."""

    def __init__(self, tier: int) -> None:
        self.tier = tier

    def among(self, labels: Sequence[str]) -> list[Pair]:
        return [Pair("贝那普利", "替米沙坦", self.tier)] if {"贝那普利", "替米沙坦"} <= set(labels) else []


def conflicts(tier: int) -> ConflictTable:
    return cast("ConflictTable", OnePair(tier))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "submission.json"


def put(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    return file


def entry(record_id: Any, prediction: Any) -> dict[str, Any]:
    return {"ID": record_id, "prediction": prediction}


def test_a_submission_is_one_array_of_id_and_prediction_in_the_order_given(file: Path) -> None:
    write_submission(file, GOOD[::-1])
    assert json.loads(file.read_text("utf-8")) == [entry("2-1", ["诺和灵30R"]), entry("1-1", ["二甲双胍", "替米沙坦"])]
    assert read_submission(file) == dict(GOOD)
    assert list(read_submission(file)) == ["2-1", "1-1"]
    assert check_submission(file, RECORDS, LABELS, conflicts(1)) == []


def test_a_submission_of_no_records_is_an_empty_array(file: Path) -> None:
    write_submission(file, [])
    assert read_submission(file) == {}


@pytest.mark.parametrize("bad", [[GOOD[0], GOOD[0]], [("1-1", ["二甲双胍", "二甲双胍"])]])
def test_writing_something_twice_is_refused_and_nothing_is_left(file: Path, bad: list[tuple[str, list[str]]]) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_submission(file, bad)
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("1-1", "entry 2: not an object"),
        ({"ID": "1-1"}, "entry 2: prediction missing"),
        ({"id": "1-1", "drugs": []}, "entry 2: ID and prediction missing"),
        ({**entry("1-1", []), "score": 1}, "entry 2: score must not be there"),
        (entry(11, []), "entry 2: ID must be a string"),
        (entry("1-1", "二甲双胍"), "entry 2: prediction must be a list of strings"),
        (entry("1-1", [1]), "entry 2: prediction must be a list of strings"),
    ],
)
def test_an_entry_of_a_wrong_shape_is_a_problem_with_its_place(file: Path, value: Any, problem: str) -> None:
    put(file, [entry("2-1", ["诺和灵30R"]), value])
    assert check_submission(file, None, LABELS)[0].startswith(problem)
    with pytest.raises(InputError, match=problem):
        read_submission(file)


def test_all_problems_are_reported_at_once(file: Path) -> None:
    put(
        file,
        [
            entry("1-1", ["二甲双胍", "二甲双胍", "二甲双胍片"]),
            entry("1-1", ["贝那普利", "替米沙坦"]),
            entry("9-9", ["诺和灵30R"]),
        ],
    )
    assert check_submission(file, RECORDS, LABELS, conflicts(1)) == [
        "entry 1 (ID 1-1): 二甲双胍 is listed twice",
        "entry 1 (ID 1-1): '二甲双胍片' is not in the vocabulary",
        "entry 2 (ID 1-1): the ID is given twice, first in entry 1",
        "entry 2 (ID 1-1): 贝那普利 and 替米沙坦 must not be combined (T1)",
        "entry 3 (ID 9-9): no record has this ID",
        "record 2-1: no entry has this ID",
    ]


def test_a_pair_of_a_lower_tier_and_no_table_are_no_problem(file: Path) -> None:
    put(file, [entry("1-1", ["贝那普利", "替米沙坦"]), entry("2-1", ["诺和灵30R"])])
    assert check_submission(file, RECORDS, LABELS, conflicts(2)) == []
    assert check_submission(file, RECORDS, LABELS) == []


def test_an_empty_prediction_is_a_warning_and_no_problem(file: Path) -> None:
    put(file, [entry("1-1", []), entry("2-1", ["诺和灵30R"])])
    found = examine_submission(file, RECORDS, LABELS)
    assert (found.entries, found.problems) == (2, [])
    assert found.warnings == ["entry 1 (ID 1-1): no drug: it scores 0"]


@pytest.mark.parametrize(
    "value",
    [
        {"unsafe": True, "predictions": [entry("1-1", ["二甲双胍"])]},
        [{**entry("1-1", ["二甲双胍"]), "unsafe": True}],
        [entry("1-1", ["二甲双胍"]), {"unsafe": True}],
    ],
)
def test_a_file_marked_unsafe_is_refused(file: Path, value: Any) -> None:
    put(file, value)
    for call in (lambda: read_submission(file), lambda: check_submission(file, None, LABELS)):
        with pytest.raises(InputError, match="unsafe"):
            call()


@pytest.mark.parametrize("content", ["", "{}", '"x"', "[", '[{"ID": "1-1"', "\udcff", "[" * 100_000])
def test_what_is_no_json_array_is_refused_with_the_file(file: Path, content: str) -> None:
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        read_submission(file)
    assert caught.value.file == str(file)
    assert caught.value.way_out


def test_broken_json_is_refused_with_its_line_and_an_absent_file_by_name(file: Path) -> None:
    file.write_text('[\n{"ID": "1-1", "prediction": []}\n{"ID": "2-1"}]')
    with pytest.raises(InputError) as caught:
        read_submission(file)
    assert caught.value.line == 3
    with pytest.raises(InputError, match="no such file"):
        read_submission(file.with_name("absent.json"))
