"""The transformers engine: a Hugging Face checkpoint of a known family on this process's device, CPU or GPU.

The only engine that gives `layers` and `qkv`, which no inference server hands out. A request is answered by one forward pass over
exactly its rows, so an answer depends on nothing but the request: kernels choose their blocking by the number of rows, and other
rows would change the last bits.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wfray.data.tokenizer import load_directory_tokenizer, tokenizer_sha256
from wfray.quant.precision import DTYPES
from wfray.student.checkpoint import load_original
from wfray.student.forward import lm_head_weight, run_body
from wfray.student.weights import Weights
from wfray.teacher.engine import signals_of_hidden
from wfray.teacher.fingerprint import Fingerprint, config_sha256
from wfray.teacher.signals import SignalRequest, encode


class TransformersEngine:
    """Signals from a checkpoint directory; see `Engine`."""

    def __init__(self, directory: Path, dtype: str) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_original(directory, DTYPES[dtype])
        nn.Module.to(self.model, self.device)
        config = self.model.config
        self.fingerprint = Fingerprint(
            model_sha256=Weights(directory).sha256(),
            family=config.model_type,
            engine="transformers",
            engine_version=version("transformers"),
            dtype=dtype,
            tokenizer_sha256=tokenizer_sha256(load_directory_tokenizer(directory)),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            max_length=config.max_position_embeddings,
            config_sha256=config_sha256(config),
        )

    @torch.inference_mode()
    def signals(self, batch: dict[str, np.ndarray], request: SignalRequest) -> dict[str, np.ndarray]:
        """See `Engine.signals`; raises `ValueError` for what `Fingerprint.check` refuses."""
        self.fingerprint.check(request, batch["input_ids"].shape[1])
        output = run_body(
            self.model,
            {name: torch.from_numpy(np.array(array)).to(self.device) for name, array in batch.items()},
            with_layers="layers" in request.wires,
            qkv_layer=request.qkv_layer if "qkv" in request.wires else None,
        )
        arrays = signals_of_hidden(batch["input_ids"], output.hidden_BTC, lm_head_weight(self.model), request)
        if "layers" in request.wires:
            arrays["layers"] = encode(torch.stack(output.layers))
        if output.qkv is not None:
            arrays.update({name: encode(tensor) for name, tensor in zip(("q", "k", "v"), output.qkv, strict=True)})
        return arrays

    def head(self) -> np.ndarray:
        """See `Engine.head`."""
        return encode(lm_head_weight(self.model))

    def check_health(self) -> None:
        """See `Engine.check_health`: it lives as long as its process."""

    def close(self) -> None:
        """See `Engine.close`."""
        del self.model
