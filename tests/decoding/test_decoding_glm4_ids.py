"""The constraint under GLM-4's real tokenizer, where names hold half characters and separators merge with brackets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from yaofang.decoding.constraint import Constraint, Phase
from yaofang.decoding.processors import answer_ids, constraint_for
from yaofang.decoding.reading import read
from yaofang.glm.template import ChatTemplate
from yaofang.vocab.conflicts import ConflictTable, load_conflicts
from yaofang.vocab.drugs import load_vocabulary

FOLDER = Path(__file__).parents[3] / "shared" / "tokenizers" / "glm4-hf"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="../shared/tokenizers is absent")
ROWS = 151_552


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(AutoTokenizer.from_pretrained(FOLDER, local_files_only=True))


@pytest.fixture(scope="module")
def conflicts() -> ConflictTable:
    return load_conflicts(load_vocabulary())


@pytest.fixture(scope="module")
def constraint(template: ChatTemplate, conflicts: ConflictTable) -> Constraint:
    return constraint_for(template, conflicts.vocabulary, conflicts)


def test_names_of_half_characters_decode_to_their_labels(
    template: ChatTemplate, constraint: Constraint, conflicts: ConflictTable
) -> None:
    labels = conflicts.vocabulary.labels
    names = [constraint.name(place) for place in range(len(labels))]
    assert [template.decode(name) for name in names] == list(labels)
    halves = [name for name in names if any("\ufffd" in template.decode([token]) for token in name)]
    assert len(halves) > 30, "names with tokens that are no whole character"


def test_random_lists_under_the_real_ids_are_valid_and_every_label_can_be_written(
    template: ChatTemplate, constraint: Constraint, conflicts: ConflictTable
) -> None:
    rng = np.random.default_rng(0)
    start = constraint.start(Phase.LIST)
    for label in conflicts.vocabulary.labels:
        state, ids = start, template.encode(label)
        for token in ids:
            assert token in constraint.allowed(state)
            state = constraint.step(state, token)
        while state.phase == Phase.LIST:
            ids.append(int(rng.choice(constraint.allowed(state))))
            state = constraint.step(state, ids[-1])
        drugs = read(constraint, start, ids).drugs
        assert "、".join(conflicts.vocabulary.labels[drug] for drug in drugs) == template.decode(ids)
        tiers = conflicts.tiers[np.ix_(drugs, drugs)]
        assert len(set(drugs)) == len(drugs)
        assert not (tiers == 1).any()


def test_a_separator_or_newline_merged_with_a_mark_before_it_is_in_no_diagnosis(template: ChatTemplate) -> None:
    ids = answer_ids(template)
    merged = [token for text in ("）；", "。\n", "?\n") for token in template.encode(text)]
    assert len(merged) == 3, "each is one token of GLM-4"
    assert not set(merged) & set(ids.text.tolist())
    assert set(template.encode("极高危")) <= set(ids.text.tolist())


def test_the_three_stop_ids_and_the_untrained_rows_are_as_published(template: ChatTemplate, constraint: Constraint) -> None:
    assert constraint.ids.ends == {151329, 151336, 151338}
    assert constraint.ids.end == 151336
    assert int(constraint.inside_diagnosis.max()) < 151329
    assert template.size == 151343 < ROWS


def test_a_diagnosis_that_ends_in_a_bracket_is_closed_by_the_separator_alone(
    template: ChatTemplate, constraint: Constraint
) -> None:
    start = constraint.start(Phase.DIAGNOSES)
    ids = [*template.encode("高血压3级（极高危）"), *template.encode("；"), *template.encode("糖尿病"), *template.encode("\n")]
    state = start
    for token in ids:
        assert token in constraint.allowed(state)
        state = constraint.step(state, token)
    spans = read(constraint, start, ids).diagnoses
    assert [template.decode(ids[first:end]) for first, end in spans] == ["高血压3级（极高危）", "糖尿病"]
