"""Bodies of real shapes with random weights, and their peers, as benchmarks of the training step run them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.bitnet import AutoBitLinear

from wfray.config.convert import Subln
from wfray.quant import fake_quantize_activations, hold_codes, quantize_weight, release_codes
from wfray.student import convert, run_body
from wfray.student.attention import NAME as SEGMENT_ATTENTION
from wfray.student.families import decoder_layers, family_of, projections

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2_135m": (
        "llama",
        {
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "vocab_size": 49_152,
        },
    ),
    "qwen3_0_6b": (
        "qwen3",
        {
            "num_hidden_layers": 28,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
        },
    ),
}
"""Family and figures of each model."""
ROWS, LENGTH, THREADS = 4, 512, 2


class FakeQuantLinear(nn.Linear):
    """The usual training code: quantize, go back to floats, multiply, straight-through by `detach`."""

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = quantize_weight(self.weight)
        weight = self.weight + (codes * scale - self.weight).detach()
        return F.linear(x + (fake_quantize_activations(x) - x).detach(), weight)


def original(shape: str = "smollm2_135m", num_layers: int | None = None) -> PreTrainedModel:
    """The unconverted model, float32 weights, ready for training; `num_layers`: fewer than it has."""
    torch.manual_seed(0)
    family, figures = SHAPES[shape]
    layers = num_layers or figures["num_hidden_layers"]
    config = AutoConfig.for_model(family, **{**figures, "num_hidden_layers": layers}, tie_word_embeddings=True)
    return AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENT_ATTENTION).train()


def student(shape: str = "smollm2_135m", num_layers: int | None = None) -> PreTrainedModel:
    """The ternary student of `original`, with a SubLN before each output projection."""
    return convert(original(shape, num_layers), Subln(init="ones"))


def replaced(make: Callable[[nn.Linear], nn.Module], num_layers: int | None = None) -> PreTrainedModel:
    """`original` with every projection of its decoder layers replaced: how a peer without SubLN looks."""
    model = original(num_layers=num_layers)
    for layer in decoder_layers(model):
        for parent, name in projections(layer, family_of(model.config)):
            setattr(parent, name, make(getattr(parent, name)))
    return model


def fake_quant(linear: nn.Linear) -> nn.Module:
    """The projection as `FakeQuantLinear`."""
    peer = FakeQuantLinear(linear.in_features, linear.out_features, bias=False)
    peer.weight = linear.weight
    return peer


def auto_bit_linear(linear: nn.Linear) -> nn.Module:
    """The projection as transformers' online-quantizing `AutoBitLinear`."""
    peer = AutoBitLinear(linear.in_features, linear.out_features, bias=False, online_quant=True)
    peer.weight = linear.weight
    return peer


def batch(rows: int = ROWS, length: int = LENGTH, device: str = "cpu") -> dict[str, Tensor]:
    """Rows of one document each."""
    generator = torch.Generator().manual_seed(1)
    packed = {
        "input_ids": torch.randint(0, 49_152, (rows, length), generator=generator),
        "position_ids": torch.arange(length).repeat(rows, 1),
        "segment_ids": torch.ones(rows, length, dtype=torch.int32),
    }
    return {name: tensor.to(device) for name, tensor in packed.items()}


def training_step(model: PreTrainedModel, packed: dict[str, Tensor]) -> Callable[[], None]:
    """Forward and backward of the body under bfloat16 autocast, weights quantized once in the step."""
    input_ids = packed["input_ids"]
    grad = torch.randn(*input_ids.shape, model.config.hidden_size, generator=torch.Generator().manual_seed(2)).to(input_ids.device)

    def step() -> None:
        hold_codes(model)
        with torch.autocast(grad.device.type, torch.bfloat16):
            hidden_BTC = run_body(model, packed).hidden_BTC
        hidden_BTC.backward(grad.to(hidden_BTC.dtype))
        release_codes(model)
        model.zero_grad(set_to_none=True)

    return step
