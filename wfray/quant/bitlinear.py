"""BitLinear: a linear layer of ternary weights and int8 activations, trained through a straight-through estimator.

At lambda = 1 the forward product is exact, on integers, `(codes_x @ codes_w^T) * (g/127) * D`, and backward keeps the int8 codes of
the activations instead of their floats: half the bytes of a bfloat16 linear layer. Gradients are those of the straight-through
estimator, `dx = dy @ Q(W)` and `dW = dy^T @ Q(x)`, with products in the dtype of the result.

An int8 product takes half the time of a bfloat16 one, but in eager mode the pointwise passes around it (norm, codes, scaling)
cost more than that; compiled with the rest of a decoder layer they nearly vanish (see `benchmarks/qat_step.py`).

Below 1 the layer computes `w + lambda (Q(w) - w).detach()`, and the same for x, in floats; at 0 that is an ordinary linear layer.

`norm`, where there is one, is the SubLN of BitDistill: an RMSNorm on the input of the projection. Below 1 its input is
`x + lambda (norm(x) - x)`, so that at 0 a converted model is the original itself, and every lambda between is a step of one path. SubLN
alone takes SmolLM2-135M (30 layers, calibrated, full-precision weights) from 3.0 to 14.2 nats a token (benchmarks/quality/LOG.md).

The ternary codes are computed in every forward pass unless `hold_codes` was called, which computes them once until
`release_codes`: once a step instead of once a micro-batch, and once for a model that is only read. It is explicit because a fused
optimizer changes weights without raising their version counter, so a stale code could not be told from a fresh one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wfray.quant.int8 import fake_quantize_activations, int8_matmul, quantize_activations
from wfray.quant.ternary import quantize_weight


class TernaryProduct(torch.autograd.Function):
    """`Q(x) @ Q(W)^T` with the straight-through estimator's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, codes_DC: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Args: x [..., C], latent weight [D, C] (for its gradient only), its ternary form, dtype of the result [..., D]."""
        codes_x, scale_x = quantize_activations(x)
        codes_TC, scale_T1 = codes_x.flatten(0, -2), scale_x.flatten(0, -2)
        y_TD = (int8_matmul(codes_TC, codes_DC) * (scale_T1 * scale)).to(dtype)
        ctx.save_for_backward(codes_TC, scale_T1, codes_DC, scale)
        ctx.x_shape, ctx.x_dtype, ctx.dtype = x.shape, x.dtype, dtype
        return y_TD.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        """The gradients of x and of the latent weight, where that learns."""
        codes_TC, scale_T1, codes_DC, scale = ctx.saved_tensors
        grad_TD = grad_y.flatten(0, -2).to(ctx.dtype)
        grad_x = ((grad_TD @ codes_DC.to(ctx.dtype)) * scale).to(ctx.x_dtype)
        grad_weight = (grad_TD.t() @ (codes_TC * scale_T1).to(ctx.dtype)).float() if ctx.needs_input_grad[1] else None
        return grad_x.view(ctx.x_shape), grad_weight, None, None, None


class BitLinear(nn.Module):
    """A linear layer with latent float32 weights [D, C] that computes with their ternary codes."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None, norm: nn.RMSNorm | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.norm = norm
        self.partial_lambda: Tensor | None = None
        """Lambda as a scalar tensor, so that compiled code need not be made anew when it moves; None: 1."""
        self.is_plain = False
        """Whether lambda is 0, so that nothing need be quantized."""
        self._held: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., D]; the dtype is autocast's where that is on, else that of `x`."""
        if self.is_plain:
            return F.linear(x, self.weight, self.bias)
        x = self.normed(x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        codes_DC, scale = self.ternary_weight()
        if self.partial_lambda is None:
            y = TernaryProduct.apply(x, self.weight, codes_DC, scale, dtype)
        else:
            y = self._partly_ternary(x, codes_DC * scale, self.partial_lambda)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def normed(self, x: Tensor) -> Tensor:
        """What the layer quantizes: `x` after its SubLN, where there is one."""
        if self.norm is None:
            return x
        # The fused kernel wants one dtype, and the norm's weight is float32 in training.
        wide = x.to(self.norm.weight.dtype)
        normed = self.norm(wide)
        return normed if self.partial_lambda is None else wide + self.partial_lambda * (normed - wide)

    def _partly_ternary(self, x: Tensor, quantized_DC: Tensor, strength: Tensor) -> Tensor:
        weight = self.weight + strength * (quantized_DC - self.weight).detach()
        return F.linear(x + strength * (fake_quantize_activations(x) - x).detach(), weight)

    def ternary_weight(self) -> tuple[Tensor, Tensor]:
        """Codes (int8 [D, C]) and scale: the held ones, else those of the current latent weight."""
        return self._held or quantize_weight(self.weight)

    def hold_codes(self, quantized: tuple[Tensor, Tensor] | None = None) -> None:
        """Compute the codes now and use them until they are released; the latent weight must not change in between.

        Args:
            quantized: codes and scale, where they were computed elsewhere.
        """
        self._held = quantized or quantize_weight(self.weight)

    def release_codes(self) -> None:
        """Go back to codes of the current latent weight."""
        self._held = None

    @property
    def holds_codes(self) -> bool:
        """Whether codes are held."""
        return self._held is not None

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, bias={self.bias is not None}"


def bit_linears(model: nn.Module) -> list[BitLinear]:
    """Every BitLinear of a model."""
    return [module for module in model.modules() if isinstance(module, BitLinear)]


def hold_codes(model: nn.Module) -> None:
    """Compute the codes of every BitLinear that uses them, and holds none yet, once, for as long as no weight changes."""
    for layer in bit_linears(model):
        if not layer.is_plain and not layer.holds_codes:
            layer.hold_codes()


def release_codes(model: nn.Module) -> None:
    """Let every BitLinear follow its latent weight again."""
    for layer in bit_linears(model):
        layer.release_codes()
