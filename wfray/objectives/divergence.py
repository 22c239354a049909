"""Softmax and KL on tiles of logits that stay in cache, with their gradients: few passes, two exponentials, no second softmax.

Rows are distributions, logits are consumed. With `s`, `t` the logits less their maxima and Z the sums of their exponentials,

    KL(p_t || p_s) = sum_v exp(t_v) (t_v - s_v) / Z_t - log Z_t + log Z_s        d KL / ds = exp(s) / Z_s - exp(t) / Z_t
"""

import torch
from torch import Tensor

Losses = tuple[Tensor, Tensor, Tensor]
"""logsumexp of the student's row [R, 1], KL [R], gradient [R, V]."""


def exponentiate_(logits_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Leave exp(logits - max) in place of the logits; returns logsumexp and the sum of what is left, [T, 1] each."""
    top_T1 = logits_TV.amax(dim=-1, keepdim=True)
    total_T1 = logits_TV.sub_(top_T1).exp_().sum(dim=-1, keepdim=True)
    return top_T1 + total_T1.log(), total_T1


def kl_(student_TV: Tensor, teacher_TV: Tensor, memory_TV: Tensor, hard: float, soft: float) -> Losses:
    """KL(teacher || student) of each row, and the gradient of `hard * logsumexp(student) + soft * KL`.

    Args:
        student_TV: becomes the gradient.
        teacher_TV: consumed.
        memory_TV: of the same shape, overwritten; fresh memory for every tile would cost more than the arithmetic.
        hard, soft: the weights.
    """
    teacher_TV.sub_(teacher_TV.amax(dim=-1, keepdim=True))
    top_T1 = student_TV.amax(dim=-1, keepdim=True)
    student_TV.sub_(top_T1)
    p_TV = torch.exp(teacher_TV, out=memory_TV)
    terms_TV = teacher_TV.sub_(student_TV).mul_(p_TV)
    q_TV = student_TV.exp_()
    p_total_T1, q_total_T1 = p_TV.sum(dim=-1, keepdim=True), q_TV.sum(dim=-1, keepdim=True)
    kl_T1 = terms_TV.sum(dim=-1, keepdim=True) / p_total_T1 - p_total_T1.log() + q_total_T1.log()
    slope_TV = q_TV.mul_((hard + soft) / q_total_T1).addcmul_(p_TV, -soft / p_total_T1)
    return top_T1 + q_total_T1.log(), kl_T1.squeeze(-1), slope_TV
