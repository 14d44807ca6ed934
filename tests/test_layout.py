"""The layout checks of `make check` pass, and they catch what they are for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / ".ci")
    return importlib.import_module("check_imports")


@pytest.mark.parametrize("script", ["check_imports.py", "check_packages.py"])
def test_a_check_of_the_layout_passes(script: str) -> None:
    done = subprocess.run([sys.executable, ROOT / ".ci" / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "caught"),
    [
        ("yaofang.vocab.a", "import yaofang.data.records", True),
        ("yaofang.data.a", "from yaofang.glm import loading", True),
        ("yaofang.data.a", "from yaofang import app", True),
        ("yaofang.glm.a", "def f():\n    from yaofang.decoding.trie import Trie", True),
        ("yaofang.glm.a", "from . import loading", True),
        ("yaofang.eval.a", "from yaofang.vocab import drugs", False),
        ("yaofang.app.a", "import yaofang.sft.train", False),
        ("yaofang.vocab.a", "def f():\n    import torch", True),
        ("yaofang.decoding.trie", "from transformers import LogitsProcessor", True),
        ("yaofang.decoding.processors", "import torch", False),
    ],
)
def test_an_import_against_the_order_is_caught(module: str, line: str, caught: bool, check: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(line + "\n", encoding="utf-8")
    app = tmp_path / "app.py"
    app.write_text("", encoding="utf-8")
    assert bool(check.problems({module: file, "yaofang.app": app})) is caught


def test_a_light_module_may_not_bring_in_a_heavy_one_through_another(check: ModuleType, tmp_path: Path) -> None:
    for name, line in (("light", "from yaofang.data import helper"), ("helper", "import torch.nn")):
        (tmp_path / f"{name}.py").write_text(line + "\n", encoding="utf-8")
    files = {"yaofang.data.records": tmp_path / "light.py", "yaofang.data.helper": tmp_path / "helper.py"}
    assert check.problems(files) == [
        "yaofang.data.records must stay light: yaofang.data.helper, line 1 imports torch.nn",
    ]


def test_vocab_records_and_the_core_of_decoding_load_neither_torch_nor_transformers() -> None:
    modules = "yaofang, yaofang.vocab.conflicts, yaofang.data.records, yaofang.decoding.trie, yaofang.decoding.constraint"
    code = f"import sys, {modules}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
