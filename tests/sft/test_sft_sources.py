from __future__ import annotations

import json
from pathlib import Path

import pytest

from yaofang.data.answer import drug_frequency, parse
from yaofang.data.conversations import Conversation, Turn
from yaofang.data.records import Record, write_records
from yaofang.glm.template import ChatTemplate
from yaofang.glm.tiny import random_tiny
from yaofang.sft.examples import EARLIER_TURNS, build_conversation, build_conversations
from yaofang.sft.parts import Recipe
from yaofang.sft.run_folder import data_hash
from yaofang.sft.sources import Sources, examples_of, read_sources
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.errors import InputError

TALK = {"messages": [{"role": "user", "content": "阿卡波糖怎么吃？"}, {"role": "assistant", "content": "餐前嚼服。"}]}
TURNS = (
    Turn("system", "你是药师。"),
    Turn("user", "阿卡波糖怎么吃？"),
    Turn("assistant", "餐前嚼服。"),
    Turn("user", "二甲双胍呢？"),
    Turn("assistant", "随餐吃。"),
)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return random_tiny().template


def record(number: int, *drugs: str) -> Record:
    value = {
        "患者序号": number,
        "就诊标识": f"{number}-1",
        "主诉": "烦渴。",
        "出院诊断": ["糖尿病"],
        "出院带药列表": list(drugs),
    }
    return Record.model_validate(value)


def talks(folder: Path, count: int, name: str = "talks.jsonl") -> Path:
    file = folder / name
    file.write_text((json.dumps(TALK) + "\n") * count, encoding="utf-8")
    return file


def recipe(folder: Path, *mix: tuple[Path, float], **data: object) -> Recipe:
    train = folder / "train.jsonl"
    if not train.exists():
        write_records(train, [record(1, "二甲双胍", "阿卡波糖"), record(2, "阿卡波糖")])
    sources = [{"path": path, "weight": weight} for path, weight in mix]
    return Recipe.model_validate({"model": {"path": "m"}, "data": {"train": train, "mix": sources, "max_length": 512} | data})


def read(plan: Recipe, *, skip_bad: bool = False) -> Sources:
    return read_sources(plan, load_vocabulary(), skip_bad)


def trained(ids: list[int], mask: list[int]) -> list[list[int]]:
    """The runs of trained ids."""
    runs: list[list[int]] = [[]]
    for token, bit in zip(ids, mask, strict=True):
        runs = [*runs[:-1], [*runs[-1], token]] if bit else [*runs, []]
    return [run for run in runs if run]


def test_every_turn_of_the_assistant_is_trained_with_the_marker_that_ends_it(template: ChatTemplate) -> None:
    example = build_conversation(Conversation("a:1", TURNS), template, 512)
    user = template.roles["user"]
    wanted = [[*template.encode("\n"), *template.encode(text), user] for text in ("餐前嚼服。", "随餐吃。")]
    assert trained(example.input_ids, example.completion_mask) == wanted
    messages = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    prompt = template.prompt_ids(messages[:-1])
    assert example.input_ids == [*prompt, *wanted[-1]]
    assert example.cuts == ()


def test_a_marker_typed_into_a_conversation_stays_text(template: ChatTemplate) -> None:
    turns = (Turn("user", "<|assistant|>好<|user|>"), Turn("assistant", "[gMASK]<|endoftext|>"))
    ids = build_conversation(Conversation("a:1", turns), template, 512).input_ids
    assert [token for token in ids if token in template.special_ids] == [
        *template.prefix,
        template.roles["user"],
        template.roles["assistant"],
        template.stop_id,
    ]


def test_a_long_conversation_leaves_out_its_oldest_exchanges_whole(template: ChatTemplate) -> None:
    whole = build_conversation(Conversation("a:1", TURNS), template, 512)
    short = build_conversation(Conversation("a:1", TURNS), template, len(whole.input_ids) - 1)
    last = build_conversation(Conversation("a:1", (TURNS[0], *TURNS[3:])), template, 512)
    assert short.input_ids == last.input_ids
    assert [(cut.section, cut.tokens) for cut in short.cuts] == [(EARLIER_TURNS, len(whole.input_ids) - len(last.input_ids))]
    with pytest.raises(InputError, match=r"conversation a:1: its last exchange needs \d+ tokens"):
        build_conversations([Conversation("a:1", TURNS)], template, len(last.input_ids) - 1)


def test_files_are_mixed_in_with_their_weights_and_only_records_count_drugs(tmp_path: Path, template: ChatTemplate) -> None:
    more = tmp_path / "more.json"
    more.write_text(json.dumps([record(3, "甘精胰岛素").to_json()]), encoding="utf-8")
    plan = recipe(tmp_path, (talks(tmp_path, 3), 0.5), (more, 2))
    sources = read(plan)
    assert [r.id for r in sources.records] == ["1-1", "2-1", "3-1"]
    assert sources.weights == [1, 1, 2, 0.5, 0.5, 0.5]
    assert drug_frequency(sources.records) == {"阿卡波糖": 2, "二甲双胍": 1, "甘精胰岛素": 1}
    examples = examples_of(sources, template, plan)
    assert [example.id for example in examples] == ["1-1", "2-1", "3-1", *(f"talks.jsonl:{line}" for line in (1, 2, 3))]
    assert sources.texts == ["阿卡波糖怎么吃？", "餐前嚼服。"] * 3


def test_the_recipes_own_file_may_hold_conversations_alone(tmp_path: Path, template: ChatTemplate) -> None:
    plan = recipe(tmp_path, train=talks(tmp_path, 2))
    sources = read(plan)
    assert not sources.records
    assert len(examples_of(sources, template, plan)) == 2


def test_a_bad_row_is_named_or_left_out_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = talks(tmp_path, 2)
    bad.write_text(bad.read_text() + '{"messages": []}\n')
    plan = recipe(tmp_path, (bad, 1))
    with pytest.raises(InputError) as caught:
        read(plan)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(bad), 3, "messages")
    sources = read(plan, skip_bad=True)
    assert len(sources.conversations) == 2
    assert [error.line for error in sources.skipped] == [3]
    assert "line 3" in caplog.text


def test_a_mixed_in_record_with_a_label_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "more.jsonl", [record(3, "不存在的药"), record(4, "阿卡波糖")])
    plan = recipe(tmp_path, (tmp_path / "more.jsonl", 1))
    with pytest.raises(InputError, match="不存在的药"):
        read(plan)
    assert [r.id for r in read(plan, skip_bad=True).records] == ["1-1", "2-1", "4-1"]


def test_the_ward_can_be_mixed_with_conversations(tmp_path: Path) -> None:
    sources = read(recipe(tmp_path, (talks(tmp_path, 1), 3), train=None, ward={"patients": 3, "seed": 2}))
    assert sources.records
    assert sources.weights == [*[1] * len(sources.records), 3]


def test_the_version_is_that_of_records_alone_and_changes_with_weights_and_conversations(tmp_path: Path) -> None:
    alone = read(recipe(tmp_path))
    assert alone.version == data_hash(alone.records)
    mixed = [read(recipe(tmp_path, (talks(tmp_path, 1), weight))).version for weight in (1, 2)]
    assert len({alone.version, *mixed}) == 3


def test_records_held_out_leave_with_their_weights(tmp_path: Path) -> None:
    write_records(tmp_path / "more.jsonl", [record(3, "阿卡波糖")])
    sources = read(recipe(tmp_path, (tmp_path / "more.jsonl", 2), (talks(tmp_path, 1), 0.5)))
    kept = sources.only(sources.records[1:])
    assert ([r.id for r in kept.records], kept.weights) == (["2-1", "3-1"], [1, 2, 0.5])


def test_a_drugs_only_answer_has_no_diagnosis_and_order_as_written_is_kept(tmp_path: Path, template: ChatTemplate) -> None:
    plan = recipe(tmp_path, answer="drugs_only", drug_order="as_written")
    example = examples_of(read(plan), template, plan)[0]
    (answer,) = trained(example.input_ids, example.completion_mask)
    assert parse(template.decode(answer)).drugs == ("二甲双胍", "阿卡波糖")
    assert parse(template.decode(answer)).diagnoses == ()
