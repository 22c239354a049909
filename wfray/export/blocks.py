"""Exact storage of ternary matrices in llama.cpp's block types: codes -1, 0, +1 and one scale D, rounded once to float16.

| type  | block | bytes | bits a weight | contents of a block |
|-------|-------|-------|---------------|---------------------|
| Q4_0  | 32    | 18    | 4.5           | d, then 16 bytes: weight i in the low nibble of byte i, i + 16 in the high one; (q - 8) d |
| TQ2_0 | 256   | 66    | 2.0625        | 2 x 32 bytes: weight 32k + i of a group of 128 at bits 2k of byte i; (q - 1) d; then d    |
| TQ1_0 | 256   | 54    | 1.6875        | base-3 digits: 160 in 32 bytes, 80 in 16 (five a byte), 16 in 4 (four a byte); then d     |
| F16   | 1     | 2     | 16            | code * d                                                                                  |

Source: block_q4_0, block_tq2_0 and block_tq1_0 in ggml-common.h. llama.cpp's own quantizers take latent weights and would
derive other codes from them; these packers take codes, so nothing is decided a second time.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from wfray.config.export import LinearType

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-14, 65504.0
"""The normal range of float16, where rounding changes a value by at most 2^-11 of it."""
TQ1_DIGITS = np.array([81, 27, 9, 3, 1], dtype=np.int32)


def block_size(linear_type: LinearType) -> int:
    """Weights of one block: the number that a row's length must be a multiple of."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[linear_type]][0]


def pack_ternary(codes: NDArray[np.int8], scale: float, linear_type: LinearType) -> NDArray[np.uint8 | np.float16]:
    """Store one ternary matrix.

    Args:
        codes: [D, C], each -1, 0 or 1; C a multiple of the type's block size.
        scale: the value of code 1.
        linear_type: how to store it.

    Returns:
        uint8 [D, bytes of a row], or float16 [D, C] for F16.

    Raises:
        ValueError: the scale is outside the normal range of float16, where rounding would not be once and small.
    """
    if linear_type == "F16":
        return codes.astype(np.float16) * rounded_scale(scale)
    blocks_NK = codes.reshape(-1, block_size(linear_type))
    packed = {"Q4_0": nibbles, "TQ2_0": bit_pairs, "TQ1_0": base_three}[linear_type](blocks_NK)
    scales = np.broadcast_to(np.frombuffer(rounded_scale(scale).tobytes(), np.uint8), (len(packed), 2))
    parts = [scales, packed] if linear_type == "Q4_0" else [packed, scales]
    return np.concatenate(parts, axis=1).reshape(len(codes), -1)


def rounded_scale(scale: float) -> np.float16:
    """`scale` in float16, or `ValueError` when it is outside the normal range."""
    if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        raise ValueError(f"scale {scale!r} cannot be stored in float16; bring the matrix's latent weights into the range 1e-4 to 6e4")
    return np.float16(scale)


def nibbles(codes_NK: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Q4_0's 16 bytes of each block of 32."""
    q = (codes_NK + 8).astype(np.uint8)
    return (q[:, :16] | (q[:, 16:] << 4)).astype(np.uint8)


def bit_pairs(codes_NK: NDArray[np.int8]) -> NDArray[np.uint8]:
    """TQ2_0's 64 bytes of each block of 256."""
    q = (codes_NK + 1).astype(np.uint8).reshape(-1, 2, 4, 32)
    return (q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6).reshape(-1, 64).astype(np.uint8)


def base_three(codes_NK: NDArray[np.int8]) -> NDArray[np.uint8]:
    """TQ1_0's 52 bytes of each block of 256: digits as a fraction of 3^5, scaled up to 256 so that a product with 3 shifts one out."""
    q = (codes_NK + 1).astype(np.int32)
    first = np.einsum("ndi,d->ni", q[:, :160].reshape(-1, 5, 32), TQ1_DIGITS)
    second = np.einsum("ndi,d->ni", q[:, 160:240].reshape(-1, 5, 16), TQ1_DIGITS)
    last = np.einsum("ndi,d->ni", q[:, 240:].reshape(-1, 4, 4), TQ1_DIGITS[:4])
    numbers = np.concatenate([first, second, last], axis=1)
    return ((numbers * 256 + 242) // 243).astype(np.uint8)
