"""Cross-entropy and full-vocabulary KL computed together with the LM head's product, chunk by chunk of tokens.

No [tokens, vocabulary] tensor exists, forward or backward: each chunk's logits are formed, both losses and their gradient
with respect to the logits are taken from them at once, the gradients of the hidden states and of the head are accumulated, and
the chunk is dropped. Backward only scales what forward left. With `z` the student's and `u` the teacher's logits of one token:

    CE  = logsumexp(z) - z[target]                                    d CE / dz = softmax(z) - onehot(target)
    KL  = sum_v p_v (log p_v - log q_v),  p = softmax(u/T), q = softmax(z/T)   d KL / dz = (q - p) / T

Both are means over the tokens that have a target; KL is multiplied by T^2 if asked (Hinton). Peak extra memory is
`4 * chunk * V` bytes a live buffer (at most four), instead of that times `tokens / chunk`. Products run in the head's dtype
(bfloat16 in training), softmax and sums in float32.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 100 * 2**20
"""Target size of one float32 logits chunk; smaller ones spend more time adding to the head's gradient."""


@dataclass(frozen=True)
class LinearLosses:
    """Result of `linear_losses`: `total` carries the gradient, the parts are for logs."""

    total: Tensor
    cross_entropy: float
    logits_kl: float


@dataclass(frozen=True)
class TeacherHead:
    """The teacher's side of the KL term."""

    hidden_TC: Tensor
    """The teacher's last hidden states, aligned with the student's tokens."""
    weight_VC: Tensor
    """Its LM head."""
    temperature: float = 1.0
    tau_squared: bool = True


def linear_losses(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    targets_T: Tensor,
    num_targets: int,
    *,
    ce_weight: float,
    kl_weight: float = 0.0,
    teacher: TeacherHead | None = None,
    dtype: torch.dtype = torch.float32,
    chunk_bytes: int = CHUNK_BYTES,
) -> LinearLosses:
    """`ce_weight * CE + kl_weight * KL`, without logits in memory.

    Args:
        hidden_TC: the LM head's input, tokens in any order.
        weight_VC: the student's LM head.
        targets_T: the token to be predicted from each position, -100 where there is none.
        num_targets: the number that the sums are divided by: targets of the whole global batch.
        teacher: needed when `kl_weight` is not 0.
        dtype: of the products.
        chunk_bytes: of one float32 chunk of logits.
    """
    keep = targets_T != -100
    if teacher is not None:
        teacher = TeacherHead(teacher.hidden_TC[keep], teacher.weight_VC, teacher.temperature, teacher.tau_squared)
    total, ce, kl = _LinearLosses.apply(
        hidden_TC[keep], weight_VC, targets_T[keep].long(), num_targets, ce_weight, kl_weight, teacher, dtype, chunk_bytes
    )
    return LinearLosses(total, ce.item(), kl.item())


class _LinearLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TC: Tensor,
        weight_VC: Tensor,
        targets_T: Tensor,
        num_targets: int,
        ce_weight: float,
        kl_weight: float,
        teacher: TeacherHead | None,
        dtype: torch.dtype,
        chunk_bytes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head_VC = weight_VC.detach().to(dtype)
        wants_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden = torch.zeros_like(hidden_TC) if wants_gradient else None
        grad_head = torch.zeros_like(weight_VC, dtype=torch.float32) if wants_gradient else None
        ce_sum = hidden_TC.new_zeros((), dtype=torch.float64)
        kl_sum = ce_sum.clone()
        chunk = max(1, chunk_bytes // (4 * weight_VC.shape[0]))
        for start in range(0, hidden_TC.shape[0], chunk):
            part = slice(start, start + chunk)
            h = hidden_TC[part].detach().to(dtype)
            logits = (h @ head_VC.t()).float()
            grad_logits = torch.zeros_like(logits) if kl_weight and ce_weight else None
            if kl_weight:
                assert teacher is not None
                kl, slope = kl_chunk(logits, teacher, part, dtype)
                kl_sum += kl
                grad_logits = slope.mul_(kl_weight / num_targets)
            if ce_weight or not kl_weight:
                ce, slope = cross_entropy_chunk(logits, targets_T[part])
                ce_sum += ce
                slope.mul_(ce_weight / num_targets)
                grad_logits = slope if grad_logits is None else grad_logits.add_(slope)
            if grad_hidden is not None and grad_head is not None and grad_logits is not None:
                slope_low = grad_logits.to(dtype)
                grad_hidden[part] = (slope_low @ head_VC).to(grad_hidden.dtype)
                grad_head += slope_low.t() @ h
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.weight_dtype = weight_VC.dtype
        ce, kl = ce_sum / num_targets, kl_sum / num_targets
        return (ce_weight * ce + kl_weight * kl).float(), ce, kl

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grad_total.item()
        if scale != 1.0:
            grad_hidden, grad_head = grad_hidden * scale, grad_head * scale
        return grad_hidden, grad_head.to(ctx.weight_dtype), None, None, None, None, None, None, None


def cross_entropy_chunk(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies and their gradient, which takes the place of `logits_TV`."""
    rows = torch.arange(len(targets_T), device=targets_T.device)
    largest_T1 = logits_TV.amax(dim=-1, keepdim=True)
    shifted = logits_TV.sub_(largest_T1)
    picked_T = shifted[rows, targets_T]
    slope = shifted.exp_()
    total_T1 = slope.sum(dim=-1, keepdim=True)
    slope.mul_(total_T1.reciprocal())
    slope[rows, targets_T] -= 1.0
    return (total_T1.squeeze(-1).log() - picked_T).double().sum(), slope


def kl_chunk(logits_TV: Tensor, teacher: TeacherHead, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sum of KL(teacher || student) and its gradient, a new tensor."""
    temperature = teacher.temperature
    teacher_TV = (teacher.hidden_TC[part].to(dtype) @ teacher.weight_VC.to(dtype).t()).float()
    log_p = log_softmax_(teacher_TV.div_(temperature))
    log_q = log_softmax_(logits_TV.div(temperature))
    p = log_p.exp()
    kl = log_p.sub_(log_q).mul_(p).sum(dim=-1).double().sum()
    slope = log_q.exp_().sub_(p).mul_(temperature if teacher.tau_squared else 1.0 / temperature)
    return kl * (temperature**2 if teacher.tau_squared else 1.0), slope


def log_softmax_(logits_TV: Tensor) -> Tensor:
    """The log-probabilities, in place of the logits."""
    logits_TV.sub_(logits_TV.amax(dim=-1, keepdim=True))
    return logits_TV.sub_(logits_TV.exp().sum(dim=-1, keepdim=True).log())
