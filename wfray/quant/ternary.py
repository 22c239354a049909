"""Ternary weights: one float scale a matrix, every weight -1, 0 or +1 times that scale.

`D = mean|W|`, `codes = clip(round(W / (D + eps)), -1, 1)`, `Q(W) = D * codes` (BitNet b1.58 and BitDistill, arXiv 2510.13998,
equations 1 and 2). Rounding is to even, as torch rounds.
"""

import torch
from torch import Tensor

WEIGHT_EPS = 1e-5


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize one matrix.

    Args:
        weight: latent weights, any shape, float32.

    Returns:
        codes: int8 of the same shape, each -1, 0 or 1.
        scale: the float32 scalar D, so that the quantized matrix is `codes * scale`.
    """
    latent = weight.detach().float()
    scale = ternary_scale(absolute_sum(latent), latent.numel())
    return ternary_codes(latent, scale), scale


def absolute_sum(latent_RC: Tensor) -> Tensor:
    """Sum of |w| over some rows of a matrix: a float32 sum along each row, and a float64 sum of those.

    So the sum of a matrix is the same in float32, wherever its rows are: on one worker or on several.
    """
    return latent_RC.abs().sum(dim=-1).sum(dtype=torch.float64)


def ternary_scale(total: Tensor, num_weights: int) -> Tensor:
    """The scale D (float32) of a matrix from its `absolute_sum`."""
    return (total / num_weights).float()


def ternary_codes(latent: Tensor, scale: Tensor) -> Tensor:
    """The codes (int8) of float32 weights, any part of a matrix, whose scale is known."""
    return (latent * (1.0 / (scale + WEIGHT_EPS))).round_().clamp_(-1, 1).to(torch.int8)
