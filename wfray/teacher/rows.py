"""Rows of batches and answers: cut apart, put together. An answer's arrays have their rows on axis 0, `layers` on axis 1; numbers
that hold for all rows, such as a temperature, have no axis."""

from collections.abc import Sequence

import numpy as np

Arrays = dict[str, np.ndarray]

ROW_AXIS = {"layers": 1}
WIRE_OF = {
    "hidden": "hidden",
    "layers": "layers",
    "logits": "logits",
    **{name: "qkv" for name in ("q", "k", "v")},
    **{f"topk_{part}": "topk" for part in ("ids", "log_probs", "temperature")},
    **{f"sampled_{part}": "sampled" for part in ("ids", "weights", "entropy", "temperature")},
}
"""Array -> the wire that it belongs to."""


def take_rows(arrays: Arrays, rows: Sequence[int] | slice) -> Arrays:
    """Some rows of every array."""
    chosen = rows if isinstance(rows, slice) else list(rows)
    return {name: array[(slice(None),) * ROW_AXIS.get(name, 0) + (chosen,)] if array.ndim else array for name, array in arrays.items()}


def join_rows(parts: Sequence[Arrays]) -> Arrays:
    """The rows of all parts in order; parts have the same arrays."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return {
        name: np.concatenate([part[name] for part in parts], axis=ROW_AXIS.get(name, 0)) if first[name].ndim else first[name]
        for name in first
    }
