"""Running out of memory ends with one message: what was asked for, and which setting to lower."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wfray.config.train import Training

REQUESTS = (
    r"DefaultCPUAllocator: can't allocate memory: you tried to allocate (?P<amount>[\d.]+) (?P<unit>bytes)",
    r"(?:Tried|tried) to allocate (?P<amount>[\d.]+) (?P<unit>bytes|KiB|MiB|GiB)",
    r"Unable to allocate (?P<amount>[\d.]+) (?P<unit>bytes|KiB|MiB|GiB)",
)
"""What torch on the CPU, torch on a GPU and numpy say."""
BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@contextmanager
def explain_out_of_memory(train: Training) -> Iterator[None]:
    """Turn an allocation that failed within the block into a `ValueError` that names the mend; other errors pass."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        num_bytes = bytes_asked_for(str(error))
        if num_bytes is None and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        wanted = f"{num_bytes:,} bytes ({num_bytes / 2**20:,.1f} MiB)" if num_bytes is not None else "more memory"
        raise ValueError(f"out of memory: a training step asked for {wanted} that are not there; {mend(train)}") from error


def bytes_asked_for(message: str) -> int | None:
    """The size of the allocation that failed, or None where the message is of something else."""
    found = next((match for pattern in REQUESTS if (match := re.search(pattern, message))), None)
    return round(float(found["amount"]) * BYTES[found["unit"]]) if found else None


def mend(train: Training) -> str:
    """What to change, the cheapest first."""
    if train.micro_rows > 1:
        first = f"lower train.micro_rows from {train.micro_rows} to {train.micro_rows // 2}"
        return first + ("" if train.gradient_checkpointing else ", or set train.gradient_checkpointing=true")
    if not train.gradient_checkpointing:
        return "set train.gradient_checkpointing=true (train.micro_rows is 1 already)"
    return "train.micro_rows is 1 and train.gradient_checkpointing on: pack shorter rows (sequence_length) or use more train.num_workers"
