"""Packed ternary blocks, read back with the `gguf` package's own dequantizers."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from wfray.export.blocks import block_size, pack_ternary

TYPES = ["Q4_0", "TQ2_0", "TQ1_0", "F16"]


def random_codes(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-1, 2, (rows, columns)).astype(np.int8)


@pytest.mark.parametrize("linear_type", TYPES)
def test_codes_and_scale_come_back_to_the_bit(linear_type):
    codes, scale = random_codes(5, 768), 0.0173
    packed = pack_ternary(codes, scale, linear_type)
    values = dequantize(packed, GGMLQuantizationType[linear_type])
    assert np.array_equal(values, codes * np.float32(np.float16(scale)))


@pytest.mark.parametrize("linear_type", ["TQ2_0", "TQ1_0"])
def test_blocks_are_those_of_the_reference_quantizer(linear_type):
    codes, scale = random_codes(3, 512), 0.25
    reference = quantize(codes.astype(np.float32) * np.float32(scale), GGMLQuantizationType[linear_type])
    assert np.array_equal(pack_ternary(codes, scale, linear_type), reference)


@pytest.mark.parametrize("linear_type", TYPES)
def test_a_block_of_zeros_keeps_its_scale_and_is_zero(linear_type):
    packed = pack_ternary(np.zeros((1, 256), np.int8), 0.5, linear_type)
    assert not dequantize(packed, GGMLQuantizationType[linear_type]).any()


def test_block_sizes_are_those_of_the_format():
    assert [block_size(kind) for kind in TYPES] == [32, 256, 256, 1]


@pytest.mark.parametrize("scale", [1e-7, 1e5, float("nan"), 0.0 - 1e-9])
def test_a_scale_that_float16_cannot_hold_is_refused(scale):
    with pytest.raises(ValueError, match="float16"):
        pack_ternary(random_codes(1, 256), scale, "Q4_0")
