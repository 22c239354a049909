"""Clipping of the gradient by its global norm g: at a fixed norm, or where g is an outlier among the recent ones.

ZClip (arXiv 2504.02507) keeps moving averages m of the norm and v of its squared distance from m, started from the norms of the
first `warmup_steps` steps. With `z = (g - m) / (sqrt(v) + 1e-6)` and threshold t, a norm of z > t is scaled down to
`m + t^2 sqrt(v) / z`: the larger the outlier, the closer to the mean. The averages take in the scaled norm,
`m <- d m + (1 - d) g`, then `v <- d v + (1 - d) (g - m)^2`.
"""

from collections.abc import Iterable

import torch
from pydantic import BaseModel
from torch import nn

from wfray.config.optimizer import Clipping, ZClip
from wfray.train.collective import whole

EPS = 1e-6


class ClippingState(BaseModel):
    """ZClip's memory."""

    first_norms: list[float] = []
    """Of the warm-up, until it is over."""
    mean: float | None = None
    """None until then."""
    variance: float = 0.0


class Clipper:
    """Scales gradients; only steps that are taken go through it."""

    def __init__(self, config: Clipping, state: ClippingState) -> None:
        self.config, self.state = config, state

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> float:
        """Scale the gradients in place where their global norm `norm` is too large; returns the norm that they have now."""
        target = within_outliers(self.config, self.state, norm) if isinstance(self.config, ZClip) else norm
        if self.config.max_norm is not None:
            target = min(target, self.config.max_norm)
        if target < norm:
            torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], target / norm)
        return target


def within_outliers(config: ZClip, state: ClippingState, norm: float) -> float:
    """The norm that ZClip leaves to a gradient of norm `norm`, which it takes into its averages."""
    if state.mean is None:
        state.first_norms.append(norm)
        if len(state.first_norms) == config.warmup_steps:
            state.mean = sum(state.first_norms) / config.warmup_steps
            state.variance = sum((first - state.mean) ** 2 for first in state.first_norms) / config.warmup_steps
            state.first_norms = []
        return norm
    deviation = state.variance**0.5
    z = (norm - state.mean) / (deviation + EPS)
    left = norm if z <= config.threshold else state.mean + config.threshold**2 * deviation / z
    state.mean = config.decay * state.mean + (1 - config.decay) * left
    state.variance = config.decay * state.variance + (1 - config.decay) * (left - state.mean) ** 2
    return left


def global_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The norm of all gradients together; of sharded ones, over all workers."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    return whole(norm).item()
