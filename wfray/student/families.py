"""The families of models that can become students: where their layers and projections are. A family is one entry."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OUTPUT_PROJECTIONS = ("o_proj", "down_proj")
"""The projections whose input BitDistill normalises."""


@dataclass(frozen=True)
class Family:
    """How a decoder of this family is laid out; the defaults are those of Llama and of all that follow it."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    norm_offset: float = 0.0
    """What its norms add to their weights."""
    norms_outputs: bool = False
    """Whether the outputs of attention and MLP are normed before they are added to the stream."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Options of the configuration that only this value is supported of."""


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma3_text": Family(
        norm_offset=1.0,
        norms_outputs=True,
        fixed={"final_logit_softcapping": None, "attn_logit_softcapping": None, "use_bidirectional_attention": False},
    ),
}
MENDS = {
    "gemma3": "it holds a vision model too: save its text model as a checkpoint of its own (family gemma3_text)",
}
"""For families close to one in the table: the way there."""


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model's configuration.

    Raises:
        ValueError: the family is not in the table, or an option of the configuration has an unsupported value.
    """
    name = config.model_type
    if name not in FAMILIES:
        mend = MENDS.get(name, "a new one is an entry in wfray/student/families.py")
        raise ValueError(f"models of family {name!r} cannot become students; known families: {', '.join(sorted(FAMILIES))}; {mend}")
    for option, supported in FAMILIES[name].fixed.items():
        if (given := getattr(config, option, supported) or supported) != supported:
            raise ValueError(f"models of family {name!r} with {option} = {given!r} cannot become students, only with {supported!r}")
    return FAMILIES[name]


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model."""
    layers = model.get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def projections(layer: nn.Module, family: Family) -> list[tuple[nn.Module, str]]:
    """The seven projections of a decoder layer as (parent module, attribute name), in the order of `PROJECTIONS`."""
    attention, mlp = layer.get_submodule(family.attention), layer.get_submodule(family.mlp)
    return [(attention if hasattr(attention, name) else mlp, name) for name in PROJECTIONS]
