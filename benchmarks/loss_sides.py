"""What `loss_time` and `loss_memory` compare: cross-entropy plus full-vocabulary KL from hidden states, forward and backward.

The head and the student's hidden states are float32 and need gradients, the teacher's head and hidden states are bfloat16,
products run in bfloat16, softmax in float32: stage 3 as it is trained. Every token has a target; temperature 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wfray.objectives.linear_losses import linear_losses
from wfray.objectives.soft_targets import TeacherHead

CHUNK_TOKENS = 1024
"""Of the peer that chunks by autograd; what `linear_losses` takes."""


@dataclass(frozen=True)
class Inputs:
    """Student and teacher before their heads."""

    hidden_TC: Tensor
    head_VC: Tensor
    targets_T: Tensor
    teacher: TeacherHead

    @classmethod
    def random(cls, num_tokens: int, vocabulary: int, width: int, device: str = "cpu") -> "Inputs":
        """Hidden states of size 1 and heads that spread the logits over a few nats, as trained ones do."""
        torch.manual_seed(0)
        hidden_TC, teacher_TC = torch.randn(num_tokens, width), torch.randn(num_tokens, width)
        head_VC, teacher_VC = (torch.randn(vocabulary, width).mul_(2.0 * width**-0.5) for _ in range(2))
        teacher = TeacherHead(teacher_TC.to(device, torch.bfloat16), teacher_VC.to(device, torch.bfloat16), 1.0)
        targets_T = torch.randint(0, vocabulary, (num_tokens,)).to(device)
        return cls(hidden_TC.to(device).requires_grad_(), head_VC.to(device).requires_grad_(), targets_T, teacher)

    def forget(self) -> None:
        """Drop the gradients."""
        self.hidden_TC.grad = self.head_VC.grad = None


def ours(inputs: Inputs) -> float:
    """This repository's."""
    inputs.forget()
    count = len(inputs.targets_T)
    sides = inputs.hidden_TC, inputs.head_VC, inputs.targets_T, count
    total = linear_losses(*sides, ce_weight=1.0, kl_weight=1.0, teacher=inputs.teacher, dtype=torch.bfloat16).total
    total.backward()
    return total.item()


def plain(inputs: Inputs) -> float:
    """What one writes first: both logits at once, torch's own losses."""
    inputs.forget()
    total = logits_loss(inputs.hidden_TC, inputs, slice(None), "mean")
    total.backward()
    return total.item()


def chunked(inputs: Inputs) -> float:
    """Autograd on one chunk of tokens after the other, the way of Liger's fused linear distillation losses."""
    inputs.forget()
    count, total = len(inputs.targets_T), 0.0
    for start in range(0, count, CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        loss = logits_loss(inputs.hidden_TC[part], inputs, part, "sum") / count
        loss.backward()
        total += loss.item()
    return total


def logits_loss(hidden_TC: Tensor, inputs: Inputs, part: slice, reduction: str) -> Tensor:
    """Both losses of some tokens, summed or averaged over them."""
    with torch.autocast(hidden_TC.device.type, dtype=torch.bfloat16):
        logits_TV = F.linear(hidden_TC, inputs.head_VC)
        with torch.no_grad():
            teacher_TV = F.linear(inputs.teacher.hidden_TC[part], inputs.teacher.weight_VC)
    logits_TV, teacher_TV = logits_TV.float(), teacher_TV.float()
    ce = F.cross_entropy(logits_TV, inputs.targets_T[part], reduction=reduction)
    log_q, log_p = logits_TV.log_softmax(-1), teacher_TV.log_softmax(-1)
    return ce + F.kl_div(log_q, log_p, log_target=True, reduction="batchmean" if reduction == "mean" else "sum")
