"""The header of a GGUF file: its metadata, and where its tensors are, with type ids as numbers, since `gguf` knows none of bitnet.cpp's.

Layout (version 3, little-endian): magic, version, number of tensors and of metadata entries; the entries, each a name, a type and a
value; the tensors' names, shapes (row length first), types and offsets; data, aligned to 32 bytes.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Of each type of metadata, the format of `struct`."""
STRING, ARRAY = 8, 9
MAX_STRING_BYTES = 1 << 28


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


def metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file by name: numbers, strings, and lists of them.

    Raises:
        ValueError: it is no GGUF file of version 3, or a damaged one.
    """
    with path.open("rb") as file:
        return read_metadata(file, path)[0]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; raises `ValueError` as `metadata` does."""
    with path.open("rb") as file:
        _, num_tensors = read_metadata(file, path)
        found = [read_info(file) for _ in range(num_tensors)]
        data = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    return {name: StoredTensor(path, shape, type_id, data + offset) for name, shape, type_id, offset in found}


def read_metadata(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    """The metadata, and the number of tensors that follow it."""
    beginning = file.read(24)
    if len(beginning) < 24 or beginning[:8] != b"GGUF\x03\0\0\0":
        raise ValueError(f"{str(path)!r} is no GGUF file of version 3")
    num_tensors, num_entries = struct.unpack("<QQ", beginning[8:])
    names_and_values = ((read_string(file), read_value(file, read_number(file, "I"))) for _ in range(num_entries))
    return dict(names_and_values), num_tensors


def read_info(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset in the data of the next tensor."""
    name = read_string(file)
    sizes = [int(read_number(file, "Q")) for _ in range(read_number(file, "I"))]
    return name, tuple(reversed(sizes)), int(read_number(file, "I")), int(read_number(file, "Q"))


def read_exactly(file: BinaryIO, num_bytes: int) -> bytes:
    """The next bytes; a length that no header has is one of a damaged file."""
    data = file.read(num_bytes) if num_bytes <= MAX_STRING_BYTES else b""
    if len(data) < num_bytes:
        raise ValueError(f"{file.name!r} is cut off or damaged: copy or export it again")
    return data


def read_number(file: BinaryIO, kind: str) -> Any:
    """The next number, in a format of `struct`: I is of 4 bytes, Q of 8."""
    return struct.unpack(f"<{kind}", read_exactly(file, struct.calcsize(kind)))[0]


def read_string(file: BinaryIO) -> str:
    """The next string."""
    return read_exactly(file, read_number(file, "Q")).decode(errors="replace")


def read_value(file: BinaryIO, kind: int) -> Any:
    """The next value of metadata, of the type `kind`."""
    if kind == STRING:
        return read_string(file)
    if kind == ARRAY:
        element, length = read_number(file, "I"), read_number(file, "Q")
        return [read_value(file, element) for _ in range(length)]
    if kind not in SCALARS:
        raise ValueError(f"{file.name!r} is damaged: its metadata has a value of type {kind}, which there is not")
    return read_number(file, SCALARS[kind])
