from __future__ import annotations

import json
from pathlib import Path

import pytest

from yaofang import __version__
from yaofang.app.cli import main


def test_env_prints_versions_device_model_and_tables_as_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["env", "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["yaofang"] == __version__
    assert {"torch", "transformers", "python", "git"} <= set(found["versions"])
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["device"]
    assert isinstance(found["bundled model"]["present"], bool)
    assert found["tables"]["labels"] == 651


def test_env_for_people_is_a_table_without_the_home_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["env"])
    out = capsys.readouterr().out
    assert "transformers" in out
    assert str(Path.home()) + "/" not in out
