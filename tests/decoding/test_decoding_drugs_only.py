"""A model that was trained to write drugs alone is asked as it was trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from yaofang.data.answer import Answer, pieces
from yaofang.data.records import Record
from yaofang.decoding.recommender import Recommender
from yaofang.glm.tiny import random_tiny
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

RECORD = Record(patient=1, id="1-1", chief_complaint="烦渴5年", diagnoses=("2型糖尿病",))


def recommender(*answers: str, **settings: str) -> Recommender:
    vocabulary = load_vocabulary()
    models = [replace(random_tiny(), answer=answer) for answer in answers]
    return Recommender(models, vocabulary, load_conflicts(vocabulary), strategy="greedy", audit=False, **settings)


@pytest.mark.parametrize("diagnoses", ["auto", "generated"])
def test_the_answer_goes_on_from_an_empty_part_of_diagnoses(diagnoses: str) -> None:
    rx = recommender("drugs_only", diagnoses=diagnoses)
    task = rx.prepare(RECORD)
    example, _ = rx.template.example(task.prompt.messages, pieces(Answer((), ("阿卡波糖",))))
    assert example[: len(task.ids)] == task.ids
    assert "2型糖尿病" not in rx.template.decode(task.ids)
    found = rx(RECORD)
    assert found.diagnoses == ()
    assert found.drugs


def test_it_takes_no_given_diagnoses() -> None:
    with pytest.raises(InputError, match="takes no diagnoses"):
        recommender("drugs_only", diagnoses="given")


def test_models_of_both_kinds_do_not_vote_together() -> None:
    with pytest.raises(InputError, match="different answers"):
        recommender("drugs_only", "diagnoses_and_drugs")
