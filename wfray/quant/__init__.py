"""Ternary weights, int8 activations, and the linear layer made of both."""

from wfray.quant.bitlinear import BitLinear, bit_linears, hold_codes, release_codes
from wfray.quant.int8 import fake_quantize_activations, quantize_activations
from wfray.quant.schedule import lambda_at, set_lambda
from wfray.quant.ternary import quantize_weight

__all__ = [
    "BitLinear",
    "bit_linears",
    "fake_quantize_activations",
    "hold_codes",
    "lambda_at",
    "quantize_activations",
    "quantize_weight",
    "release_codes",
    "set_lambda",
]
