"""A Llama-shaped student as a GGUF file of llama.cpp's architecture `bitnet`: SiLU gate, tied head, SubLN before o_proj and down_proj.

Codes and scale come from the quantizer of the training model; the scale is rounded once, to float16. `bitnet` rotates in the
NEOX layout, which is that of Hugging Face checkpoints, so q and k keep their rows.

TQ2_0 and TQ1_0 need rows that are multiples of 256. Where they are not (SmolLM2: hidden 576), the hidden axis is widened with
zeros to a multiple of 256 that is a whole number of heads in the same grouping (576 -> 768: 9 heads of 64 become 12, 3 key-value
heads become 4), and the function stays the same:

- An RMSNorm over a widened axis sees its mean square times r = 576/768. With weight * sqrt(r) and eps * r it gives
  `x / sqrt(r ms + r eps) * sqrt(r) w = x / sqrt(ms + eps) * w`; widened channels are 0.
- Added heads have q = k = v = 0, so they mix zeros; their columns of o_proj are zero.
- The file has one eps for all norms. A SubLN of another eps, or over an axis that is widened by another ratio, is made right by
  scaling its input, which v_proj or up_proj produces linearly: `s x / sqrt(s^2 ms' + eps_file)` equals the norm wanted for
  `s^2 = eps_file / (eps_wanted * ratio)`. The factor goes into that matrix's scale before its one rounding.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from wfray.config.export import EmbeddingType, LinearType
from wfray.export.blocks import block_size, pack_ternary
from wfray.export.gguf_file import PlannedTensor, planned_matrix, planned_vector, write_tensors
from wfray.export.llama_shape import LlamaShape, add_shape, read_shape
from wfray.export.tokenizer import add_tokenizer
from wfray.quant.ternary import quantize_weight
from wfray.student import Weights
from wfray.student.checkpoint import student_description

FILE_TYPES = {
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "TQ2_0": LlamaFileType.MOSTLY_TQ2_0,
    "TQ1_0": LlamaFileType.MOSTLY_TQ1_0,
    "F16": LlamaFileType.MOSTLY_F16,
}


@dataclass(frozen=True)
class BitnetFile:
    """What a written file holds, in bytes and weights."""

    num_bytes: int
    linear_bytes: int
    num_linear_weights: int
    """Of the student, without padding."""
    hidden: int
    hidden_stored: int
    """The width of the hidden axis in the file."""

    @property
    def bytes_per_linear_weight(self) -> float:
        """Stored bytes over the student's own weights, so padding counts as cost."""
        return self.linear_bytes / self.num_linear_weights


def write_bitnet(student: Path, target: Path, linear_type: LinearType, embedding_type: EmbeddingType) -> BitnetFile:
    """Write `target` from a student directory, one tensor in memory at a time.

    Raises:
        ValueError: the student's family, SubLN placement or lambda cannot be expressed, or a scale does not fit float16.
    """
    shape, config = read_shape(student, "GGUF export (bitnet)")
    described = finished_student(student_description(config, student), student)
    widened = widen(shape, block_size(linear_type))
    writer = GGUFWriter(None, "bitnet")
    writer.add_file_type(FILE_TYPES[linear_type])
    writer.add_quantization_version(2)
    add_shape(writer, replace(widened, norm_eps=shape.norm_eps * shape.hidden / widened.hidden))
    add_tokenizer(writer, student, shape.vocab_size)
    plan = list(plan_tensors(Weights(student), shape, widened, described["subln"]["eps"], linear_type, embedding_type))
    write_tensors(writer, target, plan)
    linear = [tensor for tensor in plan if is_linear(tensor)]
    return BitnetFile(
        num_bytes=target.stat().st_size,
        linear_bytes=sum(tensor.num_bytes for tensor in linear),
        num_linear_weights=num_linear_weights(shape),
        hidden=shape.hidden,
        hidden_stored=widened.hidden,
    )


def finished_student(described: dict[str, Any], student: Path) -> dict[str, Any]:
    """The description in config.json; what is no finished student with SubLN where `bitnet` has it is refused."""
    placement = described["subln"]["placement"]
    if placement != "output":
        raise ValueError(
            f"GGUF export (bitnet): {str(student)!r} has SubLN placement {placement!r}, but llama.cpp's bitnet norms the inputs of "
            "o_proj and down_proj and no others; convert with subln.placement=output"
        )
    if described["quantization_lambda"] != 1.0:
        raise ValueError(
            f"{str(student)!r} stopped at lambda {described['quantization_lambda']}, so it is not ternary yet; train on until lambda is 1"
        )
    return described


def widen(shape: LlamaShape, multiple: int) -> LlamaShape:
    """The smallest shape whose rows are multiples of `multiple`, with whole heads in the same grouping."""
    group = shape.num_heads // shape.num_kv_heads
    step = math.lcm(multiple, group * shape.head_dim) if shape.hidden % multiple else shape.hidden
    hidden = math.ceil(shape.hidden / step) * step
    return replace(
        shape,
        hidden=hidden,
        intermediate=math.ceil(shape.intermediate / multiple) * multiple,
        num_heads=hidden // shape.head_dim,
        num_kv_heads=hidden // shape.head_dim // group,
    )


def num_linear_weights(shape: LlamaShape) -> int:
    """Weights of the seven projections of all layers."""
    kv = shape.num_kv_heads * shape.head_dim
    return shape.num_layers * shape.hidden * (2 * shape.hidden + 2 * kv + 3 * shape.intermediate)


def is_linear(tensor: PlannedTensor) -> bool:
    """Whether a planned tensor is one of the seven projections."""
    return tensor.name.startswith("blk.") and len(tensor.shape) == 2


def plan_tensors(
    weights: Weights, shape: LlamaShape, widened: LlamaShape, subln_eps: float, linear_type: LinearType, embedding_type: EmbeddingType
) -> Iterator[PlannedTensor]:
    """All tensors of the file, in order."""
    hidden_ratio, inner_ratio = shape.hidden / widened.hidden, shape.intermediate / widened.intermediate
    eps_file = shape.norm_eps * hidden_ratio
    value_gain = math.sqrt(eps_file / (subln_eps * hidden_ratio))
    inner_gain = math.sqrt(eps_file / (subln_eps * inner_ratio))
    hidden, inner, kv = widened.hidden, widened.intermediate, widened.num_kv_heads * widened.head_dim

    def norm(name: str, source: str, size: int, ratio: float) -> PlannedTensor:
        return planned_vector(name, size, lambda: pad(read(weights, source) * np.float32(math.sqrt(ratio)), (size,)))

    def linear(name: str, source: str, size: tuple[int, int], gain: float = 1.0) -> PlannedTensor:
        kind = GGMLQuantizationType[linear_type]
        return PlannedTensor(name, size, kind, ternary_maker(weights, source, size, gain, linear_type))

    embedding = (shape.vocab_size, hidden)
    yield planned_matrix("token_embd.weight", embedding, embedding_type, lambda: pad(read(weights, "model.embed_tokens.weight"), embedding))
    yield norm("output_norm.weight", "model.norm.weight", hidden, hidden_ratio)
    for index in range(shape.num_layers):
        block, layer = f"blk.{index}", f"model.layers.{index}"
        yield norm(f"{block}.attn_norm.weight", f"{layer}.input_layernorm.weight", hidden, hidden_ratio)
        yield linear(f"{block}.attn_q.weight", f"{layer}.self_attn.q_proj.weight", (hidden, hidden))
        yield linear(f"{block}.attn_k.weight", f"{layer}.self_attn.k_proj.weight", (kv, hidden))
        yield linear(f"{block}.attn_v.weight", f"{layer}.self_attn.v_proj.weight", (kv, hidden), value_gain)
        yield norm(f"{block}.attn_sub_norm.weight", f"{layer}.self_attn.o_proj.norm.weight", hidden, hidden_ratio)
        yield linear(f"{block}.attn_output.weight", f"{layer}.self_attn.o_proj.weight", (hidden, hidden))
        yield norm(f"{block}.ffn_norm.weight", f"{layer}.post_attention_layernorm.weight", hidden, hidden_ratio)
        yield linear(f"{block}.ffn_gate.weight", f"{layer}.mlp.gate_proj.weight", (inner, hidden))
        yield linear(f"{block}.ffn_up.weight", f"{layer}.mlp.up_proj.weight", (inner, hidden), inner_gain)
        yield norm(f"{block}.ffn_sub_norm.weight", f"{layer}.mlp.down_proj.norm.weight", inner, inner_ratio)
        yield linear(f"{block}.ffn_down.weight", f"{layer}.mlp.down_proj.weight", (hidden, inner))


def ternary_maker(weights: Weights, source: str, size: tuple[int, int], gain: float, linear_type: LinearType) -> Callable[[], NDArray]:
    """A function that quantizes a latent matrix as training does, widens it with zero codes and packs it."""

    def make() -> NDArray:
        codes, scale = quantize_weight(weights[source])
        return pack_ternary(pad(codes.numpy(), size), scale.item() * gain, linear_type)

    return make


def read(weights: Weights, name: str) -> NDArray[np.float32]:
    """A tensor in float32."""
    return weights[name].float().numpy()


def pad(array: NDArray, size: tuple[int, ...]) -> NDArray:
    """`array` widened with zeros at the end of each axis."""
    return np.pad(array, [(0, wanted - given) for wanted, given in zip(size, array.shape, strict=True)])
