"""Compilation of a model's decoder layers with torch.compile.

One decoder layer is compiled and all layers of its kind share the code, so that it takes seconds, not minutes. Norms, SubLN, the
activations' codes, scaling and the gated activation become a few fused kernels around the products; attention over segments
stays outside, since its shapes change with every batch.
"""

import torch
from transformers import PreTrainedModel

from wfray.student.families import decoder_layers


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every decoder layer of `model`, in place, for batches of one shape. Hooks on the layers still run."""
    for layer in decoder_layers(model):
        layer.forward = torch.compile(layer.forward, dynamic=False)
