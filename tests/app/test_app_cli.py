from __future__ import annotations

import os
import subprocess
import sys

import pytest

from yaofang import __version__
from yaofang.app.cli import app, main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_help_answers_within_half_a_second() -> None:
    """Counted in processor time, the best of three: the machine may be busy with other tests."""
    times = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-m", "yaofang.app.cli", "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert "predict" in done.stdout
    assert min(times) < 0.5


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'trl', 'peft', 'sklearn', 'pydantic', 'numpy', 'pandas', 'yaml'}"
    code = f"import sys, yaofang.app.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"yaofang {__version__}\n"


@pytest.mark.parametrize("arguments", [("predict",), ("no-such-verb",), ("predict", "--no-such-option"), ("env", "--no-json")])
def test_wrong_usage_ends_with_exit_code_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().out == ""


def test_a_crash_never_prints_local_variables() -> None:
    assert app.pretty_exceptions_enable is False
