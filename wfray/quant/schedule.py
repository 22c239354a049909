"""Gradual quantization: lambda goes from 0 (full precision) to 1 (ternary) in the first tokens of a stage.

Shapes after the Hugging Face report on fine-tuning to 1.58 bits; with `s = tokens / warmup_tokens` in [0, 1]:
linear `s`, cosine `(1 - cos(pi s)) / 2`, exponential `1 - (1 - s)^4`, sigmoid `1 / (1 + exp(-12 (s - 1/2)))`, which is set to
exactly 1 at the end of the warm-up like all others. Under `none` it stays 0.
"""

import math

import torch
from torch import nn

from wfray.config.train import Quantization
from wfray.quant.bitlinear import bit_linears

EXPONENT = 4
STEEPNESS = 12.0


def lambda_at(quantization: Quantization, tokens: int) -> float:
    """The lambda in force for a step that starts after `tokens` tokens of this stage."""
    if quantization.schedule == "none":
        return 0.0
    if quantization.schedule == "constant" or tokens >= quantization.warmup_tokens:
        return 1.0
    s = tokens / quantization.warmup_tokens
    shapes = {
        "linear": lambda: s,
        "cosine": lambda: (1 - math.cos(math.pi * s)) / 2,
        "exponential": lambda: 1 - (1 - s) ** EXPONENT,
        "sigmoid": lambda: 1 / (1 + math.exp(-STEEPNESS * (s - 0.5))),
    }
    return shapes[quantization.schedule]()


def set_lambda(model: nn.Module, value: float) -> None:
    """Set lambda of every BitLinear of `model`."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"lambda must be between 0 and 1, not {value}")
    partial = None if value == 1.0 else torch.tensor(value)
    for layer in bit_linears(model):
        layer.partial_lambda, layer.is_plain = partial, value == 0.0
