"""Conversion, stage 1 of BitDistill: every projection of every decoder layer becomes a BitLinear, some with a SubLN before it.

Embeddings, LM head, norms and activation functions stay as they are. A SubLN of weight 1 changes the function that it is put
into, since the inputs of o_proj and down_proj have a root mean square of 0.03 to 3.7, layer by layer (SmolLM2-135M); with
`init: calibrated` its weight starts at that root mean square, measured over real text in the original model, so that the
scale of every projection's input is kept.
"""

from torch import nn
from transformers import PreTrainedModel

from wfray.config.convert import Subln
from wfray.quant.bitlinear import BitLinear
from wfray.student.families import OUTPUT_PROJECTIONS, PROJECTIONS, decoder_layers, family_of, projections

STUDENT_FORMAT = 1
"""Of the `wrinklefree` entry in config.json and of the names of a student's tensors."""


def normed_projections(placement: str) -> tuple[str, ...]:
    """The projections that get a SubLN."""
    return {"output": OUTPUT_PROJECTIONS, "all": PROJECTIONS, "none": ()}[placement]


def convert(model: PreTrainedModel, subln: Subln, input_rms: dict[str, float] | None = None) -> PreTrainedModel:
    """Replace the projections of `model` in place.

    Args:
        model: a full-precision causal language model of a known family, in any dtype; SubLN weights are float32.
        subln: where the extra norms go.
        input_rms: for `init: calibrated`, the root mean square of each normed projection's input (see `measure_input_rms`).

    Raises:
        ValueError: unknown family, or calibration asked for without measurements.
    """
    family = family_of(model.config)
    normed = normed_projections(subln.placement)
    if subln.init == "calibrated" and normed and input_rms is None:
        raise ValueError("subln.init calibrated needs a calibration corpus; give `corpus`, or set subln.init=ones")
    for index, layer in enumerate(decoder_layers(model)):
        for parent, name in projections(layer, family):
            linear = getattr(parent, name)
            norm = make_norm(linear.in_features, subln.eps) if name in normed else None
            if norm is not None and subln.init == "calibrated" and input_rms is not None:
                nn.init.constant_(norm.weight, input_rms[f"{index}.{name}"])
            setattr(parent, name, BitLinear(linear.weight, linear.bias, norm))
    model.config.wrinklefree = {
        "format": STUDENT_FORMAT,
        "subln": {"placement": subln.placement, "eps": subln.eps},
        "quantization_lambda": 1.0,
    }
    return model


def make_norm(num_features: int, eps: float) -> nn.RMSNorm:
    """A SubLN of weight 1."""
    return nn.RMSNorm(num_features, eps=eps)
