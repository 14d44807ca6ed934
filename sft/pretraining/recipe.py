"""Recipes of continued pretraining: the parts of `sft.parts` with another `data`.

Knows nothing of the text itself or of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from yaofang.data.corpus import Per
from yaofang.sft.parts import Data, Hardware, Lora, Model, Part, Recipe, Training, Ward
from yaofang.sft.recipe import read_recipe


class Text(Part):
    """The text to learn from: files and folders, or the records of the simulated ward."""

    corpus: tuple[Path, ...] = ()
    """Files or folders of .txt, .md, .jsonl and .json."""
    ward: Ward | None = None
    """In place of files: the texts of the simulated ward's training records, a document each, without diagnoses and drugs."""
    text_field: str = Field("text", min_length=1)
    """The field of a JSON object that holds the text."""
    documents_per: Per = "file"
    """What of a .txt or .md is one document: the file, a paragraph between blank lines, or a line."""
    held_out: Annotated[float, Field(gt=0, lt=1)] | Path | None = 0.02
    """Perplexity is measured on this share of the documents, or on the files of this path; neither is trained on."""
    max_length: int = Field(2048, gt=64)
    """Tokens of a block. Short documents share one, a longer document goes on in another."""
    vocabulary: Path | None = None
    """List of labels that a fresh model's tokenizer learns too; None is the bundled one."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.corpus) == (self.ward is not None):
            raise ValueError("give exactly one of data.corpus and data.ward")
        return self


class PretrainRecipe(Part):
    """One run of continued pretraining."""

    model: Model
    data: Text
    training: Training = Training()
    lora: Lora | None = None
    hardware: Hardware | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.model.prefix_lm:
            raise ValueError("model.prefix_lm reads a record before its answer: plain text has neither, leave it out")
        if (self.training.diagnosis_weight, self.training.drug_weight) != (1, 1):
            raise ValueError("training.diagnosis_weight and drug_weight are for answers: plain text has none")
        self.blocks()
        return self

    def blocks(self) -> Recipe:
        """The same run for the trainer: ready examples, several in a row (`data.packing`), each seeing itself only."""
        source = {"train": self.data.corpus[0]} if self.data.corpus else {"ward": self.data.ward}
        data = Data.model_validate({**source, "max_length": self.data.max_length, "answer_tokens": 1, "packing": True})
        return Recipe(model=self.model, data=data, training=self.training, lora=self.lora, hardware=self.hardware)


def load_pretrain_recipe(name: str, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """The recipe with the overrides applied. Raises InputError naming the file and the key."""
    return read_recipe(name, overrides, PretrainRecipe)
