"""The transformers engine: a full-precision model on this process's device that answers signal requests.

Cut-down signals are made from a few rows of logits at a time; [tokens, vocabulary] exists for the wire `logits` alone.

A request is answered by one forward pass over exactly its rows, never merged with another one, so an answer depends on nothing
but the request: kernels choose their blocking by the number of rows, and other rows would change the last bits.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from wfray.data.tokenizer import load_directory_tokenizer, tokenizer_sha256
from wfray.student.checkpoint import load_original
from wfray.student.forward import lm_head_weight, run_body
from wfray.student.weights import Weights
from wfray.teacher.signals import Fingerprint, SignalRequest, encode, encode_sparse
from wfray.teacher.sparse import sample_of, top_k_of, uniforms

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class TransformersEngine:
    """Signals from a Hugging Face checkpoint directory of a known family."""

    def __init__(self, directory: Path, dtype: Literal["bfloat16", "float32"]) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_original(directory, DTYPES[dtype])
        nn.Module.to(self.model, self.device)
        config = self.model.config
        self.fingerprint = Fingerprint(
            model_sha256=Weights(directory).sha256(),
            family=config.model_type,
            dtype=dtype,
            tokenizer_sha256=tokenizer_sha256(load_directory_tokenizer(directory)),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            max_length=config.max_position_embeddings,
        )

    @torch.inference_mode()
    def signals(self, batch: dict[str, np.ndarray], request: SignalRequest) -> dict[str, np.ndarray]:
        """Answer one request.

        Args:
            batch: `input_ids`, `position_ids`, `segment_ids` of packed rows, [B, T] each.

        Raises:
            ValueError: the rows are longer than the model's context, or more ids are asked for than the vocabulary has.
        """
        if batch["input_ids"].shape[1] > self.fingerprint.max_length:
            raise ValueError(f"rows of {batch['input_ids'].shape[1]} tokens exceed the teacher's context of {self.fingerprint.max_length}")
        tensors = {name: torch.from_numpy(np.array(array)).to(self.device) for name, array in batch.items()}
        output = run_body(
            self.model,
            tensors,
            with_layers="layers" in request.wires,
            qkv_layer=request.qkv_layer if "qkv" in request.wires else None,
        )
        arrays: dict[str, Tensor] = {}
        if "hidden" in request.wires:
            arrays["hidden"] = output.hidden_BTC
        if "layers" in request.wires:
            arrays["layers"] = torch.stack(output.layers)
        if "logits" in request.wires:
            arrays["logits"] = output.hidden_BTC @ lm_head_weight(self.model).t()
        if output.qkv is not None:
            arrays.update(zip(("q", "k", "v"), output.qkv, strict=True))
        encoded = {name: encode(tensor) for name, tensor in arrays.items()}
        return {**encoded, **sparse_signals(batch["input_ids"], output.hidden_BTC, lm_head_weight(self.model), request)}

    def head(self) -> np.ndarray:
        """The LM head [V, C] as bfloat16 bits."""
        return encode(lm_head_weight(self.model))


def sparse_signals(input_ids_BT: np.ndarray, hidden_BTC: Tensor, head_VC: Tensor, request: SignalRequest) -> dict[str, np.ndarray]:
    """The arrays of the wires `topk` and `sampled`, as far as they are asked for.

    Raises:
        ValueError: more ids are asked for than the vocabulary has.
    """
    arrays: dict[str, np.ndarray] = {}
    k = request.num_ids or 0
    if k >= len(head_VC):
        raise ValueError(f"num_ids {k} must be less than the teacher's vocabulary of {len(head_VC)}")
    if "topk" in request.wires:
        arrays.update(encode_sparse(top_k_of(hidden_BTC, head_VC, k, request.temperature), len(head_VC)))
    if "sampled" in request.wires:
        uniform_BT = uniforms(input_ids_BT, request.seed).to(hidden_BTC.device)
        arrays.update(encode_sparse(sample_of(hidden_BTC, head_VC, k, request.temperature, uniform_BT), len(head_VC)))
    return arrays
