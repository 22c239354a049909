"""Attention that never crosses a document: block-diagonal and causal over the segments of packed rows, with or without a window.

Registered with transformers under the name `segments`, so that every family's own attention module calls it with its Q and K
after QK-norm and RoPE, and V, and with the sliding window of its layer. Each document is attended on its own, `sum(L_i^2)`
operations instead of `S^2`, and no [S, S] mask exists. Positions of padding form a segment of their own and carry no loss.

On a CPU, and wherever a document is longer than the layer's window, documents go through `chunked_attention`; on a GPU each goes
through torch's fused kernels. Without segments (generation) a row is one document, continued over the key-value cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from wfray.student.chunked_attention import ChunkedAttention
from wfray.student.segments import Segments

NAME = "segments"


@dataclass
class AttentionCapture:
    """Asks for the Q, K and V of one layer; filled during the forward pass, [B, heads, T, head_dim] each."""

    layer: int
    states: tuple[Tensor, Tensor, Tensor] | None = None


AttentionObserver = Callable[[int, Tensor, Tensor, Segments, int | None], None]
"""Is shown every layer's index, Q [B, heads, T, head_dim], K [B, kv heads, T, head_dim], the segments and the layer's window."""


@torch.compiler.disable
def segments_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    capture: AttentionCapture | None = None,
    observe: AttentionObserver | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; returns the mixed values as [B, T, heads, head_dim].

    Raises:
        ValueError: dropout is asked for, or a cache is continued with several tokens at once.
    """
    if dropout:
        raise ValueError("segment attention knows no dropout: set attention_dropout to 0 in the model's config.json")
    if capture is not None and capture.layer == module.layer_idx:
        capture.states = (query_BHTD, key_BKTD, value_BKTD)
    if observe is not None and segments is not None:
        observe(module.layer_idx, query_BHTD, key_BKTD, segments, sliding_window)  # type: ignore[arg-type]
    scaling = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    batch, _, num_queries, _ = query_BHTD.shape
    num_keys = key_BKTD.shape[2]
    if segments is None and num_queries < num_keys:
        if num_queries > 1:
            raise ValueError("segment attention continues a cache one token at a time: use attn_implementation='sdpa'")
        seen = slice(-sliding_window if sliding_window else None, None)
        return fused(query_BHTD, key_BKTD[:, :, seen], value_BKTD[:, :, seen], scaling, is_causal=False).transpose(1, 2), None
    segments = segments or Segments.whole_rows(batch, num_queries)
    window = None if sliding_window is None or segments.longest <= sliding_window else sliding_window
    if query_BHTD.device.type == "cuda" and window is None:
        return attend_fused(query_BHTD, key_BKTD, value_BKTD, segments, scaling), None
    states = [state.to(product_dtype(query_BHTD)) for state in (query_BHTD, key_BKTD, value_BKTD)]
    return ChunkedAttention.apply(*states, segments.spans, scaling, window), None


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of products: autocast's where that is on, else the tensor's."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def attend_fused(query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, segments: Segments, scaling: float) -> Tensor:
    """Each document through torch's own attention, [B, T, heads, head_dim]."""
    rows = [[end - start for _, start, end in spans] for _, spans in groupby(segments.spans, key=lambda span: span[0])]
    parts_THD = []
    for lengths, *states in zip(rows, query_BHTD, key_BKTD, value_BKTD, strict=True):
        for query, key, value in zip(*(state.split(lengths, dim=1) for state in states), strict=True):
            parts_THD.append(fused(query[None], key[None], value[None], scaling, is_causal=True)[0].transpose(0, 1))
    return torch.cat(parts_THD).view(*query_BHTD.transpose(1, 2).shape)


def fused(query: Tensor, key: Tensor, value: Tensor, scaling: float, is_causal: bool) -> Tensor:
    """Scaled dot-product attention with grouped key-value heads."""
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scaling, enable_gqa=grouped)


AttentionInterface.register(NAME, segments_attention)
