"""Which tokens are taken from a run over a block with masks, and which values they get.

A masked position's token is the likeliest one, or drawn by temperature and nucleus; its confidence is the token's probability in the
model's own distribution. Taken are all whose confidence exceeds the threshold, and always the most confident one, so that with a
threshold of 1 every run gives exactly one token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-6
"""A lower temperature is 0: float32 could not tell them apart."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest."""
    top_p: float = 1.0
    seed: int | None = None
    """None draws one."""

    def generator(self) -> torch.Generator:
        """A generator for one row, on the CPU."""
        generator = torch.Generator()
        generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        return generator


def choose(logits_NV: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A token for each position and its confidence, [N] each, on the CPU."""
    probabilities_NV = logits_NV.float().softmax(dim=-1)
    if sampling.temperature < COLDEST:
        confidence_N, token_N = probabilities_NV.max(dim=-1)
        return token_N.cpu(), confidence_N.cpu()
    from_largest_NV = logits_NV.float() - logits_NV.float().amax(dim=-1, keepdim=True)
    tempered_NV = nucleus((from_largest_NV / sampling.temperature).softmax(dim=-1), sampling.top_p)
    token_N = torch.multinomial(tempered_NV.cpu(), 1, generator=generator)[:, 0]
    return token_N, probabilities_NV.cpu().gather(1, token_N[:, None])[:, 0]


def nucleus(probabilities_NV: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens that make up `top_p` together, the others at 0."""
    if top_p >= 1:
        return probabilities_NV
    sorted_NV, order_NV = probabilities_NV.sort(dim=-1, descending=True)
    is_beyond_NV = sorted_NV.cumsum(dim=-1) - sorted_NV >= top_p
    return torch.zeros_like(probabilities_NV).scatter(1, order_NV, sorted_NV.masked_fill(is_beyond_NV, 0.0))


def accepted(confidence_N: Tensor, threshold: float) -> Tensor:
    """Indices of the positions that are taken, at least one."""
    taken_N = confidence_N > threshold
    taken_N[confidence_N.argmax()] = True
    return taken_N.nonzero()[:, 0]
