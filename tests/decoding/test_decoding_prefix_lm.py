"""A prefix-LM's answers, written from a cache, are those of one forward of all ids under its mask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from yaofang.data.records import Record
from yaofang.decoding.generation import Generation
from yaofang.decoding.recommender import Recommender
from yaofang.glm.loading import LoadedModel, choose_attention, load_model
from yaofang.glm.masks import PrefixLM
from yaofang.glm.tiny import Architecture, random_tiny
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

RECORDS = [
    Record(patient=1, id="1-1", chief_complaint="烦渴5年", diagnoses=("2型糖尿病",)),
    Record(patient=2, id="2-1", chief_complaint="头晕", course="血压偏高，予降压，监测血糖。好转出院。", diagnoses=("高血压",)),
]


def loaded(architecture: Architecture, *, prefix_lm: bool = True) -> LoadedModel:
    made = random_tiny(architecture=architecture)
    with torch.no_grad():
        made.model.model.norm.weight.mul_(8.0)  # probabilities far from uniform
    return replace(made, prefix_lm=prefix_lm)


def generated(model: LoadedModel) -> tuple[Recommender, Generation, list[list[int]]]:
    vocabulary = load_vocabulary()
    rx = Recommender([model], vocabulary, load_conflicts(vocabulary), strategy="greedy")
    tasks = [rx.prepare(record) for record in RECORDS]
    starts, limits = [task.start for task in tasks], [task.limit for task in tasks]
    generation = Generation(rx.models, rx.constraint, [task.ids for task in tasks], starts, limits)
    generation.run()
    return rx, generation, [task.ids for task in tasks]


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_every_probability_is_that_of_one_forward_without_a_cache(architecture: Architecture) -> None:
    model = loaded(architecture)
    rx, generation, prompts = generated(model)
    for row, prompt in zip(generation.rows, prompts, strict=True):
        assert len(row.ids) > 8
        ids = torch.tensor([[*prompt, *row.ids]])
        with torch.inference_mode():
            logits = model.model(input_ids=ids, attention_mask=PrefixLM.of(model.template).prefill(ids)).logits[0].float()
        state = row.start
        for place, token in enumerate(row.ids):
            allowed = torch.from_numpy(rx.constraint.allowed(state).copy()).long()
            p = logits[len(prompt) - 1 + place, allowed].softmax(-1)
            assert row.chosen[place] == pytest.approx(p[allowed == token].item(), abs=1e-4)
            state = rx.constraint.step(state, token)


def test_it_reads_otherwise_than_a_causal_model() -> None:
    both = [generated(loaded("glm", prefix_lm=prefix))[1].rows[0] for prefix in (True, False)]
    assert both[0].ids != both[1].ids or both[0].chosen != pytest.approx(both[1].chosen, abs=1e-3)


def test_the_folder_says_that_a_model_is_one(tmp_path: Path) -> None:
    made = random_tiny()
    made.model.save_pretrained(tmp_path)
    made.template.tokenizer.save_pretrained(tmp_path)
    plain = load_model(tmp_path, device="cpu")
    (tmp_path / "yaofang.json").write_text(json.dumps({"prefix_lm": True}), encoding="utf-8")
    found = load_model(tmp_path, device="cpu")
    assert (plain.prefix_lm, found.prefix_lm) == (False, True)
    assert found.version != plain.version
    assert found.model.config._attn_implementation == "sdpa"


def test_an_attention_that_takes_no_mask_is_refused() -> None:
    with pytest.raises(InputError, match="both directions"):
        choose_attention("flash_attention_2", torch.device("cpu"), torch.float32, prefix_lm=True)
