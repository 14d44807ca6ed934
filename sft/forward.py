"""The causal model's forward in training: what TRL's trainers call as `model(..., labels=, fused_lm_head=True)`.

One wrapper holds all that lies between ids and per-token log-probabilities: masks for packed rows and prefix-LM, slices for
sequence parallelism, the LM head on the labelled positions alone, and the objective's weights and penalty. Every other call of
the model stays as it was. Knows nothing of recipes, data or losses.

TRL's own fused head takes the labelled positions alone only where Triton is there; elsewhere it scores every position, and
three quarters of them are the record's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad
from trl.trainer.utils import FusedCausalLMOutput

from yaofang.glm import masks
from yaofang.sft.objective import Objective, Sparse
from yaofang.sft.sequence_parallel import IMPLEMENTATION, Layout, SequenceGroup, choose_kernel, packed_bounds
from yaofang.vocab.errors import InputError

log = logging.getLogger(__name__)
IGNORED = -100
"""Label of a position that is not scored."""


def wrap_forward(
    model: Any,
    *,
    objective: Objective | None = None,
    prefix: masks.PrefixLM | None = None,
    group: SequenceGroup | None = None,
) -> None:
    """Give a GlmForCausalLM or Glm4ForCausalLM (under PEFT: the base model) the training forward, in place.

    Call it after TRL's trainer was built, which puts its own fused head in place, and before it trains. `prefix` None is causal
    attention, `group` None one process a sequence. With an objective `log_probs` [batch, length - 1] are weight * log p -
    penalty, else log p.
    """
    forward = _TrainingForward(model.forward, objective or Objective(), prefix, group, _attention(model, prefix, group))

    # The class's signature is kept: `generate` checks its arguments against it.
    @wraps(type(model).forward)
    def called(self: Any, *args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        return forward(self, **inputs) if fused_lm_head else forward.plain(*args, **inputs)

    model.forward = MethodType(called, model)


def wrap_trainer(
    trainer: Any,
    *,
    objective: Objective | None = None,
    prefix: masks.PrefixLM | None = None,
    group: SequenceGroup | None = None,
) -> None:
    """`wrap_forward` for the model of a trainer of TRL; for its reference model too, if it has one, without the objective."""
    model = trainer.model
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    wrap_forward(base, objective=objective, prefix=prefix, group=group)
    reference = getattr(trainer, "ref_model", None)  # SFTTrainer has no such attribute
    if reference is not None:
        wrap_forward(trainer.accelerator.unwrap_model(reference), prefix=prefix, group=group)


def _attention(model: Any, prefix: masks.PrefixLM | None, group: SequenceGroup | None) -> bool:
    """Set the model's attention; whether flash-attn runs inside sequence parallelism."""
    loaded = model.config._attn_implementation
    if group is not None:
        flash, reason = choose_kernel(loaded, prefix is not None)
        log.info("%s", reason)
        model.set_attn_implementation(IMPLEMENTATION)
        return flash
    if prefix is not None and loaded != "sdpa":
        log.info("attention sdpa: %s cannot do prefix-LM", loaded)
        model.set_attn_implementation("sdpa")
    return False


@dataclass(frozen=True)
class _Scores:
    """Of each position of a slice, or of whole rows: all [batch, positions], 0 where the label is ignored."""

    log_probs: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    mean_logits: Tensor | None
    penalties: Tensor | None = None
    """Sum of severity * probability."""


@dataclass(frozen=True)
class _TrainingForward:
    plain: Any
    """The forward with TRL's fused head."""
    objective: Objective
    prefix: masks.PrefixLM | None
    group: SequenceGroup | None
    flash: bool

    def __call__(
        self,
        model: Any,
        *,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Any = None,
        **others: Any,
    ) -> FusedCausalLMOutput:
        """Scores of `labels` [batch, length], which are not shifted; per-token fields are [batch, length - 1]."""
        documents = torch.zeros_like(input_ids) if position_ids is None else masks.document_numbers(position_ids)
        penalty = self.objective.penalty
        sparse = None if penalty is None else penalty(labels, documents)
        packed = documents if position_ids is not None and bool(documents.any()) else None
        inputs = self._inputs(model, input_ids, labels, attention_mask, position_ids, packed, others)
        following = pad(labels[:, 1:], (0, 1), value=IGNORED)  # shifted before it is cut
        scores = self._score(model, inputs, following, sparse)
        return self._output(scores, labels, documents, num_items_in_batch)

    def _inputs(
        self,
        model: Any,
        ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        packed: Tensor | None,
        others: dict[str, Any],
    ) -> dict[str, Any]:
        """What the backbone is called with: whole rows, or this process's slices of them."""
        present = None if attention_mask is None or right_padded(attention_mask) else attention_mask
        blocks = None if self.prefix is None else self.prefix.blocks(ids)
        if blocks is not None:
            check_labels(labels, blocks)
        if self.group is not None:
            columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            # Any mask of four dimensions keeps the model from building one of its own, which would be of a slice.
            return {
                "input_ids": self.group.cut(ids, 0),
                "position_ids": self.group.cut(columns if position_ids is None else position_ids, 0),
                "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device),
                "sequence_parallel": self._layout(self.group, ids.shape[1], packed, blocks, present),
                "use_cache": False,
            }
        others = {**others, "input_ids": ids, "position_ids": position_ids, "use_cache": False}
        if packed is not None and blocks is None and present is None and _apart(model):
            bounds, longest = packed_bounds(packed)
            given = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
            return {**others, "attention_mask": given, "sequence_parallel": Layout(None, bounds=bounds, longest=longest)}
        if blocks is not None:
            present = masks.attention_mask(ids.shape[1], documents=packed, blocks=blocks, present=present)
        return {**others, "attention_mask": present}

    def _layout(
        self, group: SequenceGroup, length: int, packed: Tensor | None, blocks: Tensor | None, present: Tensor | None
    ) -> Layout:
        whole = None if packed is None else group.fill(packed, -1)
        if blocks is None and present is None:
            bounds, longest = (None, 0) if whole is None else packed_bounds(whole)
            return Layout(group, bounds=bounds, longest=longest, flash=self.flash)
        filled = [None if tensor is None else group.fill(tensor, 0) for tensor in (blocks, present)]
        mask = masks.attention_mask(group.padded(length), documents=whole, blocks=filled[0], present=filled[1])
        return Layout(group, mask=mask)

    def _score(self, model: Any, inputs: dict[str, Any], following: Tensor, sparse: Sparse | None) -> _Scores:
        """Scores of whole rows, [batch, length], the last column without a label."""
        length, group = following.shape[1], self.group
        own = following if group is None else group.cut(following, IGNORED)
        if own.is_cuda and sparse is None:
            found = self.plain(**inputs, shift_labels=own, fused_lm_head=True)
            entropy = None if found.entropy is None else found.entropy.detach()  # gathered beside log p: it would get zeros
            scores = _Scores(found.log_probs, entropy, found.is_top1, found.mean_logits)
        else:
            first = 0 if group is None else group.rank * own.shape[1]
            scores = _score_labelled(model, inputs, own, None if sparse is None else _shifted(sparse, own, length, first))
        return scores if group is None else _gathered(scores, group, length)

    def _output(self, scores: _Scores, labels: Tensor, documents: Tensor, items: Any) -> FusedCausalLMOutput:
        mask = labels[:, 1:] != IGNORED
        log_probs = scores.log_probs[:, :-1]
        if self.objective.weights is not None:
            log_probs = log_probs * self.objective.weights(labels, documents)[:, 1:]
        if scores.penalties is not None:
            log_probs = log_probs - self.objective.strength * scores.penalties[:, :-1]
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / (mask.sum().clamp(min=1) if items is None else items),
            log_probs=log_probs,
            entropy=None if scores.entropy is None else scores.entropy[:, :-1],
            is_top1=None if scores.is_top1 is None else scores.is_top1[:, :-1].bool(),
            mean_logits=None if scores.mean_logits is None else scores.mean_logits[:, :-1],
            label_mask=mask,
        )


def _apart(model: Any) -> bool:
    """Whether the model's attention takes packed examples one by one: SDPA then does, from the first packed row on."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(IMPLEMENTATION)  # for good: checkpointing calls it again in the backward
    return bool(model.config._attn_implementation == IMPLEMENTATION)


def right_padded(attention_mask: Tensor) -> bool:
    """Whether `attention_mask` [batch, length] has padding on the right only: causal attention needs no mask then."""
    return bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())


def check_labels(labels: Tensor, blocks: Tensor) -> None:
    """Raise InputError if a labelled token stands in a record's block, where the token before sees it."""
    seen = (blocks[:, 1:] == blocks[:, :-1]) & (blocks[:, 1:] > 0)
    if bool((seen & (labels[:, 1:] != IGNORED)).any()):
        raise InputError(
            "prefix-LM: a token of the user's turn is to be learned, and the token before it sees it",
            field="model.prefix_lm",
            way_out="Train on answers only, or set model.prefix_lm to false.",
        )


def _score_labelled(model: Any, inputs: dict[str, Any], following: Tensor, sparse: Sparse | None) -> _Scores:
    """The backbone, and the LM head on the labelled positions. `sparse` has flat indices into `following`.

    The head is called as a module, and with no labelled position too: ZeRO-3 gathers its weight in all processes at once.
    """
    mask = following != IGNORED
    hidden = model.base_model(**inputs).last_hidden_state
    logits = model.get_output_embeddings()(hidden[mask]).float()
    rows, tokens = torch.arange(len(logits), device=logits.device), following[mask]
    if sparse is not None:
        rows = torch.cat([rows, (mask.flatten().cumsum(dim=0) - 1)[sparse.places]])
        tokens = torch.cat([tokens, sparse.tokens])
    found = _LogProbs.apply(logits, rows, tokens)  # type: ignore[no-untyped-call]  # torch has no type for it
    logs, top, entropy = found[0], found[1], found[2]
    number = len(logits)

    def placed(values: Tensor) -> Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    penalties = None
    if sparse is not None:
        paid = sparse.severity * logs[number:].exp()
        penalties = placed(paid.new_zeros(number).index_add(0, rows[number:], paid))
    right = (top == tokens[:number]).float()
    mean = logits.detach().mean(dim=-1)
    return _Scores(placed(logs[:number]), placed(entropy), placed(right), placed(mean), penalties)


class _LogProbs(torch.autograd.Function):
    """log p of `tokens` [n] at `rows` [n] of `logits` [labelled, vocabulary]; each row's most likely token, and its entropy.

    The softmax is taken once, for the entropy and for the backward, whose gradient is that of log p alone:
    d log p(token) / d logits = onehot(token) - p.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chances = logits.softmax(dim=-1)
        top = logits.argmax(dim=-1)
        best = top[:, None]
        total = (logits.gather(1, best) - chances.gather(1, best).log())[:, 0]  # log of the sum of exp(logits)
        entropy = total - torch.linalg.vecdot(chances, logits)
        ctx.save_for_backward(chances, rows, tokens)
        ctx.mark_non_differentiable(top, entropy)
        return logits[rows, tokens] - total[rows], top, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        chances, rows, tokens = ctx.saved_tensors
        given = gradients[0]
        found = chances * -given.new_zeros(len(chances)).index_add(0, rows, given)[:, None]
        return found.index_put_((rows, tokens), given, accumulate=True), None, None


def _shifted(sparse: Sparse, own: Tensor, length: int, first: int) -> Sparse:
    """Flat indices of labels in whole rows -> of the positions before them in `own`, rows that begin at column `first`."""
    columns = sparse.places % length - 1 - first
    here = (columns >= 0) & (columns < own.shape[1])
    places = (sparse.places // length * own.shape[1] + columns)[here]
    return Sparse(places, sparse.tokens[here], sparse.severity[here])


def _gathered(scores: _Scores, group: SequenceGroup, length: int) -> _Scores:
    """Each process's slices -> the whole rows in all of them, in one exchange."""
    names = ("log_probs", "entropy", "is_top1", "mean_logits", "penalties")
    given = {name: value for name in names if (value := getattr(scores, name)) is not None}
    whole = group.gather(torch.stack([value.float() for value in given.values()]))[..., :length]
    found: dict[str, Any] = dict.fromkeys(names) | dict(zip(given, whole, strict=True))
    return _Scores(**found)
