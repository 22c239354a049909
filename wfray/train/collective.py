"""Sums over the workers of a stage; with one worker, nothing happens."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class Collective:
    """The group of workers, from torch.distributed where that is initialised."""

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.world_size = dist.get_world_size() if grouped else 1

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up every parameter's gradient over the workers, in place."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    def sum_floats(self, values: dict[str, float]) -> dict[str, float]:
        """Add up named numbers over the workers."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64)
        dist.all_reduce(tensor)
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
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.world_size > 1:
            dist.barrier()
