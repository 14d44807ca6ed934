"""The training forward against what it stands for, written out on full logits."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from yaofang.glm.loading import LoadedModel
from yaofang.glm.masks import PrefixLM
from yaofang.glm.tiny import Architecture, random_tiny
from yaofang.sft import sequence_parallel
from yaofang.sft.forward import _LogProbs, right_padded, wrap_forward
from yaofang.sft.objective import Objective, Sparse
from yaofang.vocab.errors import InputError

KINDS = ("right", "left", "packed", "packed rows")
FIELDS = ("log_probs", "entropy", "is_top1", "mean_logits")


@cache
def small(architecture: Architecture = "glm") -> LoadedModel:
    return random_tiny(["主诉烦渴多饮出院带药"] * 9, architecture=architecture, hidden=32)


def fresh(architecture: Architecture = "glm", attention: str = "sdpa") -> Any:
    """A model of its own, in training, with TRL's head and probabilities far from uniform."""
    made = type(small(architecture).model)(small(architecture).model.config)
    made.load_state_dict(small(architecture).model.state_dict())
    made.set_attn_implementation(attention)
    with torch.no_grad():
        made.model.norm.weight.mul_(8.0)
    add_fused_lm_head(made, outputs=FIELDS)
    return made.train()


def examples() -> list[tuple[list[int], list[int]]]:
    template = small().template
    found = []
    for n in (1, 4, 2):
        ids, mask = template.example([{"role": "user", "content": "烦渴多饮" * n}], ["\n", *["出院带药"] * n])
        found.append((ids, [token if bit else -100 for token, bit in zip(ids, mask, strict=True)]))
    return found


def batch(side: str = "right") -> dict[str, Tensor]:
    rows = examples()
    width = max(len(ids) for ids, _ in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        pad = [fill] * (width - len(values))
        return [*values, *pad] if side == "right" else [*pad, *values]

    return {
        "input_ids": torch.tensor([padded(ids, small().template.pad_id) for ids, _ in rows]),
        "labels": torch.tensor([padded(labels, -100) for _, labels in rows]),
        "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in rows]),
    }


def packed() -> dict[str, Tensor]:
    rows = examples()
    return {
        "input_ids": torch.tensor([[i for ids, _ in rows for i in ids]]),
        "labels": torch.tensor([[i for _, labels in rows for i in labels]]),
        "position_ids": torch.tensor([[place for ids, _ in rows for place in range(len(ids))]]),
    }


def packed_rows() -> dict[str, Tensor]:
    """Two packed rows; the second is filled up, and every padding token is at position 0."""
    (one, first), (two, second), (three, third) = examples()
    fill = len(one) + len(two) - len(three)
    return {
        "input_ids": torch.tensor([[*one, *two], [*three, *[small().template.pad_id] * fill]]),
        "labels": torch.tensor([[*first, *second], [*third, *[-100] * fill]]),
        "position_ids": torch.tensor([[*range(len(one)), *range(len(two))], [*range(len(three)), *[0] * fill]]),
    }


def scored(model: Any, inputs: dict[str, Tensor]) -> tuple[Any, list[Tensor]]:
    """The output, and the gradients of its loss."""
    model.zero_grad()
    output = model(**inputs, fused_lm_head=True)
    output.loss.backward()
    return output, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def partly_right(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The labels, every other one the model's own first choice."""
    plain = {name: value for name, value in inputs.items() if name != "labels"}
    labels = inputs["labels"].clone()
    choices = model(**plain, use_cache=False).logits.argmax(-1)[:, :-1]
    changed = (labels[:, 1:] != -100) & (torch.arange(choices.shape[1]) % 2 == 0)
    labels[:, 1:][changed] = choices[changed]
    return labels


def assert_same(one: tuple[Any, list[Tensor]], two: tuple[Any, list[Tensor]]) -> None:
    for name in ("loss", *FIELDS, "label_mask"):
        torch.testing.assert_close(one[0][name], two[0][name], rtol=1e-5, atol=1e-5)
    for a, b in zip(one[1], two[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
@pytest.mark.parametrize("inputs", [batch("right"), batch("left"), packed(), packed_rows()], ids=KINDS)
def test_every_score_and_gradient_equals_trls(architecture: Architecture, inputs: dict[str, Tensor]) -> None:
    model = fresh(architecture)
    inputs = inputs | {"labels": partly_right(model, inputs)}
    expected = scored(model, inputs)
    assert 0 < expected[0].is_top1.sum() < expected[0].label_mask.sum()
    wrap_forward(model)
    assert_same(expected, scored(model, inputs))


@pytest.mark.parametrize("checkpointing", [True, False])
def test_packed_examples_attend_one_by_one_without_a_mask(monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    model, inputs = fresh(), packed_rows()
    expected = scored(model, inputs)
    wrap_forward(model)
    lengths: list[int] = []
    attend = sequence_parallel.scaled_dot_product_attention

    def noted(query: Tensor, *others: Any, attn_mask: Tensor | None, **settings: Any) -> Tensor:
        assert attn_mask is None
        lengths.append(query.shape[2])
        return attend(query, *others, attn_mask=None, **settings)

    monkeypatch.setattr(sequence_parallel, "scaled_dot_product_attention", noted)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(expected, scored(model, inputs))
    each = [len(ids) for ids, _ in examples()]
    assert lengths[:4] == [*each, each[0] + each[1] - each[2]]
    assert len(lengths) == 4 * model.config.num_hidden_layers * (1 + checkpointing)


def test_only_labelled_positions_pass_the_head() -> None:
    model, inputs, seen = fresh(), batch(), []
    wrap_forward(model)
    model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    model(**inputs, fused_lm_head=True)
    assert seen == [int((inputs["labels"][:, 1:] != -100).sum())]
    assert seen[0] < inputs["labels"].numel() / 2


def test_other_calls_of_the_model_stay_as_they_were() -> None:
    model, inputs = fresh().eval(), batch("left")
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    before = model(**plain).logits, model.generate(**plain, max_new_tokens=3, do_sample=False)
    wrap_forward(model)
    assert torch.equal(model(**plain).logits, before[0])
    assert torch.equal(model.generate(**plain, max_new_tokens=3, do_sample=False), before[1])
    whole, labelled = model(**inputs).loss, model(**inputs, fused_lm_head=True).loss
    assert whole.item() == pytest.approx(labelled.item(), rel=1e-5)


def test_a_batch_without_labels_gives_zero_and_can_be_differentiated() -> None:
    model, inputs = fresh(), batch()
    wrap_forward(model)
    output, gradients = scored(model, inputs | {"labels": torch.full_like(inputs["labels"], -100)})
    assert output.loss.item() == 0
    assert len(gradients) == len(list(model.parameters()))
    assert not any(gradient.any() for gradient in gradients)


def weights(labels: Tensor, documents: Tensor) -> Tensor:
    return 0.5 + (labels % 3).float() + documents


def penalised(labels: Tensor, documents: Tensor) -> Sparse:
    """Two ids at each labelled place, one of them twice."""
    places = (labels.flatten() != -100).nonzero().flatten().repeat(3)
    tokens = torch.arange(len(places)) % 7
    return Sparse(places, tokens, (1 + tokens).float() / 8)


@pytest.mark.parametrize("inputs", [batch("right"), batch("left"), packed(), packed_rows()], ids=KINDS)
def test_the_objective_is_weight_times_log_p_less_strength_times_the_severity_expected(inputs: dict[str, Tensor]) -> None:
    model, labels = fresh(), inputs["labels"]
    plain = {name: value for name, value in inputs.items() if name != "labels"}
    logs = model(**plain, use_cache=False).logits.log_softmax(-1)  # with a cache transformers does not see packing
    documents = torch.zeros_like(labels)
    if "position_ids" in inputs:
        documents = (inputs["position_ids"] == 0).cumsum(1) - 1
    expected = torch.zeros(labels.shape)
    for row, place in (labels != -100).nonzero().tolist():
        own = logs[row, place - 1, labels[row, place]]
        expected[row, place] = own * weights(labels, documents)[row, place]
    sparse = penalised(labels, documents)
    for flat, token, severity in zip(sparse.places.tolist(), sparse.tokens.tolist(), sparse.severity.tolist(), strict=True):
        row, place = divmod(flat, labels.shape[1])
        expected[row, place] -= 0.7 * severity * logs[row, place - 1, token].exp()
    wanted = torch.autograd.grad(-expected.sum(), list(model.parameters()))
    wrap_forward(model, objective=Objective(weights, penalised, 0.7))
    output = model(**inputs, fused_lm_head=True)
    torch.testing.assert_close(output.log_probs, expected[:, 1:], rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(-output.log_probs.sum(), list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_log_p_is_right_where_a_row_is_asked_twice() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    rows, tokens = torch.tensor([0, 1, 2, 1, 1]), torch.tensor([4, 0, 2, 0, 3])
    assert torch.autograd.gradcheck(lambda x: _LogProbs.apply(x, rows, tokens)[0], logits)


def test_under_prefix_lm_a_record_is_read_in_both_directions_and_packing_changes_nothing() -> None:
    prefix = PrefixLM.of(small().template)
    model = fresh()
    causal = scored(model, batch())[0]
    wrap_forward(model, prefix=prefix)
    padded, row = scored(model, batch()), scored(model, packed())
    labelled = [output.log_probs[output.label_mask] for output in (padded[0], row[0], causal)]
    torch.testing.assert_close(labelled[0], labelled[1], rtol=1e-5, atol=1e-5)
    assert (labelled[0] - labelled[2]).abs().max() > 1e-2
    for a, b in zip(padded[1], row[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    left = scored(model, batch("left"))[0]
    torch.testing.assert_close(left.log_probs[left.label_mask], labelled[0], rtol=1e-5, atol=1e-5)
    ids = torch.tensor([examples()[0][0]])
    logs = model(input_ids=ids, attention_mask=prefix.prefill(ids)).logits.log_softmax(-1)[0, :-1]
    answer = int((causal.label_mask[0]).sum())
    own = logs.gather(1, ids[0, 1:, None])[-answer:, 0]
    torch.testing.assert_close(own, labelled[0][:answer], rtol=1e-5, atol=1e-5)


def test_prefix_lm_refuses_to_learn_what_a_token_has_seen() -> None:
    model, inputs = fresh(), batch()
    wrap_forward(model, prefix=PrefixLM.of(small().template))
    with pytest.raises(InputError, match="the token before it sees it"):
        model(**inputs | {"labels": inputs["input_ids"]}, fused_lm_head=True)


def test_prefix_lm_leaves_eager_attention_which_would_leak(caplog: pytest.LogCaptureFixture) -> None:
    model = fresh(attention="eager")
    with caplog.at_level(logging.INFO):
        wrap_forward(model, prefix=PrefixLM.of(small().template))
    assert model.config._attn_implementation == "sdpa"
    assert "eager cannot do prefix-LM" in caplog.text


def test_an_adapter_is_trained_through_the_base_models_forward() -> None:
    base = fresh()
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    expected = scored(adapted, batch())
    wrap_forward(adapted.get_base_model())
    found = scored(adapted, batch())
    assert len(found[1]) == 8
    assert_same(expected, found)


def test_bfloat16_autocast_keeps_the_scores_in_float32() -> None:
    model, inputs = fresh(), batch()
    wrap_forward(model)
    exact = model(**inputs, fused_lm_head=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, fused_lm_head=True)
    assert output.log_probs.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact.loss, rtol=0.05, atol=0.05)


def test_padding_is_told_apart_by_its_side() -> None:
    assert right_padded(torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert not right_padded(torch.tensor([[1, 1, 1], [0, 1, 1]]))
