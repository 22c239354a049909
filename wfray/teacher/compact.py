"""One cache entry as bytes: arrays made compressible without loss, zstd, and a checksum in front of it all.

    entry = SHA-256 of what follows (32 bytes) + zstd(safetensors(arrays))

Two transformations, both undone to the bit, feed zstd's entropy coder:

- *Planes.* The bytes of a number are stored apart, all high bytes, then all low ones. The exponents of neural activations take
  few values, and token ids grow rarer with their size, so the high plane shrinks to a fraction; low bytes stay as they are.
- *Steps.* Sorted log-probabilities fall slowly: as float16 bits they are integers that grow by small steps, and the steps are stored,
  rank by rank over all tokens.
"""

import hashlib

import numpy as np
from backports import zstd
from safetensors.numpy import load, save

from wfray.teacher.rows import Arrays

HASH_BYTES = 32
LEVEL = 1
"""Of zstd: on planes of activations higher levels are slower and no smaller."""
SORTED = "topk_log_probs"
"""The array whose last axis falls, but for its last entry."""


class DamagedEntry(Exception):
    """The bytes are not those that were written."""


def pack_entry(arrays: Arrays) -> bytes:
    """The arrays of one entry as bytes."""
    planes = {}
    for name, array in arrays.items():
        numbers = to_steps(array) if name == SORTED else array
        # Dtype and shape stand beside the planes as an empty array of the original kind.
        planes[name] = byte_planes(numbers)
        planes[f"{name}:like"] = np.empty((0, *array.shape), array.dtype)
    packed = zstd.compress(save(planes), LEVEL)
    return hashlib.sha256(packed).digest() + packed


def unpack_entry(entry: bytes) -> Arrays:
    """The arrays that `pack_entry` was given.

    Raises:
        DamagedEntry: the bytes are not what was written.
    """
    packed = entry[HASH_BYTES:]
    if hashlib.sha256(packed).digest() != entry[:HASH_BYTES]:
        raise DamagedEntry
    planes = load(zstd.decompress(packed))
    arrays = {}
    for name in [name for name in planes if not name.endswith(":like")]:
        like = planes[f"{name}:like"]
        numbers = np.ascontiguousarray(planes[name].T).view(like.dtype).reshape(like.shape[1:])
        arrays[name] = from_steps(numbers) if name == SORTED else numbers
    return arrays


def byte_planes(array: np.ndarray) -> np.ndarray:
    """uint8 [bytes of a number, numbers]."""
    return np.ascontiguousarray(np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8).T)


def to_steps(log_probs: np.ndarray) -> np.ndarray:
    """Differences of the bits along the last axis; wraps around, so any values come back."""
    bits = log_probs.view(np.uint16)
    return np.diff(bits, axis=-1, prepend=np.zeros_like(bits[..., :1]))


def from_steps(steps: np.ndarray) -> np.ndarray:
    """Undo `to_steps`."""
    return np.cumsum(steps.view(np.uint16), axis=-1, dtype=np.uint16).view(np.float16)
