import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from yaofang.app.vocab_verbs import app
from yaofang.vocab.errors import InputError

RUNNER = CliRunner()


def ask(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_conflicts_explains_every_pair_as_json() -> None:
    pairs = json.loads(ask("conflicts", "辛伐他汀片", "克拉霉素片", "氨氯地平片", "--json"))
    assert [(pair["a"], pair["b"]) for pair in pairs] == [
        ("辛伐他汀片", "克拉霉素片"),
        ("辛伐他汀片", "氨氯地平片"),
        ("克拉霉素片", "氨氯地平片"),
    ]
    assert all(set(pair) == {"a", "b", "tier", "reasons", "sources", "evidence"} for pair in pairs)
    first = pairs[0]
    assert first["tier"] == "T1"
    assert first["reasons"][0]["kind"] == "contraindicated"
    assert first["sources"]
    assert set(first["sources"]) == {reason["source"] for reason in first["reasons"]}


def test_a_pair_without_an_entry_is_not_in_the_json() -> None:
    assert json.loads(ask("conflicts", "依帕司他", "甲钴胺", "--json")) == []


def test_the_table_for_people_never_says_safe_alone() -> None:
    text = ask("conflicts", "依帕司他", "甲钴胺")
    assert "无记录（不等于安全）" in text
    assert "无资料不等于安全" in text


def test_an_unknown_name_is_an_input_error() -> None:
    with pytest.raises(InputError, match="没有这种药"):
        RUNNER.invoke(app, ["conflicts", "氯吡格雷", "没有这种药"], catch_exceptions=False)


def test_one_drug_alone_is_an_input_error() -> None:
    with pytest.raises(InputError, match="two drugs"):
        RUNNER.invoke(app, ["conflicts", "氯吡格雷", "氯吡格雷"], catch_exceptions=False)


def test_list_counts_labels_and_tiers() -> None:
    counts = json.loads(ask("list", "--json"))
    assert counts["labels"] == 651
    assert counts["drug"] + counts["patent_medicine"] == 651
    assert counts["pairs"] == 651 * 650 // 2
    assert counts["T1"] > 1000
    assert counts["T1_share"] == pytest.approx(counts["T1"] / counts["pairs"], abs=1e-5)
    assert "非奈利酮" in counts["no_data_labels"]
    assert "T1" in ask("list")


def test_conflicts_takes_any_generic_of_the_lexicon_under_the_name_that_was_typed() -> None:
    pairs = json.loads(ask("conflicts", "西地那非", "硝酸甘油", "伏立康唑", "--json"))
    assert {(pair["a"], pair["b"], pair["tier"]) for pair in pairs} >= {("西地那非", "硝酸甘油", "T1")}
    assert all(pair["tier"] in ("T1", "T2", "T3") and pair["reasons"] and pair["sources"] for pair in pairs)


def test_conflicts_names_what_an_ambiguous_name_may_mean() -> None:
    with pytest.raises(InputError, match="达格列净"):
        RUNNER.invoke(app, ["conflicts", "格列净片", "二甲双胍"], catch_exceptions=False)


def test_match_reads_free_text_lists() -> None:
    rows = json.loads(ask("match", "阿托伐他汀钙片20mg(立普妥)", "二甲双胍0.5g tid，阿卡波糖 50mg", "--json"))
    assert [row["generic"] for row in rows] == ["阿托伐他汀", "二甲双胍", "阿卡波糖"]
    assert rows[0]["match"] == "阿托伐他汀钙片"
    assert rows[0]["ingredients"] == ["atorvastatin"]


def test_check_reports_every_label_with_its_kind(tmp_path: Path) -> None:
    names = ["阿卡波糖片", "复方丹参滴丸", "乳腺结节", "格列净片", "折麦布片"]
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8")
    ask("check", str(tmp_path / "list.txt"), "--out", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["label"] for row in report["labels"]] == names
    assert [row["kind"] for row in report["labels"]] == ["drug", "patent_medicine", "not_a_drug", "unlinked", "drug"]
    keys = {"label", "kind", "generic", "ingredients", "atc", "route", "method", "candidates"}
    assert all(set(row) == keys for row in report["labels"])
    assert "达格列净" in report["labels"][3]["candidates"]


def test_matrix_writes_a_in_0_1_with_labels_and_version(tmp_path: Path) -> None:
    counts = json.loads(ask("matrix", "--out", str(tmp_path / "A.npz"), "--json"))
    with np.load(tmp_path / "A.npz") as found:
        assert found["A"].shape == (651, 651)
        assert set(np.unique(found["A"]).tolist()) == {0.0, 0.2, 0.5, 1.0}
        assert np.array_equal(found["A"], found["A"].T)
        assert str(found["version"]) == counts["conflicts_version"]
        assert len(found["labels"]) == 651
        assert int((found["A"] == 1).sum()) == 2 * counts["T1"]
    with pytest.raises(InputError, match=r"\.npz"):
        RUNNER.invoke(app, ["matrix", "--out", str(tmp_path / "A.csv")], catch_exceptions=False)


def test_evidence_lists_pairs_that_doctors_avoid_and_t1_pairs_that_they_combine(tmp_path: Path) -> None:
    lists = [["辛伐他汀片", "克拉霉素片"]] * 6 + [["氨氯地平片"], ["甲钴胺"]] * 200
    records = [
        {"患者序号": n, "就诊标识": f"{n}-1", "性别": "男", "主诉": "查体", "出院诊断": [], "出院带药列表": drugs}
        for n, drugs in enumerate(lists)
    ]
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    out = tmp_path / "evidence.json"
    found = json.loads(ask("evidence", "--records", str(tmp_path / "train.jsonl"), "--out", str(out), "--json"))
    assert (found["patients"], found["records"]) == (406, 406)
    assert [{pair["a"], pair["b"]} for pair in found["avoided"]] == [{"氨氯地平", "甲钴胺"}]
    assert [({pair["a"], pair["b"]}, pair["observed"]) for pair in found["combined_t1"]] == [({"辛伐他汀", "克拉霉素"}, 6)]
    (pair,) = json.loads(ask("conflicts", "辛伐他汀片", "克拉霉素片", "--evidence", str(out), "--json"))
    assert pair["evidence"]["observed"] == 6
    assert pair["evidence"]["low"] < pair["evidence"]["ratio"] < pair["evidence"]["high"]


def test_a_users_own_source_stands_beside_the_shipped_ones(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("a,b,level,mechanism,source\n依帕司他,甲钴胺,contraindicated,测试,某院: 规则\n", encoding="utf-8")
    (pair,) = json.loads(ask("conflicts", "依帕司他", "甲钴胺", "--interactions", str(file), "--json"))
    assert (pair["tier"], pair["sources"]) == ("T1", ["某院: 规则"])


def test_pairs_writes_a_column_a_source(tmp_path: Path) -> None:
    names = ["辛伐他汀片", "克拉霉素片", "阿托伐他汀钙片", "阿司匹林肠溶片", "氯吡格雷", "甲钴胺"]
    (tmp_path / "list.txt").write_text("\n".join(names), encoding="utf-8")
    sources = json.loads(ask("pairs", "--vocab", str(tmp_path / "list.txt"), "--out", str(tmp_path / "p.csv"), "--json"))
    assert all(row["edition"] and row["licence"] for row in sources)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as handle:
        rows = {frozenset((row["a"], row["b"])): row for row in csv.DictReader(handle)}
    first = rows[frozenset(("辛伐他汀片", "克拉霉素片"))]
    assert (first["tier"], first["own"], first["ansm"]) == ("T1", "contraindicated", "contraindicated")
    assert rows[frozenset(("辛伐他汀片", "阿托伐他汀钙片"))]["same_class"] == "same_class"
    assert rows[frozenset(("阿司匹林肠溶片", "氯吡格雷"))]["whitelist"] == "whitelist"
    assert frozenset(("甲钴胺", "氯吡格雷")) not in rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "阿卡波糖\r\n\r\n 二甲双胍 \r\n阿卡波糖\r\n\r\n".encode("utf-8-sig")),
        ("b.txt", "阿卡波糖\n二甲双胍\n阿卡波糖".encode("gb18030")),
        ("c.txt", "阿卡波糖\n二甲双胍\n阿卡波糖".encode("utf-16")),
        ("d.csv", '编码,药品名称\n1,阿卡波糖\n2,"二甲双胍"\n\n3,阿卡波糖\n'.encode()),
        ("e.tsv", "label\tn\n阿卡波糖\t1\n二甲双胍\n阿卡波糖\t3\n".encode()),
        ("f.json", '["阿卡波糖", "二甲双胍", "", "阿卡波糖"]'.encode()),
    ],
)
def test_check_reads_a_list_however_it_was_saved(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    report = json.loads(ask("check", str(tmp_path / name), "--json"))
    assert [row["generic"] for row in report["labels"]] == ["阿卡波糖", "二甲双胍", "阿卡波糖"]


@pytest.mark.parametrize(("name", "content"), [("a.json", b"[" * 100_000), ("b.json", b'{"a": 1}'), ("c.txt", b"\n\n")])
def test_check_refuses_what_is_no_list(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        RUNNER.invoke(app, ["check", str(tmp_path / name)], catch_exceptions=False)
