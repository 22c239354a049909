"""The original: any model source becomes one ordinary Hugging Face directory (bfloat16 safetensors, configuration, tokenizer).

A checkpoint directory, local or downloaded, passes through tensor by tensor and is never held; a random model and a GGUF file are
made in memory, once, in float32.
"""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from wfray.config.model import Architecture, HubModel, LocalModel, ModelSource, PackageGGUF, RandomModel
from wfray.data.packages import package_directory
from wfray.data.tokenizer import load_tokenizer
from wfray.runs import resolve_home, sha256_of, write_aside
from wfray.runs.lock import lock
from wfray.student.checkpoint import copy_tokenizer, empty_model, fitting, read_config, write_config
from wfray.student.families import family_of
from wfray.student.weights import MAX_SHARD_BYTES, Weights, write_weights

FETCH_SECONDS = 6 * 3600.0
"""A large model takes its time."""


def materialize(source: ModelSource, models: Path) -> Path:
    """The directory of the model of `source` below `models`, written if it is not there. Never half a model.

    A local checkpoint may change under its name, so its directory is named by its content too.

    Raises:
        ValueError: the package, file or checkpoint does not exist, the family is unknown, or the architecture is another one.
    """
    content = f"-{sha256_of(local)[:16]}" if isinstance(source, LocalModel) and (local := resolve_home(source.path)).is_dir() else ""
    directory = models / (source.digest()[:16] + content)
    if directory.exists():
        return directory
    models.mkdir(parents=True, exist_ok=True)
    # Jobs that are submitted together ask for one model together: the second waits for what the first writes.
    with lock(models, FETCH_SECONDS, name=f".{directory.name}.lock"):
        if not directory.exists():
            with write_aside(directory) as aside:
                write_model(source, aside)
    return directory


def write_model(source: ModelSource, target: Path) -> None:
    """Write the model of `source` and its tokenizer to the new directory `target`."""
    match source:
        case HubModel():
            copy_checkpoint(download(source), target, source.architecture)
        case LocalModel():
            copy_checkpoint(resolve_home(source.path), target, source.architecture)
        case PackageGGUF() | RandomModel():
            model = make_model(source)
            check_architecture(model.config, source.architecture)
            model.bfloat16().save_pretrained(target)
    load_tokenizer(source).save_pretrained(target)


def download(source: HubModel) -> Path:
    """The files of a checkpoint on the Hub in the local cache: safetensors, configuration and tokenizer, no code and no pickles."""
    check_architecture(AutoConfig.from_pretrained(source.id, revision=source.revision), source.architecture)
    return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=["*.json", "model*.safetensors", "*.jinja"]))


def copy_checkpoint(source: Path, target: Path, wanted: Architecture | None, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write the checkpoint in the directory `source` to the new directory `target` in bfloat16, tensor by tensor.

    Raises:
        ValueError: `source` is no checkpoint of a known family and the wanted architecture, or its weights do not fit its config.json.
    """
    config = read_config(source)
    if wanted is not None:
        check_architecture(config, wanted)
    model = empty_model(config, torch.bfloat16)
    weights = fitting(model, Weights(source))
    target.mkdir()
    write_weights(target, weights, torch.bfloat16, max_shard_bytes)
    config.architectures = [type(model).__name__]
    write_config(config, target, torch.bfloat16)
    copy_tokenizer(source, target)


def make_model(source: PackageGGUF | RandomModel) -> PreTrainedModel:
    """The model of a source that is no checkpoint directory, in memory, float32."""
    if isinstance(source, RandomModel):
        torch.manual_seed(source.seed)
        return AutoModelForCausalLM.from_config(random_config(source), dtype=torch.float32)
    folder = package_directory(source.package)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=source.file, dtype=torch.float32)
    # Dequantized weights are ordinary ones, but transformers keeps the marks of the file and then refuses to save.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    return model


def random_config(source: RandomModel) -> PretrainedConfig:
    """A Hugging Face configuration of the source's architecture."""
    wanted, tokenizer = source.architecture, load_tokenizer(source)
    return AutoConfig.for_model(
        wanted.family,
        num_hidden_layers=wanted.num_layers,
        hidden_size=wanted.hidden_size,
        intermediate_size=wanted.intermediate_size,
        num_attention_heads=wanted.num_heads,
        num_key_value_heads=wanted.num_kv_heads,
        head_dim=wanted.head_dim,
        vocab_size=wanted.vocab_size,
        tie_word_embeddings=wanted.tied_head,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The architecture of a Hugging Face configuration; the head's width is read, and computed only where none is given."""
    return Architecture(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        tied_head=config.tie_word_embeddings,
    )


def check_architecture(config: PretrainedConfig, wanted: Architecture) -> None:
    """Raise `ValueError` naming every figure in which a model differs from what its source says."""
    family_of(config)
    found = architecture_of(config)
    differing = [
        f"{name} is {getattr(found, name)}, not {value}" for name, value in wanted.model_dump().items() if getattr(found, name) != value
    ]
    if differing:
        raise ValueError(f"the model is not of the architecture in its configuration: {'; '.join(differing)}")
