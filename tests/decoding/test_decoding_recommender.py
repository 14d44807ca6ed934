"""The Recommender end to end with the bundled vocabulary and random weights of both architectures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peaked_models import peaked

from yaofang.data.facts import facts_of
from yaofang.data.recommendation import Diagnosis, Drug, Recommendation
from yaofang.data.records import Record
from yaofang.decoding.constraint import Phase
from yaofang.decoding.preparation import Task
from yaofang.decoding.reasons import check_list, with_patient_warnings
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.settings import Settings
from yaofang.glm.loading import LoadedModel
from yaofang.glm.tiny import random_tiny
from yaofang.vocab.conflicts import ConflictTable, load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary
from yaofang.vocab.errors import InputError
from yaofang.vocab.patient import PatientFacts, load_patient_rules

NAMED = ("2型糖尿病", "高血压3级（极高危）", "肺炎；胸腔积液")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary()


@pytest.fixture(scope="module")
def conflicts(vocabulary: Vocabulary) -> ConflictTable:
    return load_conflicts(vocabulary)


def greedy(*arguments: Any, **settings: Any) -> Recommender:
    """These tests are about one list as the model writes it; sampled lists have tests of their own."""
    return Recommender(*arguments, strategy="greedy", **settings)


def model(architecture: str = "glm", seed: int = 0, **settings: int) -> LoadedModel:
    loaded = random_tiny(architecture="glm4" if architecture == "glm4" else "glm", seed=seed, **settings)
    return peaked(loaded)


@pytest.fixture(scope="module")
def talkative(vocabulary: Vocabulary, conflicts: ConflictTable) -> LoadedModel:
    """The first random model that writes diagnoses which decode and lists of several drugs, whatever the vocabulary."""
    for seed in range(40):
        loaded = model(seed=seed)
        rx = greedy([loaded], vocabulary, conflicts, max_diagnosis_tokens=12, audit=False)
        if all(found.diagnoses and len(found.drugs) > 2 and not found.truncated for found in rx.batch(RECORDS[:2])):
            return loaded
    raise AssertionError("no random model writes lists")


@pytest.fixture(scope="module")
def recommender(talkative: LoadedModel, vocabulary: Vocabulary, conflicts: ConflictTable) -> Recommender:
    return greedy([talkative], vocabulary, conflicts, max_diagnosis_tokens=12)


def record(number: int, *, diagnoses: tuple[str, ...] = NAMED, words: int = 1) -> Record:
    return Record(
        patient=number, id=f"{number}-1", sex="男", course="入院后监测血糖，调整降糖方案。" * words, diagnoses=diagnoses
    )


RECORDS = [record(n, words=1 + n * n % 7, diagnoses=NAMED if n % 2 else ()) for n in range(1, 7)]


def assert_valid(found: Iterable[Recommendation], conflicts: ConflictTable) -> None:
    for each in found:
        places = [conflicts.vocabulary.index(label) for label in each.labels]
        assert places, "a list is never empty while a drug is allowed"
        assert len(set(places)) == len(places)
        assert not (conflicts.tiers[np.ix_(places, places)] == 1).any()
        assert len(places) <= (Settings().max_drugs or 0)


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
@pytest.mark.parametrize("mode", ["auto", "generated"])
def test_every_list_is_valid_for_both_architectures(
    architecture: str, mode: str, vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    rx = greedy(
        [model(architecture, seed=1)],
        vocabulary,
        conflicts,
        diagnoses="auto" if mode == "auto" else "generated",
        max_diagnosis_tokens=12,
    )
    found = rx.batch(RECORDS, batch_size=4)
    assert [each.id for each in found] == [each.id for each in RECORDS]
    assert_valid(found, conflicts)
    sources = {diagnosis.source for each in found for diagnosis in each.diagnoses}
    assert ("given" in sources) == (mode == "auto")


def assert_close(a: Recommendation, b: Recommendation) -> None:
    assert (a.id, a.labels, a.diagnoses, a.truncated, a.tokens) == (b.id, b.labels, b.diagnoses, b.truncated, b.tokens)
    for one, other in zip(a.drugs, b.drugs, strict=True):
        assert one.p_step == pytest.approx(other.p_step, abs=1e-4)
        assert one.masked_mass == pytest.approx(other.masked_mass, abs=1e-4)
        assert (one.kept_out, one.warnings) == (other.kept_out, other.warnings)


def test_a_batch_of_unequal_records_equals_each_alone(recommender: Recommender) -> None:
    found = recommender.batch(RECORDS, batch_size=4)
    assert len({each.tokens for each in found}) > 1
    for together, each in zip(found, RECORDS, strict=True):
        assert_close(together, recommender(each))


def test_completed_gives_each_place_once(recommender: Recommender) -> None:
    places = [place for place, _ in recommender.completed(RECORDS, 2)]
    assert sorted(places) == list(range(len(RECORDS)))


@pytest.mark.parametrize("each", RECORDS[:2], ids=["given", "generated"])
def test_the_stream_gives_diagnoses_then_drugs_then_the_whole(recommender: Recommender, each: Record) -> None:
    *parts, last = list(recommender.stream(each))
    assert isinstance(last, Recommendation)
    assert_close(last, recommender(each))
    kinds = [type(part) for part in parts]
    assert kinds == [Diagnosis] * len(last.diagnoses) + [Drug] * len(last.drugs)
    assert [part for part in parts if isinstance(part, Diagnosis)] == list(last.diagnoses)
    assert [part.label for part in parts if isinstance(part, Drug)] == last.labels


def test_given_diagnoses_are_returned_as_the_record_has_them(recommender: Recommender) -> None:
    assert recommender(RECORDS[0]).diagnoses == tuple(Diagnosis(name, "given") for name in NAMED)


def test_given_diagnoses_enter_the_answer_piece_by_piece(recommender: Recommender) -> None:
    task = recommender.prepare(RECORDS[0])
    template = recommender.template
    text = template.decode(task.ids[task.prompt_tokens :])
    assert text == "\n出院诊断：2型糖尿病；高血压3级（极高危）；肺炎，胸腔积液\n出院带药："
    assert task.start.phase == Phase.LIST
    assert template.encode("；")[0] in task.ids[task.prompt_tokens :]


def test_generated_diagnoses_ignore_what_the_record_names(
    talkative: LoadedModel, vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    rx = greedy([talkative], vocabulary, conflicts, diagnoses="generated", max_diagnosis_tokens=12)
    with_names, without = rx(RECORDS[1]), rx(RECORDS[1].model_copy(update={"diagnoses": NAMED}))
    assert with_names.diagnoses == without.diagnoses
    assert {each.source for each in with_names.diagnoses} == {"generated"}


def test_asking_for_given_diagnoses_that_a_record_lacks_names_record_and_field(
    vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    rx = greedy([model()], vocabulary, conflicts, diagnoses="given")
    with pytest.raises(InputError, match="record 2-1") as caught:
        rx(record(2, diagnoses=("  ",)))
    assert caught.value.field == "出院诊断"


def test_a_record_longer_than_the_context_is_cut_and_the_cut_reported(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    rx = greedy([model(context=900)], vocabulary, conflicts)
    found = rx(record(1, words=400))
    assert found.cuts
    assert found.tokens < 900
    assert rx(record(1)).cuts == ()


def test_a_record_that_cannot_be_fitted_names_itself_and_a_field(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    rx = greedy([model(context=700)], vocabulary, conflicts)
    endless = Record(patient=1, id="1-1", diagnoses=tuple(f"病{n}" * 9 for n in range(60)))
    long_complaint = Record(patient=2, id="2-1", ethnicity="汉族" * 1200, diagnoses=NAMED)
    for each in (endless, long_complaint):
        with pytest.raises(InputError, match=f"record {each.id}") as caught:
            rx(each)
        assert caught.value.field
        assert caught.value.way_out


def test_skip_hands_over_what_cannot_be_fitted_and_goes_on(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    rx = greedy([model(context=900)], vocabulary, conflicts)
    bad = Record(patient=9, id="9-1", ethnicity="汉族" * 1200, diagnoses=NAMED)
    skipped: list[str] = []
    done = dict(rx.completed([record(1), bad, record(3)], 2, skip=lambda each, error: skipped.append(each.id)))
    assert sorted(done) == [0, 2]
    assert skipped == ["9-1"]


@pytest.mark.parametrize("threads", [1, 4])
def test_records_are_prepared_in_their_order_by_any_number_of_threads(
    threads: int, vocabulary: Vocabulary, conflicts: ConflictTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rx = greedy([model(context=900)], vocabulary, conflicts, mask_patient=True)
    illnesses = [(), ("支气管哮喘",), ("慢性肾脏病5期",), ("1型糖尿病", "高钾血症")]
    records = [record(n, words=n, diagnoses=(*NAMED, *illnesses[n % 4])) for n in range(1, 13)]
    records[5] = Record(patient=9, id="9-1", ethnicity="汉族" * 1200, diagnoses=NAMED)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = list(rx.prepare.each(records))
    assert [isinstance(one, InputError) for one in found] == [n == 5 for n in range(12)]
    assert [one for n, one in enumerate(found) if n != 5] == [rx.prepare(one) for n, one in enumerate(records) if n != 5]
    assert "9-1" in str(found[5])
    assert len({one.start.allowed for one in found if isinstance(one, Task)}) == len(illnesses)


def test_a_list_cut_by_its_budget_is_flagged_and_holds_whole_drugs(
    talkative: LoadedModel, vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    whole = greedy([talkative], vocabulary, conflicts)(RECORDS[0])
    # Three names take at least five tokens with their separators.
    cut = greedy([talkative], vocabulary, conflicts, max_list_tokens=4)(RECORDS[0])
    assert not whole.truncated
    assert cut.truncated
    assert cut.labels == whole.labels[: len(cut.labels)]
    assert len(cut.labels) < len(whole.labels)


def test_the_numbers_beside_a_drug_are_probabilities_and_its_reasons_are_the_tables(
    recommender: Recommender, conflicts: ConflictTable
) -> None:
    for found in recommender.batch(RECORDS):
        ruled_out: set[str] = set()
        for at, drug in enumerate(found.drugs):
            assert 0 < drug.p_step <= 1
            assert 0 <= drug.masked_mass <= 1
            row = conflicts.tiers[conflicts.vocabulary.index(drug.label)]
            against = {conflicts.vocabulary.labels[i] for i in np.flatnonzero(row == 1)}
            assert {kept.label for kept in drug.kept_out} == against - ruled_out - set(found.labels[:at])
            ruled_out |= against
            others = [other for other in found.labels if row[conflicts.vocabulary.index(other)] > 1]
            pairs = [warning for warning in drug.warnings if warning.kind == "interaction"]
            assert {warning.tier for warning in pairs} <= {"T2", "T3"}
            assert bool(pairs) == bool(others)
        for blocked in found.blocked:
            assert blocked.by in found.labels
            assert blocked.label not in found.labels
            assert conflicts.tiers[conflicts.vocabulary.index(blocked.label), conflicts.vocabulary.index(blocked.by)] == 1
            assert 0.01 <= blocked.p_step <= 1


def test_the_same_list_comes_without_the_audit(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    loaded = model()
    with_audit = greedy([loaded], vocabulary, conflicts)(RECORDS[0])
    without = greedy([loaded], vocabulary, conflicts, audit=False)(RECORDS[0])
    assert without.blocked == ()
    assert_close(with_audit, without)


def test_several_models_vote_and_their_versions_are_told(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    models = [model(seed=1), model(seed=2)]
    rx = greedy(models, vocabulary, conflicts)
    found = rx.batch([RECORDS[0], RECORDS[2]])
    assert_valid(found, conflicts)
    assert found[0].versions["model"] == "+".join(each.version for each in models)
    assert set(found[0].versions) == {"model", "vocab", "conflicts", "code"}


def test_models_with_different_tokenizers_are_refused(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    with pytest.raises(InputError, match="different tokenizers"):
        greedy([model(), random_tiny(["另一种文字"])], vocabulary, conflicts)


def test_no_model_and_an_unknown_mode_and_an_empty_batch_size_are_refused(
    vocabulary: Vocabulary, conflicts: ConflictTable, recommender: Recommender
) -> None:
    with pytest.raises(InputError, match="no model"):
        greedy([], vocabulary, conflicts)
    with pytest.raises(InputError, match="unknown"):
        greedy([model()], vocabulary, conflicts, diagnoses="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch size 0"):
        recommender.batch(RECORDS, batch_size=0)


def test_another_list_of_names_is_obeyed(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("二甲双胍\n阿卡波糖\n甲钴胺\n", encoding="utf-8")
    names = load_vocabulary(file)
    found = greedy([model()], names, load_conflicts(names))(RECORDS[0])
    assert set(found.labels) <= {"二甲双胍", "阿卡波糖", "甲钴胺"}


def test_a_recommendation_survives_its_json(recommender: Recommender) -> None:
    found = recommender(RECORDS[1])
    assert Recommendation.from_json(found.to_json()) == found


def test_a_broken_promise_is_an_error_and_not_a_list(conflicts: ConflictTable) -> None:
    a, b = (conflicts.vocabulary.labels[i] for i in np.argwhere(conflicts.tiers == 1)[0])
    for labels in ([a, a], [a, b], ["没有这种药"]):
        with pytest.raises(RuntimeError):
            check_list(labels, conflicts)


def test_the_mask_rules_out_the_pairs_of_tier_1_and_no_other(recommender: Recommender, conflicts: ConflictTable) -> None:
    size = len(conflicts.vocabulary)
    masked = [[recommender.constraint.in_conflict(a, b) or a == b for b in range(size)] for a in range(size)]
    assert np.array_equal(np.array(masked), (conflicts.tiers == 1) | np.eye(size, dtype=bool))


def test_two_labels_of_one_systemic_ingredient_are_never_listed_together(
    recommender: Recommender, vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    same = [
        (a, b)
        for a, b in combinations(range(len(vocabulary)), 2)
        if vocabulary.drugs[a].generic == vocabulary.drugs[b].generic
        and vocabulary.drugs[a].route == vocabulary.drugs[b].route == "oral"
        and vocabulary.drugs[a].kind == vocabulary.drugs[b].kind == "drug"
    ]
    assert len(same) > 20
    assert all(recommender.constraint.in_conflict(a, b) for a, b in same)


ALLERGIC = Record(
    patient=50,
    id="50-1",
    sex="女",
    birth="1950-01",
    visit="2020-01",
    past_history="青霉素过敏史，有磺胺类药物过敏史。",
    course="入院查血肌酐450μmol/L，eGFR 9ml/min/1.73m2，血钾6.3mmol/L。",
    diagnoses=("慢性肾脏病5期", "急性心力衰竭", "消化性溃疡伴出血", "糖尿病酮症酸中毒"),
)


def test_a_drug_contraindicated_in_the_patient_is_warned_of_and_masked_where_asked(
    vocabulary: Vocabulary, conflicts: ConflictTable
) -> None:
    rules = load_patient_rules()
    facts = facts_of(ALLERGIC)
    banned = {vocabulary.labels[place] for place in rules.contraindicated(facts, vocabulary.drugs)}
    assert {"二甲双胍", "螺内酯", "盐酸吡格列酮片"} <= banned
    assert not {"甘精胰岛素", "氨氯地平片"} & banned
    warned = 0
    for seed in range(6):
        free = greedy([model(seed=seed)], vocabulary, conflicts, audit=False)(ALLERGIC)
        for drug in free.drugs:
            said = {warning.tier for warning in drug.warnings if warning.kind == "patient"}
            assert ("T1" in said) == (drug.label in banned)
            warned += "T1" in said
        kept = greedy([model(seed=seed)], vocabulary, conflicts, audit=False, mask_patient=True)(ALLERGIC)
        assert not set(kept.labels) & banned
    assert warned > 0


def test_generated_diagnoses_count_for_the_warnings(vocabulary: Vocabulary) -> None:
    drug = Drug(label="二甲双胍", generic="二甲双胍", atc="A10BA02", p_step=1.0, p_include=None, masked_mass=0.0)
    rules = load_patient_rules()
    (with_it,) = with_patient_warnings([drug], PatientFacts(diagnoses=("糖尿病酮症酸中毒",)), vocabulary, rules)
    (without,) = with_patient_warnings([drug], PatientFacts(diagnoses=("2型糖尿病",)), vocabulary, rules)
    assert [warning.tier for warning in with_it.warnings] == ["T1"]
    assert without.warnings == ()


def test_generated_mode_never_looks_at_the_records_own_diagnoses(vocabulary: Vocabulary, conflicts: ConflictTable) -> None:
    ketoacidosis = Record(patient=60, id="60-1", sex="男", course="补液治疗。", diagnoses=("糖尿病酮症酸中毒",))
    place = vocabulary.index("二甲双胍")
    starts = {}
    for mode in ("given", "generated"):
        rx = greedy([model()], vocabulary, conflicts, diagnoses=mode, mask_patient=True)  # type: ignore[arg-type]
        task = rx.prepare(ketoacidosis)
        starts[mode] = place in rx.constraint.positions(task.start.allowed), task.facts.diagnoses
    assert starts == {"given": (False, ("糖尿病酮症酸中毒",)), "generated": (True, ())}
