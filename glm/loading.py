"""Loads a GLM-4 model from a folder, with dtype, device and attention chosen and the reasons kept.

Knows the two architectures of transformers (`glm`: glm-4-9b-chat-hf, `glm4`: GLM-4-9B-0414), adapters of PEFT on top of them
and the bundled tiny model. It never asks a hub: a model is a folder on disk.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, Glm4ForCausalLM, GlmForCausalLM

from yaofang.glm.template import ChatTemplate
from yaofang.vocab.errors import InputError
from yaofang.vocab.files import sha256_of

BUNDLED = Path(__file__).parent / "tiny"
ARCHITECTURES = {"glm": GlmForCausalLM, "glm4": Glm4ForCausalLM}
LARGE = 64 << 20
SAMPLE = 64 << 10
TRAINED = "yaofang.json"
"""File in a model's folder that says how long a prompt it was trained on, and how often it saw each drug; absent from models
that others trained."""
Quantize = Literal["8bit", "4bit"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate, with its template and how it was loaded."""

    model: Any
    """GlmForCausalLM, Glm4ForCausalLM, or a PeftModel round one of them, in evaluation mode."""
    template: ChatTemplate
    name: str
    version: str
    """Twelve hex digits over the configuration and the weights (over their sizes where they are large)."""
    device: torch.device
    dtype: torch.dtype
    reasons: tuple[str, ...]
    """Why this device, dtype and attention."""
    context: int
    """Positions the model was made for."""
    prompt_tokens: int | None = None
    """Tokens of the record's turn in training; None where nothing says so, and the context alone is the limit."""
    drug_counts: Mapping[str, int] | None = None
    """Label -> training records that it stands in; None where nothing says so."""
    folder: Path | None = None
    """Where it was loaded from."""
    prefix_lm: bool = False
    """The record's tokens see each other in both directions (`glm.masks`), as in training."""
    answer: str = "diagnoses_and_drugs"
    """What it was trained to write: `drugs_only` leaves the diagnoses' part of the answer empty."""


def load_model(
    folder: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    quantize: Quantize | None = None,
) -> LoadedModel:
    """Load the model in `folder` (None: the bundled tiny one), a merged model or a PEFT adapter that names its base.

    The base may be an adapter's folder itself, which is merged into its own base on the way. Raises InputError if the folder
    holds no GLM-4 model, no weights or no tokenizer, an adapter does not fit its base, or an option cannot be met.
    """
    path = BUNDLED if folder is None else Path(folder)
    check_folder(path)
    base = _root_of(path)
    trained = _trained(path) or {}
    prefix_lm = bool(trained.get("prefix_lm", False))
    where, why_device = choose_device(device)
    kind, why_dtype = choose_dtype(dtype, where)
    attend, why_attention = choose_attention(attention, where, kind, prefix_lm=prefix_lm)
    reasons = (why_device, why_dtype, why_attention)
    config = read_config(base)
    options: dict[str, Any] = {"dtype": kind, "attn_implementation": attend, **quantization(quantize, kind, where)}
    model = _read_model(path, config["model_type"], options)
    if quantize is None:
        model = model.to(where)
    for reason in reasons:
        log.info("%s: %s", path.name, reason)
    return LoadedModel(
        model=model.eval(),
        template=ChatTemplate(load_tokenizer(path if (path / "tokenizer.json").exists() else base)),
        name="tiny" if path == BUNDLED else path.name,
        version=folder_version(path),
        device=where,
        dtype=kind,
        reasons=reasons,
        context=int(config["max_position_embeddings"]),
        prompt_tokens=trained.get("prompt_tokens"),
        drug_counts=trained.get("drug_counts"),
        folder=path,
        prefix_lm=prefix_lm,
        answer=trained.get("answer", "diagnoses_and_drugs"),
    )


def read_weights(folder: Path, kind: str, options: dict[str, Any]) -> Any:
    """The model of a folder whose configuration was read. Raises InputError if a file of weights is broken."""
    try:
        return ARCHITECTURES[kind].from_pretrained(folder, local_files_only=True, **options)
    except SafetensorError as error:
        way_out = "Download the weights again: a file of a few hundred bytes is a pointer of git-lfs, not weights."
        raise InputError(f"broken weights ({error})", file=folder, way_out=way_out) from error


def _read_model(folder: Path, kind: str, options: dict[str, Any]) -> Any:
    """A whole model, or an adapter on its base; all adapters below the last one are merged."""
    base = _base_of(folder)
    if base == folder:
        return read_weights(folder, kind, options)
    from peft import PeftModel

    model = _read_model(base, kind, options)
    if _base_of(base) != base:
        if "quantization_config" in options:
            way_out = f"Merge it first: yaofang merge --model {base} --out FOLDER."
            raise InputError(
                "the base is an adapter, which cannot be merged into quantised weights", file=base, way_out=way_out
            )
        model = model.merge_and_unload()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            found = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, SafetensorError, UserWarning) as error:
        way_out = "Give the base that the adapter was trained on (base_model_name_or_path in its adapter_config.json)."
        raise InputError(f"the adapter does not fit its base {base}", file=folder, way_out=way_out) from error
    config = found.active_peft_config
    if config.is_prompt_learning:
        # It acts outside the layers, where what is read after a cache would miss it.
        problem = f"an adapter of the kind {config.peft_type.value} is no part of the model's layers"
        raise InputError(problem, file=folder, way_out="Use an adapter of LoRA or another kind that changes weights.")
    return found


def _trained(folder: Path) -> dict[str, Any] | None:
    file = folder / TRAINED
    return _json(file) if file.exists() else None


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a folder. Raises InputError if there is none."""
    if not (folder / "tokenizer.json").exists():
        raise InputError("no tokenizer.json", file=folder, way_out="Copy the tokenizer of the -hf model into the folder.")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json, checked to be one of the two architectures."""
    file = folder / "config.json"
    if not file.exists():
        raise InputError("no config.json: this is no model folder", file=folder, way_out="Give the folder of a GLM-4 model.")
    config = _json(file)
    kind = config.get("model_type")
    if kind == "chatglm":
        raise InputError(
            "this folder holds the old chatglm format, which needs remote code",
            file=file,
            field="model_type",
            way_out="Use the same model in the transformers format: glm-4-9b-chat-hf (or GLM-4-9B-0414).",
        )
    if kind not in ARCHITECTURES:
        known = " or ".join(ARCHITECTURES)
        raise InputError(f"model_type is {kind!r}, not {known}", file=file, field="model_type", way_out="Use a GLM-4 model.")
    return config


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"no valid JSON ({error})", file=file, way_out="Copy the file again.") from error
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=file, way_out="Copy the file again.")
    return value


def check_folder(folder: Path) -> None:
    """Raise InputError unless the folder holds a GLM-4 model or adapter with weights."""
    if not folder.is_dir():
        raise InputError("there is no such model folder", file=folder, way_out="Give the folder that holds config.json.")
    base = _base_of(folder)
    if base != folder:
        check_folder(base)
    else:
        read_config(base)
    for place in {folder, base}:
        if not any(place.glob("*.safetensors")):
            raise InputError(
                "no weights (*.safetensors) in the model folder",
                file=place,
                way_out="Download the weights again, or give another folder.",
            )


def _base_of(folder: Path) -> Path:
    """The folder itself, or the base model that its adapter_config.json names (relative to the folder or as it stands)."""
    adapter = folder / "adapter_config.json"
    if not adapter.exists():
        return folder
    name = str(_json(adapter).get("base_model_name_or_path"))
    for base in (folder / name, Path(name)):
        if base.is_dir():
            return base
    raise InputError(
        f"the adapter's base model {name} is not here",
        file=adapter,
        field="base_model_name_or_path",
        way_out="Put the base model there, or correct the field.",
    )


def _root_of(folder: Path) -> Path:
    """The folder of whole weights under an adapter, or under adapters on adapters."""
    base = _base_of(folder)
    return folder if base == folder else _root_of(base)


def folder_version(folder: Path, base: Path | None = None) -> str:
    """Twelve hex digits that change when the model or an adapter's base does: contents up to 64 MiB a file, else size and a
    sample of them. `base` stands for the base that an adapter names, where it has moved.
    """
    parts: list[str | bytes | Path] = []
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        parts += [file.name, file if file.stat().st_size < LARGE else _sample(file)]
    trained = _trained(folder) or {}
    parts += [f"{key} {trained[key]}" for key in ("answer", "prefix_lm") if trained.get(key)]
    base = base or _base_of(folder)
    if base != folder:
        parts.append(folder_version(base))
    return sha256_of(*parts)[:12]


def _sample(file: Path) -> bytes:
    """Size and 64 pieces of 64 KiB spread over the file: 18 GB are not read to tell two models apart."""
    size = file.stat().st_size
    taken = [str(size).encode()]
    with file.open("rb") as handle:
        for piece in range(64):
            handle.seek(piece * (size - SAMPLE) // 63)
            taken.append(handle.read(SAMPLE))
    return b"".join(taken)


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device and the reason for it."""
    if wanted != "auto":
        if wanted.partition(":")[0] not in ("cpu", "cuda"):
            raise InputError(f"--device {wanted} is unknown", way_out="Use auto, cpu, cuda or cuda:N.")
        device = torch.device(wanted)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"--device {wanted}: no CUDA device here", way_out="Use --device cpu, or auto.")
        return device, f"device {wanted}: asked for"
    if torch.cuda.is_available():
        place = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", place), "device cuda: one is available"
    return torch.device("cpu"), "device cpu: no CUDA device was found"


def choose_dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the weights and the reason for it."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted in named:
        return named[wanted], f"dtype {wanted}: asked for"
    if wanted != "auto":
        raise InputError(f"--dtype {wanted} is unknown", way_out=f"Use auto, {', '.join(named)}.")
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "dtype bfloat16: the CUDA device supports it"
    if device.type == "cuda":
        return torch.float16, "dtype float16: the CUDA device has no bfloat16"
    return torch.float32, f"dtype float32: exact and fast enough on {device.type}"


def choose_attention(wanted: str, device: torch.device, dtype: torch.dtype, *, prefix_lm: bool = False) -> tuple[str, str]:
    """The attention implementation of transformers and the reason for it. Raises InputError where it cannot do `prefix_lm`."""
    if prefix_lm:
        if wanted not in ("auto", "sdpa"):
            way_out = "Use --attention sdpa: it takes any mask."
            raise InputError(f"attention {wanted} cannot read a record in both directions (prefix-LM)", way_out=way_out)
        return "sdpa", "attention sdpa: the model reads records in both directions (prefix-LM), which needs a mask"
    if wanted != "auto":
        return wanted, f"attention {wanted}: asked for"
    if device.type == "cuda" and dtype != torch.float32 and util.find_spec("flash_attn") is not None:
        return "flash_attention_2", "attention flash_attention_2: flash-attn is installed"
    return "sdpa", "attention sdpa: flash-attn needs CUDA, half precision and the package flash-attn"


def quantization(wanted: Quantize | None, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` that load the weights in 8 or 4 bits; none for None."""
    if wanted is None:
        return {}
    if wanted not in ("8bit", "4bit"):
        raise InputError(f"--quantize {wanted} is unknown", way_out="Use 8bit or 4bit.")
    if util.find_spec("bitsandbytes") is None:
        raise InputError(f"--quantize {wanted} needs bitsandbytes", way_out="Install it: pip install 'yaofang[qlora]'.")
    from transformers import BitsAndBytesConfig

    bits = (
        BitsAndBytesConfig(load_in_8bit=True)
        if wanted == "8bit"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    )
    return {"quantization_config": bits, "device_map": {"": device}}
