"""Attention that never crosses a document: block-diagonal and causal over the segments of packed rows.

Registered with transformers under the name `segments`, so that every family's own attention module calls it with its Q and K
after QK-norm and RoPE, and V. Each document is attended on its own, `sum(L_i^2)` operations instead of `S^2`, and no [S, S]
mask exists. Positions of padding form a segment of their own and carry no loss.

Without segments (generation of one sequence) it is plain causal attention over the key-value cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "segments"


@dataclass(frozen=True)
class Segments:
    """The documents of a packed batch as half-open spans of positions, row by row, covering every position once."""

    spans: tuple[tuple[int, int, int], ...]
    """(row, start, end), padding included."""
    documents: tuple[tuple[int, int, int], ...]
    """The same without padding."""

    @classmethod
    def of(cls, segment_ids_BT: Tensor) -> "Segments":
        """Find the runs of equal ids in each row."""
        ids_BT = segment_ids_BT.cpu()
        spans: list[tuple[int, int, int]] = []
        for row, ids in enumerate(ids_BT):
            edges = (torch.nonzero(ids[1:] != ids[:-1]).flatten() + 1).tolist()
            bounds = [0, *edges, len(ids)]
            spans.extend((row, start, end) for start, end in zip(bounds[:-1], bounds[1:], strict=True))
        return cls(tuple(spans), tuple(span for span in spans if ids_BT[span[0], span[1]] != 0))


@dataclass
class AttentionCapture:
    """Asks for the Q, K and V of one layer; filled during the forward pass, [B, heads, T, head_dim] each."""

    layer: int
    states: tuple[Tensor, Tensor, Tensor] | None = None


AttentionObserver = Callable[[int, Tensor, Tensor, Segments], None]
"""Is shown every layer's index, Q [B, heads, T, head_dim], K [B, kv heads, T, head_dim] and the segments."""


@torch.compiler.disable
def segments_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    capture: AttentionCapture | None = None,
    observe: AttentionObserver | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; returns the mixed values as [B, T, heads, head_dim].

    Raises:
        ValueError: the layer uses a sliding window, dropout, or continues a cache with several tokens at once.
    """
    if unused.get("sliding_window") or dropout:
        raise ValueError("segment attention knows neither sliding windows nor dropout: set both off in the model's config")
    if capture is not None and capture.layer == module.layer_idx:
        capture.states = (query_BHTD, key_BKTD, value_BKTD)
    if observe is not None and segments is not None:
        observe(module.layer_idx, query_BHTD, key_BKTD, segments)  # type: ignore[arg-type]
    num_queries, num_keys = query_BHTD.shape[2], key_BKTD.shape[2]
    if segments is None:
        if 1 < num_queries < num_keys:
            raise ValueError("segment attention continues a cache one token at a time: use attn_implementation='sdpa'")
        mixed = attend(query_BHTD, key_BKTD, value_BKTD, scaling, is_causal=num_queries > 1)
        return mixed.transpose(1, 2).contiguous(), None
    parts_THD = [
        attend(
            query_BHTD[row : row + 1, :, start:end],
            key_BKTD[row : row + 1, :, start:end],
            value_BKTD[row : row + 1, :, start:end],
            scaling,
            is_causal=True,
        )[0].transpose(0, 1)
        for row, start, end in segments.spans
    ]
    batch, heads, length, head_dim = query_BHTD.shape
    return torch.cat(parts_THD).view(batch, length, heads, head_dim), None


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, is_causal: bool) -> Tensor:
    """Scaled dot-product attention with grouped key-value heads."""
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scaling, enable_gqa=grouped)


AttentionInterface.register(NAME, segments_attention)
