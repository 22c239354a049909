"""Writing a safetensors file tensor by tensor: names, types and shapes are planned first, then each tensor is made, written and dropped.

Layout: the header's length (8 bytes, little-endian), the header as JSON, filled up with spaces to a multiple of 8, then the data in order.
"""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype] = {"U8": np.dtype(np.uint8), "F32": np.dtype(np.float32)}


@dataclass(frozen=True)
class PlannedArray:
    """A tensor that is to be written, of a type in `DTYPES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray]

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_safetensors(target: Path, plan: list[PlannedArray]) -> None:
    """Write the planned tensors, one at a time in memory, to `target`."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in plan:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}  # type: ignore[dict-item]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in plan:
            array = tensor.make()
            assert (array.dtype, array.shape) == (DTYPES[tensor.dtype], tensor.shape), f"{tensor.name}: {array.dtype} {array.shape}"
            array.tofile(file)
