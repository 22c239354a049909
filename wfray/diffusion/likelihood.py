"""The log-likelihood of a continuation under block diffusion, by Monte Carlo over masks.

Blocks are written in order, so log p is a sum over blocks. The first token of a block comes from the state before it, exactly, as in
decoding. For the m others the model gives `log p(x_i | the block with the tokens of S masked)` for any set S; writing them one by one
in a random order and averaging over orders, which bounds log p from below and is log p itself where the model's conditionals agree,

    E_l E_S  m / l * sum over i in S of log p(x_i | S masked),    l uniform in 1..m, S a random set of l of the m tokens

(LLaDA, arXiv 2502.09992). Each sample is one (l, S), the l spread evenly over 1..m; the standard error is that of the samples' mean. Where
all 2^m - 1 sets are no more than the samples asked for, all are taken with their weights, and nothing is random.

All samples stand as noisy copies beside one clean context in one row of blocks. Tokens behind the continuation stay masked.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from wfray.diffusion.blocks import CLEAN, Blocks
from wfray.diffusion.forward import Row, run_row
from wfray.student.forward import lm_head_weight

ROW_TOKENS = 8192
"""Of one forward pass, about; the context counts once in each."""
LOGITS_ROWS = 256
"""Positions whose logits exist at once."""


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation."""

    nats: float
    """Log-likelihood, or the bound of it."""
    standard_error: float
    """Of the samples; 0 where all sets were taken."""
    is_greedy: bool
    """Whether each token was the likeliest in every sample that masked it."""


@dataclass(frozen=True)
class Masks:
    """Sets of masked tokens and their weights: log p is about `sum over sets of weight * sum of the set's log-probabilities`."""

    sets_NM: NDArray[np.bool_]
    weights_N: NDArray[np.float64]
    is_exact: bool


def draw_masks(num_tokens: int, num_samples: int, generator: np.random.Generator) -> Masks:
    """All sets of `num_tokens` tokens where they are few enough, else samples of them."""
    if 2**num_tokens - 1 <= num_samples:
        every = [chosen for chosen in itertools.product([False, True], repeat=num_tokens) if any(chosen)]
        weights = [1 / (sum(chosen) * math.comb(num_tokens, sum(chosen))) for chosen in every]
        return Masks(np.array(every, dtype=bool).reshape(-1, num_tokens), np.array(weights), True)
    places = (np.arange(num_samples) + generator.random(num_samples)) / num_samples
    sizes_N = 1 + np.floor(places * num_tokens).astype(np.int64)
    ranks_NM = generator.random((num_samples, num_tokens)).argsort(axis=1).argsort(axis=1)
    return Masks(ranks_NM < sizes_N[:, None], num_tokens / sizes_N / num_samples, False)


def estimate(masks: Masks, log_p_NM: NDArray[np.float64]) -> tuple[float, float]:
    """The estimate of log p and its standard error, from each masked token's log-probability under its set."""
    terms_N = masks.weights_N * np.where(masks.sets_NM, log_p_NM, 0.0).sum(axis=1)
    if masks.is_exact:
        return float(terms_N.sum()), 0.0
    return float(terms_N.sum()), float(len(terms_N) ** 0.5 * terms_N.std(ddof=1))


@dataclass(frozen=True)
class Scorer:
    """Scores continuations with one model that attends over blocks."""

    model: PreTrainedModel
    mask_id: int
    block_size: int
    num_samples: int = 32
    seed: int = 0
    precision: torch.dtype = torch.float32
    """Of the products."""

    def __post_init__(self) -> None:
        """Raises: ValueError: one sample has no standard error."""
        if self.num_samples < 2:
            raise ValueError(f"samples {self.num_samples} must be at least 2: the spread of one says nothing of its error")

    @torch.inference_mode()
    def score(self, context: list[int], continuation: list[int]) -> Likelihood:
        """The likelihood of `continuation` after `context`; the same whatever else is scored.

        Raises:
            ValueError: the context is empty.
        """
        if not context:
            raise ValueError("the context is empty: block diffusion needs a token before the first that it predicts")
        generator, tokens = np.random.default_rng(self.seed), context + continuation
        nats, variance, is_greedy = 0.0, 0.0, True
        if not continuation:
            return Likelihood(0.0, 0.0, is_greedy=True)
        for start in range(len(context) // self.block_size * self.block_size, len(tokens), self.block_size):
            scored = np.arange(max(start, len(context)), min(start + self.block_size, len(tokens)))
            if scored[0] == start:
                found = self._first(tokens, start)
                nats, is_greedy, scored = nats + found[0], is_greedy and found[1], scored[1:]
            if len(scored):
                masks = draw_masks(len(scored), self.num_samples, generator)
                log_p_NM, is_best_NM = self._block(tokens, start, scored, masks.sets_NM)
                mean, error = estimate(masks, log_p_NM)
                nats, variance = nats + mean, variance + error**2
                is_greedy = is_greedy and bool(is_best_NM[masks.sets_NM].all())
        return Likelihood(nats, variance**0.5, is_greedy)

    def _first(self, tokens: list[int], start: int) -> tuple[float, bool]:
        """Log-probability of the first token of a block, and whether it is the likeliest."""
        hidden_TC = self._run(np.array(tokens[:start]), self._numbered(start, copies=0))
        log_p, is_best = self._log_probabilities(hidden_TC[-1:], torch.tensor([tokens[start]]))
        return float(log_p[0]), bool(is_best[0])

    def _block(
        self, tokens: list[int], start: int, scored: NDArray[np.int64], sets_NM: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Of every set, the log-probability of each token that it masks, and whether it is the likeliest; as many sets at a time as fit."""
        at_a_time = max(1, (ROW_TOKENS - start) // self.block_size)
        parts = [self._sets(tokens, start, scored, sets_NM[first : first + at_a_time]) for first in range(0, len(sets_NM), at_a_time)]
        return np.concatenate([log_p for log_p, _ in parts]), np.concatenate([is_best for _, is_best in parts])

    def _sets(
        self, tokens: list[int], start: int, scored: NDArray[np.int64], sets_NM: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        block = np.full(self.block_size, self.mask_id)
        own = np.array(tokens[start : start + self.block_size])
        block[: len(own)] = own
        copies_ND = np.repeat(block[None], len(sets_NM), axis=0)
        copies_ND[:, scored - start] = np.where(sets_NM, self.mask_id, block[scored - start])
        hidden_TC = self._run(np.array([*tokens[:start], *copies_ND.ravel()]), self._numbered(start, len(sets_NM)))
        which, place = np.nonzero(sets_NM)
        states = which * self.block_size + scored[place] - 1
        log_p, is_best = self._log_probabilities(hidden_TC[torch.from_numpy(states)], torch.from_numpy(block[scored[place] - start]))
        log_p_NM, is_best_NM = np.zeros(sets_NM.shape), np.zeros(sets_NM.shape, dtype=bool)
        log_p_NM[which, place], is_best_NM[which, place] = log_p, is_best
        return log_p_NM, is_best_NM

    def _numbered(self, start: int, copies: int) -> Blocks:
        """Clean blocks up to `start`, and so many copies of the block there."""
        num_clean = start // self.block_size
        number = torch.cat([torch.arange(num_clean), torch.full((copies,), num_clean)])
        copy = torch.cat([torch.full((num_clean,), CLEAN), torch.arange(1, copies + 1)])
        return Blocks(torch.zeros_like(number), number, copy, self.block_size)

    def _run(self, tokens_T: NDArray[np.int64], blocks: Blocks) -> Tensor:
        """The last hidden states [T, C] of a row of blocks."""
        positions = blocks.number[:, None] * blocks.size + torch.arange(blocks.size)
        device = self.model.device.type
        with torch.autocast(device, dtype=self.precision, enabled=self.precision == torch.bfloat16):
            return run_row(self.model, Row(torch.from_numpy(tokens_T), positions.flatten(), blocks))

    def _log_probabilities(self, hidden_NC: Tensor, target_N: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Of each target, and whether it is the likeliest; the mask token is never one."""
        head_VC = lm_head_weight(self.model).to(self.precision)
        log_p, is_best = [], []
        for hidden, target in zip(hidden_NC.split(LOGITS_ROWS), target_N.to(hidden_NC.device).split(LOGITS_ROWS), strict=True):
            logits = (hidden.to(head_VC.dtype) @ head_VC.T).float()
            logits[:, self.mask_id] = -torch.inf
            log_p.append(logits.log_softmax(dim=-1).gather(1, target[:, None])[:, 0])
            is_best.append(logits.argmax(dim=-1) == target)
        return torch.cat(log_p).double().cpu().numpy(), torch.cat(is_best).cpu().numpy()
