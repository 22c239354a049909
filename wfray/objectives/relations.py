"""Attention relations, BitDistill's third loss: the student's Q-Q, K-K and V-V similarities follow the teacher's, at one layer.

Two variants of arXiv 2510.13998, both as `KL(R_teacher || R_student)` a row, averaged over rows and relation heads and summed
over A in {Q, K, V}:

- equation 12 (`split_heads: null`): `R = softmax(A A^T / sqrt(d))` a head, d the head's width;
- algorithm 1, the authors' code (`split_heads: 32`): the heads are joined and cut into slices of equal width, each vector
  is made unit length, `R = softmax(A A^T)` at temperature 1, no causal mask.

A row is a token, its relations are to the tokens of its own document only. Q and K come after QK-norm and RoPE, V raw.

The relations are [L, L] a document and head, never [S, S], and only one group of them exists at a time: documents of like
length are taken together, filled up to the longest, as long as a group stays in the processor's cache, and the gradient with respect
to A is formed on the way: with `D = (R_s - R_t) / heads` it is `(D + D^T) A`, times the scale. Products are in float32 whatever
the training's precision: relations of unit vectors are nearly flat, and bfloat16 would round their differences away.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wfray.objectives.divergence import kl_
from wfray.student.segments import Segments, Span

States = tuple[Tensor, Tensor, Tensor]

GROUP_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}
"""Elements of one tensor of relations: a CPU's last cache holds six; a GPU wants few, large kernels."""
MOST_FILLING = 1.1
"""A group's relations are at most this many times those of its documents."""
NOTHING = -1e30
"""The logit of a filled-up column: finite, so that differences of logarithms stay 0."""


def relation_loss(student: States, teacher: States, segments: Segments, split_heads: int | None) -> Tensor:
    """The loss summed over tokens; `num_related` counts them.

    Args:
        student, teacher: Q, K and V of one layer, [B, heads, T, head_dim] each; head counts may differ between the two only
            where `split_heads` is given.
        segments: the documents; those of one token have no relations and are left out.
        split_heads: see the module docstring.
    """
    length, device = student[0].shape[2], student[0].device
    spans = [(row * length + start, end - start) for row, start, end in related(segments)]
    total = student[0].new_zeros((), dtype=torch.float32)
    with torch.autocast(device.type, enabled=False):
        for ours, theirs in zip(student, teacher, strict=True):
            num_heads = split_heads or ours.shape[1]
            groups = group_documents(spans, GROUP_ELEMENTS[device.type] // num_heads)
            total = total + _Relations.apply(ours, theirs.to(device), groups, num_heads, split_heads is not None)
    return total


def related(segments: Segments) -> list[Span]:
    """The documents that have relations: those of more than one token."""
    return [span for span in segments.documents if span[2] - span[1] > 1]


def num_related(segments: Segments) -> int:
    """Tokens that relations are taken of: the rows of the relations of one head."""
    return sum(end - start for _, start, end in related(segments))


def group_documents(spans: Sequence[tuple[int, int]], most_elements: int) -> list[list[tuple[int, int]]]:
    """Documents of like length together, the longest first.

    Args:
        spans: (first position, length) of each.
        most_elements: of the [L, L] matrices of one group.
    """
    groups: list[list[tuple[int, int]]] = []
    useful = 0
    for span in sorted(spans, key=lambda span: (-span[1], span[0])):
        filled = (len(groups[-1]) + 1) * groups[-1][0][1] ** 2 if groups else 0
        if groups and filled <= min(most_elements, MOST_FILLING * (useful + span[1] ** 2)):
            groups[-1].append(span)
            useful += span[1] ** 2
        else:
            groups.append([span])
            useful = span[1] ** 2
    return groups


class _Relations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ours_BHTD: Tensor, theirs_BHTD: Tensor, groups: list[list[tuple[int, int]]], num_heads: int, is_unit: bool
    ) -> Tensor:
        ours_HND, theirs_HND = (by_relation_head(states.detach(), num_heads) for states in (ours_BHTD, theirs_BHTD))
        scale = 1.0 if is_unit else ours_HND.shape[-1] ** -0.5
        if is_unit:
            norm_HN1, ours_HND = unit(ours_HND)
            theirs_HND = unit(theirs_HND)[1]
        grad_HND = torch.zeros_like(ours_HND)
        total = torch.zeros((), dtype=torch.float64, device=ours_HND.device)
        for group in groups:
            positions_GL, is_real_GL = positions_of(group, ours_HND.device)
            step = max(1, GROUP_ELEMENTS[ours_HND.device.type] // (positions_GL.numel() * positions_GL.shape[1]))
            for first in range(0, num_heads, step):
                heads = slice(first, first + step)
                ours, theirs = ours_HND[heads][:, positions_GL], theirs_HND[heads][:, positions_GL]
                loss, slope = group_loss(ours, theirs, is_real_GL, scale, num_heads)
                total += loss
                grad_HND[heads, positions_GL[is_real_GL]] = slope[:, is_real_GL]
        if is_unit:
            grad_HND = (grad_HND - ours_HND * (ours_HND * grad_HND).sum(dim=-1, keepdim=True)) / norm_HN1
        batch, _, length, _ = ours_BHTD.shape
        ctx.save_for_backward(grad_HND.permute(1, 0, 2).reshape(batch, length, *ours_BHTD.shape[1::2]).transpose(1, 2).to(ours_BHTD.dtype))
        return total.float()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_total.to(gradient.dtype), None, None, None, None


def by_relation_head(states_BHTD: Tensor, num_heads: int) -> Tensor:
    """Joined and cut anew: [relation heads, B * T, width], at least float32."""
    joined_NC = states_BHTD.transpose(1, 2).flatten(2).flatten(0, 1)
    joined_NC = joined_NC.to(torch.promote_types(joined_NC.dtype, torch.float32))
    return joined_NC.unflatten(1, (num_heads, -1)).transpose(0, 1).contiguous()


def unit(states_HND: Tensor) -> tuple[Tensor, Tensor]:
    """Norms and unit vectors; 0 stays 0."""
    norm_HN1 = states_HND.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return norm_HN1, states_HND / norm_HN1


def positions_of(group: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of a group's tokens, filled up with the last of each document, and which are real: [documents, longest] each."""
    steps_L = torch.arange(group[0][1], device=device)
    starts_G1, lengths_G1 = torch.tensor(group, device=device).T[:, :, None]
    return starts_G1 + torch.minimum(steps_L, lengths_G1 - 1), steps_L < lengths_G1


def group_loss(ours_HGLD: Tensor, theirs_HGLD: Tensor, is_real_GL: Tensor, scale: float, num_heads: int) -> tuple[Tensor, Tensor]:
    """The KL of some heads summed over the tokens of a group and divided by all heads, and its gradient with respect to `ours`."""
    products_s, products_t = (products(states, is_real_GL, scale) for states in (ours_HGLD, theirs_HGLD))
    _, kl_HGL, slope_HGLL = kl_(products_s, products_t, torch.empty_like(products_t), 0.0, scale / num_heads)
    if not is_real_GL.all():
        kl_HGL, slope_HGLL = kl_HGL * is_real_GL, slope_HGLL.mul_(is_real_GL[:, :, None])
    # Turned, since products of few rows are fast and of few columns are not.
    turned_HGDL = ours_HGLD.transpose(-1, -2)
    gradient_HGDL = torch.matmul(turned_HGDL, slope_HGLL) + torch.matmul(turned_HGDL, slope_HGLL.transpose(-1, -2))
    return kl_HGL.double().sum() / num_heads, gradient_HGDL.transpose(-1, -2)


def products(states_HGLD: Tensor, is_real_GL: Tensor, scale: float) -> Tensor:
    """Logits of the relations [heads, documents, L, L]."""
    products_HGLL = torch.matmul(states_HGLD * scale, states_HGLD.transpose(-1, -2))
    return products_HGLL if is_real_GL.all() else products_HGLL.masked_fill_(~is_real_GL[:, None, :], NOTHING)


def check_split(widths: Sequence[int], split_heads: int | None) -> None:
    """Raise `ValueError` when Q, K or V cannot be cut into `split_heads` slices.

    Args:
        widths: joined widths (heads x head_dim) of the states.
    """
    uneven = [width for width in widths if split_heads is not None and width % split_heads]
    if uneven:
        raise ValueError(f"attention_relations.split_heads {split_heads} does not divide the width {uneven[0]} of Q, K or V")
