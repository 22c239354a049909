"""Parity: what is exported computes what was trained. The same sequences through the training model and through the file.

An exact file leaves one difference. The training model rounds the activations of a projection to int8 with one scale a token;
llama.cpp rounds them in blocks of 32 (Q4_0) or 256 (TQ types), or keeps them in float16 (F16). How much that is depends on the
student, so it is measured on the student itself: the training model against its own ternary weights with unrounded
activations. SmolLM2-135M, 512 tokens of technical prose, KL in nats and top-1 agreement with the training model:

| student                         | unrounded activations | F16            | Q4_0           | TQ2_0          |
|---------------------------------|-----------------------|----------------|----------------|----------------|
| after 20 steps of distillation  | 4.7e-3, 94.7%         | 4.7e-3, 94.7%  | 5.0e-3, 95.1%  | 5.8e-3, 94.5%  |

Against unrounded activations the F16 file is at 1.4e-6 and 100%: graph, norms, RoPE, scales and codes are exact. Mistakes in
any of these move predictions by whole nats.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from llama_cpp import Llama
from torch import Tensor, nn
from transformers import PreTrainedModel

from wfray.config.export import Parity
from wfray.export.llama_cpp import logits_of, open_model
from wfray.quant import BitLinear
from wfray.student import hidden_states, lm_head_weight, load_student


@dataclass(frozen=True)
class MeasuredParity:
    """How far the file's predictions are from the training model's, over all positions of all sequences."""

    num_sequences: int
    num_tokens: int
    top1_agreement: float
    """Share of positions where both rank the same token first."""
    mean_kl: float
    """KL(training || file), nats a token."""
    max_kl: float
    perplexity_training: float
    perplexity_file: float
    rounding_top1: float
    """The same agreement between the training model and itself with unrounded activations."""
    rounding_kl: float
    """KL(training || training with unrounded activations), nats a token."""

    def least_top1(self, bounds: Parity) -> float:
        """The agreement that this student must reach: two standard errors of the measurement are allowed for."""
        disagreement = ((1 - self.rounding_top1) * self.num_tokens + 1) / (self.num_tokens + 1)
        error = math.sqrt(disagreement * (1 - disagreement) / self.num_tokens)
        return min(bounds.min_top1, 1 - bounds.rounding_factor * (disagreement + 2 * error))

    def largest_kl(self, bounds: Parity) -> float:
        """The mean KL that this student may have."""
        return max(bounds.max_mean_kl, bounds.rounding_factor * self.rounding_kl)

    def check(self, bounds: Parity, name: str) -> None:
        """Raise `ValueError` when a bound is missed."""
        least, largest = self.least_top1(bounds), self.largest_kl(bounds)
        if not (self.top1_agreement >= least and self.mean_kl <= largest):
            raise ValueError(
                f"{name} does not compute what was trained: top-1 agreement {self.top1_agreement:.4f} (at least {least:.4f} wanted), "
                f"mean KL {self.mean_kl:.2e} nats (at most {largest:.2e} wanted), perplexity {self.perplexity_file:.2f} against "
                f"{self.perplexity_training:.2f} in training. The file was not kept. Export with linear_type=F16: if that passes, "
                "llama.cpp's rounding of activations is too coarse for this student; if not, the export has a mistake"
            )


def measure_parity(student: Path, gguf: Path, sequences: list[list[int]], threads: int) -> MeasuredParity:
    """Run `sequences` of token ids through both, and through the training model with unrounded activations."""
    torch.set_num_threads(threads)
    trained, unrounded = load_student(student, torch.float32), without_rounding(load_student(student, torch.float32))
    engine = open_model(gguf, context=max(len(sequence) for sequence in sequences), threads=threads, all_logits=True)
    rows = torch.cat([compare(trained, unrounded, engine, sequence) for sequence in sequences])
    engine.close()
    top1, kl, rounding_top1, rounding_kl, loss_training, loss_file = rows.unbind(1)
    return MeasuredParity(
        num_sequences=len(sequences),
        num_tokens=len(rows),
        top1_agreement=top1.mean().item(),
        mean_kl=kl.mean().item(),
        max_kl=kl.max().item(),
        perplexity_training=math.exp(loss_training.nanmean().item()),
        perplexity_file=math.exp(loss_file.nanmean().item()),
        rounding_top1=rounding_top1.mean().item(),
        rounding_kl=rounding_kl.mean().item(),
    )


def without_rounding(model: PreTrainedModel) -> PreTrainedModel:
    """Replace every BitLinear of `model`, in place, by its norm and a plain linear layer of its ternary weights."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BitLinear):
                codes, scale = child.ternary_weight()
                linear = nn.Linear(child.weight.shape[1], child.weight.shape[0], bias=child.bias is not None, device="meta")
                linear.weight = nn.Parameter(codes * scale)
                linear.register_parameter("bias", child.bias)
                setattr(parent, name, nn.Sequential(child.norm or nn.Identity(), linear))
    return model


@torch.no_grad()
def compare(trained: PreTrainedModel, unrounded: PreTrainedModel, engine: Llama, input_ids: list[int]) -> Tensor:
    """One sequence: for each position agreement (0 or 1) and KL of the file, the same of unrounded activations, and the training
    model's and the file's negative log-likelihood of the next token (NaN for the last), [T, 6]."""
    trained_TV = torch.log_softmax(training_logits(trained, input_ids), dim=-1)
    exported_TV = torch.log_softmax(torch.from_numpy(logits_of(engine, input_ids)), dim=-1)
    unrounded_TV = torch.log_softmax(training_logits(unrounded, input_ids), dim=-1)
    columns = [*distance(trained_TV, exported_TV), *distance(trained_TV, unrounded_TV)]
    next_ids = torch.tensor(input_ids[1:])[:, None]
    last = torch.full((1,), math.nan, dtype=torch.float64)
    losses = [torch.cat([-log_probs[:-1].gather(1, next_ids)[:, 0].double(), last]) for log_probs in (trained_TV, exported_TV)]
    return torch.stack(columns + losses, dim=1)


def distance(reference_TV: Tensor, other_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the likeliest tokens agree, and KL(reference || other), at each position of two sets of log-probabilities."""
    agreement = (reference_TV.argmax(-1) == other_TV.argmax(-1)).double()
    return agreement, (reference_TV.exp() * (reference_TV - other_TV)).sum(-1, dtype=torch.float64)


def training_logits(model: PreTrainedModel, input_ids: list[int]) -> Tensor:
    """A model's logits [T, V] of one document."""
    ids_BT = torch.tensor([input_ids])
    batch = {"input_ids": ids_BT, "position_ids": torch.arange(len(input_ids))[None], "segment_ids": torch.ones_like(ids_BT)}
    return hidden_states(model, batch)[0] @ lm_head_weight(model).T
