"""Weights of objectives over the course of a stage."""

import math

from wfray.config.objectives import Ramp


def ramp_at(weight: float | Ramp, progress: float) -> float:
    """The weight at `progress` in 0..1: constant, or from `start` to `end` linearly or on a half cosine."""
    if not isinstance(weight, Ramp):
        return float(weight)
    moved = progress if weight.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return weight.start + (weight.end - weight.start) * moved
