"""Student and original models on disk.

A student directory holds `config.json` (the original's, with a `wrinklefree` entry), `model.safetensors` (latent float32 weights
under the original's names, SubLN weights as `<projection>.norm.weight`, no tied head) and the tokenizer's files.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from wfray.config.convert import Subln
from wfray.quant import set_lambda
from wfray.student.attention import NAME as SEGMENT_ATTENTION
from wfray.student.convert import convert
from wfray.student.families import family_of

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


def student_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a student or original by name, a tied head left out."""
    tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")}


def save_student(model: PreTrainedModel, directory: Path, tokenizer_from: Path) -> None:
    """Write a student into `directory`, which must not exist yet; the tokenizer's files are copied from `tokenizer_from`."""
    directory.mkdir(parents=True)
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in student_tensors(model).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    described = model.config.to_dict()
    # Where the model was read from is no part of what it is, and equal students must be equal files.
    described.pop("_name_or_path", None)
    (directory / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True, default=str) + "\n")
    copy_tokenizer(tokenizer_from, directory)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files that `source` has."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def read_config(directory: Path) -> PretrainedConfig:
    """The Hugging Face configuration of a model directory of a known family.

    Raises:
        ValueError: there is none, or the family is unknown.
    """
    if not (directory / "config.json").is_file():
        raise ValueError(f"{str(directory)!r} holds no config.json: not a model directory")
    config = AutoConfig.from_pretrained(directory)
    family_of(config)
    return config


def load_student(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a student in evaluation mode.

    Raises:
        ValueError: the directory is no student, or its weights are truncated or do not fit its configuration.
    """
    config = read_config(directory)
    described = getattr(config, "wrinklefree", None)
    if described is None:
        raise ValueError(f"{str(directory)!r} is not a student (config.json has no `wrinklefree`); convert it with jobs.convert")
    model = empty_model(config)
    convert(model, Subln(**described["subln"], init="ones"))
    fill(model, read_tensors(directory / "model.safetensors"), str(directory))
    set_lambda(model, described["quantization_lambda"])
    return nn.Module.to(model, dtype).eval()


def load_original(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a full-precision checkpoint directory in evaluation mode, with attention that respects segments."""
    read_config(directory)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=SEGMENT_ATTENTION).eval()


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this configuration with weights on the meta device, buffers computed, head tied where it should be."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENT_ATTENTION)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ValueError: the file is missing, truncated or foreign.
    """
    if not path.is_file():
        raise ValueError(f"weights {str(path)!r} are missing; run the stage that makes them again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"weights {str(path)!r} cannot be read ({error}): truncated or foreign; run the stage that makes them again"
        ) from None


def fill(model: PreTrainedModel, tensors: dict[str, Tensor], origin: str) -> None:
    """Give an empty model its weights; every name and shape must fit."""
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights in {origin!r} do not fit its config.json: {error}") from None
    if model.config.tie_word_embeddings:
        missing = [name for name in missing if name != "lm_head.weight"]
        model.tie_weights()
    if missing or unexpected:
        raise ValueError(f"weights in {origin!r} do not fit its config.json: missing {missing[:3]}, unexpected {unexpected[:3]}")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
