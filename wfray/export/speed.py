"""Prefill and decoding speed of a GGUF file in llama.cpp, in this process: medians after one warm-up, tokens per second."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import Llama

from wfray.config.export import Speed
from wfray.export.llama_cpp import open_model


@dataclass(frozen=True)
class MeasuredSpeed:
    """Tokens per second of one sequence."""

    prefill: float
    decode: float


def measure_speed(path: Path, speed: Speed, threads: int) -> MeasuredSpeed:
    """Evaluate `prompt_tokens` at once, then `decode_tokens` one by one, `repeats` times; tokens are random, as speed ignores them."""
    model = open_model(path, context=speed.prompt_tokens + speed.decode_tokens, threads=threads)
    tokens = np.random.default_rng(0).integers(0, model.n_vocab(), speed.prompt_tokens + speed.decode_tokens).tolist()
    prompt, continuation = tokens[: speed.prompt_tokens], tokens[speed.prompt_tokens :]

    def decode() -> None:
        for token in continuation:
            model.eval([token])

    prefills, decodes = [], []
    for repeat in range(speed.repeats + 1):
        model.reset()
        prefill_seconds = seconds(model, lambda: model.eval(prompt))
        decode_seconds = seconds(model, decode)
        if repeat > 0:
            prefills.append(len(prompt) / prefill_seconds)
            decodes.append(len(continuation) / decode_seconds)
    model.close()
    return MeasuredSpeed(prefill=statistics.median(prefills), decode=statistics.median(decodes))


def seconds(model: Llama, work: Callable[[], None]) -> float:
    """How long `work` takes until llama.cpp is idle."""
    start = time.perf_counter()
    work()
    llama_cpp.llama_synchronize(model.ctx)
    return time.perf_counter() - start
