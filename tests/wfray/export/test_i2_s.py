"""I2_S, read weight by weight with a slow reader written from the format's description, in both layouts; and what a file holds."""

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from wfray.config.export import GGUF, I2S
from wfray.export.formats import write_format
from wfray.export.gguf_header import stored_tensors
from wfray.export.i2_s import pack_i2_s, unpack_i2_s
from wfray.export.llama_cpp import open_model
from wfray.quant import quantize_weight
from wfray.student import Weights


def slow_read(stored: bytes, num_weights: int, block: int) -> tuple[list[int], float]:
    """Weight by weight: block, byte in the block, bits in the byte; the scale stands after all codes."""
    codes = []
    for weight in range(num_weights):
        number, inside = divmod(weight, block)
        group, position = divmod(inside, block // 4)
        codes.append((stored[number * (block // 4) + position] >> (6 - 2 * group) & 3) - 1)
    return codes, struct.unpack_from("<f", stored, num_weights // 4)[0]


@pytest.mark.parametrize(("layout", "block"), [("x86", 128), ("arm", 64)])
def test_codes_and_scale_come_back_to_the_bit(layout, block):
    codes = np.random.default_rng(0).integers(-1, 2, (6, 384)).astype(np.int8)
    packed = pack_i2_s(codes, 0.0173, layout)
    assert len(packed) == codes.size // 4 + 32
    read, scale = slow_read(packed.tobytes(), codes.size, block)
    assert read == codes.reshape(-1).tolist() and scale == np.float32(0.0173)
    again, same = unpack_i2_s(packed, codes.shape, layout)
    assert np.array_equal(again, codes) and same == scale


def test_the_layouts_differ():
    codes = np.random.default_rng(0).integers(-1, 2, (2, 128)).astype(np.int8)
    assert not np.array_equal(pack_i2_s(codes, 1.0, "x86"), pack_i2_s(codes, 1.0, "arm"))


@pytest.mark.parametrize(("layout", "block"), [("x86", 128), ("arm", 64)])
def test_a_file_holds_the_students_codes_and_unrounded_scales(build, tmp_path: Path, layout, block):
    _, student = build("even")
    write_format(student, tmp_path / "model.gguf", I2S(kind="i2_s", path="model.gguf", layout=layout))
    tensor = stored_tensors(tmp_path / "model.gguf")["blk.1.attn_k.weight"]
    assert (tensor.type_id, tensor.shape) == (36, (128, 256))
    codes, scale = quantize_weight(Weights(student)["model.layers.1.self_attn.k_proj.weight"])
    read, stored_scale = slow_read(tensor.read(codes.numel() // 4 + 32).tobytes(), codes.numel(), block)
    assert read == codes.reshape(-1).tolist() and stored_scale == scale.item()


@pytest.mark.engine
@pytest.mark.skipif("WFRAY_BITNET_CPP" not in os.environ, reason="WFRAY_BITNET_CPP names no folder with bitnet.cpp's binaries")
def test_bitnet_cpp_continues_texts_as_llama_cpp_does(build, tmp_path: Path, texts):
    """The likeliest next token of a few texts; roundings of activations differ, so one may."""
    _, student = build("even")
    write_format(student, tmp_path / "i2_s.gguf", I2S(kind="i2_s", path="i2_s.gguf", layout=os.environ.get("WFRAY_I2_S_LAYOUT", "x86")))
    write_format(student, tmp_path / "q4_0.gguf", GGUF(kind="gguf", path="q4_0.gguf"))
    model = open_model(tmp_path / "q4_0.gguf", context=128, threads=1)
    prompts = [text[:length] for text in texts for length in (20, 40, 60)]
    same = 0
    for prompt in prompts:
        command = [f"{os.environ['WFRAY_BITNET_CPP']}/llama-cli", "-m", str(tmp_path / "i2_s.gguf"), "-p", prompt, "-n", "1", "--temp", "0"]
        result = subprocess.run([*command, "--no-display-prompt"], capture_output=True, check=True, stdin=subprocess.DEVNULL)
        tokens = model.tokenize(prompt.encode(), special=True)
        expected = model.detokenize([next(model.generate(tokens, temp=0.0))], prev_tokens=tokens)
        same += result.stdout.strip(b"\n") == expected.strip(b"\n")
    assert same >= len(prompts) - 1
