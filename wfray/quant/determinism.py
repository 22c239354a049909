"""Determinism of torch's kernels."""

import torch


def use_deterministic_algorithms() -> None:
    """Let torch refuse kernels whose result depends on scheduling.

    By default this also fills every new tensor with NaN, a pass over memory that took half of a training step here; nothing in
    this code reads memory that it has not written, so that is off.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
