import numpy as np
import pytest
from small_ward import board, ward

from yaofang.data.records import Record, write_records
from yaofang.eval.baselines import regression
from yaofang.eval.baselines.choice import check_training, frequencies, most_frequent, run_baseline, tfidf, usable_training
from yaofang.eval.baselines.definitions import DEFINITIONS
from yaofang.eval.baselines.regression import regression_scores
from yaofang.eval.baselines.tuning import THRESHOLD_RULES, TOP_RULES, Rule, best_rule, validation_split
from yaofang.eval.metrics import board_score, score_record
from yaofang.vocab.errors import InputError


def test_settings_are_tuned_on_patients_apart_from_those_that_are_fitted():
    records = ward(40, seed=1)
    fitting, held_out = validation_split(records, seed=0)
    assert not {record.patient for record in fitting} & {record.patient for record in held_out}
    assert sorted(record.id for record in fitting + held_out) == sorted(record.id for record in records)
    assert 0.1 < len(held_out) / len(records) < 0.3


def test_most_frequent_gives_everyone_the_same_k_likeliest_drugs():
    train, test = ward(40, seed=1), ward(10, seed=2, first=1001)
    predictions, tuning = most_frequent(train, test)
    assert [id_ for id_, _ in predictions] == [record.id for record in test]
    assert len({tuple(drugs) for _, drugs in predictions}) == 1
    counts = {drug: sum(drug in record.drugs for record in train) for drug in predictions[0][1]}
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert tuning.rule == Rule("top", len(counts))


def test_k_is_the_best_of_all_k_on_the_validation_patients():
    train = ward(40, seed=1)
    _, tuning = most_frequent(train, [])
    fitting, held_out = validation_split(train, seed=0)
    scores, labels = frequencies(fitting, len(held_out))
    every = [best_rule(scores, labels, held_out, [rule])[1] for rule in TOP_RULES]
    assert tuning.board == pytest.approx(max((jaccard + f1) / 2 for jaccard, f1 in every))
    assert tuning.validation_records == len(held_out)


@pytest.mark.parametrize("diagnoses", [True, False])
def test_tfidf_learns_the_ward_and_beats_most_frequent_on_unseen_patients(diagnoses):
    train = ward(80, seed=1, diagnoses=diagnoses)
    test = ward(25, seed=2, first=1001, diagnoses=diagnoses)
    lines: list[str] = []
    predictions, tuning = tfidf(train, test, report=lines.append)
    learned, chance = board(predictions, test), board(most_frequent(train, test)[0], test)
    assert learned > 0.7
    assert learned > chance + 0.3
    assert tuning.settings["C"] in regression.STRENGTHS
    assert len(lines) == len(regression.STRENGTHS)
    assert all(len(set(drugs)) == len(drugs) >= 1 for _, drugs in predictions)


def test_tfidf_never_reads_the_drugs_of_the_records_it_predicts():
    train, test = ward(30, seed=1), ward(8, seed=2, first=1001)
    blind = [record.model_copy(update={"drugs": ()}) for record in test]
    assert tfidf(train, test, strengths=(10.0,))[0] == tfidf(train, blind, strengths=(10.0,))[0]


def test_the_regressions_are_one_against_the_rest_in_scikit_learn():
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import normalize

    draw = np.random.default_rng(0)
    features = np.abs(draw.normal(size=(60, 6)))
    records = [
        Record(patient=row, id=str(row), drugs=tuple(d for d, x in zip("abc", line, strict=False) if x > 0.6) or ("a",))
        for row, line in enumerate(features)
    ]
    scores, labels = regression_scores(csr_matrix(features), records, csr_matrix(features), 3.0, 1)
    has = np.array([[label in record.drugs for label in labels] for record in records]).astype(int)
    model = OneVsRestClassifier(LogisticRegression(solver="liblinear", C=3.0)).fit(normalize(features), has)
    assert scores == pytest.approx(model.predict_proba(normalize(features)), abs=0.02)


def test_a_label_that_everybody_has_is_certain_and_a_rare_one_is_not_fitted():
    train = [record.model_copy(update={"drugs": (*record.drugs, "甲钴胺")}) for record in ward(20, seed=1)]
    train[0] = train[0].model_copy(update={"drugs": (*train[0].drugs, "美金刚")})
    test = ward(5, seed=2, first=1001)
    predictions, _ = tfidf(train, test, strengths=(10.0,))
    assert all("甲钴胺" in drugs for _, drugs in predictions)
    assert not any("美金刚" in drugs for _, drugs in predictions)


def test_a_rule_lists_at_least_one_drug_and_the_likeliest_first():
    row = np.array([0.1, 0.4, 0.3, 0.4])
    assert Rule("threshold", 0.3).choose(row) == [1, 3, 2]
    assert Rule("threshold", 0.9).choose(row) == [1]
    assert Rule("top", 2).choose(row) == [1, 3]
    assert Rule("top", 9).choose(row) == [1, 3, 2, 0]


def test_a_training_label_outside_the_vocabulary_is_an_error_that_names_record_file_and_line(tmp_path):
    file = tmp_path / "train.jsonl"
    records = [Record(patient=1, id="1-0", drugs=("二甲双胍",)), Record(patient=1, id="1-1", drugs=("二甲双胍", "无此药"))]
    write_records(file, records)
    with pytest.raises(InputError) as caught:
        check_training(records, {"二甲双胍"}, file)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(file), 2, "出院带药列表")
    assert "无此药" in str(caught.value)
    assert "1-1" in str(caught.value)
    assert "--vocab" in str(caught.value)
    assert "data.vocabulary" in str(caught.value)


def test_a_training_record_without_drugs_is_an_error():
    with pytest.raises(InputError, match="1-1 has no drug"):
        check_training([Record(patient=1, id="1-1")], set())


def test_training_records_that_cannot_be_learned_from_are_told_from_the_good_ones_with_their_lines(tmp_path):
    file = tmp_path / "train.jsonl"
    records = [Record(patient=n, id=f"{n}-1", drugs=drugs) for n, drugs in enumerate([("a",), ("x",), ("a", "b"), ()], 1)]
    write_records(file, records)
    good, errors = usable_training(records, {"a", "b"}, file)
    assert good == [records[0], records[2]]
    assert [(error.line, error.problem) for error in errors] == [
        (2, "'x' of training record 2-1 is not in the vocabulary"),
        (4, "training record 4-1 has no drug"),
    ]
    assert {error.file for error in errors} == {str(file)}
    assert usable_training(good, {"a", "b"}, file) == (good, [])


def test_two_records_of_one_identifier_are_judged_apart():
    records = [Record(patient=1, id="1-1", drugs=("a",)), Record(patient=1, id="1-1")]
    assert usable_training(records, {"a"})[0] == records[:1]


def test_one_patient_cannot_be_tuned_on():
    with pytest.raises(InputError, match="two patients, there are records of 1") as caught:
        most_frequent([Record(patient=1, id="1-1", drugs=("a",)), Record(patient=1, id="1-2", drugs=("a",))], [])
    assert "more patients" in str(caught.value.way_out)
    assert caught.value.file is None


def test_the_best_rule_is_that_of_scoring_every_list_as_evaluate_does():
    records = ward(10, seed=4)
    labels = sorted({drug for record in records for drug in record.drugs})[:-1]
    scores = np.random.default_rng(0).random((len(records), len(labels))).round(1)

    def board_of(rule: Rule) -> float:
        lists = [[labels[column] for column in rule.choose(row)] for row in scores]
        found = [score_record(record.drugs, names) for record, names in zip(records, lists, strict=True)]
        return board_score(float(np.mean([one.jaccard for one in found])), float(np.mean([one.f1 for one in found])))

    rule, figures = best_rule(scores, labels, records, THRESHOLD_RULES)
    assert board_score(*figures) == pytest.approx(max(board_of(rule) for rule in THRESHOLD_RULES))
    assert board_of(rule) == pytest.approx(board_score(*figures))


@pytest.mark.parametrize("name", [name for name in DEFINITIONS if name not in ("tfidf", "trees")])
def test_every_baseline_is_run_by_its_name(name):
    train, test = ward(12, seed=1), ward(3, seed=2, first=1001)
    lists, tuning = run_baseline(name, train, test, seed=1)
    assert tuning.baseline == name
    assert [id_ for id_, _ in lists] == [record.id for record in test]
    assert all(names for _, names in lists)


def test_a_baseline_of_another_name_and_known_records_that_nobody_reads_are_errors():
    train = ward(4, seed=1)
    with pytest.raises(InputError, match="no baseline 'forest'") as caught:
        run_baseline("forest", train, [])
    assert "last-visit" in str(caught.value.way_out)
    with pytest.raises(InputError, match="neighbours reads no known records"):
        run_baseline("neighbours", train, [], known=train)


def test_every_definition_is_one_line():
    assert all("\n" not in sentence and sentence.endswith(".") and len(sentence) < 300 for sentence in DEFINITIONS.values())
