"""A run folder: the weights (an adapter, or a whole model), the tokenizer, `recipe.yaml`, `checkpoints/` with TensorBoard logs,
`yaofang.json` with what decoding has to know, and `run.json`, written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yaofang.data.answer import drug_frequency
from yaofang.data.records import Record
from yaofang.sft.parts import Recipe
from yaofang.sft.recipe import load_recipe
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of, whole_file


def trained_on(records: Sequence[Record], prompt_tokens: int) -> dict[str, Any]:
    """What decoding has to know of a training: how long its prompts were, and how often it saw each drug."""
    return {"prompt_tokens": prompt_tokens, "drug_counts": dict(drug_frequency(records).most_common())}


def last_checkpoint(out: Path) -> str | None:
    """The newest whole checkpoint of a run folder; one torn by a kill lacks its last file."""
    whole = [path.parent for path in (out / "checkpoints").glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that holds something already, unless its run is gone on with."""
    if int(os.environ.get("RANK", "0")):
        return  # another rank's files may be there already
    if out.is_file():
        raise InputError("this is a file", file=out, way_out="Give a folder with --out.")
    if out.exists() and any(out.iterdir()) and not resume:
        raise InputError(
            "the run folder is not empty", file=out, way_out="Go on with --resume, or give another folder with --out."
        )


def check_same(recipe: Recipe, out: Path) -> None:
    """Refuse to go on with another recipe; how long to train and how often to log and save may change."""
    file = out / "recipe.yaml"
    if not file.exists():
        return
    free = {"training": {"epochs", "max_steps", "stop_at", "log_every", "save_every"}}
    if load_recipe(str(file)).model_dump(exclude=free) != recipe.model_dump(exclude=free):
        way_out = "Give the same recipe, or another folder with --out."
        raise InputError("the run in this folder was started with another recipe", file=file, way_out=way_out)


def data_hash(records: Sequence[Record]) -> str:
    """Twelve hex digits over the training records."""
    return sha256_of(*(record.model_dump_json(by_alias=True) for record in records))[:12]


def name_base(recipe: Recipe, out: Path) -> None:
    """Write the base model's absolute path into the adapter, so that the run loads from any folder."""
    file = out / "adapter_config.json"
    if recipe.model.path is None or not file.exists():
        return
    value = json.loads(file.read_text(encoding="utf-8"))
    value["base_model_name_or_path"] = str(recipe.model.path.resolve())
    with whole_file(file) as handle:
        json.dump(value, handle, ensure_ascii=False, indent=1)
