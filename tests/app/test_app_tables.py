from __future__ import annotations

import json

import pytest

from yaofang.app.progress import progress
from yaofang.app.tables import show, text


def test_a_table_for_people_shows_every_cell_and_title_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    show("标题 [b]", ("药品", "n"), [("[a]阿卡波糖", 1200), ("无", None)], as_json=False, data=None, notes=("注 [1]",))
    out = capsys.readouterr().out
    assert all(part in out for part in ("标题 [b]", "[a]阿卡波糖", "1,200", "注 [1]"))


def test_with_json_stdout_is_one_json_document_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show("标题", ("药品",), [("阿卡波糖",)], as_json=True, data={"药品": ["阿卡波糖"]}, notes=("注",))
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"药品": ["阿卡波糖"]}
    assert captured.err == ""


def test_json_refuses_not_a_number() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        show("标题", ("x",), [], as_json=True, data=float("nan"))


@pytest.mark.parametrize(
    ("cell", "shown"), [(None, "-"), ("", "-"), (0, "0"), (12345, "12,345"), (0.12345, "0.123"), ("a", "a")]
)
def test_a_cell_is_written_as_people_read_it(cell: str | float | None, shown: str) -> None:
    assert text(cell) == shown


def test_progress_beside_a_terminal_is_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("predict", 4, done=1) as advance:
        advance(1)
        advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("predict 4/4")
    assert "\x1b" not in captured.err


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("predict", 1, quiet=True) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")
