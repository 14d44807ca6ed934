import json
from types import SimpleNamespace

import numpy as np
import pytest

from yaofang.data.recommendation import Considered, Diagnosis, Drug, Recommendation
from yaofang.data.records import Record
from yaofang.eval.evaluate import Training, evaluate
from yaofang.eval.reading import gold_of, read_answers, read_details, read_drug_counts, read_gold
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


def test_all_three_levels_are_reported_whatever_was_asked_for(vocabulary, conflicts):
    gold = {"1-1": ["氨氯地平", "二甲双胍"], "2-1": ["阿卡波糖"]}
    predictions = {"1-1": ["氨氯地平片", "二甲双胍"], "2-1": []}
    found = {level: evaluate(gold, predictions, vocabulary, conflicts, level=level).results[0] for level in ("label", "atc4")}
    for level, mode in found.items():
        assert mode.jaccard == mode.levels[level].jaccard
        assert {name: round(one.jaccard.value, 4) for name, one in mode.levels.items()} == {
            "label": round(1 / 6, 4),
            "generic": 0.5,
            "atc4": 0.5,
        }
        assert mode.levels["generic"].board.value == mode.levels["generic"].f1.value == 0.5


@pytest.mark.parametrize(
    ("gold", "predicted", "jaccard", "f1"),
    [
        (["华法林"], [], 0, 0),
        ([], ["华法林"], 0, 0),
        ([], [], 0, 0),
        (["华法林"], ["华法林"], 1, 1),
        (["华法林", "华法林"], ["华法林", "华法林", "华法林"], 1, 1),
    ],
)
def test_empty_single_and_doubled_lists_score_as_defined(vocabulary, conflicts, gold, predicted, jaccard, f1):
    lists = {"1-1": gold, "2-1": ["二甲双胍"]}, {"1-1": predicted, "2-1": []}
    (mode,) = evaluate(*lists, vocabulary, conflicts, training=Training({"华法林": 3})).results
    assert (mode.jaccard.value * 2, mode.f1.value * 2) == (jaccard, f1)
    assert mode.predicted.figures["T1_rate"] is None, "no list has a pair"
    assert json.dumps(mode.predicted.figures["mean_drugs"].value)


def test_records_bring_subgroups_and_drugs_against_the_patient_and_training_brings_strata(vocabulary, conflicts):
    records = [Record(patient=n, id=f"{n}-1", sex="男", diagnoses=("痛风",), drugs=("二甲双胍",)) for n in (1, 2)]
    records[0] = records[0].model_copy(update={"course": "复查eGFR 18ml/min。"})
    gold = {one.id: one.drugs for one in records}
    training = Training({"二甲双胍": 5, "华法林": 1}, {"痛风": 9})
    (bare,) = evaluate(gold, gold, vocabulary, conflicts).results
    (mode,) = evaluate(gold, gold, vocabulary, conflicts, records=records, training=training).results
    assert (bare.subgroups, bare.strata, bare.gold.patient) == ((), (), None)
    assert mode.gold.patient.against[1] == mode.predicted.patient.against[1] == 1
    assert {(one.attribute, one.group): one.records for one in mode.subgroups} == {
        ("age", "not stated"): 2,
        ("sex", "male"): 2,
        ("diagnoses", "1-3"): 2,
        ("visits", "single"): 2,
        ("rare_diagnosis", "no"): 2,
    }
    assert [one.hits for one in mode.strata] == [0, 2, 0, 0], "of two labels none is head or tail"
    assert mode.gap is None


def test_strata_are_of_the_level_that_is_compared(vocabulary, conflicts):
    gold, predictions = {"1-1": ["氨氯地平"]}, {"1-1": ["氨氯地平片"]}
    training = Training({"氨氯地平片": 5})
    hits = {
        level: [
            one.hits
            for one in evaluate(gold, predictions, vocabulary, conflicts, level=level, training=training).results[0].strata
        ]
        for level in ("label", "generic")
    }
    assert hits == {"label": [0, 0, 0, 0], "generic": [0, 1, 0, 0]}


def test_generated_diagnoses_are_scored_exactly_and_after_normalisation(vocabulary, conflicts):
    details = {"1-1": recommendation("1-1", ["华法林"], ["高血压3级", "Ⅱ型糖尿病"], "generated")}
    gold = {"1-1": ["华法林"]}
    diagnoses = {"1-1": ["高血压3级（极高危）", "2型糖尿病"]}
    (mode,) = evaluate(gold, gold, vocabulary, conflicts, details=details, gold_diagnoses=diagnoses).results
    assert (mode.diagnosis_f1.value, mode.diagnosis_f1_normalised.value) == (0, 1)


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


def test_the_names_of_a_submission_stand_as_they_are_unless_they_are_linked(tmp_path):
    file = tmp_path / "sub.json"
    file.write_text('[{"ID": "1-1", "prediction": ["阿卡波糖片", "无此药甲", "阿卡波糖"]}]', encoding="utf-8")
    vocabulary = load_vocabulary()
    assert "阿卡波糖片" not in vocabulary
    exact, linked = read_answers(file, vocabulary), read_answers(file, vocabulary, link=True)
    assert exact.lists == {"1-1": ["阿卡波糖片", "无此药甲", "阿卡波糖"]}
    assert linked.lists["1-1"][0] in vocabulary
    for one in (exact, linked):
        assert (one.shape, one.other_names, one.unmatched, one.unmatched_names) == ("submission", 1, 1, ("无此药甲",))
    assert (exact.links, linked.links) == (False, True)


def test_answers_in_free_text_are_linked_and_those_without_a_list_counted(tmp_path):
    file = tmp_path / "answers.jsonl"
    lines = [{"ID": "1-1", "text": "出院带药：阿卡波糖、二甲双胍"}, {"ID": "2-1", "text": "抱歉，我无法回答。"}]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    read = read_answers(file, load_vocabulary())
    assert read.lists == {"1-1": ["阿卡波糖", "二甲双胍"], "2-1": []}
    assert (read.shape, read.links, read.unparsed, read.unparsed_ids) == ("text", True, 1, ("2-1",))
    assert read.to_json()["entries"] == 2


def test_counts_of_drugs_are_read_from_a_models_folder_or_file(tmp_path):
    file = tmp_path / "yaofang.json"
    file.write_text('{"prompt_tokens": 300, "drug_counts": {"华法林": 3}}', encoding="utf-8")
    assert read_drug_counts(tmp_path) == read_drug_counts(file) == {"华法林": 3}


@pytest.mark.parametrize("text", ['{"prompt_tokens": 300}', '{"drug_counts": {"a": "3"}}', "[]", "{"])
def test_a_model_that_counted_no_drugs_is_an_error_that_names_the_way_out(tmp_path, text):
    file = tmp_path / "yaofang.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="--train"):
        read_drug_counts(file)


def test_conflicts_of_both_sides_are_counted_on_linked_names_above_the_label_level(vocabulary, conflicts):
    lists = {"1-1": ["氨氯地平片5mg", "氨氯地平"], "2-1": ["华法林"]}
    (mode,) = evaluate(lists, lists, vocabulary, conflicts, level="generic").results
    assert mode.gold.conflicts == mode.predicted.conflicts
    assert mode.predicted.conflicts.conflicts[1] == 1


def test_what_nobody_could_prescribe_is_in_no_stratum(vocabulary, conflicts):
    gold, training = {"1-1": ["华法林", "阿卡波糖"], "2-1": ["华法林"]}, Training({"华法林": 5})
    predictions = {"1-1": ["华法林", "某药"], "2-1": ["某药甲", "某药乙"]}
    (mode,) = evaluate(gold, predictions, vocabulary, conflicts, training=training).results
    unseen = next(one for one in mode.strata if one.name == "unseen")
    assert (unseen.gold, unseen.predicted) == (1, 0)


def test_a_mode_whose_gold_is_empty_has_no_ranking_and_does_not_fail(vocabulary, conflicts):
    gold = {"1-1": ["华法林"], "2-1": []}
    details = {
        id_: Recommendation(
            id=id_,
            diagnoses=(Diagnosis("心房颤动", source),),
            drugs=(Drug("华法林", "华法林", "", 0.5, 0.7, 0.0),),
            considered=(Considered("阿卡波糖", 0.2),),
        )
        for id_, source in (("1-1", "given"), ("2-1", "generated"))
    }
    predictions = {id_: one.labels for id_, one in details.items()}
    generated, given = evaluate(gold, predictions, vocabulary, conflicts, details=details).results
    assert given.probabilities.prauc.value == 1
    assert generated.probabilities.prauc is None


def test_blanks_around_names_of_a_gold_file_are_no_part_of_them(tmp_path):
    (tmp_path / "gold.json").write_text('{"1-1": [" 华法林 "]}', encoding="utf-8")
    assert read_gold(tmp_path / "gold.json") == {"1-1": ["华法林"]}
