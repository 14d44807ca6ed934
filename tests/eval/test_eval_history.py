"""Last visit's drugs and nearest neighbours on a small ward, and the reader of drugs that a text names."""

import numpy as np
import pytest
from small_ward import THERAPY, board, ward

from yaofang.data.records import Record
from yaofang.eval.baselines.choice import most_frequent
from yaofang.eval.baselines.history import last_visit, neighbours, previous_visit, similarities, votes
from yaofang.eval.baselines.named_drugs import NamedDrugs
from yaofang.vocab.errors import InputError


def visit(id_: str, *drugs: str, patient: int = 1, **fields: object) -> Record:
    return Record.model_validate({"patient": patient, "id": id_, "drugs": drugs, **fields}, by_name=True)


def taking(drugs: tuple[str, ...]) -> str:
    return f"长期口服{'、'.join(drugs)}治疗，血压控制可。" if drugs else ""


def test_the_previous_visit_is_the_latest_earlier_one_by_time_then_by_the_numbers_of_its_identifier():
    visits = [
        visit("1-9", "a", visit="2019-05"),
        visit("1-10", "b", visit="2019-05"),
        visit("1-1", "c", visit="2020-01"),
        visit("1-8", visit="2019-05"),
    ]
    asked = visit("1-11", visit="2019-05")
    assert previous_visit(asked, visits) == visits[1]
    assert previous_visit(visit("1-0", visit="2020-02"), visits) == visits[2]
    assert previous_visit(visit("1-1", visit="2019-05"), visits) is None


def test_without_times_visits_are_ordered_by_identifier_and_a_record_is_not_its_own_past():
    visits = [visit("1-2", "a", visit="2021-01"), visit("1-3", "b")]
    assert previous_visit(visit("1-4", visit="2020-01"), visits) == visits[1]
    assert previous_visit(visits[1], visits) == visits[0]
    assert previous_visit(visits[0], visits[:1]) is None


def test_another_patient_of_the_same_number_is_told_by_sex_and_birth():
    asked = visit("1-2", sex="男", birth="1950-01", visit="2020-01")
    for other in ({"sex": "女"}, {"birth": "1951-01"}):
        assert (
            previous_visit(asked, [visit("1-1", "a", **{"sex": "男", "birth": "1950-01", "visit": "2019-01", **other})]) is None
        )
    assert previous_visit(asked, [visit("2-1", "a", patient=2, visit="2019-01")]) is None
    assert previous_visit(asked, [visit("1-1", "a", sex="男", visit="2019-01")]) is not None


def test_the_drugs_of_the_previous_visit_are_copied_where_the_caller_knows_it():
    train, test = ward(30, seed=1), ward(12, seed=2, first=1001)
    later = [record for record in test if not record.id.endswith("-1")]
    known = [record for record in test if record.id.endswith("-1")]
    lists, tuning = last_visit(train, later, known=known)
    drugs_of = {record.id: list(record.drugs) for record in test}
    seconds = [(id_, names) for id_, names in lists if id_.endswith("-2")]
    assert seconds
    assert all(names == drugs_of[id_.replace("-2", "-1")] for id_, names in seconds)
    assert tuning.sources == {"previous visit": len(later), "named in the record": 0, "most frequent": 0}


def test_without_a_previous_visit_the_drugs_taken_before_admission_are_copied_and_else_the_most_frequent_are_given():
    train = ward(40, seed=1)
    test = [
        record.model_copy(update={"present_illness": taking(record.drugs) if row % 2 else ""})
        for row, record in enumerate(ward(15, seed=2, first=1001))
    ]
    lists, tuning = last_visit(train, test)
    for row, (record, (_, names)) in enumerate(zip(test, lists, strict=True)):
        if row % 2:
            assert set(names) == set(record.drugs)
    frequent = [names for row, (_, names) in enumerate(lists) if not row % 2]
    assert {tuple(names) for names in frequent} == {tuple(frequent[0])}
    assert len(frequent[0]) == tuning.rule.value
    assert tuning.sources == {"previous visit": 0, "named in the record": len(test) // 2, "most frequent": len(frequent)}
    assert board(lists, test) > board(most_frequent(train, test)[0], test) + 0.2


def test_k_of_the_last_visit_is_tuned_without_the_validation_patients_own_visits():
    train = ward(40, seed=1)
    assert last_visit(train, [])[1].board == pytest.approx(most_frequent(train, [])[1].board)


def test_neighbours_learn_the_ward_and_beat_most_frequent_on_unseen_patients():
    train, test = ward(80, seed=1), ward(25, seed=2, first=1001)
    lines: list[str] = []
    lists, tuning = neighbours(train, test, counts=(5, 20), report=lines.append)
    learned, chance = board(lists, test), board(most_frequent(train, test)[0], test)
    assert learned > 0.7
    assert learned > chance + 0.3
    assert tuning.settings["k"] in (5, 20)
    assert len(lines) == 2
    assert all(len(set(names)) == len(names) >= 1 for _, names in lists)


@pytest.mark.parametrize("baseline", [last_visit, neighbours])
def test_a_board_s_own_drugs_are_never_read_and_a_second_run_gives_the_same(baseline):
    train, test = ward(20, seed=1), ward(8, seed=2, first=1001)
    changed = [record.model_copy(update={"drugs": ("美金刚",)}) for record in test]
    assert baseline(train, test) == baseline(train, changed) == baseline(train, test)


@pytest.mark.parametrize("baseline", [last_visit, neighbours])
def test_one_patient_cannot_be_tuned_on(baseline):
    with pytest.raises(InputError, match="two patients, there are records of 1"):
        baseline([visit("1-1", "a"), visit("1-2", "a")], [])


def test_similarity_is_the_weighted_jaccard_index_by_hand():
    train = [visit("1-1", diagnoses=["高血压", "痛风"]), visit("2-1", diagnoses=["高血压"]), visit("3-1")]
    asked = [visit("4-1", diagnoses=["痛风", "高血压"]), visit("5-1", diagnoses=["痛风", "麻疹"]), visit("6-1")]
    common, rare, strange = (np.log(4 / (1 + n)) + 1 for n in (2, 1, 0))
    expected = [
        [1, common / (common + rare), 0],
        [rare / (common + rare + strange), 0, 0],
        [0, 0, 0],
    ]
    assert similarities(asked, train) == pytest.approx(np.array(expected))


def test_the_nearest_vote_by_similarity_and_where_none_is_near_all_do():
    alike = np.array([[0.5, 0.1, 0.5, 0.25], [0, 0, 0, 0]])
    has = np.array([[True, False], [False, True], [True, True], [False, False]])
    assert votes(alike, has, 3) == pytest.approx(np.array([[1.0 / 1.25, 0.5 / 1.25], [0.5, 0.5]]))


def test_records_without_diagnoses_get_the_most_frequent_drugs_of_their_neighbours():
    train, test = ward(20, seed=1), ward(3, seed=2, first=1001, diagnoses=False)
    assert len({tuple(names) for _, names in neighbours(train, test)[0]}) == 1


NAMED = NamedDrugs([("阿卡波糖片", 9), ("阿卡波糖", 5), ("二甲双胍", 3), ("碳酸钙D3片", 2), ("碳酸钙片", 1)])


def test_drugs_are_found_by_label_brand_and_generic_the_longest_first():
    assert NAMED.find("予拜唐苹、盐酸二甲双胍缓释片及碳酸钙D3片口服，阿卡波糖续用") == (
        "阿卡波糖片",
        "二甲双胍",
        "碳酸钙D3片",
        "阿卡波糖",
    )
    assert NAMED.find("") == ()
    assert NAMED.find("血糖") == ()


def test_what_is_denied_stopped_or_an_allergy_was_not_taken_before():
    record = visit("1-1", present_illness="服用二甲双胍，后停用拜唐苹。", past_history="碳酸钙片过敏。", course="予碳酸钙D3片")
    assert NAMED.taken_before(record) == ("二甲双胍",)


def test_the_small_ward_s_drugs_are_all_found_in_text():
    labels = [label for drugs in THERAPY.values() for label in drugs]
    assert NamedDrugs((label, 1) for label in labels).find("、".join(labels)) == tuple(labels)
