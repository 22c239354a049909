"""An I2_S file stored anew as Q4_0, from what it holds, so that stock llama.cpp can prove it.

Codes and scales are read back from the file's bytes; norms and embedding are copied. Only the scale is rounded, to float16.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from numpy.typing import NDArray

from wfray.config.export import GGUF, I2S, Layout, LinearType
from wfray.export.blocks import pack_ternary
from wfray.export.gguf_bitnet import is_linear, plan_file
from wfray.export.gguf_file import PlannedTensor, write_tensors
from wfray.export.gguf_header import StoredTensor, stored_tensors
from wfray.export.i2_s import TYPE_ID, num_bytes, unpack_i2_s
from wfray.export.storage import storage_of

SAME_ROWS: LinearType = "Q4_0"
"""Every row that I2_S can store, this can."""


def write_transcoded(student: Path, source: Path, target: Path, wanted: I2S) -> None:
    """Write `target`, a Q4_0 file of the metadata of `student` and the tensors of the I2_S file `source`."""
    stored = stored_tensors(source)
    storage = storage_of(GGUF(kind="gguf", path="transcoded.gguf", linear_type=SAME_ROWS))
    writer, _, plan = plan_file(student, storage, wanted.embedding_type, storage_of(wanted).multiple)
    write_tensors(writer, target, [from_file(tensor, stored[tensor.name], wanted.layout) for tensor in plan])


def from_file(tensor: PlannedTensor, stored: StoredTensor, layout: Layout) -> PlannedTensor:
    """A planned tensor with the content of the stored one."""
    assert tensor.shape == stored.shape, f"{tensor.name} is {stored.shape} in {stored.path}, not {tensor.shape}"

    def make() -> Iterator[NDArray]:
        if is_linear(tensor):
            assert stored.type_id == TYPE_ID
            rows, columns = stored.shape
            codes, scale = unpack_i2_s(stored.read(num_bytes(rows * columns)), (rows, columns), layout)
            yield pack_ternary(codes, scale, SAME_ROWS)
        else:
            assert stored.type_id == tensor.type_id
            yield stored.read(tensor.num_bytes)

    return replace(tensor, make=make)
