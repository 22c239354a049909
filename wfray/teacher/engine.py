"""What an engine is: a full-precision model that answers signal requests about packed rows.

Every engine at least gives the last hidden state. Logits, and what is cut from them, are made here from it and the LM head, a few
rows at a time, so that engines differ in nothing else.
"""

from typing import Protocol

import numpy as np
from torch import Tensor

from wfray.teacher.fingerprint import Fingerprint
from wfray.teacher.signals import SignalRequest, encode, encode_sparse
from wfray.teacher.sparse import sample_of, top_k_of, uniforms


class EngineGone(RuntimeError):
    """An engine's own process has ended: whoever watches over it replaces it, and what was asked may be asked again."""


class Engine(Protocol):
    """A model that answers. Not thread-safe: see `FairQueue`."""

    fingerprint: Fingerprint

    def signals(self, batch: dict[str, np.ndarray], request: SignalRequest) -> dict[str, np.ndarray]:
        """Answer one request with one forward pass.

        Args:
            batch: `input_ids`, `position_ids`, `segment_ids` of packed rows, [B, T] each.
            request: what is wanted, all of which `fingerprint.check` allows.
        """

    def head(self) -> np.ndarray:
        """The LM head [V, C] as bfloat16 bits."""

    def check_health(self) -> None:
        """Raise when it will answer no more."""

    def close(self) -> None:
        """Free the model and end what was started for it."""


def signals_of_hidden(input_ids_BT: np.ndarray, hidden_BTC: Tensor, head_VC: Tensor, request: SignalRequest) -> dict[str, np.ndarray]:
    """The arrays of the wires that follow from the last hidden state, as far as they are asked for."""
    head_VC = head_VC[: request.vocab_size]
    arrays = {"hidden": encode(hidden_BTC)} if "hidden" in request.wires else {}
    if "logits" in request.wires:
        arrays["logits"] = encode(hidden_BTC @ head_VC.t())
    return {**arrays, **sparse_signals(input_ids_BT, hidden_BTC, head_VC, request)}


def sparse_signals(input_ids_BT: np.ndarray, hidden_BTC: Tensor, head_VC: Tensor, request: SignalRequest) -> dict[str, np.ndarray]:
    """The arrays of the wires `topk` and `sampled`, as far as they are asked for."""
    arrays: dict[str, np.ndarray] = {}
    k = request.num_ids or 0
    if "topk" in request.wires:
        arrays.update(encode_sparse(top_k_of(hidden_BTC, head_VC, k, request.temperature), len(head_VC)))
    if "sampled" in request.wires:
        uniform_BT = uniforms(input_ids_BT, request.seed).to(hidden_BTC.device)
        arrays.update(encode_sparse(sample_of(hidden_BTC, head_VC, k, request.temperature, uniform_BT), len(head_VC)))
    return arrays
