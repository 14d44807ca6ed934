"""Recipes: what a training run does, as a YAML file found by name or path, with every key checked.

`--config NAME|PATH` finds the file (a name is looked up in this folder's `recipes/`), `--set key=value` overrides a field
(`--set training.epochs=2`, the value is read as YAML) and an unknown key is an error. Knows nothing of models or data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from yaofang.sft.parts import Part, Recipe
from yaofang.vocab.errors import InputError

Kind = TypeVar("Kind", bound=Part)
RECIPES = Path(__file__).parent / "recipes"
TINY = "tiny"
"""The recipe of the bundled model."""


def wards(names: Sequence[str] = (TINY,)) -> list[tuple[int, int]]:
    """Patients and seed of the wards that these recipes train on."""
    parts = [load_recipe(name).data.ward for name in names]
    return [(part.patients, part.seed) for part in parts if part is not None]


def find_recipe(name: str) -> Path:
    """The file of a recipe given by name or path. Raises InputError with the names there are."""
    for path in (RECIPES / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise InputError(f"there is no recipe {name}", way_out=f"Give a YAML file or one of: {known}.")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with the overrides applied. Raises InputError naming the file and the key."""
    return read_recipe(name, overrides, Recipe)


def read_recipe(name: str, overrides: Sequence[str], kind: type[Kind]) -> Kind:
    """`load_recipe` for a recipe of another kind."""
    path = find_recipe(name)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"no valid YAML ({error})", file=path, way_out="Correct the file.") from error
    if not isinstance(value, dict):
        raise InputError("a recipe is a mapping of parts", file=path, way_out="See sft/recipes/tiny.yaml.")
    for override in overrides:
        _set(value, override)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or None
        raise InputError(first["msg"], file=path, field=key, way_out="See `--print-config` of a recipe that works.") from error


def find_deepspeed(file: Path, beside: Path | None = None) -> Path:
    """A DeepSpeed JSON by its path, or by its bare name in the folder `beside` or among the recipes.

    Raises InputError with the names there are.
    """
    folders = [Path(), *([] if beside is None else [beside]), RECIPES]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    known = ", ".join(sorted(path.name for path in RECIPES.glob("*.json")))
    problem = f"there is no DeepSpeed configuration {file}"
    raise InputError(problem, field="training.deepspeed", way_out=f"Give a JSON file or one of: {known}.")


def with_deepspeed_file(recipe: Recipe, beside: Path) -> Recipe:
    """The recipe with the absolute path of its DeepSpeed JSON; `beside` is the folder of the recipe's own file."""
    if recipe.training.deepspeed is None:
        return recipe
    found = find_deepspeed(recipe.training.deepspeed, beside).resolve()
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"deepspeed": found})})


def _set(value: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise InputError(f"--set {override}: not key=value", way_out="For example --set training.epochs=2.")
    *parents, last = key.split(".")
    for parent in parents:
        child = value.get(parent)
        if child is None:
            child = value[parent] = {}
        if not isinstance(child, dict):
            raise InputError(f"--set {override}: {parent} has no fields", way_out="See `--print-config`.")
        value = child
    try:
        value[last] = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: no valid YAML value", way_out="For example --set training.epochs=2.") from error


def dump_recipe(recipe: Part) -> str:
    """The recipe as YAML, with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
