import json
from types import SimpleNamespace

import numpy as np
import pytest

from yaofang.data.recommendation import Diagnosis, Drug, Recommendation
from yaofang.data.records import Record
from yaofang.eval.evaluate import evaluate
from yaofang.eval.reading import gold_of, read_details, read_gold
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

LABELS = ["阿司匹林肠溶片", "氯吡格雷", "华法林", "二甲双胍", "阿卡波糖", "氨氯地平", "氨氯地平片"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "list.txt"
    file.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    return load_vocabulary(file)


@pytest.fixture(scope="module")
def conflicts():
    tiers = np.zeros((len(LABELS), len(LABELS)), np.uint8)
    for a, b, tier in ((0, 2, 1), (0, 1, 3), (5, 6, 1)):
        tiers[a, b] = tiers[b, a] = tier
    return SimpleNamespace(tiers=tiers, version="test-matrix")


def recommendation(id_: str, drugs: list[str], diagnoses: list[str], source: str, *, truncated: bool = False) -> Recommendation:
    listed = tuple(Drug(label=drug, generic=drug, atc=None, p_step=0.5, p_include=None, masked_mass=0.0) for drug in drugs)
    named = tuple(Diagnosis(name, source) for name in diagnoses)
    return Recommendation(id=id_, diagnoses=named, drugs=listed, truncated=truncated)


def test_a_submission_scores_what_the_hand_computes(vocabulary, conflicts):
    gold = {"1-1": ["阿司匹林肠溶片", "氯吡格雷"], "1-2": ["二甲双胍"], "2-1": ["华法林", "阿卡波糖"]}
    predictions = {"1-1": ["阿司匹林肠溶片", "华法林"], "1-2": ["二甲双胍"], "2-1": ["氨氯地平"]}
    result = evaluate(gold, predictions, vocabulary, conflicts)
    (mode,) = result.results
    assert mode.jaccard.value == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert mode.f1.value == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert mode.precision.value == mode.recall.value == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert mode.board.value == pytest.approx((mode.jaccard.value + mode.f1.value) / 2)
    assert mode.board.low < mode.board.value < mode.board.high
    assert (mode.records, mode.patients, mode.diagnoses) == (3, 2, "not stated")
    assert (mode.gold.mean_drugs, mode.predicted.mean_drugs) == (5 / 3, 4 / 3)
    assert mode.predicted.conflicts.rate(1) == 1.0
    assert mode.gold.conflicts.rate(1) == 0.0
    assert mode.gold.conflicts.rate(3) == 0.5
    assert mode.predicted.conflicts.share(1) == pytest.approx(1 / 3)
    assert (result.conflicts, result.vocabulary) == ("test-matrix", vocabulary.version)


def test_a_record_that_the_submission_leaves_out_scores_zero_and_is_reported(vocabulary, conflicts):
    gold = {"1-1": ["华法林"], "2-1": ["华法林"]}
    result = evaluate(gold, {"1-1": ["华法林"], "9-9": ["华法林"]}, vocabulary, conflicts)
    (mode,) = result.results
    assert mode.jaccard.value == mode.f1.value == 0.5
    assert mode.missing == ("2-1",)
    assert result.unknown_ids == ("9-9",)
    assert mode.predicted.empty == 1


def test_repeats_and_names_outside_are_counted_on_both_sides(vocabulary, conflicts):
    gold = {"1-1": ["华法林", "旧药"]}
    result = evaluate(gold, {"1-1": ["华法林", "华法林", "新药", "新药"]}, vocabulary, conflicts)
    (mode,) = result.results
    assert mode.jaccard.value == 1 / 3
    assert (mode.predicted.repeats, mode.gold.repeats) == (2, 0)
    assert (mode.predicted.outside, mode.predicted.outside_names) == (1, ("新药",))
    assert (mode.gold.outside, mode.gold.outside_names) == (1, ("旧药",))
    assert mode.predicted.mean_drugs == 2
    assert mode.jaccard.low is None, "one patient has no interval"


def test_labels_that_differ_in_form_are_one_drug_at_generic_level_only(vocabulary, conflicts):
    gold, predictions = {"1-1": ["氨氯地平", "阿司匹林"]}, {"1-1": ["氨氯地平片", "阿司匹林肠溶片", "氨氯地平"]}
    (label,) = evaluate(gold, predictions, vocabulary, conflicts).results
    (generic,) = evaluate(gold, predictions, vocabulary, conflicts, level="generic").results
    assert label.jaccard.value == 1 / 4
    assert (generic.jaccard.value, generic.f1.value) == (1, 1)
    assert generic.predicted.mean_drugs == 2
    assert generic.predicted.conflicts.conflicts[1] == 1, "conflicts are counted on labels: two labels of one drug are a pair"
    assert generic.gold.outside == 0, "a generic root of a gold of another shape is linked to a label"
    assert label.gold.outside_names == ("阿司匹林",)


def test_given_and_generated_diagnoses_are_never_pooled(vocabulary, conflicts):
    gold = {"1-1": ["华法林"], "2-1": ["华法林"], "3-1": ["华法林"]}
    predictions = {"1-1": ["华法林"], "2-1": ["二甲双胍"], "3-1": ["华法林"]}
    details = {
        "1-1": recommendation("1-1", ["华法林"], ["房颤"], "given"),
        "2-1": recommendation("2-1", ["二甲双胍"], ["糖尿病"], "generated", truncated=True),
        "3-1": recommendation("3-1", ["华法林"], ["房颤", "高血压"], "generated"),
    }
    diagnoses = {"1-1": ["房颤"], "2-1": ["高血压"], "3-1": ["房颤"]}
    result = evaluate(gold, predictions, vocabulary, conflicts, details=details, gold_diagnoses=diagnoses)
    generated, given = result.results
    assert (generated.diagnoses, generated.records, generated.jaccard.value) == ("generated", 2, 0.5)
    assert (given.diagnoses, given.records, given.jaccard.value) == ("given", 1, 1.0)
    assert generated.diagnosis_f1.value == pytest.approx((0 + 2 / 3) / 2)
    assert given.diagnosis_f1 is None
    assert (generated.truncated, given.truncated) == (1, 0)


def test_a_record_without_details_joins_the_only_mode_there_is(vocabulary, conflicts):
    gold = {"1-1": ["华法林"], "2-1": ["华法林"]}
    details = {"1-1": recommendation("1-1", ["华法林"], ["房颤"], "generated")}
    diagnoses = {"1-1": ["房颤"], "2-1": ["房颤"]}
    result = evaluate(gold, {"1-1": ["华法林"]}, vocabulary, conflicts, details=details, gold_diagnoses=diagnoses)
    (mode,) = result.results
    assert (mode.diagnoses, mode.jaccard.value, mode.diagnosis_f1.value) == ("generated", 0.5, 0.5)


def test_a_diagnosis_with_a_separator_equals_its_form_in_the_answer(vocabulary, conflicts):
    details = {"1-1": recommendation("1-1", ["华法林"], ["高血压，3级"], "generated")}
    result = evaluate(
        {"1-1": ["华法林"]},
        {"1-1": ["华法林"]},
        vocabulary,
        conflicts,
        details=details,
        gold_diagnoses={"1-1": ["高血压；3级"]},
    )
    assert result.results[0].diagnosis_f1.value == 1


def test_details_of_another_submission_are_refused(vocabulary, conflicts):
    details = {"1-1": recommendation("1-1", ["华法林"], ["房颤"], "given")}
    with pytest.raises(InputError, match="other drugs"):
        evaluate({"1-1": ["华法林"]}, {"1-1": ["二甲双胍"]}, vocabulary, conflicts, details=details)


def test_a_gold_without_any_drug_is_refused_and_names_the_way_out(vocabulary, conflicts):
    with pytest.raises(InputError, match="--gold"):
        evaluate({"1-1": []}, {"1-1": ["华法林"]}, vocabulary, conflicts)


def test_patients_are_read_off_the_ids_only_without_records(vocabulary, conflicts):
    gold = {"1-1": ["华法林"], "1-2": ["华法林"], "x": ["华法林"]}
    read_off = evaluate(gold, {}, vocabulary, conflicts)
    told = evaluate(gold, {}, vocabulary, conflicts, patients={"1-1": 1, "1-2": 2, "x": 3})
    assert (read_off.results[0].patients, read_off.patients_from) == (2, "就诊标识")
    assert (told.results[0].patients, told.patients_from) == (3, "患者序号")


def test_the_result_is_plain_json_with_rates_beside_counts(vocabulary, conflicts):
    gold = {"1-1": ["阿司匹林肠溶片", "华法林"], "2-1": ["二甲双胍"]}
    value = json.loads(json.dumps(evaluate(gold, gold, vocabulary, conflicts).to_json(), allow_nan=False))
    (mode,) = value["results"]
    assert mode["gold"]["conflicts"]["T1"] == {"pairs": 1, "rate": 1.0, "records": 1, "share": 0.5}
    assert mode["gold"]["conflicts"]["pairs"] == 1
    assert mode["jaccard"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert value["resamples"] == 1000


def test_a_gold_file_replaces_the_records_own_drugs(tmp_path):
    file = tmp_path / "gold.json"
    file.write_text('{"1-1": ["华法林"]}', encoding="utf-8")
    record = Record(patient=1, id="1-1", drugs=("二甲双胍",))
    assert gold_of([record], None) == {"1-1": ("二甲双胍",)}
    assert gold_of([record], read_gold(file)) == {"1-1": ["华法林"]}


@pytest.mark.parametrize(("gold", "says"), [({}, "lacks: 1 .1-1"), ({"1-1": [], "7-7": []}, "without record: 1 .7-7")])
def test_ids_that_only_one_of_records_and_gold_file_holds_are_an_error(gold, says):
    with pytest.raises(InputError, match=says):
        gold_of([Record(patient=1, id="1-1")], gold)


@pytest.mark.parametrize("text", ["[]", "{}", '{"1-1": "华法林"}', '{"1-1": [1]}', '{"1-1": [" "]}', '{"1-1": ', "3"])
def test_a_gold_file_of_another_shape_is_an_error_that_names_the_file(tmp_path, text):
    file = tmp_path / "gold.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"gold\.json") as caught:
        read_gold(file)
    assert caught.value.way_out


def test_details_survive_writing_and_reading_even_with_a_line_separator_in_a_name(tmp_path):
    one = recommendation("1-1", ["华法林"], ["房颤\u2028高血压"], "generated")
    file = tmp_path / "details.jsonl"
    file.write_text(json.dumps(one.to_json(), ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_details(file) == {"1-1": one}


@pytest.mark.parametrize("text", ['{"id": "1-1"}', "[]", "{", "3", ""])
def test_details_that_are_none_are_an_error(tmp_path, text):
    file = tmp_path / "details.jsonl"
    file.write_text(f"\n{text}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"details\.jsonl"):
        read_details(file)
