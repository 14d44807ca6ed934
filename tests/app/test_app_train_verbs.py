from __future__ import annotations

import yaml
from typer.testing import CliRunner

from yaofang.app.cli import app

runner = CliRunner()


def test_print_config_shows_the_recipe_with_its_overrides_and_trains_nothing() -> None:
    done = runner.invoke(app, ["sft", "--config", "glm4-9b-lora", "--set", "lora.r=4", "--print-config"])
    assert done.exit_code == 0
    shown = yaml.safe_load(done.stdout)
    assert shown["lora"]["r"] == 4
    assert shown["training"]["schedule"] == "cosine"
