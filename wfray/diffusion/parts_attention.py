"""Exact attention over a row of blocks on a CPU, part by part, as `wfray.student.chunked_attention` does it for causal documents.

A part is up to `CHUNK` tokens of neighbouring blocks of one document, all clean or all of one noisy copy, with every key that any of them
sees: the clean blocks before them and themselves. Its softmax is complete at once: scores in float32, probabilities rounded to the dtype
of the values for their product. Backward computes the probabilities again. The only mask is a part's own, [queries, keys] of few blocks.

Query heads that share a key-value head are folded into the rows of one product, so keys and values are never repeated.

Shapes: K key-value heads, G query heads to each, Q tokens of a part, L keys that it sees, D head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wfray.diffusion.blocks import CLEAN, Blocks, token_mask

CHUNK = 128
"""Queries at a time: fewer see fewer keys in vain, more make larger products."""


@dataclass(frozen=True)
class Part:
    """See the module docstring; positions of the row, half-open."""

    queries: slice
    earlier: slice
    """The clean blocks of the document before the part's last one; empty for a clean part."""
    own: slice
    """The part's own blocks; of a clean part with all before them."""
    bias_QL: Tensor | None
    """Float32: -inf where a query does not see a key; None where every query sees every key."""

    def keys(self, states_KND: Tensor) -> Tensor:
        """What the part sees of keys or values, [K, L, D]."""
        if self.earlier.start == self.earlier.stop:
            return states_KND[:, self.own]
        return torch.cat([states_KND[:, self.earlier], states_KND[:, self.own]], dim=1)

    def add_to(self, sum_KND: Tensor, part_KLD: Tensor) -> None:
        """Add what a part gives to the gradients of the keys that it sees."""
        split = self.earlier.stop - self.earlier.start
        sum_KND[:, self.earlier] += part_KLD[:, :split]
        sum_KND[:, self.own] += part_KLD[:, split:]


def parts_of(blocks: Blocks) -> list[Part]:
    """The parts of a row, in order."""
    return [part for start, end in blocks.documents for part in document_parts(blocks, start, end)]


def document_parts(blocks: Blocks, start: int, end: int) -> list[Part]:
    """The parts of one document, whose blocks are `start:end`."""
    copies, lengths = torch.unique_consecutive(blocks.copy[start:end], return_counts=True)
    in_part, parts, first = max(1, CHUNK // blocks.size), [], start
    for copy, length in zip(copies.tolist(), lengths.tolist(), strict=True):
        for begin in range(first, first + length, in_part):
            stop = min(begin + in_part, first + length)
            if copy == CLEAN:
                parts.append(make_part(blocks, slice(begin, stop), slice(start, start), slice(start, stop)))
            else:
                num_earlier = int(blocks.number[stop - 1])
                parts.append(make_part(blocks, slice(begin, stop), slice(start, start + num_earlier), slice(begin, stop)))
        first += length
    return parts


def make_part(blocks: Blocks, queries: slice, earlier: slice, own: slice) -> Part:
    """A part from spans of blocks."""
    seen = torch.cat([torch.arange(earlier.start, earlier.stop), torch.arange(own.start, own.stop)])
    mask = token_mask(blocks[queries], blocks[seen])
    bias_QL = None if bool(mask.all()) else torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return Part(tokens_of(queries, blocks.size), tokens_of(earlier, blocks.size), tokens_of(own, blocks.size), bias_QL)


def tokens_of(span: slice, size: int) -> slice:
    """A span of blocks as one of tokens."""
    return slice(span.start * size, span.stop * size)


class PartsAttention(torch.autograd.Function):
    """`softmax(scaling * Q K^T + bias) V` of every part of one row."""

    @staticmethod
    def forward(ctx: Any, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, parts: Sequence[Part], scaling: float) -> Tensor:
        """Returns the mixed values [N, H, D]."""
        heads, length, head_dim = query_HND.shape
        mixed_NHD = query_HND.new_empty(length, heads, head_dim)
        with torch.autocast(query_HND.device.type, enabled=False):
            for part in parts:
                probabilities = part_probabilities(part, query_HND, key_KND, scaling)
                mixed = probabilities.to(value_KND.dtype) @ part.keys(value_KND)
                mixed_NHD[part.queries] = unfolded(mixed, heads).transpose(0, 1)
        ctx.save_for_backward(query_HND, key_KND, value_KND)
        ctx.parts, ctx.scaling = parts, scaling
        return mixed_NHD

    @staticmethod
    def backward(ctx: Any, grad_NHD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """The gradients of Q, K and V; those of keys and values add up in float32."""
        query_HND, key_KND, value_KND = ctx.saved_tensors
        dtype, num_groups = value_KND.dtype, len(key_KND)
        grad_query = torch.empty_like(query_HND)
        grad_key, grad_value = (torch.zeros(states.shape, dtype=torch.float32, device=states.device) for states in (key_KND, value_KND))
        with torch.autocast(query_HND.device.type, enabled=False):
            for part in ctx.parts:
                probabilities = part_probabilities(part, query_HND, key_KND, ctx.scaling)
                grad_KQD = folded(grad_NHD[part.queries].transpose(0, 1), num_groups)
                part.add_to(grad_value, probabilities.to(dtype).transpose(1, 2) @ grad_KQD)
                grad_probabilities = (grad_KQD @ part.keys(value_KND).transpose(1, 2)).float()
                grad_scores = torch._softmax_backward_data(grad_probabilities, probabilities, -1, torch.float32).to(dtype)
                part.add_to(grad_key, grad_scores.transpose(1, 2) @ folded(query_HND[:, part.queries], num_groups))
                grad_part = (grad_scores @ part.keys(key_KND)).mul_(ctx.scaling)
                grad_query[:, part.queries] = unfolded(grad_part, len(query_HND))
        return grad_query, grad_key.mul_(ctx.scaling).to(key_KND.dtype), grad_value.to(dtype), None, None


def part_probabilities(part: Part, query_HND: Tensor, key_KND: Tensor, scaling: float) -> Tensor:
    """The attention of a part's queries, float32 [K, G * Q, L]."""
    query_KQD = folded(query_HND[:, part.queries], len(key_KND)).to(torch.promote_types(query_HND.dtype, torch.float32)) * scaling
    scores = query_KQD @ part.keys(key_KND).to(query_KQD.dtype).transpose(1, 2)
    if part.bias_QL is not None:
        scores.unflatten(1, (-1, len(part.bias_QL))).add_(part.bias_QL)
    return torch.softmax(scores, dim=-1)


def folded(states_HQD: Tensor, num_groups: int) -> Tensor:
    """Heads that share a key-value head as rows of one matrix, [K, G * Q, D]."""
    return states_HQD.unflatten(0, (num_groups, -1)).flatten(1, 2)


def unfolded(states_KQD: Tensor, num_heads: int) -> Tensor:
    """[H, Q, D] again."""
    return states_KQD.unflatten(1, (num_heads // len(states_KQD), -1)).flatten(0, 1)
