"""Layer-wise alignment, stage 1.9: `sum_l a_l * |h_s/|h_s| - h_t/|h_t||^2` over all layers (OneBit, arXiv 2402.11295).

`h` is the output of decoder layer l at one token; the squared distance of unit vectors lies in [0, 4] and its mean over tokens
and features is what the paper calls mse. Here it is summed over features, so its size does not depend on the width:
`2 - 2 cos(h_s, h_t)`. Weights a_l sum to 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def layer_weights(kind: str, num_layers: int) -> list[float]:
    """a_l: `progressive` grows as l + 1, `uniform` is equal; they sum to 1."""
    raw = [float(index + 1) if kind == "progressive" else 1.0 for index in range(num_layers)]
    return [weight / sum(raw) for weight in raw]


def alignment_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], mask_BT: Tensor, num_targets: int, kind: str) -> Tensor:
    """The weighted sum over layers, per token.

    Args:
        student, teacher: each layer's output [B, T, C].
        mask_BT: true where a token counts.
        num_targets: the number that the sum over tokens is divided by.
        kind: see `layer_weights`.

    Raises:
        ValueError: the numbers of layers or the widths differ.
    """
    if len(student) != len(teacher) or student[0].shape != teacher[0].shape:
        raise ValueError(
            f"alignment needs a teacher of the student's shape: {len(teacher)} layers {tuple(teacher[0].shape)} "
            f"against {len(student)} layers {tuple(student[0].shape)}"
        )
    total = student[0].new_zeros((), dtype=torch.float32)
    for weight, hidden, wanted in zip(layer_weights(kind, len(student)), student, teacher, strict=True):
        cosine_BT = F.cosine_similarity(hidden.float(), wanted.float(), dim=-1)
        total = total + weight * ((2.0 - 2.0 * cosine_BT) * mask_BT).sum()
    return total / num_targets
