"""Which share of the records this process has, when `torchrun` started several. Knows ranks and IDs, not records.

Without torchrun there is one share with everything in it, and waiting for the others returns at once.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

PATIENCE = timedelta(days=30)
"""How long a rank waits for the slowest one. torchrun ends all ranks when one fails, so this is no failure detector."""


@dataclass(frozen=True)
class Shard:
    """Share `rank` (from 0) of `world`; `local` numbers the processes of one machine, and so its cards."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def holds(self, record_id: str) -> bool:
        """Whether the record belongs to this share. It depends on the ID alone, not on the file's order."""
        return zlib.crc32(record_id.encode()) % self.world == self.rank

    @property
    def first(self) -> bool:
        """Whether this is the process that talks, merges and writes the outputs."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.barrier()

    def device(self, wanted: str) -> str:
        """The device of this process: `auto` and `cuda` mean a card of its own for each process of a machine."""
        if self.world > 1 and wanted in ("auto", "cuda"):
            import torch

            if torch.cuda.is_available():
                return f"cuda:{self.local % torch.cuda.device_count()}"
        return wanted


@contextmanager
def joined() -> Iterator[Shard]:
    """The share that torchrun's environment names, with the ranks connected while the block runs."""
    shard = Shard(*(int(os.environ.get(name, default)) for name, default in _VARIABLES))
    if shard.world == 1:
        yield shard
        return
    import torch.distributed

    # gloo: the ranks only wait for each other, and it works without a card
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield shard
    finally:
        torch.distributed.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
