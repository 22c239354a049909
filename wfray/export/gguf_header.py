"""Where the tensors of a GGUF file are: its header alone, with type ids as numbers, since the `gguf` package knows none of bitnet.cpp's.

Layout (version 3, little-endian): magic, version, number of tensors and of metadata entries; the entries, each a name, a type and a
value; the tensors' names, shapes (row length first), types and offsets; data, aligned to 32 bytes.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 32
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    path: Path
    shape: tuple[int, ...]
    """In weights, row length last."""
    type_id: int
    offset: int
    """From the beginning of the file."""

    def read(self, num_bytes: int) -> NDArray[np.uint8]:
        """Its first bytes."""
        return np.fromfile(self.path, np.uint8, num_bytes, offset=self.offset)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name."""
    with path.open("rb") as file:
        magic, version, num_tensors, num_entries = struct.unpack("<4sIQQ", file.read(24))
        assert (magic, version) == (b"GGUF", 3), f"{path} is no GGUF file of version 3"
        for _ in range(num_entries):
            read_string(file)
            skip_value(file, read_number(file, "I"))
        found = [read_info(file) for _ in range(num_tensors)]
        data = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    return {name: StoredTensor(path, shape, type_id, data + offset) for name, shape, type_id, offset in found}


def read_info(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset in the data of the next tensor."""
    name = read_string(file).decode()
    sizes = [read_number(file, "Q") for _ in range(read_number(file, "I"))]
    return name, tuple(reversed(sizes)), read_number(file, "I"), read_number(file, "Q")


def read_number(file: BinaryIO, kind: str) -> int:
    """The next number: I is of 4 bytes, Q of 8."""
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])


def read_string(file: BinaryIO) -> bytes:
    """The next string."""
    return file.read(read_number(file, "Q"))


def skip_value(file: BinaryIO, kind: int) -> None:
    """Go past a metadata value."""
    if kind == STRING:
        read_string(file)
    elif kind == ARRAY:
        element, length = read_number(file, "I"), read_number(file, "Q")
        if element in SCALAR_BYTES:
            file.seek(SCALAR_BYTES[element] * length, 1)
        else:
            for _ in range(length):
                skip_value(file, element)
    else:
        file.seek(SCALAR_BYTES[kind], 1)
