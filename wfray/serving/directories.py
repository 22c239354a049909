"""Hugging Face directories, looked at before an engine loads them.

A student directory names the class of the model that it was made from, so that transformers, vllm and sglang load it as that model:
without its SubLN norms, with latent weights in place of ternary ones, and with no more than a warning. What they may load is an export.
"""

import json
from pathlib import Path
from typing import Any


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a directory; nothing where there is none, of which the engine itself will speak."""
    file = directory / "config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return config


def refuse_student(directory: Path) -> None:
    """Raise `ValueError` for a student that computes something else than the model whose class it names."""
    config = read_config(directory)
    described = config.get("wrinklefree")
    if described is None or config["model_type"] == "wrinklefree":
        return
    if described["subln"]["placement"] != "none" or described["quantization_lambda"] > 0:
        raise ValueError(
            f"{str(directory)!r} is a student, which would be loaded as a plain {config['model_type']} without its norms and ternary "
            "weights: serve an export of it (jobs.export with formats: [{kind: huggingface}], file: export/huggingface)"
        )


def is_quantized(directory: Path) -> bool:
    """Whether a directory is an export of transformers' class `bitnet`, which computes in float32 alone: transformers converts its codes
    to another dtype, and leaves its embedding and norms."""
    return read_config(directory).get("quantization_config", {}).get("quant_method") == "bitnet"
