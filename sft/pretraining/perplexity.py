"""Perplexity on held-out text with a model in training, before its first step and after its last.

Knows ids and counts, no text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTTrainer

from yaofang.sft import ranks
from yaofang.sft.examples import Example
from yaofang.vocab.files import whole_file

BEFORE = "held_out.json"
"""File of a run folder with what was measured before the first step, for a run that is gone on with."""


@dataclass(frozen=True, slots=True)
class Text:
    """Held-out documents as pieces of at most a block's length, and the size of what they say."""

    pieces: Sequence[Example]
    characters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How badly a model foresees a text: nll is -log p of all its tokens (each document's end included), in nats."""

    nll: float
    tokens: int
    characters: int
    bytes: int

    def to_json(self) -> dict[str, float]:
        """exp(nll / tokens), exp(nll / characters) and nll / log 2 / bytes; the last two do not hang on the tokenizer."""
        return {
            "nll_per_token": self.nll / self.tokens,
            "perplexity_per_token": math.exp(self.nll / self.tokens),
            "perplexity_per_character": math.exp(self.nll / self.characters),
            "bits_per_byte": self.nll / math.log(2) / self.bytes,
        }


def measure(trainer: SFTTrainer, text: Text) -> Perplexity:
    """The perplexity of the trainer's model as it stands, the same figure in every process.

    Each piece goes through alone, through the trainer's own loss, so that any engine and any sharding is measured as it is
    trained. Processes share the pieces; where a sampler hands one out twice it counts once.
    """
    labels = [_labels(piece) for piece in text.pieces]
    dataset = Dataset.from_dict({"input_ids": [piece.input_ids for piece in text.pieces], "labels": labels})
    trainer.args.per_device_eval_batch_size = 1
    found: dict[tuple[int, ...], float] = {}
    model, training = trainer.model_wrapped, trainer.model.training
    model.eval()
    trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for inputs in trainer.get_eval_dataloader(dataset):
            scored = inputs["labels"][inputs["labels"] != -100]
            loss = trainer.compute_loss(model, {key: _there(value, trainer) for key, value in inputs.items()})
            found[tuple(scored.tolist())] = float(loss) * len(scored)
    model.train(training)
    trainer.model.train(training)
    everywhere = {key: value for share in ranks.gathered(found) for key, value in share.items()}
    keys = [tuple(label for label in row if label != -100) for row in labels]
    nll = math.fsum(everywhere[key] for key in keys)
    return Perplexity(nll, sum(map(len, keys)), text.characters, text.bytes)


def _labels(piece: Example) -> list[int]:
    return [token if bit else -100 for token, bit in zip(piece.input_ids, piece.completion_mask, strict=True)]


def _there(value: Any, trainer: SFTTrainer) -> Any:
    return value.to(trainer.args.device) if isinstance(value, torch.Tensor) else value


class Measure(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Measures when the model stands ready, whatever engine holds it, and when training ends.

    `before` is kept in the run folder `out`: where a run is gone on with, the weights at its beginning are gone.
    """

    def __init__(self, trainer: SFTTrainer, text: Text, out: Path) -> None:
        self.trainer, self.text, self.file = trainer, text, out / BEFORE
        self.before: Perplexity | None = None
        self.after: Perplexity | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer in every process."""
        if state.global_step:
            self.before = ranks.from_first(lambda: Perplexity(**json.loads(self.file.read_text(encoding="utf-8"))))
            return
        self.before = measure(self.trainer, self.text)
        ranks.from_first(self._write)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer in every process."""
        self.after = measure(self.trainer, self.text)

    def _write(self) -> None:
        assert self.before is not None
        kept = {name: getattr(self.before, name) for name in Perplexity.__slots__}
        with whole_file(self.file) as handle:
            json.dump(kept, handle, indent=1)
