"""Int8 activations, one scale a token: `g = max|x|`, `Q(x) = g/127 * clip(round(127/(g + eps) * x), -128, 127)`.

BitDistill (arXiv 2510.13998) equation 3. A token is the last axis.
"""

import torch
from torch import Tensor
from torch.nn import functional

from wfray.quant.precision import CPU_MULTIPLIES_INT8

ACTIVATION_EPS = 1e-5
LEVELS = 127
CUDA_ROWS = 32


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each token of `x`.

    Args:
        x: activations [..., C].

    Returns:
        codes: int8 [..., C].
        scale: float32 [..., 1], so that the quantized activations are `codes * scale`.
    """
    lowest, highest = torch.aminmax(x.detach(), dim=-1, keepdim=True)
    largest = torch.maximum(-lowest, highest).float()
    # |x| <= g, so 127/(g + eps) * x lies within -127 and 127, and the formula's clip never does anything.
    codes = (x.detach() * (LEVELS / (largest + ACTIVATION_EPS))).round_().to(torch.int8)
    return codes, largest / LEVELS


def int8_matmul(codes_TC: Tensor, codes_DC: Tensor) -> Tensor:
    """The exact product `codes_TC @ codes_DC^T` of int8 and ternary codes, int32 [T, D].

    CUDA's int8 tensor cores want more than 16 rows; fewer are filled up with zeros. On a CPU without VNNI torch's int8 product
    is much slower than one of floats, which is exact too: no sum of up to 132,104 terms of 127 leaves the integers that a float32 holds.
    """
    if not codes_TC.is_cuda and not CPU_MULTIPLIES_INT8:
        return (codes_TC.float() @ codes_DC.float().t()).to(torch.int32)
    missing = CUDA_ROWS - codes_TC.shape[0] if codes_TC.is_cuda else 0
    if missing <= 0:
        return torch._int_mm(codes_TC, codes_DC.t())
    return torch._int_mm(functional.pad(codes_TC, (0, 0, 0, missing)), codes_DC.t())[: codes_TC.shape[0]]


def fake_quantize_activations(x: Tensor) -> Tensor:
    """The quantized activations as floats of the dtype of `x`; see the module docstring."""
    codes, scale = quantize_activations(x)
    return (codes * scale).to(x.dtype)
