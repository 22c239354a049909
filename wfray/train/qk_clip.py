"""QK-clip (Kimi K2, arXiv 2507.20534): attention logits that grew beyond tau shrink the weights that make them.

**What is measured.** The largest `q . k / sqrt(head_dim)` of each head over the causal pairs within documents, from the Q and K that the
forward pass itself used (after RoPE), in the last micro-batch of a step on every worker. It is exact for those tokens and a
sample of the step's, at the cost of one QK^T product a step instead of one a micro-batch, in chunks of queries, so that no
[T, T] matrix of a whole row exists. The bound max|q| max|k| is no substitute: it would clip heads whose logits are small.

**What shrinks**, by `r = min(1, tau / max)`, after the optimizer's step:

- scope `layer`: W_q and W_k (and biases) of the layer times sqrt(r) of its worst head. Ternary weights are codes times one scale
  D = mean|W| a matrix: scaling the whole matrix scales D and leaves every code, so all logits shrink by exactly r.
- scope `head`: the rows of each head by its own r. In full precision this is exact and spares the other heads. In a ternary
  matrix the scale D is shared, so a single head shrinks by its codes turning to zero: less than asked, paid in density, and
  felt by the others through D (random 576 x 576 matrices, r = 0.8: its logits go to 0.92, those of other heads to 0.96).
  Where heads share a key (grouped queries), the key head takes sqrt of the smallest r of its group, s, and each query head r / s.

With QK-norm the scale of W_q and W_k does not reach the logits. What does are the norms' weights, which all heads of a layer share and
which stay in full precision: they take sqrt(r), scope `layer`; scope `head` is refused.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from wfray.config.optimizer import MuonClip
from wfray.student.families import decoder_layers, family_of
from wfray.student.segments import Segments
from wfray.train.collective import Collective

CHUNK = 512
"""Queries whose logits exist at once."""


class QKClip:
    """Watches the attention of a model and clips its weights."""

    def __init__(self, model: PreTrainedModel, config: MuonClip, collective: Collective) -> None:
        """Raises: ValueError: scope `head` on a model with QK-norm."""
        family = family_of(model.config)
        self.attentions: list[Any] = [layer.get_submodule(family.attention) for layer in decoder_layers(model)]
        self.norm_offset = family.norm_offset
        self.config, self.collective = config, collective
        self.maxima: dict[int, Tensor] = {}
        if config.scope == "head" and has_qk_norm(self.attentions[0]):
            raise ValueError(
                "optimizer.scope head cannot clip a model with QK-norm, whose norm weights all heads of a layer share: set it to layer"
            )

    @torch.no_grad()
    def observe(self, layer: int, query_BHTD: Tensor, key_BKTD: Tensor, segments: Segments, window: int | None) -> None:
        """Take in one layer's Q and K of a forward pass, and its sliding window."""
        rows = [
            largest_logits(query_BHTD[row, :, start:end].detach(), key_BKTD[row, :, start:end].detach(), window)
            for row, start, end in segments.documents
        ]
        found_H = torch.stack(rows).amax(dim=0) * self.attentions[layer].scaling
        self.maxima[layer] = torch.maximum(self.maxima[layer], found_H) if layer in self.maxima else found_H

    def forget(self) -> None:
        """Drop what was seen, as after a step that was refused."""
        self.maxima = {}

    @torch.no_grad()
    def clip(self) -> float:
        """Shrink what has grown too large; returns the largest logit that was seen."""
        maxima_LH = torch.stack([self.maxima[layer] for layer in sorted(self.maxima)])
        self.collective.maximum_(maxima_LH)
        ratios_LH = (self.config.tau / maxima_LH).clamp(min=0.0, max=1.0)
        ratios_LH[maxima_LH <= 0] = 1.0
        for layer, ratio_H in zip(sorted(self.maxima), ratios_LH.cpu(), strict=True):
            if ratio_H.min() < 1.0:
                ratio_H = ratio_H if self.config.scope == "head" else ratio_H.min().expand_as(ratio_H)
                shrink(self.attentions[layer], ratio_H, self.norm_offset)
        self.forget()
        return maxima_LH.max().item()


def largest_logits(query_HTD: Tensor, key_KTD: Tensor, window: int | None) -> Tensor:
    """The largest `q . k` of every head over the causal pairs of one document within the window, float32 [heads]."""
    num_heads, length, _ = query_HTD.shape
    query_KGTD = query_HTD.unflatten(0, (key_KTD.shape[0], -1))
    largest = []
    for start in range(0, length, CHUNK):
        end = min(start + CHUNK, length)
        logits = query_KGTD[:, :, start:end] @ key_KTD[:, None, :end].transpose(-1, -2)
        unseen = torch.ones(end - start, end, dtype=torch.bool, device=logits.device).triu(start + 1)
        if window is not None:
            unseen |= torch.ones_like(unseen).tril(start - window)
        largest.append(logits.masked_fill_(unseen, -torch.inf).amax(dim=(-1, -2)).float())
    return torch.stack(largest).amax(dim=0).view(num_heads)


def shrink(attention: Any, ratio_H: Tensor, norm_offset: float = 0.0) -> None:
    """Multiply the logits of every head by its ratio, through the weights; see the module docstring.

    Args:
        attention: of one layer.
        ratio_H: of every head.
        norm_offset: what QK-norms add to their weights.
    """
    if has_qk_norm(attention):
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.add_(norm_offset).mul_(ratio_H.min().sqrt().item()).sub_(norm_offset)
        return
    ratio_KG = ratio_H.view(attention.k_proj.weight.shape[0] // attention.head_dim, -1)
    key_K = ratio_KG.amin(dim=1).sqrt()
    scale_heads(attention.k_proj, key_K, attention.head_dim)
    scale_heads(attention.q_proj, (ratio_KG / key_K[:, None]).flatten(), attention.head_dim)


def scale_heads(projection: Any, factor_H: Tensor, head_dim: int) -> None:
    """Multiply the rows of each head, and their bias, by its factor."""
    factor_D = factor_H.repeat_interleave(head_dim)
    scale_rows(projection.weight, factor_D[:, None])
    if projection.bias is not None:
        scale_rows(projection.bias, factor_D)


def scale_rows(weight: Tensor, factor: Tensor) -> None:
    """Multiply a weight in place, also where its rows lie on several workers."""
    factor = factor.to(weight.device, weight.dtype)
    weight.mul_(distribute_tensor(factor, weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else factor)


def has_qk_norm(attention: Any) -> bool:
    """Whether queries and keys are normalised after their projections."""
    return hasattr(attention, "q_norm")
