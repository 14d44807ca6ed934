from __future__ import annotations

import json
from pathlib import Path

import pytest

from yaofang.data.corpus import Document, read_corpus, split_corpus
from yaofang.vocab.errors import InputError


def documents(*texts: str) -> list[Document]:
    return [Document(str(place), text) for place, text in enumerate(texts)]


def test_a_folder_is_read_in_the_order_of_its_names_and_other_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("\ufeff高血压\r\n用药。\n", encoding="utf-8")
    (tmp_path / "a.md").write_text("# 糖尿病", encoding="utf-8")
    rows = [{"text": "痛风"}, {"text": "  "}]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps([{"text": "血脂"}, "贫血"]), encoding="utf-8")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").touch()
    (tmp_path / ".hidden.txt").write_text("x", encoding="utf-8")
    corpus = read_corpus([tmp_path])
    assert [document.text for document in corpus.documents] == ["# 糖尿病", "高血压\n用药。", "痛风", "血脂", "贫血"]
    assert [document.id.removeprefix(f"{tmp_path}/") for document in corpus.documents][:3] == ["a.md", "b/one.txt", "c.jsonl:1"]
    assert (corpus.files, corpus.ignored, corpus.empty) == (5, 1, 2)


def test_a_file_that_is_named_twice_is_read_once_and_one_of_blanks_is_an_empty_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("高血压", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("\ufeff\n \n", encoding="utf-8")
    corpus = read_corpus([tmp_path, tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert [document.text for document in corpus.documents] == ["高血压"]
    assert (corpus.files, corpus.empty) == (2, 1)


def test_a_text_is_one_document_or_one_a_paragraph_or_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n一\n二\n \n\n三\n", encoding="utf-8")
    assert [document.text for document in read_corpus([file]).documents] == ["一\n二\n \n\n三"]
    assert read_corpus([file], per="blank_line").documents == [Document(f"{file}:1", "一\n二"), Document(f"{file}:6", "三")]
    lines = read_corpus([file], per="line").documents
    assert lines == [Document(f"{file}:{line}", text) for line, text in ((2, "一"), (3, "二"), (6, "三"))]


def test_a_bad_byte_is_an_error_that_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("第一行\n".encode() + "高血压".encode("gb18030"))
    (tmp_path / "b.txt").write_text("好", encoding="utf-8")
    with pytest.raises(InputError, match="not UTF-8") as caught:
        read_corpus([tmp_path])
    assert (caught.value.file, caught.value.line) == (str(file), 2)
    corpus = read_corpus([tmp_path], skip_bad=True)
    assert [document.text for document in corpus.documents] == ["好"]
    assert len(corpus.skipped) == 1


@pytest.mark.parametrize(("row", "problem"), [({"body": "x"}, "is missing"), ({"text": 3}, "must be a string"), (3, "string")])
def test_a_row_without_text_is_named_with_its_field(row: object, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "好"}) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=problem) as caught:
        read_corpus([file])
    assert (caught.value.line, caught.value.field) == (2, "text")


def test_the_texts_field_can_have_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "好"}\n', encoding="utf-8")
    assert read_corpus([tmp_path], text_field="content").documents[0].text == "好"


def test_no_document_another_kind_of_file_and_no_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no document in"):
        read_corpus([tmp_path])
    (tmp_path / "a.pdf").touch()
    with pytest.raises(InputError, match=r"a file of kind \.pdf is not read"):
        read_corpus([tmp_path / "a.pdf"])
    with pytest.raises(InputError, match="no such file"):
        read_corpus([tmp_path / "b.txt"])


def test_the_same_texts_are_held_out_whatever_their_order_and_no_text_is_on_both_sides() -> None:
    texts = [f"文{number}" for number in range(20)]
    one, other = split_corpus(documents(*texts, *texts[:10]), 0.25), split_corpus(documents(*reversed(texts)), 0.25)
    held = {document.text for document in one.held_out}
    assert held == {document.text for document in other.held_out}
    assert len(one.held_out) == 5
    assert held.isdisjoint(document.text for document in one.train)
    assert one.duplicates == sum(text in held for text in texts[:10])
    assert len(one.train) + len(one.held_out) + one.duplicates == 30
    assert other.duplicates == 0


def test_texts_of_a_held_out_file_leave_training_and_are_counted() -> None:
    split = split_corpus(documents("一", "二", "三"), documents("二", "二", "四"))
    assert [document.text for document in split.train] == ["一", "三"]
    assert [document.text for document in split.held_out] == ["二", "四"]
    assert split.duplicates == 2


def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(InputError, match="every document is held out"):
        split_corpus(documents("一", "一"), 0.5)
