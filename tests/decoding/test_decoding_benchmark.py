"""The benchmark of the constraint and its peers: that each peer is seen to constrain before it is timed, and what comes out."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from yaofang.decoding.benchmark import OURS, PROMPT, TINY, measure, random_lists
from yaofang.decoding.constraint import Phase
from yaofang.decoding.peers import PEERS, Outlines, PrefixFunction, Task, build, check, whole_characters
from yaofang.decoding.processors import constraint_for
from yaofang.glm.loading import load_tokenizer
from yaofang.glm.template import ChatTemplate
from yaofang.vocab.conflicts import load_conflicts
from yaofang.vocab.drugs import Vocabulary, load_vocabulary

PACKAGES = {
    "transformers": "transformers",
    "xgrammar": "xgrammar",
    "xgrammar_compiled": "xgrammar",
    "llguidance": "llguidance",
    "outlines": "outlines",
}


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(load_tokenizer(TINY))


@pytest.fixture(scope="module")
def task(template: ChatTemplate) -> Task:
    labels = ("阿司匹林", "阿司匹林肠溶片", "二甲双胍", "瑞格列奈")
    return Task(template, labels, template.size, 3)


@pytest.fixture(autouse=True)
def _small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # The kernels of some libraries go through torch.compile: the same masks without a minute of a C++ compiler.
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_offers_what_a_list_needs_and_refuses_most_else(name: str, task: Task) -> None:
    pytest.importorskip(PACKAGES[name], reason=f"{PACKAGES[name]} is absent: pip install 'yaofang[bench]'")
    peer = build(name, task)
    peer.begin(2)
    prompt, first, other = [0] * task.prompt, *(task.template.encode(label) for label in ("二甲双胍", "瑞格列奈"))
    assert {"二甲双胍", "瑞格列奈"} <= set(peer.labels)
    masked = peer(torch.tensor([prompt, prompt]), torch.zeros(2, task.width))
    assert masked.shape == (2, task.width)
    offered = [set(torch.nonzero(row > -torch.inf)[:, 0].tolist()) for row in masked]
    assert offered[0] == offered[1]
    assert {task.template.encode(label)[0] for label in peer.labels} <= offered[0]
    assert not offered[0] & {task.separator, task.template.stop_id, *task.template.encode("\n")}
    masked = peer(torch.tensor([[*prompt, first[0]], [*prompt, other[0]]]), torch.zeros(2, task.width))
    following = set(torch.nonzero(masked[0] > -torch.inf)[:, 0].tolist())
    assert (first[1] if len(first) > 1 else task.separator) in following


def test_a_peer_that_constrains_to_other_names_or_not_at_all_is_refused(task: Task) -> None:
    others = Task(task.template, ("华法林", "硝苯地平"), task.width, task.prompt)
    with pytest.raises(RuntimeError, match="PrefixFunction does not constrain"):
        check(PrefixFunction(others), task)

    class Everything(PrefixFunction):
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores

    with pytest.raises(RuntimeError, match="Everything does not constrain"):
        check(Everything(task), task)


def test_outlines_says_which_labels_it_cannot_write_whether_its_index_is_refused_or_not(template: ChatTemplate) -> None:
    labels = load_vocabulary().labels
    for some, limit in ((labels[:40], "never offered"), (labels[::16], "is refused"), (labels[:4], "")):
        task = Task(template, some, template.size, 3)
        peer = Outlines(task)
        assert limit in peer.limit
        assert bool(limit) == bool(peer.limit) == (len(peer.labels) < len(some))
        check(peer, Task(template, peer.labels, template.size, 3))


def test_labels_for_an_index_of_decoded_text_hold_no_part_of_a_character(template: ChatTemplate) -> None:
    task = Task(template, load_vocabulary().labels, template.size, 0)
    whole = whole_characters(task)
    assert 0 < len(whole) < len(task.labels)
    assert not any("\ufffd" in template.decode([token]) for label in whole for token in template.encode(label))
    left = set(task.labels) - set(whole)
    known = set(template.token_bytes)
    assert all(
        any("\ufffd" in template.decode([token]) for token in template.encode(label))
        or any(character.encode() not in known for character in label)
        for label in left
    )


def test_random_lists_hold_only_allowed_ids_and_never_end(template: ChatTemplate) -> None:
    vocabulary = Vocabulary(load_vocabulary().drugs[::16])
    constraint = constraint_for(template, vocabulary, load_conflicts(vocabulary))
    lists = random_lists(constraint, range(30), 8, 12, random.Random(0))
    assert lists.shape == (8, PROMPT + 12)
    for ids in lists[:, PROMPT:].tolist():
        state = constraint.start(Phase.LIST, only=range(30))
        for token in ids:
            assert token in constraint.allowed(state)
            assert token not in constraint.ids.ends
            state = constraint.step(state, token)
    assert len({tuple(ids) for ids in lists.tolist()}) > 1
    with pytest.raises(RuntimeError, match="too few"):
        random_lists(constraint, [0], 1, 20, random.Random(0))


def test_measure_gives_every_table_and_an_absent_library_is_none_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("xgrammar", "llguidance"):
        monkeypatch.setitem(sys.modules, package, None)
    result = measure(vocabulary=Vocabulary(load_vocabulary().drugs[::16]), rows=(1, 3), rounds=2, steps=8, width=8_000)
    assert json.loads(json.dumps(result)) == result
    assert result["state_us_per_row"].keys() == {"1", "3"}
    for name in (OURS, "transformers", "outlines"):
        for table in ("processor_us", "processor_later_us"):
            assert all(result[table][name][rows] > 0 for rows in ("1", "3"))
    for name in ("xgrammar", "xgrammar_compiled", "llguidance"):
        assert result["processor_us"][name] is None
        assert result[f"vs_{name}"] is None
        assert "Error" in result["reasons"][name]
        assert name not in result["versions"]
    for rows, ratio in result["vs_transformers"].items():
        both = result["processor_us"]
        assert ratio == pytest.approx(both["transformers"][rows] / both[OURS][rows], rel=0.02)
    assert set(result["what_it_is"]) >= {"state_us_per_row", "processor_us", "peer_parts_us", "vs_", *PEERS}


@pytest.mark.parametrize(("rounds", "steps"), [(0, 8), (1, 2)])
def test_too_few_rounds_or_steps_for_a_median_are_refused(rounds: int, steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1 of 3"):
        measure(rounds=rounds, steps=steps)


def test_the_parts_of_a_peer_are_no_more_than_its_whole() -> None:
    pytest.importorskip("xgrammar", reason="xgrammar is absent: pip install 'yaofang[bench]'")
    result = measure(vocabulary=Vocabulary(load_vocabulary().drugs[::16]), rows=(2,), rounds=1, steps=8, width=8_000)
    parts = result["peer_parts_us"]["xgrammar"]
    assert parts.keys() == {"advance", "fill", "apply"}
    assert sum(part["2"] for part in parts.values()) <= 1.02 * result["processor_us"]["xgrammar"]["2"]
