"""How much memory one process of a training run needs, from the model's sizes alone: nothing is loaded, torch is not imported.

A training step is followed through the moments at which its memory can be highest: the LM head, the backward of the last and
of the first layer, the embedding's gradient and the optimiser's step. What autograd keeps of a layer is counted operation by
operation after transformers' `GlmDecoderLayer` and PEFT's `lora.Linear` (a test holds the count to what autograd really
saves, byte by byte). All figures are bytes of one process (one card). Knows nothing of recipes or files.

Sources: ZeRO, arXiv 1910.02054 (states a parameter, sharding) and DeepSpeed's `estimate_zero3_model_states_mem_needs`;
activations by operation, arXiv 2205.05198; QLoRA, arXiv 2305.14314 (NF4 in blocks of 64, one scale each); the all-to-all
round attention, DeepSpeed-Ulysses, arXiv 2309.14509; attention without an S x S matrix, FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

FLOAT, HALF = 4, 2
GIB = 1 << 30
NF4_BLOCK = 64
"""Weights that share one float32 scale in bitsandbytes' 4 bits (no double quantisation: `glm.loading.quantization`)."""
TILE_TOKENS, TILE_ROWS = 4096, 32768
"""Positions and rows of the vocabulary that one tile of TRL's fused LM head scores on CUDA (`trl.kernels.chunked_logprob`)."""


@dataclass(frozen=True)
class Sizes:
    """A GLM-4 model's sizes; the defaults are GLM-4-9B's (transformers' `GlmConfig`)."""

    vocabulary: int = 151552
    hidden: int = 4096
    layers: int = 40
    heads: int = 32
    kv_heads: int = 2
    head_dim: int = 128
    intermediate: int = 13696
    rotary: int = 64
    """Dimensions of a head that positions rotate."""
    norms: int = 2
    """RMSNorms a layer: 2 in `glm`, 4 in `glm4` (GLM-4-9B-0414)."""
    tied: bool = False
    """The LM head is the embedding."""
    bias: bool = True
    """Biases on q, k and v."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """From the fields of config.json; a field that is not there has GLM-4-9B's value."""
        default = cls()
        hidden = int(config.get("hidden_size", default.hidden))
        heads = int(config.get("num_attention_heads", default.heads))
        head_dim = int(config.get("head_dim") or hidden // heads)
        rope = config.get("rope_parameters") or config
        return cls(
            vocabulary=int(config.get("vocab_size", default.vocabulary)),
            hidden=hidden,
            layers=int(config.get("num_hidden_layers", default.layers)),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads", default.kv_heads)),
            head_dim=head_dim,
            intermediate=int(config.get("intermediate_size", default.intermediate)),
            rotary=int(head_dim * float(rope.get("partial_rotary_factor", 0.5))),
            norms=4 if config.get("model_type") == "glm4" else 2,
            tied=bool(config.get("tie_word_embeddings", False)),
            bias=bool(config.get("attention_bias", True)),
        )

    @property
    def query(self) -> int:
        """Width of the queries of one token."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of the keys (and of the values) of one token."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a decoder layer, by its name."""
        h, f = self.hidden, self.intermediate
        return {
            "q_proj": (h, self.query),
            "k_proj": (h, self.key),
            "v_proj": (h, self.key),
            "o_proj": (self.query, h),
            "gate_up_proj": (h, 2 * f),
            "down_proj": (f, h),
        }

    @cached_property
    def layer_matrices(self) -> int:
        """Parameters of one layer's matrices."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer_vectors(self) -> int:
        """Parameters of one layer's biases and norms."""
        return self.norms * self.hidden + self.bias * (self.query + 2 * self.key)

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.layer_matrices + self.layer_vectors

    @property
    def table(self) -> int:
        """Parameters of the embedding (and of the LM head)."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.layers * self.layer + (1 if self.tied else 2) * self.table + self.hidden


@dataclass(frozen=True)
class Zero:
    """What a DeepSpeed JSON file asks for; sizes of buckets are numbers of parameters."""

    stage: int
    reduce_bucket: int
    gather_bucket: int
    """Stages 1 and 2: updated weights are gathered in pieces of this size. Stage 3: how much is fetched ahead."""
    live: int = 0
    """Stage 3: gathered parameters that may be held at once."""
    overlap: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False


@dataclass(frozen=True)
class Job:
    """What one process does in a step."""

    batch: int
    length: int
    """Tokens of each row of the batch; all rows are padded to it."""
    labelled: int
    """Labelled positions a row."""
    device: Literal["cuda", "cpu"] = "cuda"
    weight_bytes: int = HALF
    """Bytes of a loaded weight."""
    autocast: bool = True
    quantize: Literal["8bit", "4bit"] | None = None
    rank: int | None = None
    """Rank of LoRA; None trains all weights."""
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    checkpointing: bool = False
    accumulation: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    cards: int = 1
    shards: int = 1
    """Processes that share one sequence."""
    zero: Zero | None = None
    attention: Literal["fused", "eager"] = "fused"
    """`fused`: FlashAttention or SDPA, which hold no S x S scores."""
    tiled: bool = True
    """On CUDA: the LM head scores in tiles (TRL's, with Triton); a penalty on drugs in conflict needs the whole logits."""
    mask: bool = False
    """An S x S mask (prefix-LM)."""

    @property
    def rows(self) -> int:
        """Tokens that this process computes: its share of the batch, the last shard padded."""
        return self.batch * -(-self.length // self.shards)

    @property
    def scored(self) -> int:
        """Positions that go through the LM head, all of them in the last shard at worst: the answer stands at the end."""
        return min(self.batch * self.labelled, self.rows)

    @property
    def compute_bytes(self) -> int:
        """Bytes of what matrices are multiplied in."""
        return HALF if self.autocast else self.weight_bytes

    @property
    def casts(self) -> bool:
        """Autocast makes half-precision copies of the weights that it multiplies with."""
        return self.autocast and self.weight_bytes == FLOAT and self.quantize is None

    @property
    def adapter_bytes(self) -> int:
        """Bytes of an adapter's weight: PEFT makes half-precision adapters float32; not TRL's under ZeRO-3 or on 4 bits."""
        return HALF if self.quantize or self.zero else FLOAT

    @property
    def full(self) -> bool:
        """All weights are trained."""
        return self.rank is None
