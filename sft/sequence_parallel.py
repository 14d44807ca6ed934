"""Sequence parallelism: N consecutive processes share each sequence, and every number is that of one process.

Each process holds a slice of the sequence. Round the attention an all-to-all gives it all positions of its share of the heads
(Jacobs et al., DeepSpeed Ulysses, arXiv 2309.14509); what is scored token by token is gathered, so that each process holds the
whole sequence's outputs, and any engine that averages gradients over all processes (DDP, ZeRO 0 to 3) stays exact.
Knows nothing of losses, labels or recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, distributed
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from yaofang.sft.ranks import PATIENCE
from yaofang.vocab.errors import InputError

IMPLEMENTATION = "sequence_parallel"
"""Name of the attention in transformers; without a `Layout` among its arguments it is plain SDPA."""
FIELD = "training.sequence_parallel_size"
Kind = TypeVar("Kind")


def check_size(size: int, world: int, heads: int, kv_heads: int) -> None:
    """Raise InputError, with the sizes that work, unless `size` processes of `world` can share a sequence.

    The size must divide the processes and the attention heads, and divide the key-value heads or be a multiple of them.
    """
    fits = [n for n in range(1, world + 1) if world % n == 0 and _heads_fit(n, heads, kv_heads)]
    if size in fits:
        return
    if world % size:
        problem = f"sequence parallelism over {size} processes: {world} were started, which {size} does not divide"
    else:
        problem = (
            f"sequence parallelism over {size} processes: {heads} heads and {kv_heads} key-value heads cannot be shared so"
        )
    more = [n for n in range(1, heads + 1) if _heads_fit(n, heads, kv_heads)]
    way_out = f"With {world} processes use {_listed(fits)}; this model allows {_listed(more)} (torchrun --nproc-per-node)."
    raise InputError(problem, field=FIELD, way_out=way_out)


def _heads_fit(size: int, heads: int, kv_heads: int) -> bool:
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)


def _listed(sizes: list[int]) -> str:
    return ", ".join(str(n) for n in sizes)


@dataclass(frozen=True)
class SequenceGroup:
    """The processes that share a sequence, seen from one of them."""

    handle: Any
    """torch's process group."""
    size: int
    rank: int
    """Place of this process in the group: its slice of the sequence."""

    def padded(self, length: int) -> int:
        """The length with what is added so that every process has as much."""
        return -(-length // self.size) * self.size

    def fill(self, tensor: Tensor, value: float) -> Tensor:
        """[..., length] -> [..., padded(length)], with `value` on the right."""
        return pad(tensor, (0, self.padded(tensor.shape[-1]) - tensor.shape[-1]), value=value)

    def cut(self, tensor: Tensor, value: float) -> Tensor:
        """This process's slice [..., padded(length) / size] of [..., length], filled with `value`."""
        return self.fill(tensor, value).chunk(self.size, dim=-1)[self.rank].contiguous()

    def gather(self, part: Tensor) -> Tensor:
        """[..., slice] of each process -> [..., size * slice] in all of them.

        All processes go on to the same loss, and its gradients are averaged over them: so the backward hands each process
        its own slice's gradient times `size`.
        """
        whole: Tensor = _Gather.apply(part, self)  # type: ignore[no-untyped-call]  # torch has no type for it
        return whole


def sequence_group(size: int, heads: int, kv_heads: int) -> SequenceGroup | None:
    """The group of this process; None for size 1. All processes call it, after they were connected.

    Raises InputError for a size that does not work.
    """
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    check_size(size, world, heads, kv_heads)
    if size == 1:
        return None
    own = None
    for first in range(0, world, size):
        ranks = list(range(first, first + size))
        handle = distributed.new_group(ranks, timeout=PATIENCE)  # every process takes part in making every group
        if distributed.get_rank() in ranks:
            own = SequenceGroup(handle, size, distributed.get_rank() - first)
    return own


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(part) for _ in range(group.size)]
        distributed.all_gather(parts, part.contiguous(), group=group.handle)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        group: SequenceGroup = ctx.group
        return gradients[0].chunk(group.size, dim=-1)[group.rank] * group.size, None


class _Exchange(torch.autograd.Function):
    """[size, ...]: part i goes to process i, and what process i sent comes to place i. It is its own inverse and transpose."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        found = torch.empty_like(parts, memory_format=torch.contiguous_format)
        distributed.all_to_all_single(found, parts.contiguous(), group=group.handle)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return _exchange(gradients[0], ctx.group), None


def _exchange(parts: Tensor, group: SequenceGroup) -> Tensor:
    found: Tensor = _Exchange.apply(parts, group)  # type: ignore[no-untyped-call]  # torch has no type for it
    return found


@dataclass(frozen=True)
class Layout:
    """How one forward's sequences lie over a group and in packed rows, handed to every layer's attention."""

    group: SequenceGroup | None
    """None: this process holds whole sequences."""
    mask: Tensor | None = None
    """Boolean [batch, 1, padded, padded] over the whole sequence; None is causal."""
    bounds: Tensor | None = None
    """Where each packed example begins in batch * padded tokens, and the end, int32; None is one a row, or `mask` says it."""
    longest: int = 0
    """Tokens of the longest of them."""
    flash: bool = False


def parallel_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sequence_parallel: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: `query` [batch, heads, slice, width] -> [batch, slice, heads, width].

    With a layout `attention_mask` is not read. Without one this is transformers' SDPA.
    """
    if sequence_parallel is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return plain
    # Under autocast the rotation leaves queries and keys in float32: cast before they are sent, not after.
    query, key, layout = query.to(value.dtype), key.to(value.dtype), sequence_parallel
    attend = _flash if layout.flash else _sdpa if layout.bounds is None else _sdpa_apart
    if layout.group is None:
        return attend(query, key, value, layout, dropout, scaling).transpose(1, 2).contiguous(), None
    whole = _all_positions(query, key, value, layout.group)
    return _own_positions(attend(*whole, layout, dropout, scaling), layout.group), None


AttentionInterface.register(IMPLEMENTATION, parallel_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _all_positions(query: Tensor, key: Tensor, value: Tensor, group: SequenceGroup) -> tuple[Tensor, Tensor, Tensor]:
    """All heads of a slice -> a share of the heads [batch, heads / size, padded, width] at all positions, in one exchange."""
    copies = max(1, group.size // key.shape[1])
    key, value = (tensor.repeat_interleave(copies, dim=1) for tensor in (key, value))
    shares = [torch.stack(tensor.chunk(group.size, dim=1)) for tensor in (query, key, value)]
    sent = torch.cat(shares, dim=2)
    found = _exchange(sent, group).movedim(0, 2).flatten(2, 3)
    parts = torch.split(found, [share.shape[2] for share in shares], dim=1)
    return parts[0], parts[1], parts[2]


def _own_positions(attended: Tensor, group: SequenceGroup) -> Tensor:
    """[batch, heads / size, padded, width] -> all heads of the own slice, [batch, slice, heads, width]."""
    sent = torch.stack(attended.chunk(group.size, dim=2))
    return _exchange(sent, group).movedim(0, 1).flatten(1, 2).transpose(1, 2).contiguous()


def _sdpa(query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float, scaling: float | None) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    if layout.mask is not None and shared > 1:  # with a mask, grouped heads would leave the fast kernels
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=layout.mask,
        dropout_p=dropout,
        is_causal=layout.mask is None,
        scale=scaling,
        enable_gqa=layout.mask is None and shared > 1,
    )


def _sdpa_apart(query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float, scaling: float | None) -> Tensor:
    """Each packed example by itself, causal: a mask over the whole row would cost what its examples pay for each other."""
    assert layout.bounds is not None
    sizes = layout.bounds.diff().tolist()
    flat = (tensor.movedim(1, 0).flatten(1, 2) for tensor in (query, key, value))
    each = zip(*(torch.split(tensor, sizes, dim=1) for tensor in flat), strict=True)
    plain = replace(layout, bounds=None)
    parts = [_sdpa(q[None], k[None], v[None], plain, dropout, scaling)[0] for q, k, v in each]
    return torch.cat(parts, dim=1).view(query.shape[1], query.shape[0], *query.shape[2:]).movedim(0, 1)


def _flash(query: Tensor, key: Tensor, value: Tensor, layout: Layout, dropout: float, scaling: float | None) -> Tensor:
    flash = import_module("flash_attn")
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    settings = {"dropout_p": dropout, "softmax_scale": scaling, "causal": True}
    if layout.bounds is None:
        found: Tensor = flash.flash_attn_func(q, k, v, **settings)
        return found.transpose(1, 2)
    bounds, longest = layout.bounds, layout.longest
    flat = [tensor.flatten(0, 1) for tensor in (q, k, v)]
    found = flash.flash_attn_varlen_func(*flat, bounds, bounds, longest, longest, **settings)
    return found.view(q.shape).transpose(1, 2)


def packed_bounds(documents: Tensor) -> tuple[Tensor, int]:
    """Where each example of `documents` [batch, length] begins in the flattened rows, and the end; and the longest's tokens.

    Padding, of which each token is an example of its own, is one example: nobody reads it.
    """
    new = torch.ones_like(documents, dtype=torch.bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    alone = new & pad(new[:, 1:], (0, 1), value=True)
    new[:, 1:] &= ~(alone[:, 1:] & alone[:, :-1])
    starts = new.flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([documents.numel()])])
    return bounds.to(torch.int32), int(bounds.diff().max())


def choose_kernel(implementation: str, prefix_lm: bool) -> tuple[bool, str]:
    """Whether flash-attn (else SDPA) runs on each process's heads, and the reason."""
    if prefix_lm:
        return False, "sequence parallelism round SDPA: flash-attn cannot do prefix-LM"
    if implementation == "flash_attention_2":
        return True, "sequence parallelism round flash-attn: the model was loaded with it"
    return False, f"sequence parallelism round SDPA: the model was loaded with {implementation}"


def parallel_trainer(kind: type[Kind], group: SequenceGroup | None) -> type[Kind]:
    """A trainer of TRL (SFTTrainer, DPOTrainer) whose processes of one group read the same batches; `kind` itself for None.

    Holds for training, evaluation, precomputed reference scores and gathered metrics. transformers counts a batch's tokens
    once a process and multiplies the loss by the number of processes: as it stands that is exact here too.
    """
    if group is None:
        return kind
    size = group.size

    class Parallel(kind):  # type: ignore[valid-type, misc]  # a base class known at run time only, without types
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            share_batches(self.accelerator, size)
            self.gather_function = self.accelerator.gather_for_metrics

        def get_total_train_batch_size(self, args: Any) -> int:
            return int(super().get_total_train_batch_size(args)) // size

    Parallel.__name__ = Parallel.__qualname__ = kind.__name__
    return Parallel


def share_batches(accelerator: Any, size: int) -> None:
    """Make `size` consecutive processes of an accelerator one reader of data, in its loaders and its gathered metrics."""
    prepare, gather = accelerator.prepare_data_loader, accelerator.gather

    def prepare_shared(loader: Any, *args: Any, **settings: Any) -> Any:
        prepared = prepare(loader, *args, **settings)
        if prepared is loader:  # it was prepared before
            return prepared
        shard = prepared.batch_sampler
        shard.num_processes //= size
        shard.process_index //= size
        shard.even_batches = shard.num_processes > 1  # a single reader has nobody to be even with
        return prepared

    def once(tensor: Tensor) -> Tensor:
        each = len(tensor) // accelerator.num_processes
        return tensor.view(-1, size, each, *tensor.shape[1:])[:, 0].flatten(0, 1)

    def gather_shared(data: Any) -> Any:
        found = recursively_apply(once, gather(data), error_on_other_type=True)
        state = accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0:
            found = recursively_apply(lambda tensor: tensor[: state.remainder], found)
        return found

    accelerator.prepare_data_loader, accelerator.gather_for_metrics = prepare_shared, gather_shared
