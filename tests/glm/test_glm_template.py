from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from yaofang.glm.template import SPECIAL, ChatTemplate
from yaofang.glm.tiny import random_tiny
from yaofang.vocab.errors import InputError

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "tokenizers" / "glm4-hf"
MESSAGES = [
    {"role": "system", "content": "你是临床药师。"},
    {"role": "user", "content": "主诉：烦渴、多饮5年。\n既往史：高血压3级（极高危）。"},
]
PIECES = [
    "\n",
    "出院诊断：",
    "2型糖尿病",
    "；",
    "高血压3级（极高危）",
    "\n",
    "出院带药：",
    "阿卡波糖",
    "、",
    "缬沙坦胶囊",
]


@lru_cache
def tiny() -> ChatTemplate:
    return random_tiny().template


@lru_cache
def real() -> ChatTemplate:
    if not REAL.exists():
        pytest.skip("../shared/tokenizers/glm4-hf is absent")
    return ChatTemplate(AutoTokenizer.from_pretrained(REAL))


@pytest.fixture(params=["tiny", "real"])
def template(request: pytest.FixtureRequest) -> ChatTemplate:
    return tiny() if request.param == "tiny" else real()


def test_prompt_ids_are_a_prefix_of_prompt_and_completion(template: ChatTemplate) -> None:
    ids, mask = template.example(MESSAGES, PIECES)
    prompt = template.prompt_ids(MESSAGES)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))


def test_the_stop_id_is_trained_and_is_the_next_role(template: ChatTemplate) -> None:
    ids, mask = template.example(MESSAGES, PIECES)
    assert ids[-1] == template.stop_id == template.roles["user"]
    assert mask[-1] == 1
    assert template.stop_id in template.stop_ids


def test_the_prefix_stands_exactly_once(template: ChatTemplate) -> None:
    ids, _ = template.example(MESSAGES, PIECES)
    assert ids[:2] == list(template.prefix)
    assert [ids.count(i) for i in template.prefix] == [1, 1]


@given(text=st.text(max_size=60), marker=st.sampled_from(SPECIAL))
@settings(max_examples=200, deadline=None)
def test_a_marker_typed_into_a_record_stays_text(text: str, marker: str) -> None:
    template = tiny()
    ids = template.encode(text + marker + text)
    assert not template.special_ids.intersection(ids)
    assert b"".join(template.token_bytes[i] for i in ids).decode() == text + marker + text


def test_a_marker_in_a_record_stays_text_for_the_real_tokenizer_too() -> None:
    template = real()
    ids = template.encode("患者诉<|assistant|>\n[gMASK]<sop>")
    assert not template.special_ids.intersection(ids)
    assert template.decode(ids) == "患者诉<|assistant|>\n[gMASK]<sop>"


def test_encoding_text_leaves_the_tokenizer_as_it_was(template: ChatTemplate) -> None:
    template.encode("<|user|>")
    assert template.tokenizer.encode("<|user|>", add_special_tokens=False) == [template.roles["user"]]


def test_ids_equal_the_real_glm4() -> None:
    template = real()
    whole = "[gMASK]<sop><|system|>\n" + MESSAGES[0]["content"] + "<|user|>\n" + MESSAGES[1]["content"] + "<|assistant|>"
    assert template.prompt_ids(MESSAGES) == template.tokenizer.encode(whole, add_special_tokens=False)
    assert template.prefix == (151331, 151333)
    assert template.stop_ids == (151329, 151336, 151338)
    assert template.size == 151343


def test_pieces_are_encoded_alone_so_a_closing_mark_does_not_take_the_separator() -> None:
    template = real()
    separator = template.encode("；")
    assert len(separator) == 1
    ids = template.completion_ids(["高血压3级（极高危）", "；", "高脂血症"])
    assert ids.count(separator[0]) == 1
    whole = template.encode("高血压3级（极高危）；高脂血症")
    assert separator[0] not in whole


def test_completion_decodes_to_its_text(template: ChatTemplate) -> None:
    assert template.decode(template.completion_ids(PIECES)) == "".join(PIECES)


def test_ids_with_a_newline_are_all_found(template: ChatTemplate) -> None:
    found = set(template.ids_containing("\n"))
    assert set(template.encode("\n")) <= found
    assert all(("\n" in template.decode([i])) == (i in found) for i in range(0, template.size, 7))


def test_an_unknown_role_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(InputError, match="unknown role 'doctor'"):
        template.prompt_ids([{"role": "doctor", "content": "x"}])
