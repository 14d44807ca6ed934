"""One real evaluation: files, `evaluation_job.run`, its JSON; and what another system wrote, compared with it."""

import json
from dataclasses import asdict

import pytest

from yaofang.app.evaluation_job import Files, run
from yaofang.data.provenance import provenance
from yaofang.data.recommendation import Considered, Drug, Recommendation
from yaofang.data.records import Record, write_records
from yaofang.data.submission import write_submission
from yaofang.eval.confusion import confusion
from yaofang.eval.levels import Comparison
from yaofang.vocab.drugs import load_vocabulary

ARMS = (("阿托伐他汀钙片", "瑞舒伐他汀"), ("卡格列净片", "达格列净片"), ("阿司匹林肠溶片", "氯吡格雷"))
OTHERS = ("二甲双胍", "华法林", "克拉霉素片", "辛伐他汀")
LABELS = [label for arm in ARMS for label in arm] + list(OTHERS)


def patient_record(patient: int, visit: int) -> Record:
    """Every drug of an arm's first kind; odd patients are young men."""
    drugs = [arm[0] for arm in ARMS] if patient % 2 else [ARMS[patient % 3][0], "二甲双胍"]
    born, sex = ("1990-01", "男") if patient % 2 else ("1948-01", "女")
    given = {"就诊时间": "2020-01", "出生日期": born, "性别": sex, "出院诊断": ["2型糖尿病"], "出院带药列表": drugs}
    return Record.model_validate({"患者序号": patient, "就诊标识": f"{patient}-{visit}", **given})


def answer(record: Record) -> list[str]:
    """The first drug of every third patient is taken for the other of its arm."""
    drugs = list(record.drugs)
    if record.patient % 3 == 0:
        drugs[0] = next(arm[1] for arm in ARMS if arm[0] == drugs[0])
    return drugs


def details(record: Record, listed: list[str]) -> Recommendation:
    drugs = tuple(Drug(label, label, "", 0.5, 0.35 + (record.patient + at) % 6 / 10, 0.0) for at, label in enumerate(listed))
    rest = tuple(Considered(label, 0.1 + len(label) / 50) for label in LABELS if label not in listed)
    return Recommendation(id=record.id, diagnoses=(), drugs=drugs, considered=rest)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluated")
    records = [patient_record(patient, visit) for patient in range(1, 41) for visit in (1, 2)]
    write_records(place / "gold.jsonl", records)
    write_records(place / "train.jsonl", [one.model_copy(update={"patient": one.patient + 500}) for one in records[:60]])
    write_submission(place / "a.json", [(one.id, answer(one)) for one in records])
    write_submission(place / "b.json", [(one.id, ["辛伐他汀", "克拉霉素片", *one.drugs[:1]]) for one in records[1:]])
    lines = [json.dumps(details(one, answer(one)).to_json(), ensure_ascii=False) for one in records]
    (place / "details.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (place / "vocab.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    return place, records


def evaluated(place, visits, **more):
    """What `yaofang evaluate --out` writes."""
    files = Files(place / "a.json", vocab=place / "vocab.txt", **more)
    found = run(files, level="label", link=False, resamples=100, seed=0, skip_bad=False).to_json()
    value = {"provenance": provenance(f"yaofang evaluate --predictions {place / 'a.json'}"), **found}
    value = json.loads(json.dumps(value, ensure_ascii=False))
    if "confusion" not in value["results"][0]:
        vocabulary = load_vocabulary(place / "vocab.txt")
        sides = [set(one.drugs) for one in visits], [set(answer(one)) for one in visits]
        keys = (Comparison(level, vocabulary).key for level in ("atc4", "generic"))
        value["results"][0]["confusion"] = json.loads(json.dumps(asdict(confusion(*sides, *keys))))
    return value


@pytest.fixture(scope="session")
def full(folder):
    place, records = folder
    more = {"details": place / "details.jsonl", "train": place / "train.jsonl", "compare": place / "b.json"}
    return evaluated(place, records, records=place / "gold.jsonl", **more)


@pytest.fixture(scope="session")
def bare(folder):
    """Only a gold file: no records, no details, no training."""
    place, records = folder
    gold = {one.id: list(one.drugs) for one in records}
    (place / "gold.json").write_text(json.dumps(gold, ensure_ascii=False), encoding="utf-8")
    value = evaluated(place, records, gold=place / "gold.json")
    del value["results"][0]["confusion"]
    return value
