"""llama.cpp in this process, through llama-cpp-python (MIT): opening files quietly and reading logits of every position."""

from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import Llama
from llama_cpp._internals import LlamaModel
from numpy.typing import NDArray

MAX_BATCH = 512


def open_model(path: Path, context: int, threads: int, all_logits: bool = False) -> Llama:
    """Load a GGUF file.

    Args:
        path: the file.
        context: positions of the key-value cache.
        threads: CPU threads, for prompts and for decoding.
        all_logits: keep the logits of every position: context x vocabulary floats.

    Raises:
        ValueError: the file is missing, corrupt, or of an architecture that llama.cpp does not know.
    """
    if not path.is_file():
        raise ValueError(f"there is no model file {str(path)!r}; run jobs.export, or name a GGUF file")
    try:
        return Llama(
            str(path),
            n_ctx=context,
            n_batch=min(context, MAX_BATCH),
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=all_logits,
            verbose=False,
        )
    except ValueError as error:
        raise ValueError(f"llama.cpp cannot load {str(path)!r} ({error}): truncated, corrupt, or of an unknown architecture") from None


class Vocabulary:
    """The tokenizer of a GGUF file, without its weights."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self.model = LlamaModel(path_model=str(path), params=params, verbose=False)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens recognised, none added."""
        return self.model.tokenize(text.encode(), add_bos=False, special=True)


def logits_of(model: Llama, input_ids: list[int]) -> NDArray[np.float32]:
    """The logits [T, V] of every position of one sequence; `model` was opened with `all_logits`. Overwritten by the next call."""
    model.reset()
    model.eval(input_ids)
    return model.scores[: len(input_ids)]
