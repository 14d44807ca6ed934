"""A LoRA adapter in a run folder and the base that it belongs to, held against each other by the headers of their files.

Reads names, shapes and the adapter's own weights; loads no model.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError, safe_open

from yaofang.glm.loading import check_folder, read_config
from yaofang.vocab.errors import InputError

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""PEFT puts it before the base's own names."""
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that fits its base."""

    folder: Path
    base: Path
    quantized: Literal["8bit", "4bit"] | None
    """In how many bits the base was held in training; None for its own format."""
    keys: frozenset[str]
    """Names of its tensors in the file."""
    empty: bool
    """Every product of its matrices is zero: it changes nothing."""
    stored: torch.dtype
    """Format of the base's weights on disk."""

    @property
    def size(self) -> int:
        """Numbers in the base's files."""
        return sum(torch.Size(shape).numel() for shape in shapes_in(self.base).values())


def read_adapter(folder: Path, base: Path | None = None) -> Adapter:
    """The adapter of a run folder; `base` in place of the base that it names.

    Raises InputError for a folder without an adapter, a base that is not there or is stored quantised, an adapter that is
    broken, is no LoRA, or belongs to another base.
    """
    settings = _settings(folder)
    base = _base(folder, settings) if base is None else base
    check_folder(base)
    if (base / SETTINGS).exists():
        way_out = f"Merge that one first: yaofang merge --model {base} --out FOLDER, then give FOLDER with --base."
        raise InputError("the adapter's base is an adapter itself", file=base, way_out=way_out)
    if "quantization_config" in read_config(base):
        way_out = "Give the same model in bfloat16 with --base."
        raise InputError("the base is stored quantised, an adapter cannot be merged into it", file=base, way_out=way_out)
    shapes, empty = _weights(folder / WEIGHTS)
    stored = shapes_in(base)
    _check_fit(folder, base, shapes, stored)
    return Adapter(folder, base, _quantized(folder), frozenset(shapes), empty, _stored(base))


def _settings(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError("there is no such run folder", file=folder, way_out="Give the --out folder of a training with LoRA.")
    file = folder / SETTINGS
    if not file.exists():
        whole = any(folder.glob("model*.safetensors"))
        problem = "this run holds whole weights and no adapter: there is nothing to merge" if whole else "no adapter here"
        way_out = "Use the folder as it is: yaofang predict --model FOLDER." if whole else f"A run with LoRA holds {SETTINGS}."
        raise InputError(problem, file=folder, way_out=way_out)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        kind = value["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"a broken {SETTINGS} ({error})", file=file, way_out="Copy the run again.") from error
    if kind != "LORA" or value.get("modules_to_save"):
        what = f"peft_type {kind}" if kind != "LORA" else "whole layers beside LoRA (modules_to_save)"
        raise InputError(f"an adapter with {what}", file=file, way_out="Only plain LoRA adapters are merged here.")
    return dict(value)


def _base(folder: Path, settings: dict[str, Any]) -> Path:
    """The folder that the adapter names, relative to it or as it stands: as loading does."""
    name = settings.get("base_model_name_or_path")
    for base in (folder / str(name), Path(str(name))):
        if name and base.is_dir():
            return base
    way_out = "If it has moved, give its folder with --base."
    field = "base_model_name_or_path"
    raise InputError(f"the adapter's base model {name} is not here", file=folder / SETTINGS, field=field, way_out=way_out)


def _quantized(folder: Path) -> Literal["8bit", "4bit"] | None:
    """What the run's recipe says; an adapter without a recipe says nothing."""
    file = folder / "recipe.yaml"
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
        found = value["model"].get("quantize") if value else None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise InputError("this is no recipe", file=file, way_out="Copy the run again.") from error
    return found if found in ("8bit", "4bit") else None


def shapes_in(folder: Path) -> Shapes:
    """Name -> shape of every tensor in a folder's safetensors files. Raises InputError for a broken file."""
    found: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with _opened(file) as tensors:
            found |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118  # no mapping
    return found


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise InputError(f"broken weights ({error})", file=file, way_out="Copy the file again.") from error


def _stored(base: Path) -> torch.dtype:
    with _opened(min(base.glob("*.safetensors"))) as tensors:
        found: torch.dtype = tensors.get_slice(min(tensors.keys()))[:1].dtype
    return found


def _weights(file: Path) -> tuple[Shapes, bool]:
    """The shapes of an adapter's tensors, and whether it changes nothing. Raises InputError for NaN or infinity in them."""
    if not file.exists():
        raise InputError(f"no {WEIGHTS}", file=file.parent, way_out="Copy the run again, or resume its training.")
    shapes: Shapes = {}
    live: dict[str, int] = {}
    with _opened(file) as tensors:
        for key in tensors.keys():  # noqa: SIM118  # no mapping
            value = tensors.get_tensor(key)
            if not torch.isfinite(value).all():
                way_out = "The training diverged, or the file is damaged: take an earlier checkpoint."
                raise InputError(f"{key} holds NaN or infinity", file=file, way_out=way_out)
            shapes[key] = tuple(value.shape)
            module = key.partition(".lora_")[0]
            live[module] = live.get(module, 0) + bool(value.any())
    return shapes, all(sides < 2 for sides in live.values())


def _check_fit(folder: Path, base: Path, adapter: Shapes, stored: Shapes) -> None:
    """Raise InputError unless every matrix of the adapter belongs to a weight of the base, with its sizes."""
    for key, shape in adapter.items():
        module, side, rest = key.removeprefix(PREFIX).partition(".lora_")
        weight = stored.get(f"{module}.weight")
        problem = None
        if not side or weight is None:
            problem = f"the base has no {module}.weight"
        elif rest == "A.weight" and shape[1:] != weight[1:]:
            problem = f"{module} takes {weight[1]} inputs in the base and {shape[1]} in the adapter"
        elif rest == "B.weight" and shape[:1] != weight[:1]:
            problem = f"{module} gives {weight[0]} outputs in the base and {shape[0]} in the adapter"
        if problem is not None:
            raise _other_base(folder, base, problem)


def _other_base(folder: Path, base: Path, problem: str) -> InputError:
    way_out = "Give the model that it was trained on with --base."
    return InputError(f"the adapter belongs to another base than {base}: {problem}", file=folder, way_out=way_out)


def check_loaded(adapter: Adapter, model: Any) -> None:
    """Raise InputError unless the model on which the adapter was put has just the adapter's matrices, none left at random."""
    from peft import get_peft_model_state_dict

    missing = sorted(set(get_peft_model_state_dict(model)) ^ adapter.keys)
    if missing:
        name = missing[0].removeprefix(PREFIX)
        where = "the base" if missing[0] in adapter.keys else "the adapter"
        raise _other_base(adapter.folder, adapter.base, f"{where} has no {name} ({len(missing)} such matrices)")


@contextmanager
def with_base(adapter: Adapter) -> Iterator[Path]:
    """A run folder that names the adapter's base by its absolute path: the run's files by links, in a temporary folder."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for file in adapter.folder.iterdir():
            if file.is_file() and file.name != SETTINGS:
                os.symlink(file.resolve(), folder / file.name)
        settings = _settings(adapter.folder) | {"base_model_name_or_path": str(adapter.base.resolve())}
        (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
        yield folder
