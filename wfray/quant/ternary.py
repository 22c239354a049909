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
    scale = latent.abs().mean()
    codes = (latent * (1.0 / (scale + WEIGHT_EPS))).round_().clamp_(-1, 1).to(torch.int8)
    return codes, scale
