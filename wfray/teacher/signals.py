"""The wire between teacher and student: numpy arrays aligned with a packed batch's positions, bfloat16 as its uint16 bits.

| wire | arrays | bytes a token (hidden size d, L layers, k ids of i bytes) |
|---|---|---|
| `hidden` | last hidden state after the final norm [B, T, d] | 2 d |
| `layers` | output of every decoder layer [L, B, T, d] | 2 d L |
| `qkv` | Q, K (after QK-norm and RoPE) and V of one layer [B, heads, T, head_dim] | 2 (q + k + v widths) |
| `topk` | ids [B, T, k], log-probabilities of these and of the rest [B, T, k + 1] | k i + 2 (k + 1) |
| `sampled` | ids and weights [B, T, k], entropy [B, T] | k (i + 2) + 2 |
| `logits` | [B, T, V], the reference | 2 V |

`hidden` is exact for losses over the whole vocabulary: the student's side holds the teacher's LM head and forms logits chunk by
chunk. The other two are cut down, see `sparse`; ids take 2 bytes up to a vocabulary of 65,536 and 4 beyond, probabilities are
float16: at V = 49,152 `topk` of 64 is 258 bytes a token, `sampled` of 16 is 66, `hidden` of SmolLM2-135M 1,152. Both belong to
the temperature that they were made at, which travels with them.

Numpy crosses Ray's object store without a copy; torch tensors do not.
"""

from collections.abc import Sequence
from typing import Any, Self, TypedDict

import numpy as np
import torch
from pydantic import BaseModel, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from wfray.config.objectives import Alignment, AttentionRelations, ConcreteScore, LogitsKL, Objective
from wfray.config.teacher import Wire
from wfray.teacher.sparse import Sampled, TopK

SPARSE = ("topk_", "sampled_")
"""How the names of arrays begin that are no bfloat16."""
LOWEST_LOG = -60000.0
"""What stands for the logarithm of 0: the lowest that float16 holds, rounded."""


class SignalRequest(BaseModel):
    """What a student wants for every batch; all of it comes from one forward pass."""

    wires: list[Wire]
    qkv_layer: int | None = None
    """Needed for the wire `qkv`."""
    num_ids: PositiveInt | None = None
    """Needed for `topk` and `sampled`: ids a token."""
    temperature: PositiveFloat = 1.0
    """Of `topk` and `sampled`."""
    seed: NonNegativeInt = 0
    """Of `sampled`, together with a row's tokens: equal requests have equal answers."""
    vocab_size: PositiveInt | None = None
    """Distributions run over the first entries of the vocabulary only: a student's, where the teacher's table is padded further.
    None: over all."""

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse a wire without what it needs."""
        if {"topk", "sampled"} & set(self.wires) and self.num_ids is None:
            raise ValueError("the wires topk and sampled need num_ids")
        if "qkv" in self.wires and self.qkv_layer is None:
            raise ValueError("the wire qkv needs qkv_layer")
        return self

    def only(self, wire: Wire) -> "SignalRequest":
        """The same for one of its wires, without what other wires need: equal for equal answers."""
        needed = {"qkv": {"qkv_layer"}, "topk": {"num_ids", "temperature"}, "sampled": {"num_ids", "temperature", "seed"}}.get(wire, set())
        kept = needed | ({"vocab_size"} if wire in ("topk", "sampled", "logits") else set())
        return SignalRequest(wires=[wire], **self.model_dump(include=kept))

    @classmethod
    def of(cls, objectives: Sequence[Objective], seed: int, vocab_size: int | None = None) -> "SignalRequest":
        """What a stage's objectives need, for a student of `vocab_size` entries."""
        request: dict[str, Any] = {"wires": [], "seed": seed, "vocab_size": vocab_size}
        for objective in objectives:
            match objective:
                case LogitsKL():
                    request["wires"].append(objective.signal)
                    request.update(num_ids=objective.ids_per_token, temperature=objective.temperature)
                case ConcreteScore():
                    request["wires"].append("topk")
                    request.update(num_ids=objective.num_ids, temperature=objective.temperature)
                case AttentionRelations():
                    request["wires"].append("qkv")
                    request["qkv_layer"] = objective.layer
                case Alignment():
                    request["wires"].append("layers")
        return cls.model_validate(request)


class Signals(TypedDict, total=False):
    """Decoded signals on the student's side."""

    hidden: Tensor
    layers: Tensor
    qkv: tuple[Tensor, Tensor, Tensor]
    logits: Tensor
    topk: TopK
    sampled: Sampled


def encode(tensor: Tensor) -> np.ndarray:
    """A tensor as the uint16 bits of its bfloat16 values."""
    return tensor.detach().to(torch.bfloat16).contiguous().view(torch.uint16).cpu().numpy()


def decode(array: np.ndarray) -> Tensor:
    """The bfloat16 tensor of `encode`'s array; read-only memory of the object store is copied."""
    return torch.from_numpy(np.array(array)).view(torch.bfloat16)


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Every array of an answer as a tensor of its true dtype, as it crosses to clients that know nothing of ours."""
    return {name: torch.from_numpy(np.array(array)) if name.startswith(SPARSE) else decode(array) for name, array in arrays.items()}


def encode_sparse(signal: TopK | Sampled, vocab_size: int) -> dict[str, np.ndarray]:
    """The arrays of a cut-down signal, ids in the fewest bytes that hold the vocabulary."""
    ids = signal.ids.cpu().numpy().astype(np.uint16 if vocab_size <= 2**16 else np.int32)
    temperature = np.array(signal.temperature)
    if isinstance(signal, TopK):
        log_probs = half(signal.log_probs.clamp(min=LOWEST_LOG))
        return {"topk_ids": ids, "topk_log_probs": log_probs, "topk_temperature": temperature}
    arrays = {"sampled_ids": ids, "sampled_weights": half(signal.weights), "sampled_entropy": half(signal.entropy)}
    return {**arrays, "sampled_temperature": temperature}


def half(tensor: Tensor) -> np.ndarray:
    """A tensor as float16."""
    return tensor.cpu().numpy().astype(np.float16)


def decode_signals(arrays: dict[str, Any]) -> Signals:
    """The tensors of an answer.

    Raises:
        ValueError: a value is not finite.
    """
    dense = {name: decode(array) for name, array in arrays.items() if not name.startswith(SPARSE)}
    for name, tensor in dense.items():
        require_finite(name, tensor)
    signals: Signals = {}
    if "hidden" in dense:
        signals["hidden"] = dense["hidden"]
    if "layers" in dense:
        signals["layers"] = dense["layers"]
    if "logits" in dense:
        signals["logits"] = dense["logits"]
    if "q" in dense:
        signals["qkv"] = (dense["q"], dense["k"], dense["v"])
    if "topk_ids" in arrays:
        log_probs = floats(arrays, "topk_log_probs").log_softmax(dim=-1)
        signals["topk"] = TopK(ids_of(arrays["topk_ids"]), log_probs, float(arrays["topk_temperature"]))
    if "sampled_ids" in arrays:
        weights, entropy = floats(arrays, "sampled_weights"), floats(arrays, "sampled_entropy")
        signals["sampled"] = Sampled(ids_of(arrays["sampled_ids"]), weights, entropy, float(arrays["sampled_temperature"]))
    return signals


def ids_of(array: np.ndarray) -> Tensor:
    """Token ids as int64."""
    return torch.from_numpy(array.astype(np.int64))


def floats(arrays: dict[str, Any], name: str) -> Tensor:
    """A float16 array as float32."""
    tensor = torch.from_numpy(arrays[name].astype(np.float32))
    require_finite(name, tensor)
    return tensor


def require_finite_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Raise `ValueError` where a signal on the wire is not finite: the bits of a bfloat16 exponent are all ones."""
    for name, array in arrays.items():
        finite = (array & 0x7F80 != 0x7F80) if array.dtype == np.uint16 and not name.endswith("_ids") else np.isfinite(array)
        if not finite.all():
            raise ValueError(f"the teacher's {name} holds values that are not finite: check the teacher's dtype and weights")


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise `ValueError` where a signal is not finite."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"the teacher's {name} holds values that are not finite: check the teacher's dtype and weights")
