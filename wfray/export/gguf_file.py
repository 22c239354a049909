"""Writing a GGUF file tensor by tensor: the plan names every tensor's type and shape first, then each is made, written and dropped.

A full-precision matrix is made in slices of rows, so what is in memory is one ternary matrix or one slice, whatever the model's size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from wfray.export.ggml import quantize_rows

ALIGNMENT = 32
SLICE_WEIGHTS = 2**22
"""Weights of one slice of a full-precision matrix."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is to be written: `make` yields its stored bytes in order."""

    name: str
    shape: tuple[int, ...]
    """In weights, row length last."""
    type_id: int
    num_bytes: int
    """In the file, without alignment."""
    make: Callable[[], Iterator[NDArray]]


def write_tensors(writer: GGUFWriter, target: Path, plan: list[PlannedTensor]) -> None:
    """Write the header and metadata that `writer` holds, then the planned tensors one at a time, to `target`."""
    for tensor in plan:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, raw_dtype=tensor.type_id)  # type: ignore[arg-type]
    writer.write_header_to_file(path=target)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with target.open("ab") as file:
        for tensor in plan:
            file.write(bytes(-file.tell() % ALIGNMENT))
            start = file.tell()
            for part in tensor.make():
                part.tofile(file)
            written = file.tell() - start
            assert written == tensor.num_bytes, f"{tensor.name}: {written} bytes made, {tensor.num_bytes} planned"
        file.write(bytes(-file.tell() % ALIGNMENT))


def planned_vector(name: str, size: int, make: Callable[[], NDArray[np.float32]]) -> PlannedTensor:
    """A norm's weight, float32."""
    return PlannedTensor(name, (size,), GGMLQuantizationType.F32, 4 * size, lambda: iter([make().astype(np.float32)]))


def planned_matrix(
    name: str, shape: tuple[int, int], stored: str, read: Callable[[int, int], NDArray[np.float32]], slice_rows: int | None = None
) -> PlannedTensor:
    """A full-precision matrix stored as F16, or rounded to a block type.

    Args:
        name: in the file.
        shape: rows and columns as stored.
        stored: the type's name.
        read: gives the rows from a first to a last one, exclusive, [R, C].
        slice_rows: rows that are read at once; None: about 4 million weights.
    """
    kind = GGMLQuantizationType[stored]
    step = slice_rows or max(1, SLICE_WEIGHTS // shape[1])
    block, size = GGML_QUANT_SIZES[kind]

    def make() -> Iterator[NDArray]:
        for start in range(0, shape[0], step):
            rows = read(start, min(start + step, shape[0]))
            yield rows.astype(np.float16) if kind == GGMLQuantizationType.F16 else quantize_rows(rows, kind)

    return PlannedTensor(name, shape, kind, shape[0] * shape[1] // block * size, make)
