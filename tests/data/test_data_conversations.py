from __future__ import annotations

import json
from pathlib import Path

import pytest

from yaofang.data.conversations import Conversation, Turn, form_of, read_conversations
from yaofang.vocab.errors import InputError

ASKED, TOLD = "二甲双胍什么时候吃？", "随餐吃。"
MESSAGES = {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD}]}
SHAREGPT = {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": TOLD}]}
ALPACA = {"instruction": ASKED, "input": "", "output": TOLD}
RECORD = {"患者序号": 1, "就诊标识": "1-1", "主诉": "烦渴。"}


def written(folder: Path, *rows: object) -> Path:
    file = folder / "chat.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def said(*turns: tuple[str, str]) -> tuple[Turn, ...]:
    return tuple(Turn(role, content) for role, content in turns)  # type: ignore[arg-type]


def talk(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "form"), [(MESSAGES, "messages"), (SHAREGPT, "sharegpt"), (ALPACA, "alpaca"), (RECORD, "records")]
)
def test_a_form_is_known_by_its_fields_in_lines_and_in_arrays(row: object, form: str, tmp_path: Path) -> None:
    array = tmp_path / "chat.json"
    array.write_text(json.dumps([row, row], ensure_ascii=False, indent=1), encoding="utf-8")
    assert form_of(written(tmp_path, row)) == form_of(array) == form


@pytest.mark.parametrize("row", [MESSAGES, SHAREGPT, ALPACA])
def test_the_three_forms_say_the_same(row: object, tmp_path: Path) -> None:
    read = read_conversations(written(tmp_path, row)).conversations
    assert read == [Conversation("chat.jsonl:1", said(("user", ASKED), ("assistant", TOLD)))]


def test_system_history_and_input_are_read(tmp_path: Path) -> None:
    alpaca = {**ALPACA, "input": "患者肾功能正常。", "system": "你是药师。", "history": [["你好", "您好。"]]}
    wanted = said(
        ("system", "你是药师。"),
        ("user", "你好"),
        ("assistant", "您好。"),
        ("user", ASKED + "\n患者肾功能正常。"),
        ("assistant", TOLD),
    )
    assert read_conversations(written(tmp_path, alpaca)).conversations[0].turns == wanted
    sharegpt = {**SHAREGPT, "system": "你是药师。"}
    assert read_conversations(written(tmp_path, sharegpt)).conversations[0].turns[0] == Turn("system", "你是药师。")
    assert read_conversations(written(tmp_path, {**SHAREGPT, "system": None})).conversations[0].turns[0].role == "user"


def test_sharegpt_takes_user_and_assistant_and_openai_keys(tmp_path: Path) -> None:
    rows: list[object] = [
        {"conversations": [{"from": "user", "value": ASKED}, {"from": "assistant", "value": TOLD}]},
        {"conversations": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD}]},
    ]
    turns = {conversation.turns for conversation in read_conversations(written(tmp_path, *rows)).conversations}
    assert turns == {said(("user", ASKED), ("assistant", TOLD))}


def test_turns_of_one_side_are_joined_and_an_unanswered_end_is_left_out(tmp_path: Path) -> None:
    row = talk(("user", "您好"), ("user", ASKED), ("assistant", TOLD), ("assistant", "一天两次。"), ("user", "谢谢"))
    turns = read_conversations(written(tmp_path, row)).conversations[0].turns
    assert turns == said(("user", "您好\n" + ASKED), ("assistant", TOLD + "\n一天两次。"))


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        (talk(("tool", "{}"), ("assistant", TOLD)), "messages[0].role", "turns of tool are not trained"),
        (talk(("judge", ASKED), ("assistant", TOLD)), "messages[0].role", "is no known role"),
        (talk(("user", "  "), ("assistant", TOLD)), "messages[0].content", "is empty"),
        (talk(("user", ASKED), ("assistant", "")), "messages[1].content", "is empty"),
        (talk(("assistant", TOLD), ("user", ASKED)), None, "the assistant speaks before the user"),
        (talk(("user", ASKED)), None, "no turn of the assistant"),
        (talk(("user", ASKED), ("system", "x"), ("assistant", TOLD)), None, "a system turn stands after others"),
        ({"messages": []}, "messages", "must be a list of turns"),
        ({"messages": [3]}, "messages[0]", "a turn must be an object"),
        ({"messages": [{"content": ASKED}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": "user", "content": ["?"]}]}, "messages[0].content", "must be a string"),
        (talk(("user", "\ud83d"), ("assistant", TOLD)), "messages[0].content", "no valid Unicode"),
        (ALPACA, "messages", "is missing, and the rest of the file has it"),
        (3, None, "a row must be an object"),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_its_line_and_field(
    row: object, field: str | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in (MESSAGES, MESSAGES, row)), encoding="utf-8")
    with pytest.raises(InputError, match=problem) as caught:
        read_conversations(file)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(file), 3, field)
    read = read_conversations(file, skip_bad=True)
    assert len(read.conversations) == 2
    assert [error.line for error in read.skipped] == [3]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"output": ""}, "output"),
        ({"instruction": ""}, "instruction"),
        ({"history": "x"}, "history"),
        ({"history": [["only one"]]}, "history[0]"),
        ({"history": [["q", ""]]}, "history[0][1]"),
        ({"input": 3}, "input"),
    ],
)
def test_a_bad_field_of_alpaca_is_named(change: dict[str, object], field: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_conversations(written(tmp_path, ALPACA, {**ALPACA, **change}))
    assert (caught.value.line, caught.value.field) == (2, field)


def test_broken_lines_and_unknown_forms_are_errors_that_quote_no_text(tmp_path: Path) -> None:
    file = written(tmp_path, {"question": ASKED, "answer": TOLD})
    with pytest.raises(InputError, match="no row has the fields of a known form") as caught:
        form_of(file)
    assert ASKED not in str(caught.value)
    file.write_text('{"messages": [\n' + json.dumps(MESSAGES) + "\n", encoding="utf-8")
    assert form_of(file) == "messages"
    with pytest.raises(InputError, match="broken JSON"):
        read_conversations(file)
    file.write_text("{oops\n", encoding="utf-8")
    with pytest.raises(InputError, match="broken JSON"):
        form_of(file)


def test_a_file_of_records_is_not_read_as_conversations_even_when_a_field_is_missing(tmp_path: Path) -> None:
    assert form_of(written(tmp_path, {"就诊标识": "1-1"})) == "records"
    with pytest.raises(InputError, match="records, not conversations"):
        read_conversations(written(tmp_path, RECORD))
