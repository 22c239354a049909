"""Parity: what is exported computes what was trained. The same sequences through the training model and through the file in its own engine.

An exact file leaves one difference: the training model rounds the activations of a projection to int8 with one scale a token,
engines in blocks (`rounding`). So the bounds hold between the file and the training model in the engine's rounding: ternary weights,
norms, RoPE and attention as they were trained, in float32, and embedding and head in the precision asked for. Beside it stands the
whole gap to the training model, which is the doing of the engine and of that precision and no mistake of the file.
"""

import math
from collections.abc import Iterator
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

BATCH_TOKENS = 256
"""Of one forward pass, whose logits are a float for each token and word of the vocabulary."""


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
    rows = torch.cat([compare(trained, reference, engine, batch) for batch in batches(sequences)])
    # What the file computes may be no number, and then nothing but the missing next tokens may be passed over.
    mean, largest = [*rows[:, :4].mean(0).tolist(), *rows[:, 4:].nanmean(0).tolist()], rows[:, :4].amax(0).tolist()
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
def compare(trained: PreTrainedModel, reference: Reference, engine: Engine, sequences: list[list[int]]) -> Tensor:
    """Some sequences: at each position agreement (0 or 1) and KL of the file with the reference, the same with the training model, and
    the training model's and the file's negative log-likelihood of the next token (NaN for the last of each), [T, 6]."""
    seen = [engine.run(sequence) for sequence in sequences]
    file_TV = torch.log_softmax(torch.cat([each.logits_TV for each in seen]), dim=-1)
    trained_TV = torch.log_softmax(training_logits(trained, sequences), dim=-1)
    columns = [*distance(trained_TV, file_TV), loss(trained_TV, sequences), loss(file_TV, sequences)]
    del trained_TV
    rounded_TV = torch.log_softmax(reference.logits(sequences, seen), dim=-1)
    return torch.stack([*distance(rounded_TV, file_TV), *columns], dim=1)


def batches(sequences: list[list[int]]) -> Iterator[list[list[int]]]:
    """The sequences in order, as many at once as make up to `BATCH_TOKENS`, one at least."""
    batch: list[list[int]] = []
    for sequence in sequences:
        if batch and sum(map(len, batch)) + len(sequence) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(sequence)
    yield batch


def distance(reference_TV: Tensor, other_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the likeliest tokens agree, and KL(reference || other), at each position of two sets of log-probabilities."""
    agreement = (reference_TV.argmax(-1) == other_TV.argmax(-1)).double()
    return agreement, (reference_TV.exp() * (reference_TV - other_TV)).sum(-1, dtype=torch.float64)


def loss(log_probs_TV: Tensor, sequences: list[list[int]]) -> Tensor:
    """Negative log-likelihood of the next token [T], NaN at the last position of each sequence."""
    next_ids = torch.tensor([token for sequence in sequences for token in [*sequence[1:], -1]])[:, None]
    losses = -log_probs_TV.gather(1, next_ids.clamp_min(0))[:, 0].double()
    return losses.masked_fill(next_ids[:, 0] < 0, math.nan)
