"""BitLinear: a linear layer of ternary weights and int8 activations, trained through a straight-through estimator.

At lambda = 1 backward keeps the int8 codes of the activations instead of their floats: half the bytes of a bfloat16 linear
layer. Gradients are those of the straight-through estimator: `dx = dy @ Q(W)`, `dW = dy^T @ Q(x)`. The product itself is

- in float32: exact, on integers, `(codes_x @ codes_w^T) * (g/127) * D`;
- in bfloat16, for training: `bf16(codes_x * g/127 * D) @ codes_w^T`, where the ternary codes are exact and each activation is
  rounded as any bfloat16 activation is. Without compiled kernels, scaling an int32 product takes longer than it saves.

Below 1 the layer computes `w + lambda (Q(w) - w).detach()`, and the same for x, in floats.

The ternary codes are computed in every forward pass unless `hold_codes` was called, which computes them once until
`release_codes`: once a step instead of once a micro-batch, and once for a model that is only read. It is explicit because a fused
optimizer changes weights without raising their version counter, so a stale code could not be told from a fresh one.

`norm`, where there is one, is the SubLN of BitDistill: an RMSNorm on the input of the projection.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wfray.quant.int8 import fake_quantize_activations, quantize_activations
from wfray.quant.ternary import quantize_weight


@dataclass(frozen=True)
class TernaryWeight:
    """The quantized form of one latent weight."""

    codes: Tensor
    """int8 [D, C]."""
    scale: Tensor
    """float32 scalar."""
    low: Tensor | None = None
    """The codes in the dtype of the products, where that is not float32; exact."""

    @classmethod
    def of(cls, quantized: tuple[Tensor, Tensor], dtype: torch.dtype) -> "TernaryWeight":
        """Prepare codes and scale for products in `dtype`."""
        codes, scale = quantized
        return cls(codes, scale, None if dtype == torch.float32 else codes.to(dtype))


class TernaryProduct(torch.autograd.Function):
    """`Q(x) @ Q(W)^T` with the straight-through estimator's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ternary: TernaryWeight, dtype: torch.dtype) -> Tensor:
        """Args: x [..., C], latent weight [D, C] (for its gradient only), its ternary form, dtype of the result [..., D]."""
        codes_x, scale_x = quantize_activations(x)
        codes_TC, scale_T1 = codes_x.flatten(0, -2), scale_x.flatten(0, -2)
        if ternary.low is None:
            y_TD = torch._int_mm(codes_TC, ternary.codes.t()) * (scale_T1 * ternary.scale)
        else:
            y_TD = scaled_codes(codes_TC, scale_T1 * ternary.scale, dtype) @ ternary.low.t()
        ctx.save_for_backward(codes_TC, scale_T1)
        ctx.ternary, ctx.x_shape, ctx.x_dtype, ctx.dtype = ternary, x.shape, x.dtype, dtype
        return y_TD.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients of x and of the latent weight."""
        codes_TC, scale_T1 = ctx.saved_tensors
        grad_TD = grad_y.flatten(0, -2).to(ctx.dtype)
        codes_w = ctx.ternary.codes.to(ctx.dtype) if ctx.ternary.low is None else ctx.ternary.low
        grad_x = (grad_TD @ codes_w).to(ctx.x_dtype).mul_(ctx.ternary.scale)
        grad_weight = grad_TD.t() @ scaled_codes(codes_TC, scale_T1, ctx.dtype)
        return grad_x.view(ctx.x_shape), grad_weight.float(), None, None


def scaled_codes(codes_TC: Tensor, scale_T1: Tensor, dtype: torch.dtype) -> Tensor:
    """`codes * scale` in `dtype`."""
    return codes_TC.to(dtype).mul_(scale_T1.to(dtype))


class BitLinear(nn.Module):
    """A linear layer with latent float32 weights [D, C] that computes with their ternary codes."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None, norm: nn.RMSNorm | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.norm = norm
        self.quantization_lambda = 1.0
        self._held: TernaryWeight | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., D]; the dtype is autocast's where that is on, else that of `x`."""
        if self.norm is not None:
            # The fused kernel wants one dtype, and the norm's weight is float32 in training.
            x = self.norm(x.to(self.norm.weight.dtype))
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        y = self._ternary(x, dtype) if self.quantization_lambda == 1.0 else self._partly_ternary(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _ternary(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        held = self._held or TernaryWeight.of(quantize_weight(self.weight), dtype)
        return TernaryProduct.apply(x, self.weight, held, dtype)

    def _partly_ternary(self, x: Tensor) -> Tensor:
        codes_w, scale_w = self.ternary_weight()
        strength = self.quantization_lambda
        weight = self.weight + strength * (codes_w * scale_w - self.weight).detach()
        return F.linear(x + strength * (fake_quantize_activations(x) - x).detach(), weight)

    def ternary_weight(self) -> tuple[Tensor, Tensor]:
        """Codes (int8 [D, C]) and scale: the held ones, else those of the current latent weight."""
        return (self._held.codes, self._held.scale) if self._held else quantize_weight(self.weight)

    def hold_codes(self, dtype: torch.dtype, quantized: tuple[Tensor, Tensor] | None = None) -> None:
        """Compute the codes now and use them until they are released; the latent weight must not change in between.

        Args:
            dtype: of the products.
            quantized: codes and scale, where they were computed elsewhere.
        """
        self._held = TernaryWeight.of(quantized or quantize_weight(self.weight), dtype)

    def release_codes(self) -> None:
        """Go back to codes of the current latent weight."""
        self._held = None

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, bias={self.bias is not None}"


def bit_linears(model: nn.Module) -> list[BitLinear]:
    """Every BitLinear of a model."""
    return [module for module in model.modules() if isinstance(module, BitLinear)]


def hold_codes(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Compute the codes of every BitLinear once, for products in `dtype`, for as long as no weight changes."""
    for layer in bit_linears(model):
        layer.hold_codes(dtype)


def release_codes(model: nn.Module) -> None:
    """Let every BitLinear follow its latent weight again."""
    for layer in bit_linears(model):
        layer.release_codes()
