"""I2_S, the ternary type of bitnet.cpp: two bits a weight and one float32 scale a matrix, so no scale is rounded.

A block of N weights (x86: 128, ARM: 64) is N/4 bytes; byte p holds weight p at bits 6-7, p + N/4 at 4-5, p + N/2 at 2-3 and p + 3N/4 at
0-1, each code plus 1. After all blocks stand the scale and 28 bytes of padding. Rows are multiples of a block. A file does not say which
layout it has. Its own quantizer would take latent weights for their sign; this packer takes codes.

Source: `quantize_i2_s` in ggml-bitnet-mad.cpp of bitnet.cpp.
"""

import numpy as np
from numpy.typing import NDArray

from wfray.config.export import Layout

BLOCKS: dict[Layout, int] = {"x86": 128, "arm": 64}
TYPE_ID, FILE_TYPE = 36, 40
TAIL_BYTES = 32


def num_bytes(num_weights: int) -> int:
    """The bytes of a matrix."""
    return num_weights // 4 + TAIL_BYTES


def pack_i2_s(codes_DC: NDArray[np.int8], scale: float, layout: Layout) -> NDArray[np.uint8]:
    """Codes -1, 0 and 1 and the value of code 1 as the bytes of one matrix."""
    fields_N4P = (codes_DC + 1).astype(np.uint8).reshape(-1, 4, BLOCKS[layout] // 4)
    packed = fields_N4P[:, 0] << 6 | fields_N4P[:, 1] << 4 | fields_N4P[:, 2] << 2 | fields_N4P[:, 3]
    tail = np.zeros(TAIL_BYTES, np.uint8)
    tail[:4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    return np.concatenate([packed.reshape(-1), tail])


def unpack_i2_s(stored: NDArray[np.uint8], shape: tuple[int, int], layout: Layout) -> tuple[NDArray[np.int8], float]:
    """Codes and scale of the bytes of one matrix."""
    packed_NP = stored[:-TAIL_BYTES].reshape(-1, BLOCKS[layout] // 4)
    fields = [(packed_NP >> shift & 3).astype(np.int8) - 1 for shift in (6, 4, 2, 0)]
    scale = np.frombuffer(stored[-TAIL_BYTES:].tobytes(), np.float32)[0]
    return np.concatenate(fields, axis=1).reshape(shape), float(scale)
