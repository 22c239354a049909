"""Parity: what is exported computes what was trained. The same sequences through the training model and through the file.

The training model runs in float32 with its int8 activations, one scale a token; llama.cpp quantizes activations in blocks of
32 (Q4_0, Q8_0) or 256 (TQ types), or keeps them in float16 (F16). That is the only difference that an exact file leaves.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from llama_cpp import Llama
from torch import Tensor
from transformers import PreTrainedModel

from wfray.config.export import Parity
from wfray.export.llama_cpp import logits_of, open_model
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

    def check(self, bounds: Parity, name: str) -> None:
        """Raise `ValueError` when a bound is missed."""
        if self.top1_agreement < bounds.min_top1 or not self.mean_kl <= bounds.max_mean_kl:
            raise ValueError(
                f"{name} does not compute what was trained: top-1 agreement {self.top1_agreement:.4f} (at least {bounds.min_top1} wanted), "
                f"mean KL {self.mean_kl:.2e} nats (at most {bounds.max_mean_kl:.0e} wanted), perplexity {self.perplexity_file:.2f} against "
                f"{self.perplexity_training:.2f} in training; the file was not kept. Loosen parity.min_top1 or parity.max_mean_kl only when "
                "the perplexities are equal"
            )


def measure_parity(student: Path, gguf: Path, sequences: list[list[int]], threads: int) -> MeasuredParity:
    """Run `sequences` of token ids through both and compare every position."""
    torch.set_num_threads(threads)
    model = load_student(student, torch.float32)
    engine = open_model(gguf, context=max(len(sequence) for sequence in sequences), threads=threads, all_logits=True)
    rows = torch.cat([compare(model, engine, sequence) for sequence in sequences])
    engine.close()
    agreement, kl, nll_training, nll_file = rows.unbind(1)
    return MeasuredParity(
        num_sequences=len(sequences),
        num_tokens=len(rows),
        top1_agreement=agreement.mean().item(),
        mean_kl=kl.mean().item(),
        max_kl=kl.max().item(),
        perplexity_training=math.exp(nll_training.nanmean().item()),
        perplexity_file=math.exp(nll_file.nanmean().item()),
    )


@torch.no_grad()
def compare(model: PreTrainedModel, engine: Llama, input_ids: list[int]) -> Tensor:
    """One sequence: [T, 4] of agreement (0 or 1), KL, and both negative log-likelihoods of the next token (NaN for the last)."""
    trained_TV = torch.log_softmax(training_logits(model, input_ids), dim=-1)
    exported_TV = torch.log_softmax(torch.from_numpy(logits_of(engine, input_ids)), dim=-1)
    agreement = (trained_TV.argmax(-1) == exported_TV.argmax(-1)).double()
    kl = (trained_TV.exp() * (trained_TV - exported_TV)).sum(-1, dtype=torch.float64)
    next_ids = torch.tensor(input_ids[1:])[:, None]
    losses = [-log_probs[:-1].gather(1, next_ids)[:, 0].double() for log_probs in (trained_TV, exported_TV)]
    last = torch.full((1,), math.nan, dtype=torch.float64)
    return torch.stack([agreement, kl, *(torch.cat([loss, last]) for loss in losses)], dim=1)


def training_logits(model: PreTrainedModel, input_ids: list[int]) -> Tensor:
    """The training model's logits [T, V] of one document."""
    ids_BT = torch.tensor([input_ids])
    batch = {"input_ids": ids_BT, "position_ids": torch.arange(len(input_ids))[None], "segment_ids": torch.ones_like(ids_BT)}
    return hidden_states(model, batch)[0] @ lm_head_weight(model).T
