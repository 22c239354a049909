"""A Llama-shaped student as a GGUF file of llama.cpp's architecture `bitnet`: SiLU gate, tied head, SubLN before o_proj and down_proj.

Codes and scale come from the quantizer of the training model; the scale is rounded once, to the type's float (float16, in I2_S not at
all). `bitnet` rotates in the NEOX layout, which is that of Hugging Face checkpoints, so q and k keep their rows. Axes that are too short
for a type are widened exactly, see `widen`.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from wfray.config.export import GGUF, I2S
from wfray.export.finished import finished_student
from wfray.export.gguf_file import PlannedTensor, planned_matrix, planned_vector, write_tensors
from wfray.export.llama_shape import LlamaShape, add_shape, read_shape
from wfray.export.storage import Storage, storage_of
from wfray.export.tokenizer import add_tokenizer
from wfray.export.widen import Widening, pad, widen
from wfray.export.written import WrittenModel
from wfray.quant import quantize_weight
from wfray.student import Weights


def write_bitnet(student: Path, target: Path, wanted: GGUF | I2S) -> WrittenModel:
    """Write `target` from a student directory, one tensor in memory at a time.

    Raises:
        ValueError: the student's family, SubLN placement or lambda cannot be expressed, or a scale does not fit float16.
    """
    storage = storage_of(wanted)
    writer, widening, plan = plan_file(student, storage, wanted.embedding_type, storage.multiple)
    write_tensors(writer, target, plan)
    return WrittenModel(
        num_bytes=target.stat().st_size,
        linear_bytes=sum(tensor.num_bytes for tensor in plan if is_linear(tensor)),
        num_linear_weights=num_linear_weights(widening.shape),
        hidden=widening.shape.hidden,
        hidden_stored=widening.widened.hidden,
    )


def plan_file(student: Path, storage: Storage, embedding_type: str, multiple: int) -> tuple[GGUFWriter, Widening, list[PlannedTensor]]:
    """The metadata and the tensors of a student's file, whose rows are multiples of `multiple`."""
    shape, config = read_shape(student, "GGUF export (bitnet)")
    described = finished_student(config, student, "GGUF export (bitnet)")
    embedding_block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[embedding_type]]
    widening = widen(shape, described["subln"]["eps"], math.lcm(multiple, embedding_block), multiple)
    writer = GGUFWriter(None, "bitnet")
    writer.add_file_type(storage.file_type)
    writer.add_quantization_version(2)
    add_shape(writer, widening.widened)
    add_tokenizer(writer, student, shape.vocab_size)
    return writer, widening, list(plan_tensors(Weights(student), widening, storage, embedding_type))


def num_linear_weights(shape: LlamaShape) -> int:
    """Weights of the seven projections of all layers."""
    kv = shape.num_kv_heads * shape.head_dim
    return shape.num_layers * shape.hidden * (2 * shape.hidden + 2 * kv + 3 * shape.intermediate)


def is_linear(tensor: PlannedTensor) -> bool:
    """Whether a planned tensor is one of the seven projections."""
    return tensor.name.startswith("blk.") and len(tensor.shape) == 2


def plan_tensors(weights: Weights, widening: Widening, storage: Storage, embedding_type: str) -> Iterator[PlannedTensor]:
    """All tensors of the file, in order."""
    widened, hidden_ratio = widening.widened, widening.hidden_ratio
    hidden, inner, kv = widened.hidden, widened.intermediate, widened.num_kv_heads * widened.head_dim

    def norm(name: str, source: str, size: int, ratio: float) -> PlannedTensor:
        return planned_vector(name, size, lambda: pad(read(weights, source) * np.float32(math.sqrt(ratio)), (size,)))

    def linear(name: str, source: str, size: tuple[int, int], gain: float = 1.0) -> PlannedTensor:
        return planned_ternary(name, weights, source, size, gain, storage)

    yield planned_embedding(weights, (widened.vocab_size, hidden), embedding_type)
    yield norm("output_norm.weight", "model.norm.weight", hidden, hidden_ratio)
    for index in range(widened.num_layers):
        block, layer = f"blk.{index}", f"model.layers.{index}"
        yield norm(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight", hidden, hidden_ratio)
        yield linear(f"{block}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", (hidden, hidden))
        yield linear(f"{block}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", (kv, hidden))
        yield linear(f"{block}.attn_v.weight", f"{layer}.self_attn.v_proj.weight", (kv, hidden), widening.value_gain)
        yield norm(f"{block}.attn_sub_norm.weight", f"{layer}.self_attn.o_proj.norm.weight", hidden, hidden_ratio)
        yield linear(f"{block}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", (hidden, hidden))
        yield norm(f"{block}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", hidden, hidden_ratio)
        yield linear(f"{block}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", (inner, hidden))
        yield linear(f"{block}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", (inner, hidden), widening.up_gain)
        yield norm(f"{block}.ffn_sub_norm.weight", f"{layer}.mlp.down_proj.norm.weight", inner, widening.inner_ratio)
        yield linear(f"{block}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", (hidden, inner))


def planned_embedding(weights: Weights, size: tuple[int, int], stored: str) -> PlannedTensor:
    """The embedding, which is the head too, read in slices of rows."""

    def rows(start: int, end: int) -> NDArray[np.float32]:
        return pad(weights["model.embed_tokens.weight"][start:end].float().numpy(), (end - start, size[1]))

    return planned_matrix("token_embd.weight", size, stored, rows)


def planned_ternary(name: str, weights: Weights, source: str, size: tuple[int, int], gain: float, storage: Storage) -> PlannedTensor:
    """A latent matrix that is quantized as training does, widened with zero codes and packed."""

    def make() -> Iterator[NDArray]:
        codes, scale = quantize_weight(weights[source])
        yield storage.pack(pad(codes.numpy(), size), scale.item() * gain)

    return PlannedTensor(name, size, storage.type_id, storage.num_bytes(size[0] * size[1]), make)


def read(weights: Weights, name: str) -> NDArray[np.float32]:
    """A tensor in float32."""
    return weights[name].float().numpy()
