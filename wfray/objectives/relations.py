"""Attention relations, BitDistill's third loss: the student's Q-Q, K-K and V-V similarities follow the teacher's, at one layer.

Two variants of arXiv 2510.13998, both as `KL(R_teacher || R_student)` a row, averaged over rows and relation heads and summed
over A in {Q, K, V}:

- equation 12 (`split_heads: null`): `R = softmax(A A^T / sqrt(d))` a head, d the head's width;
- algorithm 1, the authors' code (`split_heads: 32`): the heads are joined and cut into slices of equal width, each vector
  is made unit length, `R = softmax(A A^T)` at temperature 1, no causal mask.

A row is a token, its relations are to the tokens of its own document only. Q and K come after QK-norm and RoPE, V raw.
The tensors are [L, L] a document and head, never [S, S].
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from wfray.student.attention import Segments

States = tuple[Tensor, Tensor, Tensor]


def relation_loss(student: States, teacher: States, segments: Segments, split_heads: int | None) -> tuple[Tensor, int]:
    """The loss summed over tokens, and the number of tokens that it covers.

    Args:
        student, teacher: Q, K and V of one layer, [B, heads, T, head_dim] each; head counts may differ between the two only
            where `split_heads` is given.
        segments: the documents; those of one token have no relations and are left out.
        split_heads: see the module docstring.
    """
    total = student[0].new_zeros((), dtype=torch.float32)
    num_tokens = 0
    for row, start, end in segments.documents:
        if end - start < 2:
            continue
        num_tokens += end - start
        for ours, theirs in zip(student, teacher, strict=True):
            log_r_s = log_relations(ours[row, :, start:end].float(), split_heads)
            log_r_t = log_relations(theirs[row, :, start:end].float(), split_heads)
            kl_HL = (log_r_t.exp() * (log_r_t - log_r_s)).sum(dim=-1)
            total = total + kl_HL.mean(dim=0).sum()
    return total, num_tokens


def log_relations(states_HLD: Tensor, split_heads: int | None) -> Tensor:
    """log R [relation heads, L, L] of one document."""
    if split_heads is None:
        return (states_HLD @ states_HLD.transpose(-1, -2) * states_HLD.shape[-1] ** -0.5).log_softmax(dim=-1)
    joined_LC = states_HLD.transpose(0, 1).flatten(1)
    unit = F.normalize(joined_LC.unflatten(1, (split_heads, -1)).transpose(0, 1), dim=-1)
    return (unit @ unit.transpose(-1, -2)).log_softmax(dim=-1)


def check_split(widths: Iterable[int], split_heads: int | None) -> None:
    """Raise `ValueError` when Q, K or V cannot be cut into `split_heads` slices.

    Args:
        widths: joined widths (heads x head_dim) of the states.
    """
    uneven = [width for width in widths if split_heads is not None and width % split_heads]
    if uneven:
        raise ValueError(f"attention_relations.split_heads {split_heads} does not divide the width {uneven[0]} of Q, K or V")
