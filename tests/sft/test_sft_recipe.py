from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from yaofang.sft.pretraining.recipe import load_pretrain_recipe
from yaofang.sft.recipe import RECIPES, dump_recipe, find_recipe, load_recipe
from yaofang.vocab.errors import InputError


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_of_the_folder_is_valid(name: str) -> None:
    recipe = load_pretrain_recipe(name) if "pretrain" in name else load_recipe(name)
    assert recipe.training.epochs > 0
    assert (recipe.model.path is None) != (recipe.model.fresh is None)


def test_a_printed_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("glm4-9b-lora", ["training.epochs=2", "data.vocabulary="])
    file = tmp_path / "again.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(file)) == recipe
    assert recipe.training.epochs == 2
    assert recipe.data.vocabulary is None


def test_an_override_reaches_into_a_part_that_the_file_leaves_out(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: {path: m}\ndata: {train: t.jsonl}\n", encoding="utf-8")
    recipe = load_recipe(str(file), ["lora.r=4", "training.bf16=false"])
    assert recipe.lora is not None
    assert recipe.lora.r == 4
    assert recipe.training.bf16 is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=2", "training.epoch"),
        ("training.epochs=-1", "greater than 0"),
        ("nothing", "not key=value"),
        ("training.epochs=[", "no valid YAML value"),
        ("model.path.x=1", "path has no fields"),
        ("data.train=", "exactly one of data.train and data.ward"),
        ("model.fresh.layers=2", "exactly one of model.path and model.fresh"),
    ],
)
def test_a_wrong_override_is_an_error_that_names_it(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("glm4-9b-lora", [override])


def test_quantized_weights_without_lora_are_refused() -> None:
    with pytest.raises(InputError, match="needs the part lora"):
        load_recipe("glm4-9b-lora", ["model.quantize=4bit", "lora="])


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="glm4-9b-lora"):
        find_recipe("no-such-recipe")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    for text, message in [("- a\n", "mapping"), ("a: [", "no valid YAML")]:
        file = tmp_path / "r.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            load_recipe(str(file))


def test_recipes_are_commented() -> None:
    for path in RECIPES.glob("*.yaml"):
        assert path.read_text(encoding="utf-8").startswith("#"), path
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
