"""The body of SmolLM2-135M with random weights, and its peers, as benchmarks of the training step run them."""

from collections.abc import Callable

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

SMOLLM2_135M = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
    "rope_theta": 100_000.0,
}
ROWS, LENGTH, THREADS = 4, 512, 2


class FakeQuantLinear(nn.Linear):
    """The usual training code: quantize, go back to floats, multiply, straight-through by `detach`."""

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = quantize_weight(self.weight)
        weight = self.weight + (codes * scale - self.weight).detach()
        return F.linear(x + (fake_quantize_activations(x) - x).detach(), weight)


def original(num_layers: int = 30) -> PreTrainedModel:
    """The unconverted model, float32 weights, ready for training."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**SMOLLM2_135M, "num_hidden_layers": num_layers})
    return AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENT_ATTENTION).train()


def student(num_layers: int = 30) -> PreTrainedModel:
    """The ternary student of `original`, with a SubLN before each output projection."""
    return convert(original(num_layers), Subln(init="ones"))


def replaced(make: Callable[[nn.Linear], nn.Module], num_layers: int = 30) -> PreTrainedModel:
    """`original` with every projection of its decoder layers replaced: how a peer without SubLN looks."""
    model = original(num_layers)
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


def batch(rows: int = ROWS, length: int = LENGTH) -> dict[str, Tensor]:
    """Rows of one document each."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(0, SMOLLM2_135M["vocab_size"], (rows, length), generator=generator),
        "position_ids": torch.arange(length).expand(rows, length),
        "segment_ids": torch.ones(rows, length, dtype=torch.int32),
    }


def training_step(model: PreTrainedModel, packed: dict[str, Tensor]) -> Callable[[], None]:
    """Forward and backward of the body under bfloat16 autocast, weights quantized once in the step."""
    hidden = model.config.hidden_size
    grad = torch.randn(*packed["input_ids"].shape, hidden, generator=torch.Generator().manual_seed(2)).to(packed["input_ids"].device)

    def step() -> None:
        hold_codes(model)
        with torch.autocast(grad.device.type, torch.bfloat16):
            hidden_BTC = run_body(model, packed).hidden_BTC
        hidden_BTC.backward(grad.to(hidden_BTC.dtype))
        release_codes(model)
        model.zero_grad(set_to_none=True)

    return step
