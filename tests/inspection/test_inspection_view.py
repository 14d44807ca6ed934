from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from yaofang.data.recommendation import Blocked, Considered, Diagnosis, Drug, KeptOut, Recommendation
from yaofang.data.records import Record
from yaofang.inspection.carriers import UNINDICATED, UNTREATED, Carriers
from yaofang.inspection.evidence import Piece
from yaofang.inspection.spans import FINDINGS, Mention, Reader, folded
from yaofang.inspection.view import Effect, Viewer
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.indications import load_indications
from yaofang.vocab.matching import link

VOCABULARY = load_vocabulary()
VIEWER = Viewer(VOCABULARY)
CARRIERS = Carriers(VOCABULARY)
READER = Reader()


def record(**fields: object) -> Record:
    return Record.model_validate({"patient": 1, "id": "1-1", **fields})


def listed(label: str, **changes: object) -> Drug:
    values = {"generic": "", "atc": "", "p_step": 0.5, "p_include": None, "masked_mass": 0.0, **changes}
    return Drug(label=label, **values)  # type: ignore[arg-type]


def recommended(*drugs: str | Drug, diagnoses: tuple[Diagnosis, ...] = (), **changes: object) -> Recommendation:
    entries = tuple(drug if isinstance(drug, Drug) else listed(drug) for drug in drugs)
    return Recommendation("1-1", diagnoses, entries, **changes)  # type: ignore[arg-type]


def given(*names: str) -> tuple[Diagnosis, ...]:
    return tuple(Diagnosis(name, "given") for name in names)


# Carriers


def test_carriers_agree_with_the_tables_for_every_label_and_many_diagnoses() -> None:
    diagnoses = ("2型糖尿病", "高血压3级（极高危）", "肺炎？", "陈旧性脑梗死", "没有这种病")
    tables = load_indications()
    for drug in VOCABULARY.drugs[::40]:
        rows = {diagnosis: row for diagnosis in diagnoses if (row := tables.carries(diagnosis, drug))}
        found = CARRIERS.of(drug, diagnoses)
        assert {one.diagnosis: one.indication.strength for one in found} == {name: row.strength for name, row in rows.items()}


def test_a_drug_is_carried_by_its_diagnosis_and_not_by_another() -> None:
    metformin = VOCABULARY.drug("二甲双胍")
    assert [one.diagnosis for one in CARRIERS.of(metformin, ("肺炎", "2型糖尿病"))] == ["2型糖尿病"]
    assert CARRIERS.knowledge(metformin, ("肺炎",)) == "uncarried"


def test_a_drug_that_the_tables_do_not_know_is_no_data_and_never_flagged() -> None:
    unknown = link("没有这种药片")
    assert CARRIERS.knowledge(unknown, ("2型糖尿病",)) == "no_data"
    assert CARRIERS.unindicated(unknown, ("2型糖尿病",), is_supported=False) is None


@pytest.mark.parametrize("diagnoses", [(), ("没有这种病",), ("2型糖尿病？", "肺炎待排")])
def test_a_record_whose_diagnoses_no_table_knows_is_no_data_and_never_flagged(diagnoses: tuple[str, ...]) -> None:
    rabeprazole = VOCABULARY.drug("雷贝拉唑")
    assert CARRIERS.knowledge(rabeprazole, diagnoses) == "no_data"
    assert CARRIERS.unindicated(rabeprazole, diagnoses, is_supported=False) is None
    assert CARRIERS.untreated(diagnoses, ()) == ()


def test_a_diagnosis_with_no_drug_of_its_first_line_classes_is_flagged_once() -> None:
    diagnoses = ("高尿酸血症", "2型糖尿病", "甲状腺结节")
    flags = CARRIERS.untreated(diagnoses, [VOCABULARY.drug("二甲双胍")])
    assert [(flag.kind, flag.subject) for flag in flags] == [(UNTREATED, "高尿酸血症")]
    assert "M04" in flags[0].reason
    assert "非布司他" in flags[0].reason


def test_one_blood_pressure_lowering_drug_is_treatment_of_high_blood_pressure() -> None:
    assert CARRIERS.untreated(("高血压3级",), [VOCABULARY.drug("厄贝沙坦片")]) == ()
    assert len(CARRIERS.untreated(("高血压3级", "高血压"), [VOCABULARY.drug("二甲双胍")])) == 1


def test_a_label_that_means_no_known_drug_may_be_any_and_keeps_the_flag_away() -> None:
    assert CARRIERS.untreated(("高尿酸血症",), [link("没有这种药片")]) == ()


# Spans


def mentions(section: str, text: str) -> list[Mention]:
    fields = {"现病史": "present_illness", "既往史": "past_history", "诊疗过程描述": "course"}
    return list(READER.read(record(**{fields[section]: text})))


def test_a_brand_is_found_as_its_generic_at_its_place_in_the_original_text() -> None:
    text = "患者口服　诺和锐特充（ｂｉｄ）及二甲双胍0.5g"
    found = [one for one in mentions("现病史", text) if one.kind == "drug"]
    assert [(one.names, text[one.start : one.end]) for one in found] == [
        (("门冬胰岛素",), "诺和锐特充"),
        (("二甲双胍",), "二甲双胍"),
    ]


def test_places_hold_where_a_character_becomes_several() -> None:
    plain, places = folded("℃㎎二甲双胍")
    assert plain == "°CMG二甲双胍"
    assert places == [0, 0, 1, 1, 2, 3, 4, 5]
    (found,) = mentions("现病史", "37℃，２型糖尿病")
    assert (found.start, found.end, found.text) == (4, 9, "２型糖尿病")


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("对二甲双胍过敏", True),
        ("二甲双胍已停用，改用阿卡波糖", True),
        ("口服二甲双胍，对青霉素过敏", False),
        ("否认口服二甲双胍", True),
    ],
)
def test_a_drug_that_was_stopped_or_not_borne_supports_nothing(text: str, denied: bool) -> None:
    found = next(one for one in mentions("既往史", text) if one.names == ("二甲双胍",))
    assert found.denied is denied


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("否认高血压、冠心病史", True),
        ("母亲患高血压", True),
        ("高血压待排", True),
        ("高血压病史5年", False),
        ("无明显诱因出现高血压", False),
        ("无胸闷，高血压5年", False),
    ],
)
def test_a_diagnosis_that_is_denied_doubted_or_of_a_relative_supports_nothing(text: str, denied: bool) -> None:
    found = next(one for one in mentions("既往史", text) if "高血压" in one.names)
    assert found.denied is denied


def test_what_is_measured_or_meant_otherwise_is_no_drug() -> None:
    text = "甘油三酯2.1mmol/L，叶酸12ng/ml，胰岛素抵抗，葡萄糖9.1mmol/L，白蛋白41g/L"
    assert [one.text for one in mentions("诊疗过程描述", text) if one.kind == "drug"] == []


@pytest.mark.parametrize(
    ("text", "diagnosis", "span"),
    [
        ("HbA1c10.0%↑", "2型糖尿病", "HbA1c10.0"),
        ("尿酸490.2μmol/L", "高尿酸血症", "尿酸490.2"),
        ("血压150/84mmHg", "高血压", "血压150/84"),
        ("K+3.2mmol/L", "低钾血症", "K+3.2"),
        ("eGFR 45ml/min", "慢性肾脏病", "eGFR 45"),
        ("HbA1c5.6%", None, None),
        ("尿酸320μmol/L", None, None),
        ("血压120/84mmHg", None, None),
        ("K+4.2mmol/L", None, None),
        ("eGFR 95ml/min", None, None),
    ],
)
def test_a_value_beyond_its_threshold_is_a_finding_and_one_within_is_not(
    text: str, diagnosis: str | None, span: str | None
) -> None:
    found = [one for one in mentions("诊疗过程描述", text) if one.kind == "finding"]
    assert [one.text for one in found] == ([] if span is None else [span])
    assert all(diagnosis in one.names for one in found)


def test_every_finding_speaks_for_diagnoses_of_the_table() -> None:
    known = load_indications().diagnoses
    assert [name for finding in FINDINGS for name in finding.diagnoses if name not in known] == []


# Views


def test_wrong_drugs_come_first_then_missed_ones_then_the_rest_in_their_order() -> None:
    found = recommended("二甲双胍", "雷贝拉唑", "阿卡波糖", diagnoses=given("2型糖尿病"))
    seen = VIEWER.view(record(diagnoses=["2型糖尿病"]), found, gold=["阿卡波糖", "二甲双胍", "甘精胰岛素"])
    assert [(drug.key, drug.state, drug.label) for drug in seen.drugs] == [
        ("2", "wrong", "雷贝拉唑"),
        ("漏1", "missed", "甘精胰岛素"),
        ("1", "correct", "二甲双胍"),
        ("3", "correct", "阿卡波糖"),
    ]
    assert seen.jaccard == 0.5


def test_without_gold_drugs_stay_in_their_order_and_none_is_wrong() -> None:
    seen = VIEWER.view(record(), recommended("雷贝拉唑", "二甲双胍"))
    assert [drug.state for drug in seen.drugs] == ["unjudged", "unjudged"]
    assert [drug.label for drug in seen.drugs] == ["雷贝拉唑", "二甲双胍"]
    assert seen.jaccard is None


def test_an_uncarried_drug_is_flagged_only_if_nothing_in_the_text_speaks_for_it() -> None:
    found = recommended("雷贝拉唑", diagnoses=given("2型糖尿病"))

    def kinds(text: str) -> list[str]:
        seen = VIEWER.view(record(diagnoses=["2型糖尿病"], present_illness=text), found)
        return [flag.kind for flag in seen.drugs[0].flags]

    assert kinds("血糖升高5年") == [UNINDICATED]
    assert kinds("长期口服雷贝拉唑") == []
    assert kinds("有胃溃疡病史") == []
    assert kinds("否认胃溃疡病史") == [UNINDICATED]
    assert kinds("因皮疹停用雷贝拉唑") == [UNINDICATED]


def test_generated_diagnoses_are_matched_missing_or_extra() -> None:
    generated = tuple(Diagnosis(name, "generated") for name in ("Ⅱ型糖尿病", "肺炎"))
    seen = VIEWER.view(record(diagnoses=["2型糖尿病", "高血压"]), recommended("左氧氟沙星", diagnoses=generated))
    assert [(one.name, one.state) for one in seen.diagnoses] == [
        ("高血压", "missing"),
        ("肺炎", "extra"),
        ("2型糖尿病", "matched"),
    ]


def test_a_drug_that_only_an_extra_diagnosis_carries_says_so_and_is_flagged() -> None:
    generated = (Diagnosis("胃溃疡", "generated"),)
    seen = VIEWER.view(record(diagnoses=["2型糖尿病"]), recommended("雷贝拉唑", diagnoses=generated))
    (drug,) = seen.drugs
    assert [(one.carrier.diagnosis, one.is_extra) for one in drug.carrying] == [("胃溃疡", True)]
    assert [flag.kind for flag in drug.flags] == [UNINDICATED]


def test_a_missed_drug_says_what_kept_it_out_and_what_the_model_thought_of_it() -> None:
    found = recommended(
        listed("阿托伐他汀钙片", kept_out=(KeptOut("瑞舒伐他汀", "T1"), KeptOut("可定", "T1"))),
        blocked=(Blocked("瑞舒伐他汀", "阿托伐他汀钙片", "T1", 0.125),),
        considered=(Considered("可定", 0.25), Considered("阿托伐他汀钙片", 0.5)),
    )
    seen = VIEWER.view(record(), found, gold=["瑞舒伐他汀", "可定"])
    missed = {drug.label: drug for drug in seen.drugs if drug.state == "missed"}
    assert missed["瑞舒伐他汀"].kept_out_by == (Blocked("瑞舒伐他汀", "阿托伐他汀钙片", "T1", 0.125),)
    assert missed["可定"].kept_out_by == (KeptOut("阿托伐他汀钙片", "T1"),)
    assert (missed["可定"].p_include, missed["瑞舒伐他汀"].p_include) == (0.25, None)
    assert [one.label for one in seen.considered] == ["可定"]


def test_another_label_of_the_same_generic_is_told_on_both_sides() -> None:
    seen = VIEWER.view(record(), recommended("盐酸二甲双胍片"), gold=["二甲双胍"])
    assert [(drug.label, drug.same_generic) for drug in seen.drugs] == [
        ("盐酸二甲双胍片", ("二甲双胍",)),
        ("二甲双胍", ("盐酸二甲双胍片",)),
    ]


def test_the_flag_of_an_untreated_diagnosis_says_whether_the_gold_treats_it() -> None:
    case = record(diagnoses=["高尿酸血症"])
    found = recommended("二甲双胍", diagnoses=given("高尿酸血症"))
    treated, untreated = (VIEWER.view(case, found, gold=gold) for gold in (["非布司他片"], ["二甲双胍"]))
    assert treated.flags[-1].reason.endswith("实际出院带药中有。")
    assert untreated.flags[-1].reason.endswith("实际出院带药中也没有。")


@dataclass
class Effects:
    """Two drugs and four pieces, the last a section that holds the third."""

    pieces: tuple[Piece, ...] = (
        Piece("diagnosis", "出院诊断", 0, 1, "2型糖尿病"),
        Piece("sentence", "主诉", 0, 4, "血糖升高"),
        Piece("sentence", "主诉", 4, 6, "5年"),
        Piece("section", "主诉", 0, 6, "血糖升高5年"),
    )
    drugs: tuple[str, ...] = ("二甲双胍", "阿卡波糖")
    effect: np.ndarray = field(default_factory=lambda: np.array([[2.0, -0.5, 0.01, 9.0], [0.05, 0.0, 0.02, 9.0]]))
    ranked: list[int] = field(default_factory=lambda: [0, 1, 2])
    base: np.ndarray = field(default_factory=lambda: np.array([0.6, 0.5]))


def test_effects_are_those_of_the_drug_strongest_first_and_small_ones_are_left_out() -> None:
    found = recommended("阿卡波糖", "二甲双胍", diagnoses=given("2型糖尿病"))
    seen = VIEWER.view(record(chief_complaint="血糖升高5年"), found, effects=Effects())
    of = {drug.label: [(one.text, one.nats) for one in drug.effects] for drug in seen.drugs}
    assert of == {"阿卡波糖": [], "二甲双胍": [("2型糖尿病", 2.0), ("血糖升高", -0.5)]}
    assert seen.has_effects


def test_a_label_outside_the_vocabulary_is_shown_with_what_its_name_tells() -> None:
    small = Viewer(Vocabulary((VOCABULARY.drug("二甲双胍"),)))
    seen = small.view(record(diagnoses=["高血压"]), recommended("二甲双胍"), gold=["苯磺酸氨氯地平片"])
    missed = next(drug for drug in seen.drugs if drug.state == "missed")
    assert missed.drug.generic == "氨氯地平"
    assert [one.carrier.diagnosis for one in missed.carrying] == ["高血压"]


@pytest.mark.parametrize("written", ["高血压3级", "高血压3级（极高危）"])
def test_a_flag_stays_where_the_model_words_the_diagnosis_otherwise(written: str) -> None:
    case = record(diagnoses=["高血压3级（极高危）", "高血压3级（极高危）"])
    seen = VIEWER.view(case, recommended("阿卡波糖", diagnoses=(Diagnosis(written, "generated"),)))
    assert [(one.name, one.state) for one in seen.diagnoses] == [("高血压3级（极高危）", "matched")]
    assert [flag.kind for flag in seen.diagnoses[0].flags] == [UNTREATED]


def test_a_gold_with_an_unknown_name_says_nothing_of_treatment() -> None:
    case = record(diagnoses=["高尿酸血症"])
    seen = VIEWER.view(case, recommended("二甲双胍", diagnoses=given("高尿酸血症")), gold=["外院自备药"])
    assert "实际出院带药" not in seen.flags[-1].reason


def test_a_diagnosis_without_a_row_is_no_data_and_raises_no_flag() -> None:
    name = next(name for name in sorted(load_indications().diagnoses) if name not in load_indications().rows)
    seen = VIEWER.view(record(diagnoses=[name]), recommended("阿卡波糖", diagnoses=given(name)))
    assert seen.flags == []


@pytest.mark.parametrize(
    "text",
    [
        "24小时尿钾45.2mmol/L",
        "24小时尿尿酸3500μmol/L",
        "极低密度脂蛋白3.6mmol/L",
        "血压目标<140/90mmHg",
        "血压控制在140/90mmHg以下",
        "HbA1c目标<7.0%",
        "血红蛋白下降20g/L",
    ],
)
def test_another_fluid_an_aim_and_a_change_are_no_findings(text: str) -> None:
    assert [one.text for one in mentions("诊疗过程描述", text) if one.kind == "finding"] == []


@pytest.mark.parametrize("text", ["其父血压180/100mmHg", "无脉搏短绌", "无痛觉减退"])
def test_a_finding_of_a_relative_or_denied_supports_nothing(text: str) -> None:
    found = [one.denied for one in mentions("现病史", text) if one.kind == "finding"]
    assert found
    assert all(found)


def test_the_probability_after_a_change_follows_from_the_log_odds() -> None:
    for added, sign in ((False, -1), (True, 1)):
        one = Effect("主诉", 0, 4, "血糖升高", nats=1.5, p=0.6, added=added)
        assert np.log(one.p_after / (1 - one.p_after)) - np.log(one.p / (1 - one.p)) == pytest.approx(sign * 1.5)
