"""Writing a GGUF file tensor by tensor: the plan names every tensor's type and shape first, then each is made, written and dropped."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from numpy.typing import NDArray


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is to be written: `make` gives its stored bytes, uint8 rows for block types."""

    name: str
    shape: tuple[int, ...]
    """In weights, row length last."""
    type: GGMLQuantizationType
    make: Callable[[], NDArray]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, without alignment."""
        block, size = GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * size


def write_tensors(writer: GGUFWriter, target: Path, plan: list[PlannedTensor]) -> None:
    """Write the header and metadata that `writer` holds, then the planned tensors one at a time, to `target`."""
    for tensor in plan:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, raw_dtype=tensor.type)
    writer.write_header_to_file(path=target)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan:
        data = tensor.make()
        assert data.nbytes == tensor.num_bytes, f"{tensor.name}: {data.nbytes} bytes made, {tensor.num_bytes} planned"
        writer.write_tensor_data(data)
    writer.close()


def planned_vector(name: str, size: int, make: Callable[[], NDArray[np.float32]]) -> PlannedTensor:
    """A norm's weight, float32."""
    return PlannedTensor(name, (size,), GGMLQuantizationType.F32, lambda: make().astype(np.float32))


def planned_matrix(name: str, shape: tuple[int, int], stored: str, make: Callable[[], NDArray[np.float32]]) -> PlannedTensor:
    """A full-precision matrix stored as F16 or rounded to Q8_0."""
    kind = GGMLQuantizationType[stored]
    return PlannedTensor(name, shape, kind, lambda: quantize(make(), kind))
