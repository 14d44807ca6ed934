"""The wheel, installed in an empty folder, predicts: nothing that a user needs is left out of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import yaofang

ROOT = Path(__file__).resolve().parent.parent
BUILT = {"build", "dist", "out", "runs", "__pycache__"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel, built from a copy of the tree."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))

    def left_out(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name in BUILT or name.startswith(".") or name.endswith(".egg-info")}

    shutil.copytree(ROOT, source, ignore=left_out, dirs_exist_ok=True)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    (wheel,) = wheels.glob("yaofang-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_the_wheel_holds_nothing_but_the_package_and_the_license(installed: Path) -> None:
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"yaofang"}
    assert not list(installed.rglob("test_*.py"))
    (license_file,) = installed.glob("yaofang-*.dist-info/licenses/LICENSE")
    assert license_file.read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_every_table_recipe_and_weight_of_the_tree_is_in_the_wheel(installed: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git checkout")
    parts = [path for path in installed.joinpath("yaofang").iterdir() if path.is_dir()]
    shipped = {path.relative_to(installed / "yaofang") for path in installed.rglob("yaofang/**/*") if path.is_file()}
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False).stdout
    tracked = {Path(name) for name in listed.splitlines() if name.split("/")[0] in {part.name for part in parts}}
    assert tracked
    assert tracked <= shipped


def test_the_installed_wheel_predicts_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    sample = (ROOT / "data" / "samples" / "records.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "records.jsonl").write_text(sample + "\n", encoding="utf-8")
    code = (
        "import sys, yaofang; from yaofang.app.cli import main; print(yaofang.__file__);"
        "main(['predict', '--records', 'records.jsonl', '--out', 'sub.json', '--device', 'cpu'])"
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == installed / "yaofang" / "__init__.py"
    (entry,) = json.loads((tmp_path / "sub.json").read_text(encoding="utf-8"))
    assert entry["ID"] == json.loads(sample)["就诊标识"]
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl", "sub.json"}


def test_importing_the_package_imports_nothing_heavy_and_its_one_name_is_lazy() -> None:
    code = "import sys, yaofang; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert yaofang.Recommender.__module__ == "yaofang.decoding.recommender"
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = yaofang.Recomender
