"""The last layer works where somebody looks, and says the same there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention

from yaofang.decoding.running import Run, pad_left
from yaofang.glm import attention
from yaofang.glm.loading import LoadedModel
from yaofang.glm.tiny import random_tiny

TEXTS = ["患者三年前发现血糖升高，未规律服药，近日口干多饮。", "复查", "血糖高十年。"]


def model_of(kind: str) -> LoadedModel:
    torch.set_num_threads(1)
    loaded = random_tiny([*"".join(TEXTS)], architecture="glm4" if kind == "glm4" else "glm", seed=4)
    if kind != "lora":
        return loaded
    names = ["q_proj", "o_proj", "gate_up_proj", "down_proj", "k_proj"]
    adapter = LoraConfig(r=4, target_modules=names, init_lora_weights=False)
    return replace(loaded, model=get_peft_model(loaded.model, adapter).eval())


def prompts_of(loaded: LoadedModel) -> list[list[int]]:
    return [loaded.template.encode(text) for text in TEXTS]


@pytest.mark.parametrize("kind", ["glm", "glm4", "lora"])
def test_keys_values_and_what_is_looked_at_are_those_of_the_whole_model(kind: str) -> None:
    loaded = model_of(kind)
    ids, seen = pad_left(prompts_of(loaded), loaded.template.pad_id)
    run = Run(loaded, prompts_of(loaded))
    with torch.inference_mode():
        positions = (seen.cumsum(-1) - 1).clamp(min=0)
        whole = loaded.model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=True)
    assert torch.allclose(run.logits, whole.logits[:, -1].float(), atol=1e-5)
    for mine, other in zip(run.cache.layers, whole.past_key_values.layers, strict=True):
        assert torch.allclose(mine.keys, other.keys, atol=1e-5)
        assert torch.allclose(mine.values, other.values, atol=1e-5)
    run.extend([[5], [6, 7, 8, 9, 10], []], keep=[1, 2, 0])
    with torch.inference_mode():
        alone = loaded.model(input_ids=torch.tensor([[*prompts_of(loaded)[1], 6, 7, 8, 9, 10]])).logits[0, -2:].float()
    assert torch.allclose(run.logits[1:], alone, atol=1e-5)


def test_keys_and_values_are_not_copied_for_each_query_head(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = model_of("glm")
    heads: list[tuple[int, int]] = []

    def noted(query: torch.Tensor, key: torch.Tensor, *others: torch.Tensor, **named: Any) -> torch.Tensor:
        heads.append((query.shape[1], key.shape[1]))
        return scaled_dot_product_attention(query, key, *others, **named)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", noted)
    run = Run(loaded, prompts_of(loaded))
    run.extend([[5], [6, 7, 8, 9, 10], []], keep=[1, 2, 0])
    config = loaded.model.config
    assert config.num_attention_heads > config.num_key_value_heads
    assert heads == [(config.num_key_value_heads,) * 2] * 2 * config.num_hidden_layers
    assert config._attn_implementation == "sdpa"
    heads.clear()
    monkeypatch.setattr(attention, "SHORT", 4)
    long = Run(loaded, prompts_of(loaded))
    assert not heads, "a long prompt's mask for each query would be larger than what it spares"
    long.extend([[5], [6, 7], []], keep=[1, 2, 0])
    assert len(heads) == config.num_hidden_layers


@pytest.mark.parametrize("kind", ["glm", "lora"])
def test_of_a_prompt_the_last_layer_reads_the_last_place_alone(kind: str) -> None:
    loaded = model_of(kind)
    layers = loaded.model.get_decoder().layers
    read: dict[int, int] = {}

    def noted(at: int) -> None:
        layers[at].mlp.activation_fn.register_forward_hook(
            lambda module, inputs, said: read.__setitem__(at, inputs[0][..., 0].numel())
        )

    noted(0)
    noted(len(layers) - 1)
    Run(loaded, prompts_of(loaded))
    longest = max(map(len, prompts_of(loaded)))
    assert read == {0: len(TEXTS) * longest, len(layers) - 1: len(TEXTS)}
    for module in (layers[-1].mlp, layers[-1].self_attn.q_proj, layers[-1].self_attn.o_proj):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_forward_that_fails_leaves_the_model_as_it_was() -> None:
    loaded = model_of("glm")
    layer = loaded.model.get_decoder().layers[-1]

    def broken(module: object, inputs: object) -> None:
        raise RuntimeError("broken")

    hook = layer.mlp.down_proj.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        Run(loaded, prompts_of(loaded))
    hook.remove()
    assert not layer.mlp._forward_hooks
    Run(loaded, prompts_of(loaded)).extend([[5], [6], [7]], keep=[1, 1, 1])
