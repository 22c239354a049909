"""What llama.cpp needs to know of a Llama-shaped checkpoint, and the refusal of what it cannot express."""

from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFWriter
from transformers import AutoConfig, PretrainedConfig


@dataclass(frozen=True)
class LlamaShape:
    """Widths and constants of a Llama-shaped model; `hidden` = num_heads * head_dim."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rope_theta: float
    norm_eps: float


def read_shape(directory: Path, purpose: str) -> tuple[LlamaShape, PretrainedConfig]:
    """Read `config.json` of a checkpoint directory.

    Args:
        directory: a Hugging Face checkpoint or a student.
        purpose: what the caller is about to write, for error messages.

    Raises:
        ValueError: the model is of a family, or has a feature, that the file could not express.
    """
    config = AutoConfig.from_pretrained(directory)
    if config.model_type != "llama":
        raise ValueError(
            f"{purpose}: llama.cpp's architecture cannot express the family {config.model_type!r} of {str(directory)!r} (it has no "
            "place for QK-norms, biases or other widths of q); export a Llama-shaped student (model_type 'llama')"
        )
    rope = config.rope_parameters
    for holds, what in [
        (config.hidden_act == "silu", f"activation {config.hidden_act!r} instead of 'silu'"),
        (not config.attention_bias and not config.mlp_bias, "biases in its projections"),
        (config.num_attention_heads * config.head_dim == config.hidden_size, "queries of another width than the hidden size"),
        (config.tie_word_embeddings, "an LM head of its own (tie_word_embeddings is false)"),
        (rope.get("rope_type", "default") == "default", f"RoPE of type {rope.get('rope_type')!r}"),
    ]:
        if not holds:
            raise ValueError(f"{purpose}: {str(directory)!r} has {what}, which this file cannot express; export a model without it")
    return shape_of(config), config


def shape_of(config: PretrainedConfig) -> LlamaShape:
    """The figures of a Llama configuration."""
    return LlamaShape(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        rope_theta=config.rope_parameters["rope_theta"],
        norm_eps=config.rms_norm_eps,
    )


def add_shape(writer: GGUFWriter, shape: LlamaShape) -> None:
    """Write the hyper-parameters into a file's metadata."""
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)
