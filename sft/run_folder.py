"""A run folder: the weights (an adapter, or a whole model), the tokenizer, `recipe.yaml`, `data.json` with the versions of what
was read, `checkpoints/` with TensorBoard logs, `yaofang.json` with what decoding has to know, and `run.json`, written last.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yaofang.data.records import Record
from yaofang.sft.checkpoints import drop_torn, whole_checkpoints
from yaofang.sft.parts import Part, Recipe
from yaofang.sft.recipe import dump_recipe, load_recipe
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of, whole_file

log = logging.getLogger(__name__)
DATA = "data.json"


def trained_on(recipe: Recipe, counts: Counter[str], prompt_tokens: int) -> dict[str, Any]:
    """What decoding has to know of a training: how long its prompts were, what it wrote, how it saw the record, and how
    many of its records hold each drug (`counts`)."""
    return {
        "prompt_tokens": prompt_tokens,
        "prefix_lm": recipe.model.prefix_lm,
        "answer": recipe.data.answer,
        "drug_counts": dict(counts.most_common()),
    }


def open_folder(recipe: Recipe, out: Path, resume: bool) -> Path | None:
    """Check the run folder; with `resume` the newest whole checkpoint, and what a kill tore is deleted. None: begin anew.

    Raises InputError for a file, a folder in use, or one whose run has another recipe.
    """
    check_out(out, resume)
    if not resume:
        return None
    check_same(recipe, out)
    for torn in drop_torn(out / "checkpoints"):
        log.warning("%s was not saved whole: deleted", torn)
    found = last_checkpoint(out)
    log.info("no checkpoint to go on from: beginning anew" if found is None else f"going on from {found}")
    return found


def last_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    whole = whole_checkpoints(out / "checkpoints")
    return whole[-1] if whole else None


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that holds something already, unless its run is gone on with."""
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
        if out.exists() and {path.name for path in out.iterdir()} - {"checkpoints"}:
            raise InputError("this folder holds no run", file=out, way_out="Give another folder with --out.")
        return
    free = {"training": {"epochs", "max_steps", "stop_at", "log_every", "save_every"}}
    if load_recipe(str(file)).model_dump(exclude=free) != recipe.model_dump(exclude=free):
        way_out = "Give the same recipe, or another folder with --out."
        raise InputError("the run in this folder was started with another recipe", file=file, way_out=way_out)


def check_data(out: Path, versions: Mapping[str, str]) -> None:
    """Refuse to go on with anything else than what the run's `data.json` names; without such a file nothing is known."""
    file = out / DATA
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    changed = [name for name, version in versions.items() if before.get(name, version) != version]
    if changed:
        problem = f"the run in this folder was started with another {' and another '.join(changed)}"
        raise InputError(problem, file=file, way_out="Give what it was started with, or another folder with --out.")


def write_start(recipe: Part, versions: Mapping[str, str], out: Path) -> None:
    """Write what a run is started with: `recipe.yaml`, and the versions of its data."""
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "recipe.yaml") as handle:  # first: a folder without it is no run's
        handle.write(dump_recipe(recipe))
    with whole_file(out / DATA) as handle:
        json.dump(dict(versions), handle, indent=1)


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
