"""The wire between teacher and student: numpy arrays aligned with a packed batch's positions, bfloat16 as its uint16 bits.

| wire | arrays | bytes a token (hidden size d, L layers) |
|---|---|---|
| `hidden` | last hidden state after the final norm [B, T, d] | 2 d |
| `layers` | output of every decoder layer [L, B, T, d] | 2 d L |
| `qkv` | Q, K (after QK-norm and RoPE) and V of one layer [B, heads, T, head_dim] | 2 (q + k + v widths) |
| `logits` | [B, T, V], the reference | 2 V |

`hidden` is exact for losses over the whole vocabulary: the student's side holds the teacher's LM head and forms logits chunk by
chunk. Numpy crosses Ray's object store without a copy; torch tensors do not.
"""

from typing import Any, Literal, TypedDict

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

Wire = Literal["hidden", "layers", "qkv", "logits"]


class SignalRequest(BaseModel):
    """What a student wants for every batch; all of it comes from one forward pass."""

    wires: list[Wire]
    qkv_layer: int | None = None
    """Needed for the wire `qkv`."""


class Fingerprint(BaseModel):
    """Who the teacher is."""

    model_sha256: str
    family: str
    dtype: str
    tokenizer_sha256: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_length: int


class Signals(TypedDict, total=False):
    """Decoded signals on the student's side."""

    hidden: Tensor
    layers: Tensor
    qkv: tuple[Tensor, Tensor, Tensor]
    logits: Tensor


def encode(tensor: Tensor) -> np.ndarray:
    """A tensor as the uint16 bits of its bfloat16 values."""
    return tensor.detach().to(torch.bfloat16).contiguous().view(torch.uint16).cpu().numpy()


def decode(array: np.ndarray) -> Tensor:
    """The bfloat16 tensor of `encode`'s array; read-only memory of the object store is copied."""
    return torch.from_numpy(np.array(array)).view(torch.bfloat16)


def decode_signals(arrays: dict[str, Any]) -> Signals:
    """The tensors of an answer.

    Raises:
        ValueError: a value is not finite.
    """
    tensors = {name: decode(array) for name, array in arrays.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the teacher's {name} holds values that are not finite: check the teacher's dtype and weights")
    signals: Signals = {}
    if "hidden" in tensors:
        signals["hidden"] = tensors["hidden"]
    if "layers" in tensors:
        signals["layers"] = tensors["layers"]
    if "logits" in tensors:
        signals["logits"] = tensors["logits"]
    if "q" in tensors:
        signals["qkv"] = (tensors["q"], tensors["k"], tensors["v"])
    return signals
