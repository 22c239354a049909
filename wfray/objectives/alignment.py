"""Layer-wise alignment, stage 1.9: `sum_l a_l * distance(h_s, h_t)` over all layers (OneBit, arXiv 2402.11295).

`h` is the output of decoder layer l at one token; the weights a_l add up to 1. Distances, per token:

- `normalized_mse`: squared distance of the unit vectors, summed over features so that its size does not depend on the width;
  in [0, 4], equal to `2 - 2 cos(h_s, h_t)`;
- `mse`: mean over features of the squared difference;
- `cosine`: one minus the inner product of the unit vectors, half of the first.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = str | Sequence[float]


def layer_weights(layers: Weights, num_layers: int) -> list[float]:
    """a_l: `progressive` grows as l + 1, `exponential` as exp(2 l / L), `uniform` is equal, a list is taken as it is; all normalised.

    Raises:
        ValueError: a list of another length.
    """
    match layers:
        case "progressive":
            raw = [float(index + 1) for index in range(num_layers)]
        case "exponential":
            raw = [math.exp(2 * index / num_layers) for index in range(num_layers)]
        case "uniform":
            raw = [1.0] * num_layers
        case _:
            raw = [float(weight) for weight in layers]
    if len(raw) != num_layers:
        raise ValueError(f"alignment.layers lists {len(raw)} weights, the models have {num_layers} layers: give one a layer")
    return [weight / sum(raw) for weight in raw]


def alignment_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask_BT: Tensor,
    num_targets: int,
    layers: Weights,
    distance: str = "normalized_mse",
) -> Tensor:
    """The weighted sum over layers, per token.

    Args:
        student, teacher: each layer's output [B, T, C].
        mask_BT: true where a token counts.
        num_targets: the number that the sum over tokens is divided by.
        layers: see `layer_weights`.
        distance: see the module docstring.

    Raises:
        ValueError: the numbers of layers or the widths differ.
    """
    if len(student) != len(teacher) or student[0].shape != teacher[0].shape:
        raise ValueError(
            f"alignment needs a teacher of the student's shape: {len(teacher)} layers {tuple(teacher[0].shape)} "
            f"against {len(student)} layers {tuple(student[0].shape)}"
        )
    total = student[0].new_zeros((), dtype=torch.float32)
    for weight, hidden, wanted in zip(layer_weights(layers, len(student)), student, teacher, strict=True):
        if weight:
            total = total + weight * (distances(hidden.float(), wanted.float(), distance) * mask_BT).sum()
    return total / num_targets


def distances(ours_BTC: Tensor, theirs_BTC: Tensor, distance: str) -> Tensor:
    """Token by token [B, T]."""
    if distance == "mse":
        return (ours_BTC - theirs_BTC).square().mean(dim=-1)
    apart_BT = 1.0 - F.cosine_similarity(ours_BTC, theirs_BTC, dim=-1)
    return apart_BT if distance == "cosine" else 2.0 * apart_BT
