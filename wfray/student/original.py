"""The original: any model source becomes one ordinary Hugging Face directory (bfloat16 safetensors, configuration, tokenizer)."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from wfray.config.model import Architecture, HubModel, LocalModel, ModelSource, PackageGGUF, RandomModel
from wfray.data.packages import package_directory
from wfray.data.tokenizer import load_tokenizer
from wfray.runs.files import write_aside
from wfray.student.families import family_of


def materialize(source: ModelSource, models: Path) -> Path:
    """The directory of the model of `source` below `models`, written if it is not there. Never half a model.

    Raises:
        ValueError: the package, file or checkpoint does not exist, the family is unknown, or the architecture is another one.
    """
    directory = models / source.digest()[:16]
    if directory.exists():
        return directory
    with write_aside(directory) as aside:
        model = read_model(source)
        if source.architecture is not None:
            check_architecture(model.config, source.architecture)
        model.bfloat16().save_pretrained(aside)
        load_tokenizer(source).save_pretrained(aside)
    return directory


def read_model(source: ModelSource) -> PreTrainedModel:
    """The model of a source with its weights, float32."""
    match source:
        case PackageGGUF():
            folder = package_directory(source.package)
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=source.file, dtype=torch.float32)
            # Dequantized weights are ordinary ones, but transformers keeps the marks of the file and then refuses to save.
            model.hf_quantizer = None  # type: ignore[assignment]
            del model.config.quantization_config
        case HubModel():
            family_of(AutoConfig.from_pretrained(source.id, revision=source.revision))
            model = AutoModelForCausalLM.from_pretrained(source.id, revision=source.revision, dtype=torch.float32)
        case LocalModel():
            return read_directory(Path(source.path))
        case RandomModel():
            torch.manual_seed(source.seed)
            model = AutoModelForCausalLM.from_config(random_config(source), dtype=torch.float32)
    family_of(model.config)
    return model


def read_directory(path: Path) -> PreTrainedModel:
    """The model in a checkpoint directory of a known family."""
    if not (path / "config.json").is_file():
        raise ValueError(f"model directory {str(path)!r} holds no config.json")
    family_of(AutoConfig.from_pretrained(path))
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


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
