import json

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
