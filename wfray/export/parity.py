"""Parity: what is exported computes what was trained. The same sequences through the training model and through the file in its own engine.

An exact file leaves one difference: the training model rounds the activations of a projection to int8 with one scale a token,
engines in blocks (`rounding`). So the bounds hold between the file and the training model in the engine's rounding: ternary weights,
norms, RoPE and attention as they were trained, in float32, and embedding and head in the precision asked for. Beside it stands the
whole gap to the training model, which is the doing of the engine and of that precision and no mistake of the file.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wfray.config.export import Parity
from wfray.export.engine import Engine
from wfray.export.reference import Reference, training_logits
from wfray.quant import hold_codes
from wfray.student import load_student


@dataclass(frozen=True)
class MeasuredParity:
    """How far the file's predictions are from the training model's, over all positions of all sequences."""

    num_sequences: int
    num_tokens: int
    top1_agreement: float
    """Share of positions where the file and the training model in the engine's rounding rank the same token first."""
    mean_kl: float
    """KL(training in the engine's rounding || file), nats a token."""
    max_kl: float
    perplexity_training: float
    """Of the training model in its own rounding."""
    perplexity_file: float
    own_top1_agreement: float
    """The first three against the training model in its own rounding."""
    own_mean_kl: float
    own_max_kl: float

    def check(self, bounds: Parity, name: str) -> None:
        """Raise `ValueError` when a bound is missed."""
        if self.top1_agreement >= bounds.min_top1 and self.mean_kl <= bounds.max_mean_kl:
            return
        raise ValueError(
            f"{name} does not compute what was trained: top-1 agreement {self.top1_agreement:.4f} (at least {bounds.min_top1} wanted), "
            f"mean KL {self.mean_kl:.2e} nats (at most {bounds.max_mean_kl:.2e} wanted), perplexity {self.perplexity_file:.2f} against "
            f"{self.perplexity_training:.2f} in training. It was not kept. Try embedding_type F16, then linear_type F16: if neither "
            "passes, the export has a mistake"
        )


def measure_parity(student: Path, engine: Engine, sequences: list[list[int]], threads: int) -> MeasuredParity:
    """Run `sequences` of token ids through the engine, through the training model in its rounding, and in its own."""
    torch.set_num_threads(threads)
    trained, reference = load_student(student), Reference(load_student(student), engine)
    hold_codes(trained)
    rows = torch.cat([compare(trained, reference, engine, sequence) for sequence in sequences])
    mean, largest = rows.nanmean(0).tolist(), rows.nan_to_num().amax(0).tolist()
    return MeasuredParity(
        num_sequences=len(sequences),
        num_tokens=len(rows),
        top1_agreement=mean[0],
        mean_kl=mean[1],
        max_kl=largest[1],
        own_top1_agreement=mean[2],
        own_mean_kl=mean[3],
        own_max_kl=largest[3],
        perplexity_training=math.exp(mean[4]),
        perplexity_file=math.exp(mean[5]),
    )


@torch.no_grad()
def compare(trained: PreTrainedModel, reference: Reference, engine: Engine, input_ids: list[int]) -> Tensor:
    """One sequence: at each position agreement (0 or 1) and KL of the file with the reference, the same with the training model, and the
    training model's and the file's negative log-likelihood of the next token (NaN for the last), [T, 6]."""
    seen = engine.run(input_ids)
    file_TV = torch.log_softmax(seen.logits_TV, dim=-1)
    rounded_TV = torch.log_softmax(reference.logits(input_ids, seen), dim=-1)
    trained_TV = torch.log_softmax(training_logits(trained, input_ids), dim=-1)
    columns = [*distance(rounded_TV, file_TV), *distance(trained_TV, file_TV)]
    return torch.stack([*columns, loss(trained_TV, input_ids), loss(file_TV, input_ids)], dim=1)


def distance(reference_TV: Tensor, other_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the likeliest tokens agree, and KL(reference || other), at each position of two sets of log-probabilities."""
    agreement = (reference_TV.argmax(-1) == other_TV.argmax(-1)).double()
    return agreement, (reference_TV.exp() * (reference_TV - other_TV)).sum(-1, dtype=torch.float64)


def loss(log_probs_TV: Tensor, input_ids: list[int]) -> Tensor:
    """Negative log-likelihood of the next token [T], NaN at the last position."""
    next_ids = torch.tensor(input_ids[1:])[:, None]
    last = torch.full((1,), math.nan, dtype=torch.float64)
    return torch.cat([-log_probs_TV[:-1].gather(1, next_ids)[:, 0].double(), last])
