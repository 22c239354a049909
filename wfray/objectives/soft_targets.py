"""What a teacher's signal asks of the student's distribution: the KL and its gradient on one tile of logits.

With `s` the student's logits over the temperature and `q = softmax(s)`; all are differentiated with respect to `s`:

| signal | KL | gradient |
|---|---|---|
| hidden states | `sum_v p_v (log p_v - log q_v)`, p from the teacher's own head | `q - p` |
| k largest and the rest | the same over k + 1 buckets, `q_r` the sum of q outside the k | `q - p` inside, `q (1 - p_r / q_r)` outside |
| k largest alone | p and q renormalised over the k, which is the target concrete score (arXiv 2504.16431) | `q - p` inside, 0 outside |
| k drawn ids, weights w | `sum_i w_i (log p - log q)_i`, the teacher's part sent as its entropy | `q sum(w) - w` |

The second is exact for what was sent, and a lower bound of the full KL, with equality where student and teacher share the shape of the
rest. The third says nothing of the mass outside the k and leaves it to cross-entropy. The fourth has the full KL and its gradient as
its expectation. The rest's softmax is taken over the rest alone, so that no `1 - sum` cancels.

A tile is `[rows, V]` of working precision, small enough for a core's cache; `losses` consumes it and returns the gradient of
`hard * logsumexp(s) + soft * KL`: the first term is cross-entropy's, so that one softmax serves both at temperature 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wfray.objectives.divergence import Losses, exponentiate_, kl_
from wfray.teacher.sparse import Sampled, TopK


@dataclass(frozen=True)
class TeacherHead:
    """The teacher's hidden states and head: its logits are formed beside the student's."""

    hidden_TC: Tensor
    """The teacher's last hidden states, aligned with the student's tokens."""
    weight_VC: Tensor
    """Its LM head."""
    temperature: float = 1.0


@dataclass(frozen=True)
class Shortlist:
    """The k largest alone. Leading axes are the positions."""

    ids: Tensor
    """int64 [..., k]."""
    log_probs: Tensor
    """float32 [..., k]; they add up to 1 as probabilities."""
    temperature: float

    @classmethod
    def of(cls, signal: TopK) -> "Shortlist":
        """Leave the rest out."""
        return cls(signal.ids, signal.log_probs[..., :-1].log_softmax(dim=-1), signal.temperature)


Teacher = TeacherHead | TopK | Shortlist | Sampled


class SoftTargets(Protocol):
    """The signal of one chunk of tokens."""

    @property
    def temperature(self) -> float:
        """At which the distributions are compared."""
        ...

    def losses(self, rows: slice, scaled_TV: Tensor, hard: float, soft: float) -> Losses:
        """Evaluate a tile: the rows of the chunk, their logits over the temperature (consumed), the two weights."""
        ...


def soft_targets(teacher: Teacher, tokens: Tensor, buffer_NV: Tensor, tiles_TV: Sequence[Tensor]) -> SoftTargets:
    """The signal of `tokens`, positions in the teacher's arrays; a teacher's logits are formed in `buffer_NV`, in its dtype."""
    if isinstance(teacher, TopK):
        return TopKTargets(teacher.ids[tokens], teacher.log_probs[tokens], teacher.temperature)
    if isinstance(teacher, Shortlist):
        return ShortlistTargets(teacher.ids[tokens], teacher.log_probs[tokens], teacher.temperature)
    if isinstance(teacher, Sampled):
        return SampledTargets(teacher.ids[tokens], teacher.weights[tokens], teacher.entropy[tokens], teacher.temperature)
    hidden_NC = teacher.hidden_TC.index_select(0, tokens).to(buffer_NV.dtype)
    logits_NV = torch.mm(hidden_NC, teacher.weight_VC.to(buffer_NV.dtype).t(), out=buffer_NV[: len(tokens)])
    return FullTargets(logits_NV, teacher.temperature, (tiles_TV[0], tiles_TV[1]))


@dataclass(frozen=True)
class FullTargets:
    """The whole vocabulary."""

    logits_NV: Tensor
    temperature: float
    tiles_TV: tuple[Tensor, Tensor]
    """Memory for two tiles."""

    def losses(self, rows: slice, scaled_TV: Tensor, hard: float, soft: float) -> Losses:
        """See `SoftTargets`."""
        teacher_TV, memory_TV = (tile_TV[: len(scaled_TV)] for tile_TV in self.tiles_TV)
        teacher_TV.copy_(self.logits_NV[rows])
        if self.temperature != 1.0:
            teacher_TV.div_(self.temperature)
        return kl_(scaled_TV, teacher_TV, memory_TV, hard, soft)


@dataclass(frozen=True)
class TopKTargets:
    """The k largest and the rest."""

    ids_NK: Tensor
    log_probs_NK1: Tensor
    temperature: float

    def losses(self, rows: slice, scaled_TV: Tensor, hard: float, soft: float) -> Losses:
        """See `SoftTargets`."""
        ids_TK, log_p = self.ids_NK[rows], self.log_probs_NK1[rows].to(scaled_TV.dtype)
        listed_TK = scaled_TV.gather(1, ids_TK)
        rest_TV = scaled_TV.scatter_(1, ids_TK, -torch.inf)
        rest_lse_T1, rest_total_T1 = exponentiate_(rest_TV)
        lse_T1 = torch.logaddexp(rest_lse_T1, listed_TK.logsumexp(dim=-1, keepdim=True))
        log_q = torch.cat([listed_TK, rest_lse_T1], dim=-1) - lse_T1
        p, q = log_p.exp(), log_q.exp()
        slope = (hard + soft * p.sum(dim=-1, keepdim=True)) * q - soft * p
        slope_TV = rest_TV.mul_(slope[:, -1:] / rest_total_T1).scatter_(1, ids_TK, slope[:, :-1])
        return lse_T1, (p * (log_p - log_q)).sum(dim=-1), slope_TV


@dataclass(frozen=True)
class ShortlistTargets:
    """The k largest alone."""

    ids_NK: Tensor
    log_probs_NK: Tensor
    temperature: float

    def losses(self, rows: slice, scaled_TV: Tensor, hard: float, soft: float) -> Losses:
        """See `SoftTargets`."""
        ids_TK, log_p = self.ids_NK[rows], self.log_probs_NK[rows].to(scaled_TV.dtype)
        log_q = scaled_TV.gather(1, ids_TK).log_softmax(dim=-1)
        p, q = log_p.exp(), log_q.exp()
        lse_T1, total_T1 = exponentiate_(scaled_TV)
        slope_TV = scaled_TV.mul_(hard / total_T1).scatter_add_(1, ids_TK, soft * (q * p.sum(dim=-1, keepdim=True) - p))
        return lse_T1, (p * (log_p - log_q)).sum(dim=-1), slope_TV


@dataclass(frozen=True)
class SampledTargets:
    """Drawn ids."""

    ids_NK: Tensor
    weights_NK: Tensor
    entropy_N: Tensor
    temperature: float

    def losses(self, rows: slice, scaled_TV: Tensor, hard: float, soft: float) -> Losses:
        """See `SoftTargets`."""
        ids_TK, weights_TK = self.ids_NK[rows], self.weights_NK[rows].to(scaled_TV.dtype)
        listed_TK = scaled_TV.gather(1, ids_TK)
        lse_T1, total_T1 = exponentiate_(scaled_TV)
        cross_T = (weights_TK * (lse_T1 - listed_TK)).sum(dim=-1)
        mass_T1 = weights_TK.sum(dim=-1, keepdim=True)
        slope_TV = scaled_TV.mul_((hard + soft * mass_T1) / total_T1)
        every_T1 = torch.arange(len(ids_TK), device=ids_TK.device)[:, None]
        slope_TV.index_put_((every_T1, ids_TK), -soft * weights_TK, accumulate=True)
        return lse_T1, cross_T - self.entropy_N[rows].to(cross_T.dtype), slope_TV
