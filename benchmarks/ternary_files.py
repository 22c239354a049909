"""SmolLM2-135M's files for the benchmarks of exports: its student in every type, and its original as F16, Q8_0 and Q4_0 of llama.cpp.

Neither speed nor size depends on what a student has learnt, so it is converted and not trained.
"""

import ctypes
from pathlib import Path

import llama_cpp
from gguf import LlamaFileType

from benchmarks.inputs import CACHE, ROOT, make_student
from wfray.config.base import read_yaml
from wfray.config.export import GGUF, I2S, Format, HuggingFace
from wfray.config.model import PackageGGUF
from wfray.export.formats import write_format
from wfray.export.original import write_original
from wfray.export.written import WrittenModel
from wfray.student import materialize

SOURCE = PackageGGUF.model_validate(read_yaml(ROOT / "configs" / "models" / "smollm2_135m.yaml"))
TERNARY: dict[str, Format] = {
    f"ternary {linear}, head {head}": GGUF(kind="gguf", path=f"{linear}-{head}.gguf", linear_type=linear, embedding_type=head)
    for linear, head in [
        ("Q4_0", "F16"),
        ("Q4_0", "Q8_0"),
        ("Q4_0", "Q5_0"),
        ("TQ2_0", "Q8_0"),
        ("TQ2_0", "Q6_K"),
        ("TQ1_0", "Q6_K"),
        ("F16", "F16"),
    ]
}
OTHERS: dict[str, Format] = {
    "ternary I2_S, head F16": I2S(kind="i2_s", path="I2_S-F16.gguf", layout="x86"),
    "ternary Hugging Face, packed": HuggingFace(kind="huggingface", path="packed", form="packed"),
    "ternary Hugging Face, unpacked": HuggingFace(kind="huggingface", path="unpacked", form="unpacked"),
}
QUANTIZED = {"original Q8_0": LlamaFileType.MOSTLY_Q8_0, "original Q4_0": LlamaFileType.MOSTLY_Q4_0}


def write_students(formats: dict[str, Format], directory: Path) -> dict[str, WrittenModel]:
    """Write the student in some formats; what each holds."""
    student = make_student(SOURCE)
    return {name: write_format(student, directory / wanted.path, wanted) for name, wanted in formats.items()}


def write_originals(directory: Path) -> dict[str, Path]:
    """Write the original as F16, and llama.cpp's own quantizations of that file."""
    files = {"original F16": directory / "original.gguf"}
    write_original(materialize(SOURCE, CACHE / "models"), files["original F16"])
    for name, kind in QUANTIZED.items():
        files[name] = directory / f"{name.replace(' ', '-')}.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = kind
        status = llama_cpp.llama_model_quantize(str(files["original F16"]).encode(), str(files[name]).encode(), ctypes.byref(params))
        assert status == 0, f"llama_model_quantize returned {status}"
    return files
