"""Gradient-boosted trees on a small ward."""

import numpy as np
import pytest
from small_ward import board, ward

from yaofang.data.records import Record
from yaofang.eval.baselines.boosting import DenseFeatures, boosted_scores, trees
from yaofang.eval.baselines.choice import most_frequent
from yaofang.vocab.errors import InputError


def test_trees_learn_the_ward_and_beat_most_frequent_on_unseen_patients():
    train, test = ward(60, seed=1), ward(20, seed=2, first=1001)
    lines: list[str] = []
    lists, tuning = trees(train, test, rounds=(5, 15), min_positives=15, report=lines.append)
    learned, chance = board(lists, test), board(most_frequent(train, test)[0], test)
    assert learned > 0.7
    assert learned > chance + 0.3
    assert tuning.settings["trees"] in (5, 15)
    assert len(lines) == 2
    assert all(len(set(names)) == len(names) >= 1 for _, names in lists)


def test_a_board_s_own_drugs_are_never_read_and_a_second_run_gives_the_same():
    train, test = ward(15, seed=1), ward(5, seed=2, first=1001)
    changed = [record.model_copy(update={"drugs": ("美金刚",)}) for record in test]
    runs = [trees(train, records, rounds=(3,), min_positives=10) for records in (test, changed, test)]
    assert runs[0] == runs[1] == runs[2]


def test_one_patient_cannot_be_tuned_on():
    with pytest.raises(InputError, match="two patients, there are records of 1"):
        trees([Record(patient=1, id="1-1", drugs=("a",)), Record(patient=1, id="1-2", drugs=("a",))], [])


def test_a_board_of_no_record_gets_no_list():
    assert trees(ward(8, seed=1), [], rounds=(2,), min_positives=5)[0] == []


def test_the_stages_of_one_fit_are_the_fits_of_fewer_trees_in_scikit_learn():
    from sklearn.ensemble import HistGradientBoostingClassifier

    draw = np.random.default_rng(0)
    features = draw.normal(size=(80, 3)).astype(np.float32)
    records = [Record(patient=row, id=str(row), drugs=("a", "b") if x[0] > 0 else ("a",)) for row, x in enumerate(features)]
    staged, labels = boosted_scores(features, records, features, (2, 4), 1)
    assert labels == ["a", "b"]
    for count, scores in zip((2, 4), staged, strict=True):
        model = HistGradientBoostingClassifier(max_iter=count, max_leaf_nodes=8, early_stopping=False, random_state=0)
        alone = model.fit(features, features[:, 0] > 0).predict_proba(features)[:, 1]
        assert scores == pytest.approx(np.stack([np.ones(80), alone], axis=1))


def test_labels_of_fewer_records_get_no_trees():
    records = [Record(patient=row, id=str(row), drugs=("a", "b") if row % 3 else ("c",)) for row in range(30)]
    features = np.arange(30, dtype=np.float32)[:, None]
    assert boosted_scores(features, records, features, (1,), 20)[1] == ["a", "b"]
    assert boosted_scores(features, records, features, (1,), 31)[1] == ["a"]


def test_features_hold_number_of_diagnoses_age_sex_and_what_is_named_often_enough():
    train = [
        Record(
            patient=row,
            id=f"{row}-1",
            past_history="既往口服拜唐苹" if row < 10 else "既往体健，服用二甲双胍" if row < 12 else f"既往体健{row}年",
            diagnoses=("高血压", "痛风") if row < 10 else ("高血压",),
            drugs=("阿卡波糖", "二甲双胍"),
        )
        for row in range(15)
    ]
    asked = [
        train[0].model_copy(update={"sex": "男", "birth": "1950-01", "visit": "2020-07"}),
        train[14].model_copy(update={"sex": "女", "diagnoses": ()}),
    ]
    made = DenseFeatures().fit(train).transform(asked)[:, -6:]
    assert made[0] == pytest.approx([2, 70.5, 1, 1, 1, 1])
    assert made[1] == pytest.approx([0, np.nan, 0, 0, 0, 0], nan_ok=True)
