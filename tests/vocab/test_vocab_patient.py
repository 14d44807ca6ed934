import shutil

import pytest

from yaofang.vocab.drugs import Drug, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import read_table
from yaofang.vocab.patient import TABLES, PatientFacts, load_patient_rules


@pytest.fixture(scope="module")
def rules():
    return load_patient_rules()


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary()


def drug(*ingredients, atc=None, route="oral", generic="药"):
    return Drug(generic, generic, ingredients, atc, None, route, "drug")


def levels(rules, facts, label):
    return {warning.level for warning in rules.warnings(facts, load_vocabulary().drug(label))}


def dx(*names, **others):
    return PatientFacts(diagnoses=names, **others)


CONTRAINDICATED = [
    (PatientFacts(egfr=29), "二甲双胍"),
    (dx("糖尿病性酮症酸中毒"), "格华止"),
    (dx("糖尿病酮症酸中毒"), "达格列净片"),
    (dx("乳酸酸中毒"), "西格列汀二甲双胍片"),
    (dx("维持性血液透析"), "恩格列净片"),
    (dx("1型糖尿病"), "格列美脲"),
    (dx("1型糖尿病"), "消渴丸"),
    (dx("心功能Ⅲ级"), "盐酸吡格列酮片"),
    (dx("膀胱癌术后"), "吡格列酮二甲双胍片"),
    (dx("甲状腺髓样癌"), "利拉鲁肽"),
    (dx("不完全性肠梗阻"), "阿卡波糖"),
    (dx("十二指肠溃疡伴出血"), "布洛芬缓释胶囊"),
    (PatientFacts(egfr=20), "塞来昔布胶囊"),
    (PatientFacts(pregnant=True), "缬沙坦氨氯地平片"),
    (PatientFacts(pregnant=True), "阿托伐他汀钙片"),
    (dx("血管神经性水肿"), "诺欣妥"),
    (dx("双侧肾动脉狭窄"), "马来酸依那普利片"),
    (PatientFacts(potassium=5.8), "螺内酯"),
    (dx("高钾血症"), "氯化钾缓释片"),
    (dx("支气管哮喘"), "美托洛尔缓释片"),
    (dx("支气管哮喘"), "卡替洛尔滴眼液"),
    (dx("Ⅲ度房室传导阻滞"), "地尔硫卓"),
    (PatientFacts(egfr=25), "氢氯噻嗪"),
    (dx("胆囊结石"), "非诺贝特"),
    (dx("肾结石"), "苯溴马隆片"),
    (PatientFacts(egfr=30), "阿仑膦酸钠片"),
    (dx("低钙血症"), "地舒单抗注射液"),
    (dx("高钙血症"), "碳酸钙D3片"),
    (dx("上消化道出血"), "利伐沙班片"),
    (dx("主动脉瓣机械瓣置换术后"), "达比加群酯胶囊"),
    (dx("脑出血后遗症"), "替格瑞洛"),
    (dx("陈旧性脑梗死"), "普拉格雷片"),
    (dx("慢性心力衰竭"), "西洛他唑"),
    (dx("甲状腺功能亢进症"), "盐酸胺碘酮片"),
    (dx("冠心病"), "普罗帕酮"),
    (PatientFacts(age=16), "左氧氟沙星片"),
    (PatientFacts(age=6), "多西环素片"),
    (dx("帕金森病"), "甲氧氯普胺"),
    (dx("闭角型青光眼"), "索利那新"),
    (dx("重症肌无力"), "艾司唑仑"),
    (dx("急性心肌梗死"), "左甲状腺素钠片"),
    (dx("粒细胞缺乏症"), "甲巯咪唑"),
    (dx("前列腺癌"), "十一酸睾酮软胶囊"),
    (PatientFacts(sex="female"), "非那雄胺片"),
    (PatientFacts(pregnant=True), "甲氨蝶呤"),
    (PatientFacts(pregnant=True), "雷公藤多苷片"),
    (PatientFacts(allergies=("青霉素",)), "阿莫西林胶囊"),
    (PatientFacts(allergies=("磺胺类药物",)), "格列美脲"),
    (PatientFacts(allergies=("喹诺酮类",)), "左氧氟沙星滴眼液"),
    (PatientFacts(allergies=("别嘌醇片",)), "别嘌醇"),
]

CAUTION = [
    (PatientFacts(egfr=40), "二甲双胍"),
    (dx("1型糖尿病"), "达格列净片"),
    (dx("痛风"), "氢氯噻嗪"),
    (dx("冠心病"), "非布司他"),
    (dx("心力衰竭"), "沙格列汀"),
    (PatientFacts(egfr=25), "利伐沙班片"),
    (PatientFacts(allergies=("青霉素",)), "头孢克肟"),
    (dx("阿尔茨海默病"), "奥氮平"),
    (dx("垂体前叶功能减退症"), "优甲乐"),
]

SILENT = [
    (PatientFacts(egfr=90), "二甲双胍"),
    (PatientFacts(), "二甲双胍"),
    (dx("2型糖尿病"), "格列美脲"),
    (dx("Ⅱ型糖尿病"), "格列美脲"),
    (dx("十二指肠溃疡（愈合期）"), "阿司匹林肠溶片"),
    (dx("胆囊切除术后"), "非诺贝特"),
    (dx("糖尿病酮症酸中毒？"), "二甲双胍"),
    (dx("哮喘待排"), "美托洛尔缓释片"),
    (dx("心源性哮喘"), "美托洛尔缓释片"),
    (dx("完全性房室传导阻滞", "永久起搏器植入术后"), "美托洛尔缓释片"),
    (dx("上消化道出血史"), "利伐沙班片"),
    (dx("冠心病"), "阿司匹林肠溶片"),
    (PatientFacts(egfr=20, pregnant=True), "双氯芬酸二乙胺乳胶剂"),
    (PatientFacts(age=10), "左氧氟沙星滴眼液"),
    (PatientFacts(allergies=("海鲜",)), "阿莫西林胶囊"),
    (PatientFacts(sex="male"), "非那雄胺片"),
    (dx("糖尿病酮症酸中毒"), "甘精胰岛素"),
]


@pytest.mark.parametrize(("facts", "label"), CONTRAINDICATED)
def test_what_a_label_or_guideline_forbids_is_contraindicated(rules, facts, label):
    assert "contraindicated" in levels(rules, facts, label)


@pytest.mark.parametrize(("facts", "label"), CAUTION)
def test_what_asks_for_care_is_a_caution_and_no_more(rules, facts, label):
    found = levels(rules, facts, label)
    assert "caution" in found
    assert "contraindicated" not in found


@pytest.mark.parametrize(("facts", "label"), SILENT)
def test_what_is_standard_care_or_not_known_or_in_doubt_is_not_forbidden(rules, facts, label):
    assert "contraindicated" not in levels(rules, facts, label)


def test_a_drug_of_any_list_is_judged_by_ingredient_class_and_atc(rules):
    assert rules.warnings(PatientFacts(egfr=20), drug("metformin", "dapagliflozin"))
    assert rules.contraindicated(
        PatientFacts(pregnant=True), [drug("minocycline", atc="J01AA08"), drug("iron", atc="B03AA")]
    ) == (0,)
    assert rules.contraindicated(PatientFacts(pregnant=True), [drug("quinapril"), drug()]) == (0,)


def test_a_local_form_inherits_allergies_only(rules):
    drops = drug("levofloxacin", atc="S01AE05", route="ophthalmic")
    assert not rules.warnings(PatientFacts(pregnant=True, age=10), drops)
    assert rules.warnings(PatientFacts(allergies=("左氧氟沙星",)), drops)[0].level == "contraindicated"


def test_a_herb_of_a_patent_medicine_asks_for_care_and_no_more(rules, vocabulary):
    assert {warning.level for warning in rules.warnings(dx("低钾血症"), vocabulary.drug("逍遥丸"))} == {"caution"}
    assert "contraindicated" in levels(rules, dx("低钾血症"), "复方甘草酸苷片")
    assert rules.contraindicated(dx("低钾血症"), [vocabulary.drug("逍遥丸")]) == ()


def test_a_stage_of_kidney_disease_stands_for_an_unknown_egfr_only(rules, vocabulary):
    metformin = [vocabulary.drug("二甲双胍")]
    assert rules.contraindicated(dx("慢性肾脏病4期"), metformin) == (0,)
    assert rules.contraindicated(dx("慢性肾脏病（CKD G5）"), metformin) == (0,)
    assert rules.contraindicated(dx("糖尿病肾病 CKD 3期"), metformin) == ()
    assert rules.contraindicated(dx("慢性肾脏病4期", egfr=61.0), metformin) == ()
    assert rules.contraindicated(dx("慢性肾脏病5期", "肾移植术后"), metformin) == ()


def test_conditions_are_read_from_wordings_of_the_ward(rules):
    assert "t1dm" in rules.conditions(dx("糖尿病（1型）"))
    assert "t1dm" in rules.conditions(dx("2型糖尿病可能，1 型糖尿病"))
    assert "t1dm" not in rules.conditions(dx("Ⅱ型糖尿病"))
    assert "heart_failure" in rules.conditions(dx("冠心病 心功能Ⅲ级（NYHA）"))
    assert "heart_failure" not in rules.conditions(dx("冠心病 心功能Ⅱ级"))
    assert "av_block_2_3" not in rules.conditions(dx("Ⅰ度房室传导阻滞"))
    assert "thyroid_dysfunction" not in rules.conditions(dx("甲状旁腺功能亢进症"))
    assert "hypertension" not in rules.conditions(dx("肺动脉高压"))
    assert "muscle_disease" not in rules.conditions(dx("缺血性心肌病"))


def test_warnings_come_gravest_first_once_each_with_their_source(rules, vocabulary):
    found = rules.warnings(dx("糖尿病酮症酸中毒", "肝功能异常", egfr=20.0), vocabulary.drug("二甲双胍"))
    assert [warning.level for warning in found] == sorted(
        (warning.level for warning in found), key=["contraindicated", "caution"].index
    )
    assert len({(warning.text, warning.source) for warning in found}) == len(found)
    assert all(": " in warning.source and warning.kind == "patient" and warning.condition for warning in found)


def test_the_mask_agrees_with_the_warnings(rules, vocabulary):
    facts = dx("痛风", "支气管哮喘", "肾结石", egfr=25.0, allergies=("青霉素",))
    masked = set(rules.contraindicated(facts, vocabulary.drugs))
    for place, one in list(enumerate(vocabulary.drugs))[::3]:
        assert (place in masked) == ("contraindicated" in {warning.level for warning in rules.warnings(facts, one)})
    assert 0 < len(masked) < len(vocabulary) / 3


def test_the_tables_are_of_use_and_name_what_exists(rules, vocabulary):
    rows = [row for _, row in read_table(TABLES / "patient_rules.tsv")]
    named = " ".join(row["condition"] for row in rows).split()
    assert len(rows) >= 170
    for line, row in read_table(TABLES / "conditions.tsv"):
        unused = f"diagnosis:{row['condition']}" not in named
        assert not unused or row["condition"] in ("ckd3", "ckd3a", "ckd3b", "ckd4", "ckd5", "kidney_transplant"), line
    generics = {one.generic for one in vocabulary}
    assert all(term[8:] in generics for rule in rules.rules for term in rule.drugs if term.startswith("generic:"))


@pytest.mark.parametrize(
    ("table", "row", "field"),
    [
        ("patient_rules.tsv", "class:none\tegfr<30\tcaution\t慎用\tFDA: label", "drug"),
        ("patient_rules.tsv", "atx:A10\tegfr<30\tcaution\t慎用\tFDA: label", "drug"),
        ("patient_rules.tsv", "metformin\tegfr<30\tcaution\t慎用\tFDA: label", "drug"),
        ("patient_rules.tsv", "metformin\tweight<30\tcaution\t慎用\tFDA: label", "condition"),
        ("patient_rules.tsv", "metformin\tdiagnosis:none\tcaution\t慎用\tFDA: label", "condition"),
        ("patient_rules.tsv", "metformin\tallergy:none\tcaution\t慎用\tFDA: label", "condition"),
        ("patient_rules.tsv", "metformin\tage>=99\tforbidden\t慎用\tFDA: label", "level"),
        ("patient_rules.tsv", "metformin\tage>=99\tcaution\t-\tFDA: label", "text"),
        ("patient_rules.tsv", "metformin\tage>=99\tcaution\t慎用\tFDA", "source"),
        ("conditions.tsv", "t1dm\t1型糖尿病\t-\tE10", "condition"),
        ("conditions.tsv", "new\t-\t-\tE10", "names"),
        ("allergies.tsv", "new\t新药\tclass:none", "drugs"),
    ],
)
def test_a_wrong_row_is_refused_with_file_line_and_field(tmp_path, table, row, field):
    folder = tmp_path / "default"
    shutil.copytree(TABLES, folder, ignore=shutil.ignore_patterns("ansm*", "lexicon", "drugs.tsv"))
    before = (folder / table).read_text(encoding="utf-8")
    (folder / table).write_text(before + row + "\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_patient_rules(folder)
    assert (caught.value.file, caught.value.field) == (str(folder / table), field)
    assert caught.value.line == before.count("\n") + 1


def test_an_allergy_to_a_brand_is_one_to_its_substance_and_its_class() -> None:
    rules = load_patient_rules()
    vocabulary = load_vocabulary()
    statin = rules.warnings(PatientFacts(allergies=("立普妥",)), vocabulary.drug("阿托伐他汀钙片"))
    assert {warning.level for warning in statin} == {"contraindicated"}
    assert rules.warnings(PatientFacts(allergies=("立普妥",)), vocabulary.drug("阿卡波糖")) == ()


def test_a_question_about_another_patient_in_between_changes_no_answer(rules, vocabulary):
    class Interrupted(PatientFacts):
        """Compared with the last patient asked about, it lets another thread's question come first."""

        def __eq__(self, other):
            if isinstance(other, Interrupted):
                rules.contraindicated(PatientFacts(), vocabulary.drugs)
            return isinstance(other, Interrupted)

        __hash__ = PatientFacts.__hash__

    facts = Interrupted(egfr=20.0, diagnoses=("支气管哮喘",))
    alone = rules.contraindicated(PatientFacts(egfr=20.0, diagnoses=("支气管哮喘",)), vocabulary.drugs)
    assert len(alone) > 10
    assert [rules.contraindicated(facts, vocabulary.drugs) for _ in range(3)] == [alone] * 3
