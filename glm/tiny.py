"""Small models of GLM-4's architecture: the bundled one's configuration and tokenizer, and random ones for tests.

The tokenizer is a byte-level BPE like GLM-4's, with the same special tokens after the ranks. It differs in one point: a
punctuation mark never joins the word that follows it, so that a drug is cut alike in a record and in an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Glm4Config, GlmConfig, PreTrainedTokenizerFast

from yaofang.glm.loading import ARCHITECTURES, LoadedModel
from yaofang.glm.template import END_OF_TEXT, SPECIAL, ChatTemplate
from yaofang.vocab.drugs import load_vocabulary
from yaofang.vocab.files import sha256_of

WORDS = r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
Architecture = Literal["glm", "glm4"]


def train_tokenizer(texts: Iterable[str], size: int, *, longest: int = 8) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` ranks plus the special tokens; no token is longer than `longest` Chinese characters."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # The trainer counts characters of the byte alphabet: three to a Chinese character.
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False, max_token_length=3 * longest
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def tiny_config(
    template: ChatTemplate,
    *,
    architecture: Architecture = "glm",
    hidden: int = 256,
    layers: int = 6,
    heads: int = 8,
    kv_heads: int = 2,
    intermediate: int = 640,
    context: int = 4096,
) -> GlmConfig | Glm4Config:
    """GLM-4's architecture at another size: grouped-query attention, half-rotary positions, biased q/k/v; tied embeddings."""
    rows = -(-template.size // 64) * 64
    settings: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": context,
        "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_type": "default"},
        "pad_token_id": template.pad_id,
        "eos_token_id": list(template.stop_ids),
        "tie_word_embeddings": True,
    }
    return GlmConfig(**settings) if architecture == "glm" else Glm4Config(**settings)


def new_model(config: GlmConfig | Glm4Config, seed: int) -> Any:
    """A model with random weights; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return ARCHITECTURES[config.model_type](config)


def random_tiny(
    texts: Iterable[str] | None = None,
    *,
    architecture: Architecture = "glm",
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    context: int = 4096,
) -> LoadedModel:
    """A random model of some hundred thousand parameters, for tests. `texts` train its tokenizer (None: the drug labels)."""
    corpus = list(load_vocabulary().labels if texts is None else texts)
    template = ChatTemplate(train_tokenizer([*corpus, *["出院诊断：", "；", "出院带药：", "、"] * 100], 1200))
    config = tiny_config(
        template,
        architecture=architecture,
        hidden=hidden,
        layers=layers,
        heads=4,
        kv_heads=2,
        intermediate=96,
        context=context,
    )
    return LoadedModel(
        model=new_model(config, seed).eval(),
        template=template,
        name=f"random-{architecture}-{seed}",
        version=sha256_of(architecture, str(seed), str(hidden), str(layers))[:12],
        device=torch.device("cpu"),
        dtype=torch.float32,
        reasons=("random weights",),
        context=context,
    )
