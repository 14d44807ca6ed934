"""Effects equal what a whole forward of each changed prompt gives; attention equals the one without a cache."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from yaofang.data.answer import diagnosis_pieces
from yaofang.data.recommendation import Recommendation
from yaofang.data.records import Record
from yaofang.decoding.constraint import Phase
from yaofang.decoding.generation import Generation
from yaofang.decoding.reading import read
from yaofang.decoding.recommender import Recommender
from yaofang.decoding.scoring import Place, next_drugs
from yaofang.glm.loading import LoadedModel
from yaofang.glm.tiny import Architecture, random_tiny
from yaofang.inspection.attention import attention
from yaofang.inspection.counterfactual import Counterfactual, counterfactual, prepare, prompt_of
from yaofang.inspection.evidence import Piece, added_diagnosis, pieces
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

RECORD = Record(
    patient=1,
    id="1-1",
    sex="男",
    past_history="高血压病史5年，口服氨氯地平片。否认药物过敏史。",
    course="入院后监测血糖，调整降糖方案。血压偏高，予降压。准予出院。",
    diagnoses=("2型糖尿病", "高血压3级（极高危）"),
)
LIST = ["阿卡波糖", "聚乙二醇", "氨氯地平片", "二甲双胍"]
"""聚乙二醇 can become a longer name."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sharp(loaded: LoadedModel) -> LoadedModel:
    """A random model whose probabilities are far from uniform."""
    with torch.no_grad():
        loaded.model.model.norm.weight.mul_(8.0)
    return loaded


@cache
def recommender(
    *seeds: int, architecture: Architecture = "glm", context: int = 4096, prefix_lm: bool = False, **settings: Any
) -> Recommender:
    vocabulary = load_vocabulary()
    made = [sharp(random_tiny(architecture=architecture, seed=seed, context=context)) for seed in seeds]
    loaded = [replace(model, prefix_lm=prefix_lm) for model in made]
    return Recommender(loaded, vocabulary, load_conflicts(vocabulary), strategy="greedy", audit=False, **settings)


def log_odds(p: float) -> float:
    return float(np.log(p) - np.log1p(-p))


def alone(rx: Recommender, ids: list[int], labels: list[str]) -> tuple[list[float], list[float]]:
    """p of each label at its place and at the head: generated along a plan, the whole prompt read anew."""
    positions = [rx.vocabulary.index(label) for label in labels]
    start = rx.constraint.start(Phase.LIST)
    plan = rx.constraint.list_ids(positions)
    generation = Generation(rx.models, rx.constraint, [ids], [start], [len(plan)], plans=[plan])
    (row,) = generation.run()
    reading = read(rx.constraint, start, row.ids)
    assert reading.drugs == positions
    wanted = sum(1 << int(rx.constraint.trie.number[position]) for position in positions)
    (head,) = next_drugs(generation, [Place(0, 0, start, wanted)])
    placed = [float(np.prod(row.chosen[first:end]) * row.closing[end]) for first, end in reading.spans]
    return placed, [float(head[position]) for position in positions]


@pytest.mark.parametrize(
    ("seeds", "architecture", "prefix_lm"), [((3,), "glm", False), ((4,), "glm4", False), ((3, 5), "glm", True)]
)
def test_effects_are_those_of_each_changed_prompt_read_whole(
    seeds: tuple[int, ...], architecture: Architecture, prefix_lm: bool
) -> None:
    rx = recommender(*seeds, architecture=architecture, prefix_lm=prefix_lm)
    evidence = [*pieces(RECORD)[::3], added_diagnosis(RECORD, "痛风")]
    assert {piece.kind for piece in evidence} == {"diagnosis", "section", "sentence"}
    found = counterfactual(rx, RECORD, LIST, evidence=evidence, batch_size=3)
    case = prepare(rx, RECORD, LIST)
    placed, head = alone(rx, prompt_of(rx, case), LIST)
    assert found.base == pytest.approx(placed, rel=1e-3)
    assert found.head_base == pytest.approx(head, rel=1e-3)
    for at, piece in enumerate(evidence):
        changed = alone(rx, prompt_of(rx, case, piece), LIST)
        sign = -1 if piece.added else 1
        for effect, before, after in zip((found.effect, found.head_effect), (placed, head), changed, strict=True):
            wanted = [sign * (log_odds(p) - log_odds(q)) for p, q in zip(before, after, strict=True)]
            assert effect[:, at] == pytest.approx(wanted, abs=2e-3)
    assert np.abs(found.effect).max() > 0.05, "a random model answers to something"


def test_the_base_is_the_p_step_of_the_recommendation() -> None:
    rx = recommender(3, max_drugs=4)
    made = rx(RECORD)
    found = counterfactual(rx, RECORD, made)
    assert found.drugs == tuple(made.labels)
    assert found.base == pytest.approx([drug.p_step for drug in made.drugs], rel=1e-3)
    assert prompt_of(rx, prepare(rx, RECORD, made)) == rx.prepare(RECORD).ids


def test_the_models_own_diagnoses_are_evidence_where_it_has_written_them() -> None:
    rx = recommender(3, max_drugs=3, max_diagnosis_tokens=8, diagnoses="generated")
    made = rx(RECORD)
    found = counterfactual(rx, RECORD, made)
    assert [piece.text for piece in found.pieces if piece.kind == "diagnosis"] == [one.name for one in made.diagnoses]


def test_what_fitting_has_cut_has_no_effect_and_is_said_to_be_unseen() -> None:
    rx = recommender(3, context=700)
    long = RECORD.model_copy(update={"course": "".join(f"第{n}天查房，血糖{n}.5mmol/L。" for n in range(80))})
    middle = len(long.course) // 2
    short = [Piece("sentence", "诊疗过程描述", start, start + 10, long.course[start : start + 10]) for start in (0, middle)]
    found = counterfactual(rx, long, LIST, evidence=[*short, *pieces(RECORD)[:2]])
    assert found.seen.tolist() == [True, False, True, True]
    assert not found.effect[:, 1].any()
    assert found.effect[:, 0].any()
    assert 1 not in found.ranked


def test_a_list_that_could_not_be_written_can_be_asked_about() -> None:
    rx = recommender(3)
    first, second = np.argwhere(load_conflicts(rx.vocabulary).tiers == 1)[0]
    labels = [rx.vocabulary.labels[first], rx.vocabulary.labels[second]]
    found = counterfactual(rx, RECORD, [*labels, labels[0]], evidence=pieces(RECORD)[:2])
    assert found.drugs == tuple(labels)
    assert (found.base > 0).all()
    assert np.isfinite(found.effect).all()


def test_the_top_piece_is_the_one_whose_loss_costs_most_and_sections_do_not_compete_with_their_sentences() -> None:
    effect = np.array([[0.5, 3.0, 0.2, 1.0], [-1.0, 0.0, -0.5, -2.0]])
    evidence = (
        Piece("diagnosis", "出院诊断", 0, 1, "2型糖尿病"),
        Piece("section", "现病史", 0, 4, "一。二。"),
        Piece("sentence", "现病史", 0, 2, "一。"),
        Piece("sentence", "现病史", 2, 4, "二。"),
    )
    half = np.array([0.5, 0.5])
    found = Counterfactual(evidence, ("甲", "乙"), effect, half, effect, half, np.ones(4, dtype=np.bool_))
    assert found.top(0) == evidence[3]
    assert found.top(1) is None, "nothing speaks for the second drug"


@pytest.mark.parametrize("labels", [[], ["没有这种药"]])
def test_a_list_that_names_no_drug_of_the_vocabulary_is_refused(labels: list[str]) -> None:
    with pytest.raises(InputError):
        counterfactual(recommender(3), RECORD, labels)
    with pytest.raises(InputError):
        counterfactual(recommender(3, formulary=("二甲双胍",)), RECORD, ["阿卡波糖"])


def test_attention_is_that_of_one_forward_without_cache_over_the_tokens_of_each_piece() -> None:
    rx = recommender(3)
    (loaded,) = rx.models
    evidence = pieces(RECORD)
    found = attention(rx, RECORD, LIST, evidence=evidence)
    ids = prompt_of(rx, prepare(rx, RECORD, LIST))
    names = [rx.constraint.name(rx.vocabulary.index(label)) for label in LIST]
    tail = [token for name in names for token in (*name, rx.constraint.ids.drug_separator)][:-1]
    loaded.model.set_attn_implementation("eager")
    with torch.inference_mode():
        layers = loaded.model(input_ids=torch.tensor([[*ids, *tail]]), output_attentions=True).attentions
    loaded.model.set_attn_implementation("sdpa")
    paid = torch.stack(layers).mean((0, 1, 2)).numpy()
    begin, spans = len(ids), []
    for name in names:
        spans.append((begin, begin + len(name)))
        begin += len(name) + 1
    first = _first(rx, ids, diagnosis_pieces(RECORD.diagnoses))
    size = len(rx.template.encode("2型糖尿病"))
    for drug, (start, end) in enumerate(spans):
        assert found[drug, 0] == pytest.approx(paid[start:end, first : first + size].mean(0).sum(), rel=1e-3)
    whole = [at for at, piece in enumerate(evidence) if piece.kind != "sentence"]
    assert (found[:, whole].sum(axis=1) < 1).all()
    assert (found > 0).all()
    sections = [at for at, piece in enumerate(evidence) if piece.section == "诊疗过程描述"]
    assert found[:, sections[0]] == pytest.approx(found[:, sections[1:]].sum(axis=1)), "a section is its sentences"


def _first(rx: Recommender, ids: list[int], parts: list[str]) -> int:
    """Where the first diagnosis stands in the ids."""
    tail = [token for part in parts for token in rx.template.encode(part)]
    assert ids[-len(tail) :] == tail
    return len(ids) - len(tail) + len([token for part in parts[:2] for token in rx.template.encode(part)])


def test_a_recommendation_and_its_labels_are_asked_alike() -> None:
    rx = recommender(3, max_drugs=4)
    made: Recommendation = rx(RECORD)
    one, other = (counterfactual(rx, RECORD, drugs, evidence=pieces(RECORD)[:3]) for drugs in (made, made.labels))
    assert np.array_equal(one.effect, other.effect)
