"""The peak of a training step, followed through the moments at which it can be; see `sft.memory.job` for the sources.

`peak(sizes, job)` returns what is held at the highest moment, item by item. `kept(sizes, job)` is what autograd keeps of one
layer, operation by operation. Knows sizes and a job, neither recipes nor files.
"""

from __future__ import annotations

from yaofang.sft.memory.job import FLOAT, GIB, HALF, NF4_BLOCK, TILE_ROWS, TILE_TOKENS, Job, Sizes

ITEMS = ("weights", "adapter", "optimizer", "gradients", "activations", "layer", "mask", "head", "buffers", "context", "margin")
"""Of a card's memory, in the order in which they are shown."""
CONTEXT = 0.6 * GIB
"""CUDA's context and cuBLAS' workspaces on one card; an assumption, not a measurement."""
LINKS = 0.6 * GIB
"""NCCL's buffers, where several cards work together; an assumption, not a measurement."""
FRAGMENTS = 0.1
"""Share of what comes and goes that the caching allocator cannot use again; an assumption, not a measurement."""
QKV = ("q_proj", "k_proj", "v_proj")
Parts = dict[str, float]


def kept(sizes: Sizes, job: Job, *, first: bool = False) -> int:
    """Bytes that autograd keeps of one decoder layer until its backward, without checkpointing.

    `first`: nothing below the first layer is trained under LoRA, so that it keeps less.
    """
    token = _norms(sizes, job) + _linear_inputs(sizes, job) + _attention(sizes, job)
    token += 3 * sizes.intermediate * job.compute_bytes  # gate and up in one, and silu(gate)
    total = token * job.rows + _scores(sizes, job) + _cast_weights(sizes, job)
    return total - (_not_in_first(sizes, job) if first and not job.full and not job.checkpointing else 0)


def _not_in_first(sizes: Sizes, job: Job) -> int:
    """What the first layer under LoRA does not keep: nobody asks for the gradient of the embedding's rows."""
    inner = [name for name in QKV if name in job.targets]
    token = FLOAT * sizes.hidden + FLOAT + len(inner) * sizes.hidden * _mask_bytes(job)
    casts = sizes.hidden * (sizes.query + 2 * sizes.key) * HALF if job.casts else 0
    if job.autocast and job.adapter_bytes == FLOAT:
        casts += len(inner) * (job.rank or 0) * sizes.hidden * HALF
    return token * job.rows + casts


def _norms(sizes: Sizes, job: Job) -> int:
    """RMSNorm computes in float32: it keeps that input, the inverse root and, where its weight is trained, the normed row."""
    on_residual, on_outputs = 2, sizes.norms - 2
    token = sizes.norms * (FLOAT * sizes.hidden + FLOAT)
    if job.full:
        token += sizes.hidden * (on_residual * job.weight_bytes + on_outputs * job.compute_bytes)
    return token


def _mask_bytes(job: Job) -> int:
    """Bytes of one entry of a dropout mask: a bool of the fused CUDA kernel, a number elsewhere."""
    if job.dropout == 0:
        return 0
    return 1 if job.device == "cuda" else job.adapter_bytes


def _linear_inputs(sizes: Sizes, job: Job) -> int:
    """What the linear layers keep of a token for the gradients of their weights, or of their adapters'."""
    c = job.compute_bytes
    if not job.full:
        assert job.rank is not None
        sources = {("qkv" if name in QKV else name): sizes.linears[name][0] for name in job.targets}
        copied = job.dropout > 0 or job.adapter_bytes != job.weight_bytes  # else q, k and v keep the same row
        inputs = sum(sizes.linears[name][0] for name in job.targets) if copied else sum(sources.values())
        masks = sum(sizes.linears[name][0] for name in job.targets) * _mask_bytes(job)
        return inputs * c + masks + len(job.targets) * job.rank * c
    copies = 3 if job.casts else 1  # autocast casts the same row anew for q, k and v
    # The attention's output is laid out anew before o_proj on a CPU, and by the all-to-all.
    output = sizes.query * c if job.device == "cpu" or job.shards > 1 else 0
    return (copies + 1) * sizes.hidden * c + output + sizes.intermediate * c


def _attention(sizes: Sizes, job: Job) -> int:
    """Queries, keys, values, output, one float32 logarithm a head; cosines and sines.

    Under sequence parallelism a process holds its heads of all tokens: as many numbers as all heads of its tokens, but keys and
    values are repeated until each process has one head of them. A mask makes SDPA repeat them for every head.
    """
    c = job.compute_bytes
    expanded = job.mask or job.attention == "eager"
    key = sizes.query if expanded else max(sizes.kv_heads, job.shards) * sizes.head_dim
    token = (2 * sizes.query + 2 * key) * c + 2 * sizes.rotary * job.weight_bytes
    return token + (FLOAT * sizes.heads if job.attention == "fused" else 0)


def _scores(sizes: Sizes, job: Job) -> int:
    """What is S x S in one layer: eager attention's probabilities in float32 and cast; SDPA's mask as numbers."""
    square = job.batch * job.length * job.length
    if job.attention == "eager":
        own = -(-sizes.heads // job.shards)
        return square * own * (FLOAT + (job.compute_bytes if job.compute_bytes != FLOAT else 0))
    return square * job.compute_bytes if job.mask else 0


def _cast_weights(sizes: Sizes, job: Job) -> int:
    """Half-precision copies of one layer's float32 weights, which autograd keeps until their backward."""
    found = sizes.layer_matrices * HALF if job.casts else 0
    if not job.full and job.autocast and job.adapter_bytes == FLOAT:
        assert job.rank is not None
        found += sum(job.rank * sum(sizes.linears[name]) for name in job.targets) * HALF
    return found


def peak(sizes: Sizes, job: Job) -> tuple[str, Parts]:
    """The name of the highest moment of a step, and what is held then: bytes by `ITEMS`, those of nothing left out.

    Counted in the second step or later, when the optimiser has its states.
    """
    held = resident(sizes, job)
    moments = {name: {**held, **parts} for name, parts in _moments(sizes, job).items()}
    name = max(moments, key=lambda moment: sum(moments[moment].values()))
    found = moments[name]
    if job.device == "cuda":
        found["margin"] = FRAGMENTS * sum(found.get(item, 0) for item in ("activations", "layer", "mask", "head", "buffers"))
        found["context"] = CONTEXT + (LINKS if job.cards > 1 else 0)
    return name, {item: found[item] for item in ITEMS if found.get(item, 0) > 0}


def resident(sizes: Sizes, job: Job) -> Parts:
    """What stays the whole run: weights, adapter, optimiser's states. ZeRO: arXiv 1910.02054, section 5."""
    zero, share = job.zero, 1 if job.zero is None or job.zero.stage < 3 else job.cards
    offloaded = zero is not None and zero.stage == 3 and zero.offload_weights
    states = 0 if zero is not None and zero.offload_optimizer else optimizer_bytes(sizes, job)
    return {
        "weights": 0 if offloaded else weight_bytes(sizes, job) / share,
        "adapter": 0 if offloaded else sizes.layers * adapter(sizes, job) * job.adapter_bytes / share,
        "optimizer": states,
    }


def weight_bytes(sizes: Sizes, job: Job) -> float:
    """The base model's weights, unsharded. bitsandbytes quantises the layers' matrices, neither embedding nor LM head."""
    matrices = sizes.layers * sizes.layer_matrices
    if job.quantize is None:
        return sizes.parameters * job.weight_bytes
    if job.quantize == "4bit":
        packed = matrices * (0.5 + FLOAT / NF4_BLOCK)
    else:
        packed = matrices + FLOAT * sizes.layers * sum(outputs for _, outputs in sizes.linears.values())
    return packed + (sizes.parameters - matrices) * HALF


def trained(sizes: Sizes, job: Job) -> int:
    """Trained parameters."""
    return sizes.parameters if job.full else sizes.layers * adapter(sizes, job)


def _trained_bytes(job: Job) -> int:
    return job.weight_bytes if job.full else job.adapter_bytes


def optimizer_bytes(sizes: Sizes, job: Job) -> float:
    """The optimiser's states on one card.

    AdamW: two numbers a parameter in the parameter's own type. Muon: one for a matrix of a layer. DeepSpeed: float32 master
    weights and two float32 numbers, 12 bytes a parameter, shared by the cards from stage 1 on.
    """
    count = trained(sizes, job)
    if job.zero is not None:
        return 3 * FLOAT * count / (job.cards if job.zero.stage else 1)
    ones = sizes.layers * sizes.layer_matrices if job.optimizer == "muon" else 0
    return (2 * count - ones) * _trained_bytes(job)


def _gradients(sizes: Sizes, job: Job, ready: int) -> float:
    """Bytes of gradients when `ready` trained parameters have theirs.

    Accumulation keeps all of them from step to step; DDP has them once more in its buckets; ZeRO keeps a card's share from
    stage 2 on.
    """
    count, size = trained(sizes, job), _trained_bytes(job)
    if job.zero is not None:
        return HALF * count / (job.cards if job.zero.stage >= 2 else 1)
    own = (count if job.accumulation > 1 else ready) * size
    return own + (count * size if job.cards > 1 else 0)


def _moments(sizes: Sizes, job: Job) -> dict[str, Parts]:
    """What comes and goes, at each moment that can be the highest."""
    layers, each = sizes.layers, trained(sizes, job) - (_outer(sizes) if job.full else 0)
    each //= layers
    table = sizes.table if job.full else 0
    ready = {"last": table, "first": table + (layers - 1) * each}
    kept_now = {"last": _kept_up_to(sizes, job, layers), "first": _kept_up_to(sizes, job, 1)}
    common: Parts = {"mask": _mask(job), "buffers": _buffers(sizes, job)}
    end = _end(sizes, job)
    found: dict[str, Parts] = {
        "LM head": {"activations": kept_now["last"] + end, "head": _head(sizes, job), "gradients": _gradients(sizes, job, 0)},
        "final norm": {
            "activations": kept_now["last"] + end,
            "layer": 4 * sizes.hidden * FLOAT * job.rows,
            "gradients": _gradients(sizes, job, table),
        },
    }
    for place in ("last", "first"):
        found[f"{place} layer"] = {
            "activations": kept_now[place],
            "layer": _layer_work(sizes, job),
            "gradients": _gradients(sizes, job, ready[place]),
        }
    if job.full:
        # A tied table's gradients are added up in a third tensor.
        more = (2 * sizes.table if sizes.tied else 0) * job.weight_bytes
        found["embedding"] = {"layer": more, "gradients": _gradients(sizes, job, trained(sizes, job))}
    found["optimizer step"] = {
        "gradients": _gradients(sizes, job, trained(sizes, job)),
        "layer": _step_work(sizes, job),
    }
    return {name: {**common, **parts} for name, parts in found.items()}


def _outer(sizes: Sizes) -> int:
    """Parameters outside the layers."""
    return sizes.parameters - sizes.layers * sizes.layer


def _kept_up_to(sizes: Sizes, job: Job, layers: int) -> float:
    """Activations kept when the first `layers` layers have not been through their backward yet."""
    positions = 2 * sizes.rotary * job.weight_bytes * job.rows
    if job.checkpointing:
        return layers * sizes.hidden * job.weight_bytes * job.rows + positions
    return (layers - 1) * kept(sizes, job) + kept(sizes, job, first=True) + positions


def _end(sizes: Sizes, job: Job) -> float:
    """What the final norm keeps."""
    return (FLOAT * sizes.hidden + FLOAT + (sizes.hidden * job.weight_bytes if job.full else 0)) * job.rows


def _mask(job: Job) -> float:
    """The S x S mask of booleans, of the whole sequence in each process."""
    return job.batch * job.length * job.length if job.mask else 0


def _layer_work(sizes: Sizes, job: Job) -> float:
    """Beyond what is kept of all layers: the layer that goes through its backward, and its gradients on the way.

    With checkpointing the layer is computed again first. The highest point is silu(gate) * up: three gradients of the width
    of the MLP, while what down_proj kept is free again. With dropout under LoRA it is the end of the layer's forward instead,
    where down_proj's input is held beside its dropped copy.
    """
    h, f, c = sizes.hidden, sizes.intermediate, job.compute_bytes
    residual = h * job.weight_bytes
    token = residual + 2 * f * c
    fixed = f * h * job.weight_bytes if job.full else 0
    if not job.full:
        wide = job.adapter_bytes if job.adapter_bytes > c else 0  # rows are cast to the adapter's type and back
        held = (f * c if job.dropout else 0) + (4 if job.checkpointing else 5) * h * c
        token = max(token - (f * c if job.dropout else 0), 2 * f * wide + held)
    again = 0
    if job.checkpointing:
        shared = residual * job.rows if job.weight_bytes == FLOAT else 0  # the kept input is the first norm's
        again = kept(sizes, job) - shared
    whole_matrix = 2 * f * h * c if job.quantize else 0  # one matrix is dequantised at a time
    return again + token * job.rows + fixed + whole_matrix


def _head(sizes: Sizes, job: Job) -> float:
    """Scoring the labelled positions: in tiles on CUDA, else their logits, log-probabilities and one gradient of them."""
    n, rows, h = job.scored, sizes.vocabulary, sizes.hidden
    gradient = rows * h * job.weight_bytes if job.full else 0
    if job.device == "cpu":
        return max(3 * n * rows * FLOAT, n * rows * FLOAT + gradient)
    if not job.tiled:
        return n * rows * (3 * FLOAT + job.compute_bytes) + gradient
    tile = min(n, TILE_TOKENS) * min(rows, TILE_ROWS) * job.compute_bytes
    summed = rows * h * FLOAT if job.full else 0  # the head's gradient is summed in float32
    return tile + n * h * (FLOAT + job.compute_bytes) + gradient + summed


def _step_work(sizes: Sizes, job: Job) -> float:
    """Beside gradients and states: DeepSpeed's float32 copy of its share of the gradients."""
    if job.zero is None or job.zero.offload_optimizer:
        return 0
    return FLOAT * trained(sizes, job) / (job.cards if job.zero.stage else 1)


def _buffers(sizes: Sizes, job: Job) -> float:
    """DeepSpeed's buckets, allocated whole however few parameters are trained; under stage 3 the weights gathered at once."""
    if job.zero is None:
        return 0
    found = job.zero.reduce_bucket * HALF * (2 if job.zero.overlap else 1)
    if job.zero.stage < 3:
        return found + min(job.zero.gather_bucket, trained(sizes, job)) * HALF
    return found + min(job.zero.live + job.zero.gather_bucket, sizes.parameters) * job.weight_bytes


def adapter(sizes: Sizes, job: Job) -> int:
    """Parameters of the LoRA adapter on one layer: r x (inputs + outputs) for each target (arXiv 2106.09685)."""
    return 0 if job.rank is None else sum(job.rank * sum(sizes.linears[name]) for name in job.targets)
