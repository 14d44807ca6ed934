"""A LoRA adapter merged into its base: a folder of plain weights that any GLM-4 front opens, checked before it has its name.

The merged model is compared with base and adapter twice, in memory and as loaded from the files written: logits on sample
records, and the constrained answers. What differs by more than rounding is not published. An adapter trained on a base in
4 or 8 bits is merged into the base in bfloat16: quantised layers cannot take it up.

Peak memory is one model in the format of the export, one copy of its largest layer, and the samples' logits.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import util
from pathlib import Path
from typing import Any

import torch
import yaml

from yaofang.data.provenance import provenance
from yaofang.decoding.calibration import load_calibration
from yaofang.glm.loading import TRAINED, LoadedModel, folder_version, load_model, load_tokenizer
from yaofang.sft.merging.adapter import WEIGHTS, Adapter, check_loaded, read_adapter, with_base
from yaofang.sft.merging.check import Reference, check, check_answers, difference, reference, sample_records
from yaofang.sft.merging.matrices import Product, check_products, products
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import whole_file

log = logging.getLogger(__name__)
RESULT = "merge.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge(
    run: Path,
    out: Path,
    *,
    base: Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    records: Path | None = None,
    max_shard_size: str = "5GB",
    command: str = "yaofang merge",
) -> dict[str, Any]:
    """Merge the adapter of the run folder `run` into its base (or into `base`) and write the new folder `out`.

    `dtype` auto is the base's own format, bfloat16 for an adapter of a quantised base. Returns what `merge.json` holds.
    Raises InputError if anything is missing or does not fit, if `out` is there and not empty, or if the merged model says
    anything else than base and adapter on the records (None: the bundled samples); `out` is then not there.
    """
    check_target(out)
    adapter = read_adapter(run, base)
    kind = export_dtype(dtype, adapter)
    _check_room(out, adapter, kind)
    samples = sample_records(records)
    with whole_folder(out) as folder, with_base(adapter) as source:
        held, matrices, merged = _write(adapter, source, samples, kind, device, folder, max_shard_size)
        body: dict[str, Any] = {
            "provenance": provenance(command),
            "adapter": {"folder": str(run), "version": folder_version(run, adapter.base), "sha256": file_hash(run / WEIGHTS)},
            "base": {"folder": str(adapter.base), "version": folder_version(adapter.base), "sha256": _hashes(adapter.base)},
            "dtype": str(kind).removeprefix("torch."),
            "check": {**held.facts(), "merged": merged, "reloaded": _check_written(folder, held, matrices, device)},
            "quantised": _quantised(adapter, source, held, device),
            "calibration": _carry_calibration(run, adapter.base, folder),
            "training": _training(run),
        }
        body["version"] = folder_version(folder)
        body["notes"] = _notes(adapter, held, body, folder)
        with whole_file(folder / RESULT) as handle:
            json.dump(body, handle, ensure_ascii=False, indent=1)
    return body


def export_dtype(wanted: str, adapter: Adapter) -> torch.dtype:
    """The format to merge and write in. Raises InputError for an unknown name."""
    if wanted == "auto":
        return torch.bfloat16 if adapter.quantized or adapter.stored not in DTYPES.values() else adapter.stored
    if wanted not in DTYPES:
        raise InputError(f"--dtype {wanted} is unknown", way_out=f"Use auto, {', '.join(DTYPES)}.")
    return DTYPES[wanted]


def check_target(out: Path) -> None:
    """Raise InputError unless `out` is a place for a new folder: not there, or an empty folder."""
    if not out.resolve().parent.is_dir():
        raise InputError(f"there is no folder {out.resolve().parent}", file=out, way_out="Make the folder first.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("this is there already, and not an empty folder", file=out, way_out="Give a new folder with --out.")
    for left in out.resolve().parent.glob(f".{out.name}.*.part"):
        log.warning("%s was left by a merge that was killed or still runs; it is not touched", left)


def _check_room(out: Path, adapter: Adapter, kind: torch.dtype) -> None:
    needed, free = adapter.size * kind.itemsize, shutil.disk_usage(out.resolve().parent).free
    if needed > free:
        problem = f"the merged model needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise InputError(problem, file=out, way_out="Make room, or give a folder on another disk.")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends without an error, and is removed otherwise.

    A process that is killed leaves the folder beside, never `out`.
    """
    out = out.resolve()
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    beside.mkdir()
    try:
        yield beside
        for path in [*beside.rglob("*"), beside]:
            _to_disk(path)
        try:
            os.replace(beside, out)
        except OSError as error:
            raise InputError(f"it cannot take its name ({error})", file=out, way_out="Give a new folder with --out.") from error
        _to_disk(out.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(
    adapter: Adapter, source: Path, samples: Any, kind: torch.dtype, device: str, folder: Path, max_shard_size: str
) -> tuple[Reference, dict[str, Product], dict[str, Any]]:
    """Merge, compare, and write weights, settings and tokenizer; the model is gone when this returns."""
    loaded = load_model(source, device=device, dtype=str(kind).removeprefix("torch."))
    check_loaded(adapter, loaded.model)
    held, matrices = reference(loaded, samples, adapter.empty), products(loaded.model)
    try:
        merged = replace(loaded, model=loaded.model.merge_and_unload(safe_merge=True))
    except ValueError as error:
        raise InputError(f"merging gave no finite weights ({error})", way_out="Export with --dtype float32.") from error
    found = difference(merged, held)
    check(found, held, "the merged model")
    check_products(merged.model, matrices)
    _save(merged, folder, max_shard_size)
    tokenizer = load_tokenizer(source if (source / "tokenizer.json").exists() else adapter.base)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = load_tokenizer(adapter.base).chat_template
    tokenizer.save_pretrained(folder)
    if (adapter.folder / TRAINED).exists():
        shutil.copyfile(adapter.folder / TRAINED, folder / TRAINED)
    return held, matrices, asdict(found)


def _save(merged: LoadedModel, folder: Path, max_shard_size: str) -> None:
    settings = merged.model.generation_config
    settings.eos_token_id, settings.pad_token_id = list(merged.template.stop_ids), merged.template.pad_id
    merged.model.save_pretrained(folder, max_shard_size=max_shard_size)


def _check_written(folder: Path, held: Reference, matrices: dict[str, Product], device: str) -> dict[str, Any]:
    """Load what was written as `predict` does and compare again. Raises InputError for what differs or is not there."""
    free_memory()
    again = load_model(folder, device=device, dtype=str(held.dtype).removeprefix("torch."))
    settings = again.model.generation_config
    stops, pad = set(settings.eos_token_id or ()), settings.pad_token_id
    if stops != set(again.template.stop_ids) or pad != again.template.pad_id:
        raise InputError(f"generation_config.json has eos {stops} and pad {pad}", way_out="Report this: it is a defect.")
    found = difference(again, held)
    check(found, held, "the model loaded from the written files")
    check_products(again.model, matrices)
    ties = check_answers(again, held, found)
    return {**asdict(found), "answers": len(held.samples), "answers_parting_at_a_tie": ties}


def _quantised(adapter: Adapter, source: Path, held: Reference, device: str) -> dict[str, Any] | None:
    """How far the model as it was trained, on the quantised base, is from base and adapter; None for no quantised base."""
    if adapter.quantized is None:
        return None
    if util.find_spec("bitsandbytes") is None:
        return {"bits": adapter.quantized, "difference": None}
    free_memory()
    name = str(held.dtype).removeprefix("torch.")
    loaded = load_model(source, device=device, dtype=name, quantize=adapter.quantized)
    return {"bits": adapter.quantized, "difference": asdict(difference(loaded, held))}


def _carry_calibration(run: Path, base: Path, folder: Path) -> str:
    """Write the run's calibration for the merged model if it was made for the run as it is; says what was done."""
    curve = load_calibration(run)
    if curve is None:
        return "none"
    if curve.about.get("model") != folder_version(run, base):
        return "not carried over: made for another version of the run"
    about = {**curve.about, "model": folder_version(folder), "merged_from": curve.about["model"]}
    replace(curve, about=about).write(folder)
    return "carried over"


def _training(run: Path) -> dict[str, Any]:
    """The run's recipe and `run.json`, where it has them."""
    recipe, result = run / "recipe.yaml", run / "run.json"
    return {
        "recipe": yaml.safe_load(recipe.read_text(encoding="utf-8")) if recipe.exists() else None,
        "run": json.loads(result.read_text(encoding="utf-8")) if result.exists() else None,
    }


def _notes(adapter: Adapter, held: Reference, body: dict[str, Any], folder: Path) -> list[str]:
    """What a user has to know beside the numbers."""
    notes = []
    if adapter.empty:
        notes.append("The adapter is all zeros: the merged model is the base.")
    if adapter.quantized:
        found = body["quantised"]["difference"]
        by = "not measured: bitsandbytes is not installed" if found is None else f"up to {found['largest']:.3g} in the logits"
        notes.append(f"Trained on a base in {adapter.quantized}: the merged model differs from it by the quantisation ({by}).")
    if body["calibration"].startswith("not"):
        notes.append("calibration.json is " + body["calibration"] + "; make one with yaofang calibrate.")
    if load_tokenizer(folder).chat_template is None:
        notes.append("Neither run nor base has a chat template: other programs must build the prompt as yaofang does.")
    trained = folder / TRAINED
    if not trained.exists():
        notes.append(f"The run has no {TRAINED}: predict will not know how long its prompts were.")
    elif json.loads(trained.read_text(encoding="utf-8")).get("prefix_lm"):
        notes.append("Trained with prefix-LM: programs that read the record causally get other answers.")
    if ties := body["check"]["reloaded"]["answers_parting_at_a_tie"]:
        notes.append(f"{ties} of {len(held.samples)} answers part from base + adapter at a tie of {body['dtype']}.")
    return notes


def file_hash(file: Path) -> str:
    """SHA-256 of a file, in hex, read piece by piece."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: file_hash(file) for file in sorted(folder.glob("*.safetensors"))}


def free_memory() -> None:
    """Give back what models that are gone held."""
    gc.collect()
    torch.cuda.empty_cache()
