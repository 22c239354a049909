"""Keys and values while decoding: one place for every position of every row, written in place each time a position is run.

Finished blocks are never run again; the block in work is written anew by every run over it, so there is nothing to commit but the
row's progress. Positions are places, and a query sees every key whose block is not after its own: what stands further behind, left
there by a longer row's prompt or by nothing, is never looked at. With blocks of one token this is causal attention with a cache.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wfray.diffusion.attention import grouped_attention


@dataclass
class Cache:
    """B rows of a model's keys and values."""

    num_rows: int
    capacity: int
    """Positions of a row."""
    block_size: int
    keys: dict[int, Tensor] = field(default_factory=dict)
    """By layer, [B, capacity, kv heads, D]."""
    values: dict[int, Tensor] = field(default_factory=dict)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.keys[layer], self.values[layer]

    def make_room(self, layer: int, key_RKTD: Tensor) -> None:
        """Allocate a layer when it is first run."""
        if layer not in self.keys:
            shape = (self.num_rows, self.capacity, key_RKTD.shape[1], key_RKTD.shape[3])
            self.keys[layer], self.values[layer] = key_RKTD.new_zeros(shape), key_RKTD.new_zeros(shape)


class CachedRun:
    """One forward pass over some positions of some rows; implements `wfray.diffusion.attention.Attending`."""

    def __init__(self, cache: Cache, rows: list[int], positions_RT: Tensor) -> None:
        """Args: the cache; its rows that are run; their positions, consecutive in each row."""
        self.cache, self.positions_RT = cache, positions_RT
        self.rows = torch.tensor(rows, device=positions_RT.device)
        self.run = slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else None
        """The rows, where they follow each other: they need not be copied."""
        self.first, size, last = int(positions_RT[0, 0]), cache.block_size, int(positions_RT.max())
        self.end = min((last // size + 1) * size, cache.capacity)
        blocks_R1T1 = (positions_RT // size)[:, None, :, None]
        mask_R1TL = torch.arange(self.end, device=positions_RT.device) // size <= blocks_R1T1
        self.mask = None if bool(mask_R1TL.all()) else mask_R1TL

    def attend(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, scaling: float) -> Tensor:
        """See `Attending`."""
        self.cache.make_room(layer, value_BKTD)
        keys_BLKD, values_BLKD = self.cache[layer]
        keys, values = self._write(keys_BLKD, key_BKTD), self._write(values_BLKD, value_BKTD)
        return grouped_attention(query_BHTD.to(values.dtype), keys, values, self.mask, scaling)

    def _write(self, into_BLKD: Tensor, new_RKTD: Tensor) -> Tensor:
        """Put the new states in their places; returns all that these rows have, [R, K, end, D]."""
        new_RTKD = new_RKTD.transpose(1, 2).to(into_BLKD.dtype)
        if len(self.rows) == 1:
            into_BLKD[self.run, self.first : self.first + new_RTKD.shape[1]] = new_RTKD
        else:
            into_BLKD[self.rows[:, None], self.positions_RT] = new_RTKD
        seen_RLKD = into_BLKD[self.rows if self.run is None else self.run, : self.end]
        return seen_RLKD.transpose(1, 2)
