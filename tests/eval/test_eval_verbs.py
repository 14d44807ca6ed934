import json

import pytest
import typer
from typer.testing import CliRunner

from yaofang.app.baseline import baseline
from yaofang.app.evaluate import evaluation
from yaofang.data.recommendation import Diagnosis, Drug, Recommendation
from yaofang.data.records import Record, write_records
from yaofang.data.submission import check_submission, write_submission
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

app = typer.Typer()
app.add_typer(evaluation)
app.command()(baseline)

DRUGS = ["阿托伐他汀钙片", "阿司匹林肠溶片", "阿卡波糖", "二甲双胍", "碳酸钙片", "甲钴胺"]


def run(*arguments):
    done = CliRunner().invoke(app, [str(word) for word in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def files(tmp_path):
    records = [
        Record(
            patient=patient,
            id=f"{patient}-{visit}",
            past_history="糖尿病" if patient % 2 else "冠心病",
            diagnoses=("糖尿病",) if patient % 2 else ("冠心病",),
            drugs=tuple(DRUGS[2:4] if patient % 2 else DRUGS[:2]),
        )
        for patient in range(1, 13)
        for visit in (1, 2)
    ]
    write_records(tmp_path / "gold.jsonl", records)
    write_submission(tmp_path / "sub.json", [(record.id, record.drugs[:1]) for record in records])
    return tmp_path, records


def test_the_table_shows_scores_intervals_drugs_and_conflicts(files):
    folder, _ = files
    out = run("evaluate", "--records", folder / "gold.jsonl", "--predictions", folder / "sub.json").stdout
    for word in ("Jaccard", "0.5000", "F1", "0.6667", "0.5833", "T1", "T2", "T3", "诊断来源未说明", "24 条记录"):
        assert word in out


def test_json_is_alone_on_stdout_and_equals_the_file_written(files):
    folder, _ = files
    done = run(
        "evaluate",
        "--records",
        folder / "gold.jsonl",
        "--predictions",
        folder / "sub.json",
        "--json",
        "--out",
        folder / "r.json",
    )
    shown, written = json.loads(done.stdout), json.loads((folder / "r.json").read_text(encoding="utf-8"))
    assert shown == written
    assert shown["results"][0]["jaccard"]["value"] == 0.5
    assert shown["patients_from"] == "患者序号"
    assert shown["provenance"]["command"].startswith("yaofang evaluate --records ")


def test_a_gold_file_needs_no_records(files):
    folder, records = files
    gold = {record.id: ["阿托伐他汀", "阿司匹林"] for record in records}
    (folder / "gold.json").write_text(json.dumps(gold), encoding="utf-8")
    done = run("evaluate", "--gold", folder / "gold.json", "--predictions", folder / "sub.json", "--level", "generic", "--json")
    value = json.loads(done.stdout)
    assert value["results"][0]["jaccard"]["value"] == 0.25
    assert value["patients_from"] == "就诊标识"


def test_without_records_and_gold_the_error_names_both_options(files):
    folder, _ = files
    with pytest.raises(InputError, match="--records FILE, or --gold"):
        run("evaluate", "--predictions", folder / "sub.json")


def test_missing_records_are_told_on_stderr(files):
    folder, records = files
    write_submission(folder / "short.json", [(record.id, record.drugs) for record in records[1:]])
    done = run("evaluate", "--records", folder / "gold.jsonl", "--predictions", folder / "short.json")
    assert "1-1" in done.stderr
    assert "各计 0 分" in done.stderr


def test_training_records_bring_strata_and_rare_diagnoses_and_are_told_if_they_share_patients(files):
    folder, records = files
    write_records(folder / "train.jsonl", records[:2])
    gold = ("--records", folder / "gold.jsonl", "--predictions", folder / "sub.json", "--train", folder / "train.jsonl")
    done = run("evaluate", *gold)
    for word in ("头部", "训练中未出现", "含罕见诊断 是", "亚组"):
        assert word in done.stdout
    assert "1 个相同的患者序号" in done.stderr
    value = json.loads(run("evaluate", *gold, "--json").stdout)
    assert value["training"] == {"drugs": 2, "records": 2, "shared_patients": [1]}
    (mode,) = value["results"]
    assert {one["name"]: one["gold"] for one in mode["strata"]} == {"head": 0, "middle": 24, "tail": 0, "unseen": 24}
    assert set(mode["levels"]) == {"label", "generic", "atc4"}


def test_a_models_counts_bring_strata_and_never_both_sources(files):
    folder, _ = files
    (folder / "yaofang.json").write_text(json.dumps({"drug_counts": {DRUGS[0]: 9}}), encoding="utf-8")
    words = ("evaluate", "--records", folder / "gold.jsonl", "--predictions", folder / "sub.json", "--counts", folder)
    (mode,) = json.loads(run(*words, "--json").stdout)["results"]
    assert sum(one["gold"] for one in mode["strata"]) == 48
    assert "rare_diagnosis" not in {one["attribute"] for one in mode["subgroups"]}
    with pytest.raises(InputError, match="--train and --counts"):
        run(*words, "--train", folder / "gold.jsonl")


def test_a_second_submission_stands_beside_with_a_paired_test(files):
    folder, records = files
    write_submission(folder / "whole.json", [(record.id, record.drugs) for record in records])
    words = ("--records", folder / "gold.jsonl", "--predictions", folder / "sub.json", "--compare", folder / "whole.json")
    done = run("evaluate", *words)
    (line,) = (line for line in done.stdout.splitlines() if line.split()[:1] == ["Jaccard"] and "-0.5000" in line)
    assert line.split()[1:4] == ["0.5000", "1.0000", "-0.5000"]
    assert "对照" in done.stdout
    compared = json.loads(run("evaluate", *words, "--json").stdout)["compared"]
    assert compared["results"][0]["jaccard"]["value"] == 1
    (jaccard,) = (one for one in compared["paired"][0]["differences"] if one["name"] == "jaccard")
    assert (jaccard["difference"], jaccard["patients"], jaccard["p_value"]) == (-0.5, 12, 2 / 2**12)


def test_details_of_the_second_submission_need_the_second_submission(files):
    folder, _ = files
    words = ("--records", folder / "gold.jsonl", "--predictions", folder / "sub.json", "--compare-details", folder / "d.jsonl")
    with pytest.raises(InputError, match="without --compare"):
        run("evaluate", *words)


def test_details_with_p_include_bring_prauc_under_the_name_of_its_score(files):
    folder, records = files
    drugs = {p: tuple(Drug(name, "", "", 0.5, p, 0.0) for name in (DRUGS[0],)) for p in (0.7, None)}
    for p, says in ((0.7, "PRAUC（p_include）"), (None, "details 中没有 p_include")):
        made = [Recommendation(id=record.id, diagnoses=(), drugs=drugs[p]).to_json() for record in records]
        (folder / "details.jsonl").write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
        write_submission(folder / "one.json", [(record.id, DRUGS[:1]) for record in records])
        words = (
            "--records",
            folder / "gold.jsonl",
            "--predictions",
            folder / "one.json",
            "--details",
            folder / "details.jsonl",
        )
        assert says in run("evaluate", *words).stdout


def test_answers_in_free_text_are_scored_and_how_they_were_read_is_shown(files):
    folder, records = files
    lines = [{"ID": r.id, "text": "出院带药：" + "、".join(r.drugs) if r.patient > 1 else "无法判断"} for r in records]
    (folder / "text.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    words = ("evaluate", "--records", folder / "gold.jsonl", "--predictions", folder / "text.jsonl")
    shown = {cells[0]: cells[1] for line in run(*words).stdout.splitlines() if len(cells := line.split()) > 1}
    assert (shown["形式"], shown["无法解析的答案"]) == ("text", "2")
    value = json.loads(run(*words, "--json").stdout)
    assert (value["answers"]["unparsed"], value["answers"]["unparsed_ids"]) == (2, ["1-1", "1-2"])
    assert value["results"][0]["jaccard"]["value"] == pytest.approx(22 / 24)
    assert set(value["sha256"]) == {"records", "predictions"}


def test_atc4_is_a_level_and_names_of_a_submission_link_only_on_request(files):
    folder, records = files
    write_submission(folder / "other.json", [(record.id, ["阿卡波糖片"]) for record in records])
    words = ("evaluate", "--records", folder / "gold.jsonl", "--predictions", folder / "other.json", "--json")
    done = run(*words)
    assert json.loads(done.stdout)["results"][0]["jaccard"]["value"] == 0
    assert "--link" in done.stderr
    assert json.loads(run(*words, "--link").stdout)["results"][0]["jaccard"]["value"] == 0.25
    atc4 = json.loads(run(*words, "--level", "atc4").stdout)
    assert (atc4["level"], atc4["results"][0]["jaccard"]["value"]) == ("atc4", 0.25)


@pytest.mark.parametrize("name", ["most-frequent", "tfidf"])
def test_a_baseline_writes_a_valid_submission_that_evaluate_scores(files, name):
    folder, records = files
    gold, out = folder / "gold.jsonl", folder / "baseline.json"
    tuned = json.loads(run("baseline", name, "--train", gold, "--records", gold, "--out", out, "--json").stdout)
    assert check_submission(out, records, load_vocabulary()) == []
    assert tuned["rule"]["kind"] in ("top", "threshold")
    assert tuned["validation_patients"] >= 1
    value = json.loads(run("evaluate", "--records", gold, "--predictions", out, "--json").stdout)
    score = value["results"][0]["jaccard"]["value"]
    assert score == 1.0 if name == "tfidf" else 0.3 < score <= 0.5


def test_a_training_label_outside_the_vocabulary_leaves_no_submission(files):
    folder, records = files
    write_records(folder / "bad.jsonl", [*records, Record(patient=99, id="99-1", drugs=("无此药",))])
    with pytest.raises(InputError, match=r"bad\.jsonl.*无此药.*99-1"):
        run(
            "baseline", "tfidf", "--train", folder / "bad.jsonl", "--records", folder / "gold.jsonl", "--out", folder / "o.json"
        )
    assert not (folder / "o.json").exists()


BAD = ['{"患者序号": 77, "就诊标识": 5}', "{"]


def spoil(file, *lines):
    file.write_text(file.read_text(encoding="utf-8") + "".join(line + "\n" for line in lines), encoding="utf-8")


def test_evaluate_with_skip_bad_scores_the_good_records_and_lists_the_others(files):
    folder, _ = files
    gold = folder / "gold.jsonl"
    spoil(gold, *BAD)
    words = ("evaluate", "--records", gold, "--predictions", folder / "sub.json", "--json")
    with pytest.raises(InputError, match="line 25, field 就诊标识"):
        run(*words)
    done = run(*words, "--skip-bad")
    assert [line.partition(", ")[2][:7] for line in done.stderr.splitlines() if "skipped: " in line] == ["line 25", "line 26"]
    value = json.loads(done.stdout)
    assert value["results"][0]["records"] == 24
    assert value["provenance"]["command"].endswith(" --skip-bad")


def test_evaluate_with_skip_bad_leaves_out_bad_entries_of_gold_and_details_too(files):
    folder, records = files
    gold, details = folder / "g.json", folder / "details.jsonl"
    entries = {record.id: list(record.drugs) for record in records[1:]} | {"77-1": ["甲钴胺"], "78-1": 3}
    gold.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    good = Recommendation(id=records[1].id, diagnoses=(), drugs=(Drug(records[1].drugs[0], "", "", 0.5, None, 0.0),))
    details.write_text(json.dumps(good.to_json()) + "\n{}\n", encoding="utf-8")
    words = ("evaluate", "--records", folder / "gold.jsonl", "--predictions", folder / "sub.json", "--json")
    words = (*words, "--gold", gold, "--details", details)
    with pytest.raises(InputError, match="78-1"):
        run(*words)
    done = run(*words, "--skip-bad")
    told = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(told) == 4
    for line, says in zip(told, ("78-1", "lacks: 1 (1-1)", "without record: 1 (77-1)", "line 2: not a recomm"), strict=True):
        assert says in line
    assert sum(mode["records"] for mode in json.loads(done.stdout)["results"]) == 23


def test_a_baseline_with_skip_bad_learns_from_the_good_records_and_lists_the_others(files):
    folder, records = files
    train, gold, out = folder / "train.jsonl", folder / "gold.jsonl", folder / "o.json"
    strangers = [Record(patient=98, id="98-1"), Record(patient=99, id="99-1", drugs=("无此药",))]
    write_records(train, [*records, *strangers])
    spoil(train, *BAD)
    spoil(gold, BAD[0])
    done = run("baseline", "most-frequent", "--train", train, "--records", gold, "--out", out, "--skip-bad", "--json")
    told = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert [line.rpartition("/")[2].split(":")[0].split(", field")[0] for line in told] == [
        "train.jsonl, line 27",
        "train.jsonl, line 28",
        "train.jsonl, line 25",
        "train.jsonl, line 26",
        "gold.jsonl, line 25",
    ]
    assert json.loads(done.stdout)["train_records"] == 24
    assert check_submission(out, records, load_vocabulary()) == []


def test_a_training_file_without_one_good_record_is_an_error_even_with_skip_bad(files):
    folder, _ = files
    write_records(folder / "bad.jsonl", [Record(patient=99, id="99-1", drugs=("无此药",))])
    words = ("--train", folder / "bad.jsonl", "--records", folder / "gold.jsonl", "--out", folder / "o.json", "--skip-bad")
    with pytest.raises(InputError, match="无此药"):
        run("baseline", "most-frequent", *words)


def test_a_missing_folder_for_the_output_is_found_before_any_file_is_read(files):
    folder, _ = files
    absent, out = folder / "absent", folder / "absent" / "o.json"
    for words in (
        ("baseline", "tfidf", "--train", absent, "--records", absent),
        ("evaluate", "--records", absent, "--predictions", absent),
    ):
        with pytest.raises(InputError, match="there is no folder"):
            run(*words, "--out", out)
        with pytest.raises(InputError, match="this is a folder"):
            run(*words, "--out", folder)


def test_a_second_submission_with_details_of_both_modes_is_compared_in_the_same_groups(files):
    folder, records = files
    write_submission(folder / "other.json", [(record.id, record.drugs) for record in records])
    with (folder / "d.jsonl").open("w", encoding="utf-8") as handle:
        for place, record in enumerate(records):
            listed = tuple(Drug(drug, drug, "", 0.5, None, 0.0) for drug in record.drugs)
            source = "given" if place % 2 else "generated"
            one = Recommendation(record.id, (Diagnosis(record.diagnoses[0], source),), listed)
            handle.write(json.dumps(one.to_json(), ensure_ascii=False) + "\n")
    words = ("--records", folder / "gold.jsonl", "--predictions", folder / "sub.json", "--compare", folder / "other.json")
    more = ("--compare-details", folder / "d.jsonl", "--report", folder / "r.html", "--card", folder / "c.md")
    done = run("evaluate", *words, *more, "--out", folder / "r.json")
    assert "诊断由模型生成" in done.stdout
    value = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    modes = [one["diagnoses"] for one in value["results"]]
    assert modes == [one["diagnoses"] for one in value["compared"]["results"]] == ["generated", "given"]
    assert (value["stated"], value["compared"]["stated"]) == (False, True)
    page, card = ((folder / name).read_text(encoding="utf-8") for name in ("r.html", "c.md"))
    assert "诊断来源未说明；按对照系统的分组显示" in page
    assert "诊断来源未说明；按对照系统的分组显示" in card


def test_shared_patients_are_not_known_without_the_records(files):
    folder, records = files
    (folder / "gold.json").write_text(json.dumps({record.id: record.drugs for record in records}), encoding="utf-8")
    words = ("--gold", folder / "gold.json", "--predictions", folder / "sub.json", "--train", folder / "gold.jsonl")
    run("evaluate", *words, "--out", folder / "r.json", "--card", folder / "c.md")
    assert json.loads((folder / "r.json").read_text(encoding="utf-8"))["training"]["shared_patients"] is None
    assert "患者是否重叠未测量" in (folder / "c.md").read_text(encoding="utf-8")
