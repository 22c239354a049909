"""Ternary weights, int8 activations, and the linear layer made of both."""

from wfray.quant.bitlinear import BitLinear
from wfray.quant.int8 import fake_quantize_activations, quantize_activations
from wfray.quant.schedule import lambda_at, set_lambda
from wfray.quant.ternary import quantize_weight

__all__ = ["BitLinear", "fake_quantize_activations", "lambda_at", "quantize_activations", "quantize_weight", "set_lambda"]
