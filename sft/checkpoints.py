"""Checkpoints that are whole or not taken. The trainer writes a folder file by file; when all processes have written theirs,
the files are forced to disk and a marker with every file's size is put beside them, and only then are older folders deleted.
A folder whose marker is missing, or whose files are not those of the marker, was torn by a kill. Knows nothing of recipes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from yaofang.sft import ranks
from yaofang.vocab.files import whole_file

MARKER = "whole.json"
KEPT = 2
"""Checkpoints kept: the newest, and the best one or the one before."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*config.json")
"""What of a checkpoint makes a model's folder."""


def folder_of(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimiser steps."""
    return checkpoints / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(folder: Path) -> int:
    """The optimiser steps behind a checkpoint."""
    return int(folder.name.rpartition("-")[2])


def mark(folder: Path) -> None:
    """Force the folder's files to disk and write the marker."""
    sizes = _sizes(folder)
    for name in sizes:
        _to_disk(folder / name)
    with whole_file(folder / MARKER) as handle:
        json.dump(sizes, handle, indent=1)
    _to_disk(folder)
    _to_disk(folder.parent)


def is_whole(folder: Path) -> bool:
    """Whether the folder holds what its marker says, no file missing and none of another size."""
    try:
        said = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(said == _sizes(folder))


def whole_checkpoints(checkpoints: Path) -> list[Path]:
    """The whole ones, by their steps."""
    return sorted(filter(is_whole, checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*")), key=step_of)


def drop_torn(checkpoints: Path) -> list[Path]:
    """Delete what a kill left of a checkpoint; returns those folders."""
    whole = set(whole_checkpoints(checkpoints))
    torn = [folder for folder in checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if folder not in whole]
    for folder in torn:
        shutil.rmtree(folder)
    return torn


def state_of(folder: Path) -> TrainerState:
    """The trainer's state as the checkpoint has it."""
    return TrainerState.load_from_json(str(folder / "trainer_state.json"))


def copy_weights(checkpoint: Path, out: Path) -> None:
    """The checkpoint's weights and configuration into a run folder, each file whole or not at all."""
    for file in sorted({file for pattern in WEIGHTS for file in checkpoint.glob(pattern)}):
        beside = out / f".{file.name}.part"
        shutil.copyfile(file, beside)
        _to_disk(beside)
        os.replace(beside, out / file.name)


class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Marks each checkpoint when it is written, then deletes older ones; saves once more where training ends.

    The trainer itself must delete none (`save_total_limit` None): it would do so before the new one is safe. The best one
    (`state.best_global_step`) and the newest are never deleted.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by the trainer after every step."""
        control.should_save = control.should_save or control.should_training_stop
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Called by the trainer in every process when it has written its part of a checkpoint."""
        ranks.wait()
        if ranks.rank() == 0:
            checkpoints = Path(args.output_dir)
            mark(folder_of(checkpoints, state.global_step))
            best = folder_of(checkpoints, state.best_global_step) if state.best_global_step else None
            rotate_checkpoints(
                str(checkpoints), save_total_limit=KEPT, best_model_checkpoint=None if best is None else str(best)
            )
        ranks.wait()
        return control


def _sizes(folder: Path) -> dict[str, int]:
    """Size of each file below the folder but the marker, by its path in it."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MARKER)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
