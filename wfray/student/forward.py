"""The forward pass of student and teacher alike: the body of a causal language model on a packed batch, with captures."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wfray.student.attention import AttentionCapture, AttentionObserver
from wfray.student.families import decoder_layers
from wfray.student.segments import Segments


@dataclass
class BodyOutput:
    """What the body computed; optional parts only where they were asked for."""

    hidden_BTC: Tensor
    """After the final norm: the LM head's input."""
    segments: Segments
    """The documents of the batch."""
    layers: list[Tensor] = field(default_factory=list)
    """Output of every decoder layer, [B, T, C] each, before the final norm."""
    qkv: tuple[Tensor, Tensor, Tensor] | None = None
    """Q and K after QK-norm and RoPE, and V, of one layer, [B, heads, T, head_dim] each."""


class Forward(Protocol):
    """How a stage runs a student on a packed batch: `run_body`, or what stands in its place."""

    def __call__(
        self,
        model: PreTrainedModel,
        batch: dict[str, Tensor],
        *,
        with_layers: bool = False,
        qkv_layer: int | None = None,
        observe: AttentionObserver | None = None,
    ) -> BodyOutput:
        """See `run_body`."""
        ...


def run_body(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    *,
    with_layers: bool = False,
    qkv_layer: int | None = None,
    observe: AttentionObserver | None = None,
) -> BodyOutput:
    """Run everything but the LM head.

    Args:
        model: a causal language model loaded by this package.
        batch: tensors `input_ids`, `position_ids`, `segment_ids`, each [B, T] of integers.
        with_layers: return the output of every layer.
        qkv_layer: return Q, K and V of this layer.
        observe: is shown Q and K of every layer.
    """
    segments = Segments.of(batch["segment_ids"])
    capture = None if qkv_layer is None else AttentionCapture(qkv_layer)
    layers: list[Tensor] = []
    hooks = [layer.register_forward_hook(collect(layers)) for layer in decoder_layers(model)] if with_layers else []
    try:
        output = model.base_model(
            input_ids=batch["input_ids"].long(),
            position_ids=batch["position_ids"].long(),
            segments=segments,
            capture=capture,
            observe=observe,
            use_cache=False,
        )
    finally:
        for hook in hooks:
            hook.remove()
    return BodyOutput(output.last_hidden_state, segments, layers, None if capture is None else capture.states)


def collect(into: list[Tensor]):  # type: ignore[no-untyped-def]
    """A forward hook that appends a layer's output to `into`."""

    def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        into.append(output[0] if isinstance(output, tuple) else output)

    return hook


def hidden_states(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The LM head's input [B, T, C] on a packed batch; see `run_body`."""
    return run_body(model, batch).hidden_BTC


def lm_head_weight(model: PreTrainedModel) -> Tensor:
    """The LM head's weight [V, C]; the embedding itself where the head is tied."""
    weight = model.get_output_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight
