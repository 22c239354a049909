"""Sums over the workers of a stage; with one worker, nothing happens.

Numbers travel through groups of their own on the CPU, whatever the accelerators use for tensors: one for the training loop, one for
the thread that writes checkpoints, since two threads must not mix their calls in one group.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


class Collective:
    """The group of workers, from torch.distributed where that is initialised."""

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.world_size = dist.get_world_size() if grouped else 1
        several = self.world_size > 1
        self.group = dist.new_group(backend="gloo") if several else None
        """For the training loop's numbers; None with one worker."""
        self.background = dist.new_group(backend="gloo") if several else None
        """For the thread that writes checkpoints."""

    def sum_floats(self, values: dict[str, float]) -> dict[str, float]:
        """Add up named numbers over the workers."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return dict(zip(sorted(values), tensor.tolist(), strict=True))

    def maximum_(self, tensor: Tensor) -> None:
        """Replace every element by its largest value over the workers."""
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def gather(self, value: T) -> list[T]:
        """The values of all workers, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.world_size > 1:
            dist.barrier(group=self.group)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all workers, where it is sharded; all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
