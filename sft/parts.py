"""The parts of a recipe, every key with its meaning and its limits. Knows nothing of files, models or data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Part(BaseModel):
    """A part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Fresh(Part):
    """A new model of GLM-4's architecture with random weights, and its tokenizer."""

    architecture: Literal["glm", "glm4"] = "glm"
    hidden: int = Field(256, gt=0)
    layers: int = Field(4, gt=0)
    heads: int = Field(8, gt=0)
    kv_heads: int = Field(2, gt=0)
    intermediate: int = Field(640, gt=0)
    context: int = Field(4096, gt=0)
    """Positions the model is made for; training may use fewer."""
    tokenizer_size: int = Field(4096, ge=512)
    """Ranks of the byte-level BPE, trained on the training records and the vocabulary's labels."""


class Model(Part):
    """Which weights to start from: a folder, or a fresh model."""

    path: Path | None = None
    """Folder of a GLM-4 model in the -hf format."""
    fresh: Fresh | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: str = "auto"
    quantize: Literal["8bit", "4bit"] | None = None
    """Load the frozen base in 8 or 4 bits (needs bitsandbytes and lora)."""
    prefix_lm: bool = False
    """The record's tokens see each other in both directions, the answer stays causal; in training and decoding alike."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.fresh is None):
            raise ValueError("give exactly one of model.path and model.fresh")
        return self


class Ward(Part):
    """Training patients from the simulated ward."""

    patients: int = Field(gt=0)
    seed: int = 1


class Source(Part):
    """A further file to train on: records, or conversations in one of the known forms (`data.conversations`)."""

    path: Path
    weight: float = Field(1.0, gt=0)
    """How often each of its rows is seen an epoch: 0.5 half of them, drawn by chance, 2 each twice."""


class Data(Part):
    """What to train on: a file of records with drugs, or the simulated ward; and further files."""

    train: Path | None = None
    """Records with drugs, or conversations: what a file holds is read from its fields."""
    ward: Ward | None = None
    mix: tuple[Source, ...] = ()
    """Further files, each with its weight."""
    vocabulary: Path | None = None
    """List of labels; None is the bundled one."""
    max_length: int = Field(2048, gt=64)
    """Tokens of prompt, answer and stop id together; longer records are fitted section by section."""
    answer_tokens: int = Field(256, gt=0)
    """Part of `max_length` kept free for the answer, so that prediction can fit records to what training saw."""
    drug_order: Literal["canonical", "as_written", "shuffled"] = "canonical"
    """`canonical`: training frequency, then label. `shuffled`: another order each time that a record is seen."""
    answer: Literal["diagnoses_and_drugs", "drugs_only"] = "diagnoses_and_drugs"
    """`drugs_only`: the diagnoses' part of the answer is empty, in training as in decoding."""
    packing: bool = False
    """Several examples in one row of `max_length` tokens, each seeing itself only: no padding."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.ward is None):
            raise ValueError("give exactly one of data.train and data.ward")
        if self.answer_tokens >= self.max_length:
            raise ValueError("data.answer_tokens leaves no room for the record: make data.max_length larger")
        return self


class Tail(Part):
    """What is done for drugs that few records have. Every option is off unless a recipe turns it on."""

    repeat_below: float = Field(0, ge=0, lt=1)
    """Records with a drug that a smaller share of the records has are seen more often: sqrt(this / share) times, by its
    rarest drug alone; 0 is off."""
    repeat_at_most: float = Field(3, ge=1)
    """The most that a record is seen an epoch."""
    balance: float = Field(0, ge=0, le=1)
    """Share of the distribution-balanced weight in the weight of a drug name's branching tokens; 0 is off, 1 the formula."""
    conflict_penalty: float = Field(0, ge=0)
    """Weight of the probability that the loss finds on drugs in conflict with those already listed; 0 is off."""


class Validation(Part):
    """Validation by constrained decoding while training: the best weights are kept, and training may stop early."""

    records: Path | None = None
    """Records with drugs of patients that are not trained on."""
    share: float | None = Field(None, gt=0, lt=1)
    """Or: hold so many of the training patients out."""
    every: int = Field(200, gt=0)
    """Optimiser steps between two validations."""
    patience: int | None = Field(None, gt=0)
    """Stop after so many validations without a better Jaccard; None never stops early."""
    limit: int = Field(200, gt=0)
    """Decode so many records at most, the same ones each time."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.records is None) == (self.share is None):
            raise ValueError("give exactly one of validation.records and validation.share")
        return self


class Lora(Part):
    """A LoRA adapter on GLM-4's linear layers; without this part all weights are trained."""

    r: int = Field(8, gt=0)
    alpha: int = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


class Training(Part):
    """Optimisation, as transformers names it."""

    epochs: float = Field(3, gt=0)
    max_steps: int = -1
    """Stop after this many optimiser steps; -1 trains all epochs."""
    stop_at: int | None = Field(None, gt=0)
    """Stop after this many steps with the learning rate's schedule still that of the whole length; another run goes on."""
    batch_size: int = Field(1, gt=0)
    """Examples a device and forward."""
    accumulation: int = Field(1, gt=0)
    group_by_length: bool = False
    """Batches of examples of like length: less padding, but less of a mixture in a batch."""
    diagnosis_weight: float = Field(1.0, ge=0)
    """Weight of the diagnoses' tokens in the loss."""
    drug_weight: float = Field(1.0, gt=0)
    """Weight of the drug list's tokens in the loss."""
    sequence_parallel_size: int = Field(1, gt=0)
    """Processes that share one sequence; a divisor of the processes and of the attention heads (`sft/sequence_parallel.py`)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: for a model that is trained from nothing in one process (`sft/optimizer.py`)."""
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup: float = Field(0.03, ge=0)
    """Share of the steps (below 1) or number of steps."""
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    bf16: bool = True
    """bfloat16 autocast where the processor has it, else float32. Never float16: it overflows in preference training."""
    gradient_checkpointing: bool = False
    deepspeed: Path | None = None
    """A DeepSpeed JSON file, for runs under torchrun."""
    seed: int = 0
    log_every: int = Field(10, gt=0)
    save_every: int = Field(200, gt=0)

    @model_validator(mode="after")
    def _muon_needs_whole_matrices(self) -> Self:
        if self.optimizer == "muon" and self.deepspeed is not None:
            raise ValueError("training.optimizer muon needs whole matrices: DeepSpeed shards them, take adamw")
        return self


class Hardware(Part):
    """The cards that a recipe is made for; `yaofang plan` judges by them, training does not read them."""

    cards: int = Field(1, gt=0)
    """Cards of one machine, one process each."""
    memory_gb: float = Field(gt=0)
    """Memory of one card, as it is sold: 24, 48, 80."""


class Recipe(Part):
    """One training run."""

    model: Model
    data: Data
    training: Training = Training()
    tail: Tail = Tail()
    validation: Validation | None = None
    lora: Lora | None = None
    hardware: Hardware | None = None

    @model_validator(mode="after")
    def _quantized_needs_lora(self) -> Self:
        if self.model.quantize and self.lora is None:
            raise ValueError("model.quantize needs the part lora: quantized weights cannot be trained")
        if self.model.fresh and self.lora:
            raise ValueError("lora on a fresh model would leave random weights untrained: remove one of the two")
        return self
