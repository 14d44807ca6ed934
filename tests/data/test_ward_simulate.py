import json
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from yaofang.data.records import Record, read_records
from yaofang.data.ward.simulate import Ward, draft, simulate, simulate_to_files, write
from yaofang.data.ward.tables import load_tables
from yaofang.data.ward.therapy import Prescribed
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

SECTIONS = {
    "诊疗过程描述": "course",
    "入院情况": "admission",
    "现病史": "present_illness",
    "既往史": "past_history",
}


@cache
def ward() -> Ward:
    return simulate(150, seed=5)


def records() -> dict[str, Record]:
    return {record.id: record for record in (*ward().train, *ward().test)}


def test_the_same_seed_gives_the_same_ward_and_another_seed_another() -> None:
    again, other = simulate(20, seed=5), simulate(20, seed=6)
    assert simulate(20, seed=5) == again
    assert not {record.present_illness for record in again.train} & {record.present_illness for record in other.train}


def test_patients_have_one_to_six_visits_numbered_and_dated_in_order() -> None:
    visits: dict[int, list[Record]] = {}
    for record in records().values():
        visits.setdefault(record.patient, []).append(record)
    assert {len(own) for own in visits.values()} <= set(range(1, 7))
    assert max(len(own) for own in visits.values()) > 2
    for patient, own in visits.items():
        assert [record.id for record in own] == [f"{patient}-{place}" for place in range(1, len(own) + 1)]
        dates = [record.visit or "" for record in own]
        assert dates == sorted(dates)
        assert all(re.fullmatch(r"\d{4}-\d\d", date) for date in dates)
        assert all(record.birth is None or record.birth < dates[0] for record in own)


def test_no_patient_is_in_training_and_on_the_test_board() -> None:
    assert not {record.patient for record in ward().train} & {record.patient for record in ward().test}


def test_every_record_has_1_to_21_drugs_of_the_vocabulary_each_once() -> None:
    known = set(load_vocabulary().labels)
    for record in records().values():
        assert 1 <= len(record.drugs) <= 21
        assert len(set(record.drugs)) == len(record.drugs)
        assert set(record.drugs) <= known
        assert record.diagnoses


def test_labels_of_the_test_board_only_are_in_no_training_record() -> None:
    unseen = {label.label for label in load_tables().labels if label.note == "test_only"}
    assert not unseen & {label for record in ward().train for label in record.drugs}
    assert unseen & {label for record in ward().test for label in record.drugs}


def test_the_truth_has_one_row_for_every_drug() -> None:
    rows = Counter((row.id, row.label) for row in ward().truth)
    assert rows == Counter((record.id, label) for record in records().values() for label in record.drugs)


def test_the_evidence_of_every_cause_stands_where_the_truth_says() -> None:
    names = {disease.id: set(disease.names) for disease in load_tables().diseases}
    teams = load_tables().ward["teams"]
    every_name = {name for own in names.values() for name in own}
    for row in ward().truth:
        record = records()[row.id]
        section, start, end = row.evidence
        if section == "出院诊断":
            assert end == start + 1
            assert record.diagnoses[start] in every_name
            assert row.cause in ("diagnosis", "finding")
            continue
        text = getattr(record, SECTIONS[section])[start:end]
        assert text
        if row.cause == "habit":
            assert any(text.endswith(team) for team in teams)
        if row.cause == "finding":
            assert re.search(r"\d|（[-±+]+）", text)
        if row.cause == "diagnosis":
            assert text.startswith("有")


def test_an_earlier_drug_is_mostly_written_by_its_own_label() -> None:
    earlier = [row for row in ward().truth if row.cause == "earlier drug"]
    assert len(earlier) > 0.5 * len(ward().truth)
    written = sum(
        getattr(records()[row.id], SECTIONS[row.evidence[0]])[row.evidence[1] : row.evidence[2]] == row.label for row in earlier
    )
    assert 0.8 < written / len(earlier) < 0.99


def test_the_text_of_a_record_is_the_same_whatever_the_doctor_prescribes_at_that_visit() -> None:
    tables = load_tables()
    drafts = draft(15, 5).train
    before, _ = write(drafts, 5, tables)
    habit = Prescribed("甲钴胺", "neuropathy_vitamin", "habit", "")
    for visit in drafts:
        visit.drugs = [habit]
    after, _ = write(drafts, 5, tables)
    assert all(record.drugs == ("甲钴胺",) for record in after)
    assert [record.model_copy(update={"drugs": ()}) for record in before] == [
        record.model_copy(update={"drugs": ()}) for record in after
    ]


def test_what_is_prescribed_at_a_visit_is_taken_at_home_before_the_next() -> None:
    drafts = draft(40, 5).train
    pairs = [(a, b) for a, b in pairwise(drafts) if a.patient is b.patient]
    assert len(pairs) > 10
    for earlier, later in pairs:
        assert later.home == tuple(earlier.drugs)
        assert later.gap > 0


def test_the_files_hold_the_ward_the_board_has_no_drugs_and_nothing_of_the_truth_is_in_a_record(tmp_path: Path) -> None:
    out, board, gold, causes = simulate_to_files(12, 7, tmp_path / "ward.jsonl")
    assert [path.name for path in (board, gold, causes)] == [
        "ward.test.jsonl",
        "ward.test.gold.jsonl",
        "ward.jsonl.truth.jsonl",
    ]
    expected = simulate(12, seed=7)
    assert read_records(out).records == expected.train
    assert read_records(gold).records == expected.test
    without = read_records(board).records
    assert [record.id for record in without] == [record.id for record in expected.test]
    assert all(record.drugs == () for record in without)
    truth = [json.loads(line) for line in causes.read_text(encoding="utf-8").splitlines()]
    assert truth == [row.to_json() for row in expected.truth]
    assert all(set(row) == {"ID", "label", "cause", "evidence", "rule_broken"} for row in truth)
    keys = {key for line in out.read_text(encoding="utf-8").splitlines() for key in json.loads(line)}
    assert keys == set(
        Record.model_validate(json.loads(out.read_text(encoding="utf-8").splitlines()[0])).model_dump(by_alias=True)
    )


def test_a_ward_without_patients_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 patients"):
        simulate_to_files(0, 1, tmp_path / "ward.jsonl")
    with pytest.raises(InputError, match="no folder"):
        simulate_to_files(1, 1, tmp_path / "nowhere" / "ward.jsonl")
