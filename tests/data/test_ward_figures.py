import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from yaofang.data.ward.ceiling import best_list, jaccard, measure_ceiling
from yaofang.data.ward.figures import label_shares, measure, rule_breaks, text_of, unseen
from yaofang.data.ward.simulate import Drafts, draft, write
from yaofang.data.ward.tables import load_tables
from yaofang.data.ward.therapy import Prescriber

RESULT = Path(__file__).resolve().parents[2] / "docs" / "results" / "ward.json"


@cache
def full() -> Drafts:
    return draft(1910, seed=1)


@cache
def prescriber() -> Prescriber:
    return Prescriber(load_tables())


def test_the_full_ward_has_the_published_numbers_of_records_and_drugs() -> None:
    drugs = [len(visit.drugs) for visit in full().train]
    assert 3450 < len(drugs) < 3750
    assert abs(np.mean(drugs) - 6.08) <= 0.3
    assert min(drugs) == 1
    assert max(drugs) == 21


def test_the_full_ward_has_the_published_shares_of_frequent_and_rare_labels() -> None:
    records = [list(visit.drugs) for visit in full().train]
    counts = sorted(_counts(records).values(), reverse=True)
    assert len(counts) == 586
    assert np.mean(counts[:58]) == pytest.approx(260.7, rel=0.08)
    assert np.mean(counts[58:-59]) == pytest.approx(14.3, rel=0.08)
    assert counts[-59:] == [1] * 59
    assert counts[-60] >= 2


def _counts(lists: list[list[object]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for drugs in lists:
        for drug in drugs:
            found[drug.label] = found.get(drug.label, 0) + 1  # type: ignore[attr-defined]
    return found


def test_the_other_65_labels_are_prescribed_on_the_test_board_only() -> None:
    seen = {drug.label for visit in full().train for drug in visit.drugs}
    test = {drug.label for visit in full().test for drug in visit.drugs}
    assert len(test - seen) == 65


def test_the_most_frequent_label_is_about_as_frequent_as_published() -> None:
    counts = _counts([list(visit.drugs) for visit in full().train])
    assert max(counts, key=lambda label: counts[label]) == "阿托伐他汀钙片"
    for label, published in (("阿托伐他汀钙片", 1298), ("阿司匹林肠溶片", 991), ("阿卡波糖", 884), ("甲钴胺", 470)):
        assert counts[label] == pytest.approx(published, rel=0.2)


def test_doctors_break_rules_at_the_documented_rates() -> None:
    rates = rule_breaks(full().train, prescriber().breaks)
    assert 0.02 <= rates["T1-like"] <= 0.04
    assert 0.15 <= rates["T2-like"] <= 0.25
    assert 0.01 <= rates["patient"] <= 0.02


def test_outside_of_marked_rule_breaks_no_drug_is_contraindicated_and_no_pair_is_broken() -> None:
    breaks = prescriber().breaks
    for visit in full().train:
        labels = [drug.label for drug in visit.drugs]
        for place, drug in enumerate(visit.drugs):
            if drug.rule_broken is None:
                assert not breaks.contraindicated(drug.label, visit.stay.facts)
                assert not breaks.broken(drug.label, labels[:place], visit.stay.facts)


def test_no_metformin_at_an_egfr_below_30_unless_a_rule_is_marked_as_broken() -> None:
    low = [visit for visit in full().train if visit.stay.facts.numbers["egfr"] < 30]
    assert len(low) > 50
    for visit in low:
        assert all(drug.group != "metformin" or drug.rule_broken for drug in visit.drugs)


def test_laboratory_values_agree_with_the_diagnoses() -> None:
    diabetic, others = [], []
    for visit in full().train:
        facts = visit.stay.facts
        (diabetic if facts.present & {"t2dm", "t1dm"} else others).append(facts.numbers["hba1c"])
    assert np.mean(diabetic) > 8
    assert np.mean(others) < 7


def test_the_best_list_is_the_shared_part_when_the_rest_is_chance() -> None:
    lists = [frozenset({"a", "b", f"c{i}"}) for i in range(9)]
    assert best_list(lists) == {"a", "b"}
    assert jaccard({"a", "b"}, lists[0]) == pytest.approx(2 / 3)


def test_the_ceiling_lies_where_it_must_and_within_its_interval() -> None:
    ceiling = measure_ceiling(full().test[:250], prescriber(), draws=24)
    assert 0.55 <= ceiling.mean <= 0.70
    assert ceiling.low < ceiling.mean < ceiling.high
    assert ceiling.records == 250


def test_measure_reports_every_figure_and_counts_no_drug_among_the_tokens() -> None:
    result = measure(30, 3, count=len, draws=6)
    assert result["records"]["train"] >= 30
    assert result["tokens"]["mean"] > 500
    assert set(result) >= {"drugs", "labels", "causes", "rules_broken", "ceiling", "tokens", "tables", "seed"}
    records, _ = write(draft(3, 3).train, 3, load_tables())
    assert "出院带药列表" not in text_of(records[0])
    assert label_shares(records)["seen"] == len({label for record in records for label in record.drugs})
    assert unseen(records, []) == 0


def test_the_committed_figures_are_those_of_the_committed_tables() -> None:
    """Where this fails: `yaofang bench ward --tokenizer DIR --out docs/results/ward.json`, then restate the documents."""
    assert json.loads(RESULT.read_text(encoding="utf-8"))["tables"] == load_tables().version
