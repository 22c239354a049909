"""How a GGUF file stores ternary matrices: the type's id, how long its rows must be, and how a matrix is packed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from wfray.config.export import GGUF, I2S
from wfray.export import i2_s
from wfray.export.blocks import block_size, pack_ternary

FILE_TYPES = {
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "TQ2_0": LlamaFileType.MOSTLY_TQ2_0,
    "TQ1_0": LlamaFileType.MOSTLY_TQ1_0,
    "F16": LlamaFileType.MOSTLY_F16,
}


@dataclass(frozen=True)
class Storage:
    """A way to store ternary matrices."""

    name: str
    type_id: int
    file_type: int
    multiple: int
    """Of which the length of a row must be a multiple."""
    num_bytes: Callable[[int], int]
    """Weights of a matrix -> bytes."""
    pack: Callable[[NDArray[np.int8], float], NDArray]
    """Codes [D, C] and the value of code 1 -> what the file holds."""


def storage_of(wanted: GGUF | I2S) -> Storage:
    """The storage that a format asks for."""
    if isinstance(wanted, I2S):
        pack = partial(i2_s.pack_i2_s, layout=wanted.layout)
        return Storage("I2_S", i2_s.TYPE_ID, i2_s.FILE_TYPE, i2_s.BLOCKS[wanted.layout], i2_s.num_bytes, pack)
    name = wanted.linear_type
    kind = GGMLQuantizationType[name]
    block, size = GGML_QUANT_SIZES[kind]
    return Storage(
        name, kind, FILE_TYPES[name], block_size(name), lambda weights: weights // block * size, lambda c, s: pack_ternary(c, s, name)
    )
