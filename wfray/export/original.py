"""A full-precision Llama checkpoint as an F16 GGUF file of llama.cpp's architecture `llama`: what the ternary file is compared with.

`llama` rotates neighbouring pairs of channels, Hugging Face checkpoints the two halves of a head: rows of q and k are
interleaved, `[head, 2, d/2] -> [head, d/2, 2]`, which leaves every product q.k as it was.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from wfray.export.gguf_file import PlannedTensor, planned_matrix, planned_vector, write_tensors
from wfray.export.llama_shape import LlamaShape, add_shape, read_shape
from wfray.export.tokenizer import add_tokenizer
from wfray.student import Weights


def write_original(model: Path, target: Path) -> int:
    """Write `target` from a checkpoint directory, tensor by tensor.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: the family or a feature of the model cannot be expressed.
    """
    shape, _ = read_shape(model, "F16 GGUF of the original (llama)")
    writer = GGUFWriter(None, "llama")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(2)
    add_shape(writer, shape)
    add_tokenizer(writer, model, shape.vocab_size)
    write_tensors(writer, target, list(plan_tensors(Weights(model), shape)))
    return target.stat().st_size


def plan_tensors(weights: Weights, shape: LlamaShape) -> Iterator[PlannedTensor]:
    """All tensors of the file, in order."""
    hidden, inner, kv = shape.hidden, shape.intermediate, shape.num_kv_heads * shape.head_dim

    def read(source: str) -> NDArray[np.float32]:
        return weights[source].float().numpy()

    def norm(name: str, source: str) -> PlannedTensor:
        return planned_vector(name, hidden, lambda: read(source))

    def matrix(name: str, source: str, size: tuple[int, int]) -> PlannedTensor:
        return planned_matrix(name, size, "F16", lambda start, end: weights[source][start:end].float().numpy())

    def rotated(name: str, source: str, size: tuple[int, int]) -> PlannedTensor:
        return planned_matrix(name, size, "F16", lambda start, end: interleave_halves(read(source), shape.head_dim), slice_rows=size[0])

    yield matrix("token_embd.weight", "model.embed_tokens.weight", (shape.vocab_size, hidden))
    yield norm("output_norm.weight", "model.norm.weight")
    for index in range(shape.num_layers):
        block, layer = f"blk.{index}", f"model.layers.{index}"
        yield norm(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight")
        yield rotated(f"{block}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", (hidden, hidden))
        yield rotated(f"{block}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", (kv, hidden))
        yield matrix(f"{block}.attn_v.weight", f"{layer}.self_attn.v_proj.weight", (kv, hidden))
        yield matrix(f"{block}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", (hidden, hidden))
        yield norm(f"{block}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight")
        yield matrix(f"{block}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", (inner, hidden))
        yield matrix(f"{block}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", (inner, hidden))
        yield matrix(f"{block}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", (hidden, inner))


def interleave_halves(weight_DC: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of each head from two halves to neighbouring pairs."""
    heads = weight_DC.reshape(-1, 2, head_dim // 2, weight_DC.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(weight_DC.shape))
