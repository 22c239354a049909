"""Decoding and prefill speed of SmolLM2-135M on two threads of one llama.cpp: the student in every type, the original as F16, Q8_0, Q4_0.

The headline is the fastest ternary file against F16, decoding. Beside it stands that file against the original as Q4_0, which
must be neither faster nor smaller. Where `WFRAY_BITNET_CPP` names a folder with bitnet.cpp's binaries, its `llama-bench` runs the I2_S
file too.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import llama_cpp
import numpy as np
from llama_cpp import Llama

from benchmarks.harness import interleave, medians, report
from benchmarks.ternary_files import TERNARY, write_originals, write_students
from wfray.config.export import I2S
from wfray.export.llama_cpp import open_model

PROMPT, DECODED, THREADS = 256, 64, 2


def prefill(model: Llama, tokens: list[int]) -> Callable[[], None]:
    """Evaluate a prompt from the beginning."""

    def run() -> None:
        model.reset()
        model.eval(tokens)
        llama_cpp.llama_synchronize(model.ctx)

    return run


def decode(model: Llama, tokens: list[int]) -> Callable[[], None]:
    """Evaluate tokens one by one from the beginning."""

    def run() -> None:
        model.reset()
        for token in tokens:
            model.eval([token])
        llama_cpp.llama_synchronize(model.ctx)

    return run


def tokens_per_second(files: dict[str, Path], work: Callable[[Llama, list[int]], Callable[[], None]], num_tokens: int) -> dict[str, float]:
    """Every file's speed, interleaved."""
    models = {name: open_model(file, context=PROMPT, threads=THREADS) for name, file in files.items()}
    tokens = np.random.default_rng(0).integers(0, 49152, num_tokens).tolist()
    seconds = medians(interleave({name: work(model, tokens) for name, model in models.items()}, warm_ups=1))
    for model in models.values():
        model.close()
    return {name: round(num_tokens / value, 1) for name, value in seconds.items()}


def in_bitnet_cpp(directory: Path) -> dict[str, float]:
    """Prefill and decoding speed of an I2_S file, written into `directory`, in bitnet.cpp, where its folder is configured."""
    if (folder := os.environ.get("WFRAY_BITNET_CPP")) is None:
        return {}
    wanted = I2S(kind="i2_s", path="I2_S-F16.gguf", layout="x86")
    write_students({"I2_S": wanted}, directory)
    command = [
        f"{folder}/llama-bench",
        "-m",
        str(directory / wanted.path),
        "-t",
        str(THREADS),
        "-p",
        str(PROMPT),
        "-n",
        str(DECODED),
        "-r",
        "7",
        "-o",
        "json",
    ]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"decode" if row["n_gen"] else "prefill": round(row["avg_ts"], 1) for row in rows}


def main() -> None:
    with TemporaryDirectory() as directory:
        write_students(TERNARY, Path(directory))
        files = {name: Path(directory) / wanted.path for name, wanted in TERNARY.items()} | write_originals(Path(directory))
        sizes = {name: file.stat().st_size for name, file in files.items()}
        decoding = tokens_per_second(files, decode, DECODED)
        prefilling = tokens_per_second(files, prefill, PROMPT)
        other = in_bitnet_cpp(Path(directory))
    smaller = [name for name in TERNARY if sizes[name] < sizes["original Q4_0"]]
    best = max(smaller, key=decoding.__getitem__)
    detail = {
        "best": best,
        "best_against_q4_0_of_the_original": round(decoding[best] / decoding["original Q4_0"], 3),
        "bytes_against_q4_0_of_the_original": round(sizes[best] / sizes["original Q4_0"], 3),
        "decode_tokens_per_second": decoding,
        "prefill_tokens_per_second": prefilling,
        "megabytes": {name: round(size / 1e6, 1) for name, size in sizes.items()},
        "i2_s_in_bitnet_cpp": other,
        "threads": THREADS,
    }
    value = decoding[best] / decoding["original F16"]
    peers = {name: round(speed / decoding["original F16"], 3) for name, speed in decoding.items()}
    report(
        "decode",
        value,
        "x of F16, decoding, of the fastest ternary file that is smaller than the original as Q4_0",
        goal=2.0,
        better="higher",
        peers=peers,
        detail=detail,
    )


if __name__ == "__main__":
    main()
