"""The tables that describe a set of records."""

from __future__ import annotations

import json

import pytest

from yaofang.data.records import Record
from yaofang.data.statistics import cooccurrence, spread, statistics

RECORDS = [
    Record(patient=1, id="1-1", chief_complaint="多饮。", diagnoses=("糖尿病",), drugs=("甲", "乙", "丙")),
    Record(patient=1, id="1-2", chief_complaint="多饮，多尿。", diagnoses=("糖尿病", "高血压"), drugs=("乙", "甲")),
    Record(patient=2, id="2-1", chief_complaint="头晕。", drugs=("甲",)),
]


def with_frequencies(frequencies: list[int]) -> list[Record]:
    """Records whose labels have these frequencies, one label a record."""
    labels = [f"药{place:03}" for place, number in enumerate(frequencies) for _ in range(number)]
    return [Record(patient=number, id=str(number), drugs=(label,)) for number, label in enumerate(labels)]


def test_a_spread_has_mean_extremes_and_interpolated_percentiles() -> None:
    found = spread(range(1, 12))
    assert (found.count, found.mean, found.min, found.max) == (11, 6.0, 1.0, 11.0)
    assert found.percentiles == {"P50": 6.0, "P80": 9.0, "P90": 10.0, "P95": 10.5, "P99": pytest.approx(10.9)}
    assert spread([]).count == 0


def test_records_patients_labels_and_tokens_are_counted() -> None:
    found = statistics(RECORDS, count=len, vocabulary=["甲", "乙", "丁"])
    assert (found.records, found.patients, found.labels_seen) == (3, 2, 3)
    assert (found.drugs.mean, found.drugs.min, found.drugs.max) == (2.0, 1.0, 3.0)
    assert found.diagnoses.mean == 1.0
    assert (found.visits.mean, found.visits.max) == (1.5, 2.0)
    assert found.tokens is not None
    assert (found.tokens.min, found.tokens.max) == (len("主诉：多饮。"), len("主诉：多饮，多尿。"))
    assert found.frequency == (("甲", 3), ("乙", 2), ("丙", 1))
    assert (found.labels_unseen, found.labels_outside) == (("丁",), ("丙",))


def test_cooccurrence_counts_each_pair_once_whatever_its_order() -> None:
    assert cooccurrence(RECORDS) == {("丙", "乙"): 1, ("丙", "甲"): 1, ("乙", "甲"): 2}
    found = statistics(RECORDS)
    assert found.cooccurrence_max == 2
    assert found.cooccurrence_mean == pytest.approx(4 / 3)
    assert found.cooccurrence_top[0] == ("乙", "甲", 2)


def test_head_and_tail_are_58_and_59_of_586_labels() -> None:
    found = statistics(with_frequencies([20] * 58 + [5] * 469 + [1] * 59))
    assert (found.head.labels, found.middle.labels, found.tail.labels) == (58, 469, 59)
    assert (found.head.mean_frequency, found.middle.mean_frequency, found.tail.mean_frequency) == (20, 5, 1)
    assert [round(100 * part.share, 2) for part in (found.head, found.middle, found.tail)] == [9.9, 80.03, 10.07]


def test_a_board_without_drugs_has_tokens_and_visits_but_no_labels() -> None:
    board = [record.model_copy(update={"drugs": ()}) for record in RECORDS]
    found = statistics(board, count=len)
    assert (found.drugs.count, found.labels_seen, found.cooccurrence_mean, found.head.labels) == (0, 0, 0.0, 0)
    assert found.tokens is not None
    assert found.visits.count == 2
    assert found.labels_unseen is None


def test_the_tables_are_ready_for_json() -> None:
    found = json.loads(json.dumps(statistics(RECORDS, count=len).to_json()))
    assert found["drugs"]["percentiles"]["P50"] == 2
    assert found["frequency"][0] == ["甲", 3]
