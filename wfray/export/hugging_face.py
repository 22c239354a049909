"""A student as a directory that transformers loads.

Llama-shaped students are of its own class `bitnet` (`attn_sub_norm` and `ffn_sub_norm` before o_proj and down_proj), in two forms:

- packed: four codes a byte, row i + k * (rows / 4) at bits 2k of row i, and a scale that is multiplied (`autobitlinear`, offline).
- unpacked: float32 values whose ternary form, which transformers computes in each forward pass (`autobitlinear`, online), is the student's.
  It takes mean|W| for the scale, so code 1 is stored as scale / (share of codes that are not 0); `scale * codes` would come back smaller.

`bitnet` has one eps for all norms; a SubLN of another eps is made right by a factor on v_proj and up_proj, as in `widen`.

Every other student is the family's own class with our layers in it. The code is in the directory (`code/modeling_wrinklefree.py`): it
loads with `trust_remote_code=True` and not otherwise, since the type `wrinklefree` is none of transformers' own.

Everything but the projections is float32, so that a directory computes what was trained. Directories with our code may be loaded in another
dtype to trade that for speed; those of the class `bitnet` may not, since transformers would convert a part of them.

Latent is the student itself, `student/` in the directory, which training stages read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, BitNetConfig, PretrainedConfig

from wfray.config.export import Form
from wfray.export.finished import finished_student
from wfray.export.llama_shape import shape_of
from wfray.export.safetensors_file import PlannedArray, write_safetensors
from wfray.export.widen import widen
from wfray.export.written import WrittenModel
from wfray.quant import quantize_weight
from wfray.runs.files import size_of
from wfray.student import Weights
from wfray.student.checkpoint import copy_tokenizer, write_config
from wfray.student.convert import normed_projections
from wfray.student.families import PROJECTIONS
from wfray.student.weights import SINGLE, write_weights

CODE = "modeling_wrinklefree.py"
SHARED = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act rms_norm_eps
rope_parameters max_position_embeddings tie_word_embeddings pad_token_id bos_token_id eos_token_id""".split()
"""What `bitnet` takes over from a Llama configuration."""


def write_hugging_face(student: Path, target: Path, form: Form) -> WrittenModel:
    """Write the directory `target` from a student directory, one tensor in memory at a time.

    Raises:
        ValueError: the student is not ternary, or transformers has no unpacked form of it.
    """
    config = AutoConfig.from_pretrained(student)
    finished_student(config, student, "Hugging Face export", placements=("output", "all", "none"))
    weights = Weights(student)
    target.mkdir(parents=True)
    if form == "latent":
        linear_bytes = copy_student(student, weights, config, target / "student")
    else:
        plan = plan_directory(student, weights, config, form, target)
        write_safetensors(target / SINGLE, plan)
        copy_tokenizer(student, target)
        linear_bytes = sum(tensor.num_bytes for tensor in plan if is_projection(tensor.name))
    return WrittenModel(
        num_bytes=size_of(target),
        linear_bytes=linear_bytes,
        num_linear_weights=sum(weights[name].numel() for name in weights if is_projection(name)),
        hidden=config.hidden_size,
        hidden_stored=config.hidden_size,
    )


def copy_student(student: Path, weights: Weights, config: PretrainedConfig, target: Path) -> int:
    """The student directory itself, anew; the bytes of its projections."""
    target.mkdir()
    write_weights(target, weights, torch.float32)
    write_config(config, target, torch.float32)
    copy_tokenizer(student, target)
    return sum(4 * weights[name].numel() for name in weights if is_projection(name))


def plan_directory(student: Path, weights: Weights, config: PretrainedConfig, form: Form, target: Path) -> list[PlannedArray]:
    """Write everything but the weights into `target`, and plan these."""
    described = config.wrinklefree["subln"]
    if fits_bitnet(config):
        (target / "config.json").write_text(json.dumps(bitnet_config(config, form), indent=2, default=str) + "\n", encoding="utf-8")
        return list(plan_bitnet(weights, config, described["eps"], form))
    if form != "packed":
        raise ValueError(
            f"Hugging Face export: transformers' class bitnet cannot express the family {config.model_type!r} of {str(student)!r} with "
            f"SubLN placement {described['placement']!r}, so there is no unpacked form; use form: packed or latent"
        )
    write_own_code(config, target)
    return list(plan_own(weights))


def fits_bitnet(config: PretrainedConfig) -> bool:
    """Whether transformers' class `bitnet` computes what a student of this configuration does."""
    return (
        config.model_type == "llama"
        and config.wrinklefree["subln"]["placement"] == "output"
        and not (config.attention_bias or config.mlp_bias)
        and config.num_attention_heads * config.head_dim == config.hidden_size
    )


def bitnet_config(config: PretrainedConfig, form: Form) -> dict[str, object]:
    """`config.json` of the class `bitnet`."""
    fields = BitNetConfig(**{name: getattr(config, name) for name in SHARED}).to_dict()
    mode = "offline" if form == "packed" else "online"
    return {
        **fields,
        "architectures": ["BitNetForCausalLM"],
        "dtype": "float32",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": mode,
            "modules_to_not_convert": ["lm_head"],
        },
    }


def plan_bitnet(weights: Weights, config: PretrainedConfig, subln_eps: float, form: Form) -> Iterator[PlannedArray]:
    """The tensors of the class `bitnet`."""
    widening = widen(shape_of(config), subln_eps)
    gains = {"v_proj": widening.value_gain, "up_proj": widening.up_gain}
    for name in weights:
        renamed = name.replace("self_attn.o_proj.norm", "self_attn.attn_sub_norm").replace("mlp.down_proj.norm", "mlp.ffn_sub_norm")
        gain = gains.get(name.split(".")[-2], 1.0)
        if not is_projection(name):
            yield planned_float(weights, name, renamed)
        elif form == "packed":
            yield from planned_codes(weights, name, gain)
        else:
            yield planned_ternary(weights, name, gain)


def plan_own(weights: Weights) -> Iterator[PlannedArray]:
    """The tensors of our own class, by the student's names."""
    for name in weights:
        if is_projection(name):
            yield from planned_codes(weights, name, 1.0)
        else:
            yield planned_float(weights, name, name)


def is_projection(name: str) -> bool:
    """Whether a tensor is the matrix of one of the seven projections."""
    return name.removesuffix(".weight").split(".")[-1] in PROJECTIONS and name.endswith(".weight")


def planned_float(weights: Weights, name: str, renamed: str) -> PlannedArray:
    """Embedding, head, norms and biases as float32."""
    return PlannedArray(renamed, "F32", tuple(weights[name].shape), lambda: weights[name].float().numpy())


def planned_codes(weights: Weights, name: str, gain: float) -> Iterator[PlannedArray]:
    """The bytes of a matrix, and its scale."""
    rows, columns = weights[name].shape
    if rows % 4:
        raise ValueError(f"{name} has {rows} rows, and four are stored in a byte; export {{kind: huggingface, form: latent}}")

    def scale() -> NDArray[np.float32]:
        return np.array([quantize_weight(weights[name])[1].item() * gain], np.float32)

    yield PlannedArray(name, "U8", (rows // 4, columns), lambda: pack_rows(quantize_weight(weights[name])[0].numpy()))
    yield PlannedArray(f"{name}_scale", "F32", (1,), scale)


def pack_rows(codes_DC: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Four rows, a quarter of the matrix apart, in one."""
    first, second, third, fourth = (codes_DC + 1).astype(np.uint8).reshape(4, -1, codes_DC.shape[1])
    return (first | second << 2 | third << 4 | fourth << 6).astype(np.uint8)


def planned_ternary(weights: Weights, name: str, gain: float) -> PlannedArray:
    """Values whose mean magnitude is the scale; see the module docstring."""

    def make() -> NDArray[np.float32]:
        codes, scale = quantize_weight(weights[name])
        share = max(codes.ne(0).double().mean().item(), 1 / codes.numel())
        return codes.numpy() * np.float32(scale.item() * gain / share)

    return PlannedArray(name, "F32", tuple(weights[name].shape), make)


def write_own_code(config: PretrainedConfig, target: Path) -> None:
    """The module and the configuration of our own class."""
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    source = (Path(__file__).parent / "code" / CODE).read_text(encoding="utf-8")
    source = source.replace("import LlamaConfig as", f"import {type(config).__name__} as").replace(
        "LlamaForCausalLM as", f"{model.__name__} as"
    )
    (target / CODE).write_text(source, encoding="utf-8")
    described = {**config.wrinklefree, "normed": list(normed_projections(config.wrinklefree["subln"]["placement"]))}
    module = CODE.removesuffix(".py")
    fields = {
        **config.to_dict(),
        "model_type": "wrinklefree",
        "architectures": ["WrinkleFreeForCausalLM"],
        "auto_map": {"AutoConfig": f"{module}.WrinkleFreeConfig", "AutoModelForCausalLM": f"{module}.WrinkleFreeForCausalLM"},
        "dtype": "float32",
        "wrinklefree": described,
    }
    (target / "config.json").write_text(json.dumps(fields, indent=2, default=str) + "\n", encoding="utf-8")
