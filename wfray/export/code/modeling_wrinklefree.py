"""A ternary student of WrinkleFree in transformers: a family's own model whose projections hold four codes a byte.

A projection computes `(round(127 x / (g + 1e-5)) @ codes^T) * (g / 127) * scale`, where g is the largest |x| of the token, after an
RMSNorm on its input where the student has one. Row i + k * (rows / 4) of the codes is at bits 2k of row i of the bytes, each code plus 1.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig as FamilyConfig
from transformers import LlamaForCausalLM as FamilyModel

ACTIVATION_EPS = 1e-5
LEVELS = 127


class BitLinear(nn.Module):
    """A linear layer of ternary weights and int8 activations."""

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, norm_eps: float | None) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_features // 4, in_features, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.norm = None if norm_eps is None else nn.RMSNorm(in_features, eps=norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.norm is None else self.norm(x.to(self.norm.weight.dtype))
        codes = torch.cat([(self.weight >> shift) & 3 for shift in (0, 2, 4, 6)]).to(x.dtype) - 1
        largest = x.abs().amax(-1, keepdim=True).float()
        rounded = (x * (LEVELS / (largest + ACTIVATION_EPS))).round().to(x.dtype)
        y = (functional.linear(rounded, codes) * (largest / LEVELS * self.weight_scale)).to(x.dtype)
        return y if self.bias is None else y + self.bias


class WrinkleFreeConfig(FamilyConfig):
    """The family's configuration; `wrinklefree` says which projections have a norm."""

    model_type = "wrinklefree"


class WrinkleFreeForCausalLM(FamilyModel):
    """The family's causal language model with BitLinear projections."""

    config_class = WrinkleFreeConfig

    def __init__(self, config: WrinkleFreeConfig) -> None:
        super().__init__(config)
        normed = config.wrinklefree["normed"]
        for layer in self.model.layers:
            for block in (layer.self_attn, layer.mlp):
                for name, linear in list(block.named_children()):
                    if isinstance(linear, nn.Linear):
                        eps = config.wrinklefree["subln"]["eps"] if name in normed else None
                        setattr(block, name, BitLinear(linear.in_features, linear.out_features, linear.bias is not None, eps))
