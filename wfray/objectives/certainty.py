"""Certainty where the student is right: the entropy of its distribution at tokens whose target is already its likeliest (dParallel,
arXiv 2509.26488).

Cross-entropy alone leaves a block-diffusion student unsure of tokens that it would get right, so that a decoder which accepts by
probability writes them one by one. With `s = z / T` and `q = softmax(s)`, of a token that is predicted rightly

    H = -sum_v q_v log q_v        dH/dz = -q (log q + H) / T

and of any other nothing, so what is wrong is not made more certain. Which tokens are right is not differentiated. T below 1 looks at the
likeliest alternatives. The authors' mean is over the tokens that are right; here it is over all targets, as that of the other
terms, so that micro-batches add up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CertaintyTerm:
    """What is asked of one evaluation."""

    weight: float
    temperature: float


@dataclass(frozen=True)
class RightTokens:
    """The tokens of one tile that are predicted rightly, R of them."""

    rows_R: Tensor
    """int64; where they are in the tile."""
    entropy_R: Tensor
    """At the temperature, nats."""
    slope_RV: Tensor
    """Gradient of each entropy with respect to the logits."""


def right_tokens(logits_TV: Tensor, targets_T: Tensor, temperature: float) -> RightTokens:
    """Entropies of the tokens of a tile whose target is their likeliest token; the logits stay as they are."""
    rows_R = (logits_TV.argmax(dim=-1) == targets_T).nonzero().squeeze(-1)
    log_q = logits_TV[rows_R].div_(temperature).log_softmax(dim=-1)
    q_RV = log_q.exp()
    entropy_R1 = -(q_RV * log_q).sum(dim=-1, keepdim=True)
    return RightTokens(rows_R, entropy_R1.squeeze(-1), log_q.add_(entropy_R1).mul_(q_RV).div_(-temperature))


def add_certainty_(slope_TV: Tensor, right: RightTokens, weight: float) -> Tensor:
    """Add what the entropies contribute to a tile's gradient, and return their sum (float64)."""
    slope_TV.index_add_(0, right.rows_R, right.slope_RV, alpha=weight)
    return right.entropy_R.sum(dtype=torch.float64)
