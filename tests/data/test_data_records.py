"""Reading and writing records: the shapes of file that are read, and every way a file can be bad."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from yaofang.data.records import Record, line_of, lines_of, read_records, write_records
from yaofang.vocab.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared"
REAL = SHARED / "real" / "shanghai_t1dm.jsonl"

SAMPLE = """{
    "患者序号": 2,
    "就诊标识": "2-1",
    "性别": "女",
    "出生日期": "1940-12",
    "民族": "汉族",
    "BMI": 27.3,
    "就诊时间": "2015-03",
    "主诉": "烦渴、多饮、多尿5年。",
    "出院诊断": ["2型糖尿病", "糖尿病酮症"]
    "出院带药列表": ["阿卡波糖", "瑞格列奈"]
}"""
"""Multi-line and, as published, without the comma after 出院诊断 (line 10): line 11 is where JSON breaks."""

Put = Callable[[str | bytes], Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(content: str | bytes) -> Path:
        file = tmp_path / "records.jsonl"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


def row(number: int, **fields: Any) -> str:
    return json.dumps({"患者序号": number, "就诊标识": f"{number}-1", **fields}, ensure_ascii=False)


def ids(file: Path, **options: Any) -> list[str]:
    return [record.id for record in read_records(file, **options).records]


def refused(file: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_records(file)
    assert caught.value.file == str(file)
    assert caught.value.way_out
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        f"{row(1)}\n{row(2)}\n",
        f"\n{row(1)}\r\n\r\n{row(2)}",
        f"[{row(1)}, {row(2)}]",
        f"[{row(1)},\n{row(2)}\n]\n",
        json.dumps([json.loads(row(1)), json.loads(row(2))], indent=2),
        f"[\n{row(1)},\n{row(2)}\n]",
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_lines_and_arrays_are_read_with_and_without_a_bom(put: Put, content: str, mark: str) -> None:
    assert ids(put(mark + content)) == ["1-1", "2-1"]


def test_one_object_over_several_lines_is_one_record(put: Put) -> None:
    record = read_records(put(SAMPLE.replace('症"]', '症"],'))).records[0]
    assert record == Record(
        patient=2,
        id="2-1",
        sex="女",
        birth="1940-12",
        ethnicity="汉族",
        bmi=27.3,
        visit="2015-03",
        chief_complaint="烦渴、多饮、多尿5年。",
        diagnoses=("2型糖尿病", "糖尿病酮症"),
        drugs=("阿卡波糖", "瑞格列奈"),
    )


def test_the_published_sample_fails_at_the_line_with_the_missing_comma_before_it(put: Put) -> None:
    error = refused(put(SAMPLE))
    assert error.line == 11
    assert "broken JSON" in error.problem
    assert "end of the line before" in str(error)


def test_missing_and_null_fields_are_legal(put: Put) -> None:
    keys = ("性别", "出生日期", "民族", "BMI", "就诊时间", "诊疗过程描述", "入院情况", "现病史", "既往史", "主诉")
    nulls = dict.fromkeys((*keys, "出院诊断", "出院带药列表"))
    first, second, third = read_records(put("\n".join((row(1), row(2, **nulls), row(3, BMI="", 性别=" "))))).records
    for record in (first, second, third):
        assert (record.bmi, record.sex, record.course, record.diagnoses, record.drugs) == (None, None, "", (), ())


def test_unknown_keys_are_ignored_even_if_they_are_names_of_our_fields(put: Put) -> None:
    record = read_records(put(row(1, id=5, patient="x", drugs="y", 科室="内分泌"))).records[0]
    assert (record.id, record.patient, record.drugs) == ("1-1", 1, ())


def test_blank_names_and_repeats_in_lists_are_left_out_in_order(put: Put) -> None:
    assert read_records(put(row(1, 出院诊断=["高血压", " ", "痛风", "高血压"]))).records[0].diagnoses == ("高血压", "痛风")


@pytest.mark.parametrize(
    ("fields", "name", "problem"),
    [
        ({"出院诊断": "高血压"}, "出院诊断", "must be a list, is a string"),
        ({"出院诊断": {"1": "高血压"}}, "出院诊断", "must be a list, is an object"),
        ({"出院带药列表": ["二甲双胍", 3]}, "出院带药列表[1]", "must be a string, is a number"),
        ({"BMI": "肥胖"}, "BMI", "must be a number, is a string"),
        ({"BMI": True}, "BMI", "must be a number, is true or false"),
        ({"BMI": float("nan")}, "BMI", "must be a finite number, is not finite"),
        ({"患者序号": "1"}, "患者序号", "must be a whole number, is a string"),
        ({"患者序号": True}, "患者序号", "must be a whole number, is true or false"),
        ({"患者序号": 1.5}, "患者序号", "must be a whole number, is a number with decimals"),
        ({"患者序号": None}, "患者序号", "must be a whole number, is null"),
        ({"就诊标识": 21}, "就诊标识", "must be a string, is a number"),
        ({"就诊标识": " "}, "就诊标识", "is blank"),
        ({"主诉": ["多饮"]}, "主诉", "must be a string, is a list"),
        ({"就诊时间": 2015}, "就诊时间", "must be a string, is a number"),
        ({"性别": 1}, "性别", "must be a string, is a number"),
    ],
)
def test_a_wrong_type_is_an_error_with_file_line_and_field(put: Put, fields: Any, name: str, problem: str) -> None:
    error = refused(put(row(7) + "\n" + row(1, **fields)))
    assert (error.line, error.field, error.problem) == (2, name, problem)


def test_a_missing_identifier_is_an_error(put: Put) -> None:
    error = refused(put('{"患者序号": 1}'))
    assert (error.line, error.field, error.problem) == (1, "就诊标识", "is missing")


def test_other_wrong_fields_of_the_record_are_named_too(put: Put) -> None:
    assert "also wrong: 就诊标识, BMI" in str(refused(put('{"BMI": "x"}')))


def test_a_wrong_field_in_an_array_is_reported_with_the_line_of_its_element(put: Put) -> None:
    bad = json.dumps([json.loads(row(1)), json.loads(row(2, 出院诊断="高血压"))], indent=1, ensure_ascii=False)
    assert refused(put(bad)).line == 6


@pytest.mark.parametrize("value", ["[1, 2]", '"text"', "42", "null", "true"])
def test_a_record_that_is_no_object_is_an_error(put: Put, value: str) -> None:
    error = refused(put(f"{row(1)}\n{value}\n"))
    assert error.line == 2
    assert "must be an object" in error.problem
    assert "must be an object" in refused(put(value)).problem


@pytest.mark.parametrize("broken", ['{"患者序号": 9, "就', '{"患者序号": 9,', "患者序号", '{"患者序号": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_line_is_an_error_with_its_line_and_skippable(put: Put, broken: str, place: int) -> None:
    lines = [row(1), row(2)]
    lines.insert(place, broken)
    file = put("\n".join(lines))
    assert refused(file).line == place + 1
    result = read_records(file, skip_bad=True)
    assert [record.id for record in result.records] == ["1-1", "2-1"]
    assert [error.line for error in result.skipped] == [place + 1]


def test_two_records_with_one_identifier_are_an_error_that_names_both_lines(put: Put) -> None:
    file = put(f"{row(1)}\n{row(2)}\n{row(1, 性别='男')}")
    error = refused(file)
    assert (error.line, error.field) == (3, "就诊标识")
    assert "1-1 is already on line 1" in error.problem
    assert ids(file, skip_bad=True) == ["1-1", "2-1"]


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file_is_an_error_even_with_skip_bad(put: Put, content: str) -> None:
    file = put(content)
    assert "empty" in refused(file).problem
    with pytest.raises(InputError, match="empty"):
        read_records(file, skip_bad=True)


def test_an_empty_array_and_an_absent_file_are_errors(put: Put, tmp_path: Path) -> None:
    assert "no record" in refused(put("[]")).problem
    assert "no such file" in refused(tmp_path / "absent.jsonl").problem
    assert "this is a folder" in refused(tmp_path).problem


def test_skip_bad_goes_on_and_lists_what_it_skipped(put: Put) -> None:
    lines = [row(1), "{", "[1]", '{"患者序号": 3}', row(4, 主诉=1), row(1), row(5)]
    result = read_records(put("\n".join(lines)), skip_bad=True)
    assert [record.id for record in result.records] == ["1-1", "5-1"]
    assert [(error.line, error.field) for error in result.skipped] == [
        (2, None),
        (3, None),
        (4, "就诊标识"),
        (5, "主诉"),
        (6, "就诊标识"),
    ]


def test_skip_bad_with_nothing_left_is_an_error_that_says_why(put: Put) -> None:
    with pytest.raises(InputError, match="none of its records could be read") as caught:
        read_records(put("{}\n[]"), skip_bad=True)
    assert (caught.value.line, caught.value.field) == (1, "患者序号")


def test_skip_bad_goes_on_after_a_broken_element_of_an_array(put: Put) -> None:
    result = read_records(put(f'[\n{row(1)},\n{{"患者序号": 2, "就\n{row(3)},\n{row(4)}]'), skip_bad=True)
    assert [record.id for record in result.records] == ["1-1", "3-1", "4-1"]
    assert [error.line for error in result.skipped] == [3]


def test_a_missing_comma_in_an_array_is_an_error_and_listed_once(put: Put) -> None:
    file = put(f"[\n{row(1)}\n{row(2)}]")
    assert refused(file).line == 3
    result = read_records(file, skip_bad=True)
    assert ([record.id for record in result.records], len(result.skipped)) == (["1-1", "2-1"], 1)


def test_a_line_in_another_encoding_is_an_error_that_names_the_way_out(put: Put) -> None:
    file = put(f"{row(1)}\n".encode() + row(2, 主诉="多饮").encode("gb18030") + f"\n{row(3)}".encode())
    error = refused(file)
    assert error.line == 2
    assert "iconv" in str(error)
    assert ids(file, skip_bad=True) == ["1-1", "3-1"]
    assert refused(put(row(1, 主诉="多饮").encode("gb18030"))).line == 1
    assert refused(put(row(1).encode("utf-16"))).line == 1


def test_half_a_character_is_an_error(put: Put) -> None:
    error = refused(put('{"患者序号": 1, "就诊标识": "1-1", "主诉": "\\ud83d"}'))
    assert (error.line, error.field) == (1, "主诉")


def test_json_nested_too_deep_is_an_error(put: Put) -> None:
    assert "too deep" in refused(put("[" * 100_000)).problem


def test_no_error_quotes_text_of_a_patient(put: Put) -> None:
    secret = "张三患者隐私"
    lines = [row(1, 主诉=[secret]), row(2, BMI=secret), row(3, 现病史=secret)[:-2], f'"{secret}"', row(4, 出院诊断=secret)]
    for line in lines:
        assert "隐私" not in str(refused(put(line)))


def test_written_records_are_read_back_the_same_with_the_text_to_the_character(put: Put, tmp_path: Path) -> None:
    text = " 首行\n次行\u2028“引号”\t<|assistant|> "
    records = [
        Record(patient=2, id="2-1", bmi=27.3, course=text, diagnoses=("高血压",), drugs=("氨氯地平片",)),
        Record(patient=2, id="2-2"),
    ]
    file = tmp_path / "out.jsonl"
    write_records(file, records)
    assert read_records(file).records == records
    first = json.loads(file.read_text("utf-8").split("\n")[0])
    assert list(first)[:3] == ["患者序号", "就诊标识", "性别"]
    assert first["出院带药列表"] == ["氨氯地平片"]


def test_records_are_frozen_and_refuse_wrong_types_in_code() -> None:
    record = Record(patient=1, id="1-1")
    with pytest.raises(ValidationError):
        record.id = "2-1"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Record(patient="1", id="1-1")  # type: ignore[arg-type]


def test_reading_records_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, yaofang.data.records; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not REAL.exists(), reason="../shared/real/shanghai_t1dm.jsonl is absent")
def test_the_real_inpatients_are_read() -> None:
    records = read_records(REAL).records
    assert len(records) == 16
    assert all(record.diagnoses and record.chief_complaint and not record.drugs for record in records)


@pytest.mark.parametrize("name", ["2-1", " 2 1 ", 'a/b"c\\d', "x\ny", "u\u2028v", "患者"])
def test_the_line_of_a_record_is_found_however_its_identifier_is_written(name: str, put: Put) -> None:
    values = [{"患者序号": 1, "就诊标识": "1-1"}, {"患者序号": 2, "就诊标识": name}]
    for ascii_only in (False, True):
        lines = put("\n".join(json.dumps(value, ensure_ascii=ascii_only) for value in values))
        assert line_of(lines, name) == 2
        assert line_of(lines, "3-1") is None
    assert line_of(put(json.dumps(values, ensure_ascii=False, indent=1)), name) == 8


def test_the_lines_of_several_records_are_found_in_one_reading(put: Put) -> None:
    values = [{"患者序号": n, "就诊标识": f"{n}-1", "现病史": '"就诊标识": "3-1"'} for n in (1, 2, 3)]
    file = put("\n".join(json.dumps(value, ensure_ascii=False) for value in values))
    assert lines_of(file, {"3-1", "1-1", "9-9"}) == {"1-1": 1, "3-1": 3}
