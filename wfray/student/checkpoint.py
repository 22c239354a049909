"""Student and original models on disk.

A student directory holds `config.json` (the original's, with a `wrinklefree` entry), weights (latent float32 weights under the
original's names, SubLN weights as `<projection>.norm.weight`, no tied head; see `weights`) and the tokenizer's files.

A model is built empty, its parameters on the meta device and its buffers (rotary frequencies, Gemma's embedding scale) computed,
and then given tensors that are mapped to the files. What is loaded in the dtype in which it is stored takes the memory of one copy.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from wfray.config.convert import Subln
from wfray.quant import set_lambda
from wfray.student.attention import NAME as SEGMENT_ATTENTION
from wfray.student.convert import STUDENT_FORMAT, convert
from wfray.student.families import family_of
from wfray.student.weights import MAX_SHARD_BYTES, Weights, write_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


def student_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a student or original by name, a tied head left out."""
    tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def save_student(model: PreTrainedModel, directory: Path, tokenizer_from: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write a student into `directory`, which must not exist yet; the tokenizer's files are copied from `tokenizer_from`.

    Weights become float32 shard by shard, whatever the model holds: beside the model, one shard is in memory.
    """
    directory.mkdir(parents=True)
    write_weights(directory, student_tensors(model), torch.float32, max_shard_bytes)
    write_config(model.config, directory, torch.float32)
    copy_tokenizer(tokenizer_from, directory)


def write_config(config: PretrainedConfig, directory: Path, dtype: torch.dtype) -> None:
    """Write `config.json` for weights of `dtype`."""
    described = {**config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    # Where the model was read from is no part of what it is, and equal students must be equal files.
    described.pop("_name_or_path", None)
    (directory / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True, default=str) + "\n")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files that `source` has."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def read_config(directory: Path) -> PretrainedConfig:
    """The Hugging Face configuration of a model directory of a known family.

    Raises:
        ValueError: there is none, the family is unknown, or the weights are quantized.
    """
    if not (directory / "config.json").is_file():
        raise ValueError(f"{str(directory)!r} holds no config.json: not a model directory")
    config = AutoConfig.from_pretrained(directory)
    family_of(config)
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{str(directory)!r} holds quantized weights; name a checkpoint in float32, float16 or bfloat16")
    return config


def load_student(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a student in evaluation mode, its parameters in `dtype`.

    Raises:
        ValueError: the directory is no student, or its weights are truncated or do not fit its configuration.
    """
    config = read_config(directory)
    described = student_description(config, directory)
    model = convert(empty_model(config, dtype), Subln(**described["subln"], init="ones"))
    fill(model, Weights(directory), dtype)
    set_lambda(model, described["quantization_lambda"])
    return model.eval()


def student_description(config: PretrainedConfig, directory: Path) -> dict[str, Any]:
    """The `wrinklefree` entry of a student's configuration.

    Raises:
        ValueError: there is none, or it is of another format.
    """
    described = getattr(config, "wrinklefree", None)
    if described is None:
        raise ValueError(f"{str(directory)!r} is not a student (config.json has no `wrinklefree`); convert it with jobs.convert")
    if described.get("format") != STUDENT_FORMAT:
        raise ValueError(
            f"{str(directory)!r} is a student of format {described.get('format')}, this version reads format {STUDENT_FORMAT}: "
            "convert the original again with jobs.convert, or use the version that wrote it"
        )
    return described


def load_original(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a full-precision checkpoint directory in evaluation mode, with attention that respects segments.

    Raises:
        ValueError: the directory is no model of a known family, or its weights are truncated or do not fit its configuration.
    """
    model = empty_model(read_config(directory), dtype)
    fill(model, Weights(directory), dtype)
    return model.eval()


def empty_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this configuration with parameters on the meta device, every buffer computed, head tied where it should be."""
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=SEGMENT_ATTENTION)


def fill(model: PreTrainedModel, weights: Weights, dtype: torch.dtype) -> None:
    """Give an empty model its weights in `dtype`.

    Raises:
        ValueError: a name or shape does not fit the model's configuration.
    """
    model.load_state_dict(fitting(model, weights).load(dtype), strict=False, assign=True)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def fitting(model: PreTrainedModel, weights: Weights) -> Weights:
    """The tensors that `model` needs; a copy of a tied head is left out.

    Raises:
        ValueError: a tensor is missing, unexpected, or of another shape than the model's.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in student_tensors(model).items()}
    missing = sorted(wanted.keys() - weights.keys())
    unexpected = sorted(weights.keys() - wanted.keys() - ({"lm_head.weight"} if model.config.tie_word_embeddings else set()))
    misshapen = [] if missing else [f"{name} is {found}" for name in wanted if (found := tuple(weights[name].shape)) != wanted[name]]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"weights in {str(weights.directory)!r} do not fit its config.json: missing {missing[:3]}, unexpected {unexpected[:3]}, "
            f"of another shape {misshapen[:3]}; take both from one place, or run the stage that makes them again"
        )
    return weights.select(wanted)
