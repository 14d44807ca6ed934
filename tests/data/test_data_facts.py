import pytest

from yaofang.data.facts import allergies_of, egfr_of, facts_of
from yaofang.data.records import Record


def record(**fields):
    return Record(patient=1, id="1-1", **{"sex": "女", "birth": "1960-05", "visit": "2020-08", **fields})


def test_age_is_counted_in_months():
    assert facts_of(record()).age == pytest.approx(60.25)
    assert facts_of(record(birth="1960年5月", visit="2020/08/31")).age == pytest.approx(60.25)


@pytest.mark.parametrize(
    "dates", [{"birth": None}, {"visit": None}, {"birth": "不详"}, {"birth": "2021-01"}, {"birth": "1850-01"}]
)
def test_an_age_that_cannot_be_is_not_known(dates):
    assert facts_of(record(**dates)).age is None


@pytest.mark.parametrize(("text", "sex"), [("男", "male"), ("女性", "female"), ("未知", None), (None, None)])
def test_sex_is_read_or_not_known(text, sex):
    assert facts_of(record(sex=text)).sex == sex


@pytest.mark.parametrize(
    ("text", "egfr"),
    [
        ("肾功能：血肌酐60.4μmol/L，肾小球滤过率101.1ml/min/1.73m2，尿素4.60mmol/L", 101.1),
        ("Cr85.4μmol/L、估算肾小球滤过率89.9ml/min/1.73m2，偏低", 89.9),
        ("eGFR 28.5 ml/min/1.73m²", 28.5),
        ("肾小球滤过率（eGFR）：45.2mL/min", 45.2),
        ("eGFR（CKD-EPI）为33", 33),
        ("eGFR由60ml/min/1.73m2降至42ml/min/1.73m2", 42),
        ("eGFR波动于30～40ml/min", 35),
        ("入院eGFR 25ml/min，复查eGFR 48ml/min", 48),
        ("eGFR<15ml/min/1.73m2", 14.85),
    ],
)
def test_a_stated_egfr_is_read(text, egfr):
    assert facts_of(record(course=text)).egfr == pytest.approx(egfr)


@pytest.mark.parametrize(
    "text",
    [
        "EGFR 19外显子突变",
        "EGFR（+）",
        "左肾GFR 23.5ml/min，右肾GFR 25.1ml/min",
        "若eGFR<30ml/min，停用二甲双胍",
        "eGFR<30ml/min者禁用",
        "尿白蛋白/肌酐13.4mg/g",
        "尿肌酐8.2mmol/L",
        "24小时尿肌酐6000μmol",
        "内生肌酐清除率45ml/min",
        "肌酐升高3天",
        "CRP80.34mg/L",
        "肌酐5000000μmol/L",
    ],
)
def test_what_is_no_egfr_and_no_serum_creatinine_is_not_read(text):
    assert facts_of(record(course=text)).egfr is None


@pytest.mark.parametrize(("creatinine", "age", "sex", "egfr"), [(88.4, 50, "male", 91.7), (88.4, 50, "female", 68.7)])
def test_the_formula_is_ckd_epi_2021(creatinine, age, sex, egfr):
    assert egfr_of(creatinine, age, sex) == pytest.approx(egfr, abs=0.2)


@pytest.mark.parametrize(
    "text",
    [
        "血肌酐176.8μmol/L",
        "SCr 176.8umol/L",
        "Cr：176.8µmol/L",
        "肌酐 2.0mg/dL",
        "肌酐176.8，尿素氮8.1",
        "肌酐由300μmol/L降至176.8μmol/L",
    ],
)
def test_egfr_is_computed_from_creatinine_in_either_unit(text):
    assert facts_of(record(course=text)).egfr == pytest.approx(egfr_of(176.8, 60.25, "female"), abs=0.1)


def test_creatinine_without_age_or_sex_or_of_a_child_gives_no_egfr():
    for missing in ({"sex": None}, {"birth": None}, {"birth": "2010-01"}):
        assert facts_of(record(course="血肌酐176.8μmol/L", **missing)).egfr is None


def test_a_stated_egfr_of_the_same_section_goes_before_creatinine_and_the_latest_section_before_older_ones():
    assert facts_of(record(course="eGFR 55ml/min，血肌酐300μmol/L")).egfr == 55
    assert facts_of(record(course="eGFR 55ml/min", present_illness="eGFR 20ml/min")).egfr == 55
    assert facts_of(record(present_illness="2年前eGFR 60ml/min，近日eGFR 20ml/min")).egfr == 20


@pytest.mark.parametrize(
    ("text", "potassium"),
    [
        ("离子四项：K+3.82mmol/L，钠140.0mmol/L", 3.82),
        ("血钾5.9mmol/L↑", 5.9),
        ("K⁺ 2.9mmol/L", 2.9),
        ("钾4.22mmol/L，钠138.6mmol/L", 4.22),
        ("血钾由2.9mmol/L升至3.8mmol/L", 3.8),
        ("血钾2.9mmol/L，补钾后复查血钾3.9mmol/L", 3.9),
    ],
)
def test_serum_potassium_is_read(text, potassium):
    assert facts_of(record(course=text)).potassium == pytest.approx(potassium)


@pytest.mark.parametrize(
    "text",
    [
        "氯化钾缓释片1.0g",
        "氯沙坦钾50mg",
        "24小时尿钾45.0mmol",
        "维生素K1 10mg",
        "补钾3.0g",
        "血钾正常",
        "若血钾>5.5mmol/L则停药",
    ],
)
def test_what_is_no_serum_potassium_is_not_read(text):
    assert facts_of(record(course=text)).potassium is None


@pytest.mark.parametrize(
    "fields",
    [
        {"chief_complaint": "孕24+3周，发现血糖升高1周"},
        {"present_illness": "患者停经3月，现孕12周，空腹血糖升高。"},
        {"present_illness": "患者5年前诊断2型糖尿病，现孕12周来诊。"},
        {"present_illness": "无明显诱因妊娠28周出现口渴。"},
        {"diagnoses": ("妊娠期糖尿病",)},
        {"diagnoses": ("孕30周", "2型糖尿病")},
        {"course": "考虑中期妊娠，予胰岛素治疗。"},
    ],
)
def test_a_pregnancy_of_now_is_seen(fields):
    assert facts_of(record(birth="1992-05", **fields)).pregnant


@pytest.mark.parametrize(
    "fields",
    [
        {"present_illness": "否认妊娠。"},
        {"past_history": "5年前孕24周诊断妊娠期糖尿病。"},
        {"present_illness": "5年前孕24周发现血糖升高，诊断妊娠期糖尿病，产后恢复正常。"},
        {"present_illness": "2010年妊娠期糖尿病史。"},
        {"present_illness": "患者有妊娠计划。"},
        {"course": "计划妊娠，建议孕12周复诊。"},
        {"course": "于孕38周行子宫下段剖宫产术，术后恢复可。", "chief_complaint": "孕38周"},
        {"diagnoses": ("妊娠期糖尿病史",)},
        {"diagnoses": ("不孕症",)},
        {"diagnoses": ("早孕？",)},
        {"present_illness": "孕3产2，口服避孕药。"},
        {"chief_complaint": "孕24周", "sex": "男"},
        {"chief_complaint": "孕24周", "birth": "1950-01"},
        {"present_illness": "女儿孕24周。"},
    ],
)
def test_no_pregnancy_is_made_of_the_past_of_plans_of_others_or_of_denial(fields):
    assert not facts_of(record(**{"birth": "1992-05", **fields})).pregnant


@pytest.mark.parametrize(
    ("text", "drugs"),
    [
        ("青霉素过敏。", ("青霉素",)),
        ("对磺胺类药物过敏", ("磺胺类药物",)),
        ("阑尾切除术后21年。青霉素皮试阳性史。", ("青霉素",)),
        ("否认食物、药物过敏史。磺胺类药物过敏。", ("磺胺类药物",)),
        ("对青霉素、头孢类及磺胺药过敏史", ("青霉素", "头孢类", "磺胺药")),
        ("药物过敏史：青霉素，链霉素。", ("青霉素", "链霉素")),
        ("患者既往有青霉素过敏史，否认食物过敏史", ("青霉素",)),
        ("除青霉素过敏外，否认其他药物过敏史", ("青霉素",)),
        ("服用阿司匹林后出现皮疹", ("阿司匹林",)),
        ("对碘造影剂过敏", ("碘造影剂",)),
        ("对乙酰氨基酚过敏", ("对乙酰氨基酚",)),
        ("非甾体抗炎药过敏", ("非甾体抗炎药",)),
        ("头孢曲松过敏性休克史", ("头孢曲松",)),
        ("青霉素过敏，海鲜过敏", ("青霉素",)),
    ],
)
def test_allergies_to_drugs_are_read_in_the_words_of_the_record(text, drugs):
    assert facts_of(record(past_history=text)).allergies == drugs


@pytest.mark.parametrize(
    "text",
    [
        "否认食物、药物过敏史。",
        "否认青霉素、头孢过敏史。",
        "无药物及食物过敏史",
        "未发现药物过敏史",
        "药物过敏史：无。",
        "过敏史：否认药物及食物过敏史",
        "药物过敏史不详",
        "青霉素皮试阴性",
        "对青霉素不过敏",
        "父亲青霉素过敏",
        "过敏性鼻炎病史10年",
        "过敏体质",
        "无关节肿痛，无皮疹，无光过敏。",
        "使用胰岛素后无皮疹",
    ],
)
def test_what_is_no_allergy_is_not_read(text):
    assert allergies_of(text).drugs == ()


def test_food_and_the_rest_are_kept_apart_from_drugs():
    found = allergies_of("对海鲜、芒果过敏。花粉过敏。青霉素过敏。")
    assert found.drugs == ("青霉素",)
    assert found.others == ("海鲜", "芒果", "花粉")


def test_diagnoses_are_those_of_the_record_and_are_never_taken_from_the_history():
    assert facts_of(record(diagnoses=("2型糖尿病",))).diagnoses == ("2型糖尿病",)
    assert facts_of(record(past_history="有糖尿病酮症酸中毒病史。")).diagnoses == ()


def test_an_empty_record_gives_facts_that_know_nothing():
    facts = facts_of(Record(patient=1, id="1-1"))
    assert (facts.age, facts.sex, facts.egfr, facts.potassium) == (None, None, None, None)
    assert not facts.pregnant
    assert facts.allergies == facts.diagnoses == ()
