"""Puts -inf wherever a row's allowed ids are not. Knows tensors and sets of ids; which ids are allowed is not decided here.

**Fast on a CPU.** A row of GLM-4's logits has 151,552 numbers of which a name allows a handful, so writing -inf everywhere is
nearly all the time of a mask. Here buffers full of -inf take turns: a call writes the few allowed numbers into one, and
takes back those that the buffer's last use had written. A buffer is used again only if no tensor, view or storage of it is
held outside (`output_scores=True` holds them all) and nobody else wrote into it; otherwise it is left to whoever holds it.
Making a buffer costs more than all steps of a short list, so small ones outlive the mask that made them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from yaofang.decoding.bias import Values
from yaofang.decoding.constraint import Ids

WIDE = 4096
"""Sets of more ids than this are the free text's: few, long and shared, so their index is kept on the device."""
SETS = 16
"""Wide sets whose index is kept."""
SMALL = 64 << 20
"""Bytes up to which buffers are kept for later masks."""
KEPT = 4
"""Buffers kept at most; two take turns in one loop of generation."""
FEW = 8
"""Rows up to which a row at a time is faster than all at once."""
_shared: list[_Buffer] = []
_uses = getattr(torch._C, "_storage_Use_Count", None)


class LogitsMask:
    """Masks batch after batch; the tensor that it returns is the caller's for good."""

    def __init__(self) -> None:
        self._wide: dict[int, tuple[Ids, torch.Tensor]] = {}
        self._large: list[_Buffer] = []

    def __call__(
        self, scores: torch.Tensor, allowed: Sequence[Ids], bias: Sequence[Values | None] | None = None
    ) -> torch.Tensor:
        """A tensor of the shape of `scores` [rows, vocabulary], with one set of ids for each row; `bias` is added to them.

        A row whose allowed ids all have -inf gets 0 for each of them, so that none is preferred and no other can win.
        Raises ValueError for NaN or +inf where an id is allowed.
        """
        if len(allowed) != len(scores):
            raise ValueError(f"{len(scores)} rows of scores, {len(allowed)} sets of ids")
        if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
            return self._with_torch(scores, allowed, bias)
        source = scores.detach().numpy()
        buffer = self._free_buffer(scores)
        sizes = np.fromiter(map(len, allowed), dtype=np.int64, count=len(allowed))
        if len(allowed) <= FEW or sizes.max() > WIDE:
            _row_by_row(buffer, source, allowed, bias)
        else:
            _all_at_once(buffer, source, allowed, sizes, bias)
        return buffer.tensor

    def _free_buffer(self, like: torch.Tensor) -> _Buffer:
        """A buffer that nobody holds, made where there is none; it goes back at once, since its holder keeps it from others."""
        shelf = _shared if like.nbytes <= SMALL else self._large
        kept: list[_Buffer] = []
        buffer = None
        while buffer is None and shelf:
            one = shelf.pop(0)
            if one.free(like):
                buffer = one
            else:
                kept.append(one)
        buffer = _Buffer(like) if buffer is None else buffer
        buffer.clear()
        shelf += [*kept, buffer]
        del shelf[:-KEPT]
        return buffer

    def _with_torch(self, scores: torch.Tensor, allowed: Sequence[Ids], bias: Sequence[Values | None] | None) -> torch.Tensor:
        masked = torch.full_like(scores, -torch.inf)
        narrow = [row for row, ids in enumerate(allowed) if len(ids) <= WIDE]
        if narrow:
            sizes = torch.tensor([len(allowed[row]) for row in narrow])
            rows = torch.repeat_interleave(torch.tensor(narrow), sizes).to(scores.device)
            columns = torch.from_numpy(np.concatenate([allowed[row] for row in narrow])).to(scores.device)
            masked[rows, columns] = scores[rows, columns]
            if bias is not None:
                amounts = np.concatenate([_amounts(bias[row], allowed[row]) for row in narrow])
                masked[rows, columns] += torch.from_numpy(amounts).to(masked)
        for row, ids in enumerate(allowed):
            if len(ids) > WIDE:
                columns = self._on_device(ids, scores.device)
                masked[row, columns] = scores[row, columns]
                if bias is not None and (found := bias[row]) is not None:
                    masked[row, columns] += torch.from_numpy(found).to(masked)
        best = masked.amax(-1)
        for row in torch.nonzero(~torch.isfinite(best))[:, 0].tolist():
            refuse(row, float(best[row]))
            masked[row, torch.from_numpy(allowed[row]).to(scores.device)] = 0.0
        return masked

    def _on_device(self, ids: Ids, device: torch.device) -> torch.Tensor:
        known = self._wide.get(id(ids))
        if known is None or known[1].device != device:
            if len(self._wide) >= SETS:
                self._wide.clear()
            # The array is kept beside its index, so that its id() stays its own.
            known = self._wide[id(ids)] = (ids, torch.from_numpy(ids).to(device))
        return known[1]


class _Buffer:
    """A tensor of -inf in which some places are written."""

    def __init__(self, like: torch.Tensor) -> None:
        with torch.inference_mode(False):  # so that writes are counted, whoever calls
            self.tensor = torch.full(like.shape, -torch.inf, dtype=like.dtype)
        self.values = self.tensor.numpy()
        self._flat = self.values.reshape(-1)
        self._written: list[Ids] = []
        self._version = self.tensor._version
        self._alone = self._held()

    def _held(self) -> tuple[int, int]:
        """References to the tensor itself, and tensors that share its storage."""
        return sys.getrefcount(self.tensor), _uses(self.tensor.untyped_storage()._cdata) if _uses else -1

    def free(self, like: torch.Tensor) -> bool:
        """It fits, nobody holds any part of it, and nobody but us wrote into it."""
        return (
            _uses is not None
            and self.tensor.shape == like.shape
            and self.tensor.dtype == like.dtype
            and self.tensor._version == self._version
            and self._held() == self._alone
        )

    def clear(self) -> None:
        """Take back what was written."""
        for places in self._written:
            self._flat[places] = -np.inf
        self._written.clear()

    def write(self, places: Ids, values: npt.NDArray[np.floating]) -> None:
        """Put values at flat places."""
        self._flat[places] = values
        self._written.append(places)


def _row_by_row(
    buffer: _Buffer, source: npt.NDArray[np.floating], allowed: Sequence[Ids], bias: Sequence[Values | None] | None
) -> None:
    width = source.shape[1]
    for row, ids in enumerate(allowed):
        values = source[row].take(ids)
        if bias is not None and (amounts := bias[row]) is not None:
            values += amounts
        best = values.max()
        if not -np.inf < best < np.inf:
            refuse(row, float(best))
            values[:] = 0.0
        buffer.write(ids + row * width if row else ids, values)


def _all_at_once(
    buffer: _Buffer,
    source: npt.NDArray[np.floating],
    allowed: Sequence[Ids],
    sizes: Ids,
    bias: Sequence[Values | None] | None,
) -> None:
    width = source.shape[1]
    places = np.concatenate(allowed)
    places += np.repeat(np.arange(len(allowed)) * width, sizes)
    values = source.take(places)
    if bias is not None:
        values += np.concatenate([_amounts(amounts, ids) for amounts, ids in zip(bias, allowed, strict=True)])
    begins = np.cumsum(sizes) - sizes
    best = np.maximum.reduceat(values, begins)
    for row in np.flatnonzero(~np.isfinite(best)):
        refuse(int(row), float(best[row]))
        values[begins[row] : begins[row] + sizes[row]] = 0.0
    buffer.write(places, values)


def _amounts(found: Values | None, ids: Ids) -> Values:
    return np.zeros(len(ids), dtype=np.float32) if found is None else found


def refuse(row: int, best: float) -> None:
    """NaN and +inf are no logits: whatever is chosen from them is chosen by chance. -inf is: it only says never."""
    if best != -np.inf:
        raise ValueError(f"the logits of row {row} hold {best} where an id is allowed: the model's numbers are broken")
