"""`yaofang bench`: what it refuses before it measures for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from yaofang.app.cli import main


@pytest.mark.parametrize("verb", ["quality", "ward"])
def test_a_missing_folder_for_the_result_is_found_before_any_work(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", verb, "--out", str(tmp_path / "absent" / "result.json")])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "there is no folder" in captured.err
    assert captured.out == ""
