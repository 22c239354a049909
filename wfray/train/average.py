"""The moving average of the weights, `a <- d a + (1 - d) w` after every step that was taken; it starts at the first weights.

It is a state of the optimizer beside its moments, one float32 tensor a weight, so checkpoints and shards need not know of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

KEY = "average"


def start_average(optimizer: torch.optim.Optimizer) -> None:
    """Let the average begin at the current weights."""
    for parameter, state in optimizer.state.items():
        state[KEY] = parameter.detach().clone()


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Take in the weights after a step."""
    averages = [state[KEY] for state in optimizer.state.values()]
    torch._foreach_lerp_(averages, list(optimizer.state), 1 - decay)


@torch.no_grad()
def swap_average(optimizer: torch.optim.Optimizer) -> None:
    """Exchange weights and average; twice changes nothing, to the bit."""
    for parameter, state in optimizer.state.items():
        weight = parameter.detach().clone()
        parameter.copy_(state[KEY])
        state[KEY].copy_(weight)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer, is_on: bool) -> Iterator[None]:
    """Within the block the model has the weights that would be saved: the average, where it is on."""
    if is_on:
        swap_average(optimizer)
    yield
    if is_on:
        swap_average(optimizer)
