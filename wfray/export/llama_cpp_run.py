"""An exported GGUF file in llama.cpp, with what its projections read: llama.cpp shows each tensor of its graph to a callback.

A sequence is one micro-batch, so each tensor is seen once and whole.
"""

from pathlib import Path

import llama_cpp
import numpy as np
import torch
from llama_cpp._internals import LlamaModel
from llama_cpp._logger import set_verbose
from torch import Tensor

from wfray.config.export import EmbeddingType, LinearType
from wfray.export.engine import HEAD, NORMED, Seen
from wfray.export.ggml import name_of, values_of
from wfray.export.rounding import ROUNDINGS


class LlamaCppRun:
    """See the module docstring; implements `Engine`."""

    def __init__(self, path: Path, linear_type: LinearType, embedding_type: EmbeddingType, context: int, threads: int) -> None:
        """Load `path`.

        Args:
            path: a file of the architecture `bitnet`.
            linear_type: of its projections.
            embedding_type: of its embedding.
            context: the longest sequence.
            threads: CPU threads.

        Raises:
            ValueError: llama.cpp cannot load it.
        """
        set_verbose(False)
        self.path = path
        self.embedding_type: str = embedding_type
        self.rounding, self.head_rounding = ROUNDINGS[linear_type], ROUNDINGS[embedding_type]
        self.model = LlamaModel(path_model=str(path), params=llama_cpp.llama_model_default_params(), verbose=False)
        self.inputs: dict[str, Tensor] = {}
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self.see)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = threads
        params.cb_eval = self.callback
        self.context = llama_cpp.llama_init_from_model(self.model.model, params)
        self.batch = llama_cpp.llama_batch_init(context, 0, 1)

    def see(self, tensor: int, ask: bool, user_data: int | None) -> bool:
        """The callback: whether a tensor is wanted, then the tensor."""
        norm, _, layer = name_of(tensor).partition("-")
        if norm != "result_norm" and norm not in NORMED:
            return not ask
        if not ask:
            values_TC = torch.from_numpy(values_of(tensor)).view(self.batch.n_tokens, -1)
            for key in [HEAD] if norm == "result_norm" else [f"{layer}.{projection}" for projection in NORMED[norm]]:
                self.inputs[key] = values_TC
        return True

    def run(self, input_ids: list[int]) -> Seen:
        """Evaluate one sequence; see `Engine`."""
        self.inputs = {}
        self.batch.n_tokens = len(input_ids)
        for position, token in enumerate(input_ids):
            self.batch.token[position], self.batch.pos[position], self.batch.logits[position] = token, position, 1
            self.batch.n_seq_id[position], self.batch.seq_id[position][0] = 1, 0
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        status = llama_cpp.llama_decode(self.context, self.batch)
        assert status == 0, f"llama_decode returned {status}"
        shape = (len(input_ids), self.model.n_vocab())
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), shape).copy()
        return Seen(torch.from_numpy(logits), self.inputs)

    def close(self) -> None:
        """Free context, batch and model."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        self.model.close()
