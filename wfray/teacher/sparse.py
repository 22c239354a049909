"""Teacher distributions cut down to a few ids a token: the k largest with the rest's mass, or an unbiased sample of k ids.

Both come from a tile of logits at the temperature at which the student will compare, `p = softmax(u / T)`.

The sample estimates every expectation under p without bias: `E[sum_i w_i f(id_i)] = sum_v p_v f(v)`, as Random Sampling
Knowledge Distillation does (arXiv 2503.16870) by drawing from the teacher with replacement. Here the k ids are distinct: an id is drawn
with probability `min(1, c p_v)`, c such that these add up to k, and weighs p_v over that. So the head of the distribution is
exact, every byte on the wire names a new id, and the weights add up to 1. This is systematic sampling with probability
proportional to size (Madow 1949): one uniform number a token places equally spaced points on the cumulative masses of
the tail, each of which is no wider than the spacing.

Masses are integers, 2^-40 of the whole: their sums are exact in any order, so a draw depends on neither threads nor device
beyond the logits, ids are distinct without rounding, and torch's deterministic mode allows cumulative sums on a GPU.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ONE = 2**40
"""A probability of 1 in integer masses."""
TILE_BYTES = 32 * 2**20
"""Of one float32 tile of logits."""


@dataclass(frozen=True)
class TopK:
    """The k largest and the rest, at one temperature. Leading axes are the batch's positions."""

    ids: Tensor
    """int64 [..., k]."""
    log_probs: Tensor
    """float32 [..., k + 1], the last is the rest's; they add up to 1 as probabilities."""
    temperature: float

    def at(self, *shape: int) -> "TopK":
        """The same with these axes of positions."""
        return TopK(self.ids.view(*shape, self.ids.shape[-1]), self.log_probs.view(*shape, self.log_probs.shape[-1]), self.temperature)


@dataclass(frozen=True)
class Sampled:
    """Drawn ids and their weights, at one temperature. Leading axes are the batch's positions."""

    ids: Tensor
    """int64 [..., k]."""
    weights: Tensor
    """float32 [..., k]; a weight of 0 fills up where the teacher has fewer ids of any probability."""
    entropy: Tensor
    """float32 [...]: -sum p log p of the whole distribution, nats."""
    temperature: float

    def at(self, *shape: int) -> "Sampled":
        """The same with these axes of positions."""
        k = self.ids.shape[-1]
        return Sampled(self.ids.view(*shape, k), self.weights.view(*shape, k), self.entropy.view(*shape), self.temperature)


def top_k(logits_TV: Tensor, k: int, temperature: float) -> TopK:
    """The k largest of each row, sorted, and the rest.

    Args:
        logits_TV: the teacher's, any float dtype.
        k: less than V.
        temperature: of the softmax.
    """
    scaled_TV = logits_TV.float() / temperature
    listed_TK, ids_TK = scaled_TV.topk(k, dim=-1)
    rest_T1 = scaled_TV.scatter_(1, ids_TK, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return TopK(ids_TK, torch.cat([listed_TK, rest_T1], dim=-1).log_softmax(dim=-1), temperature)


def sample(logits_TV: Tensor, k: int, temperature: float, uniform_T: Tensor) -> Sampled:
    """k distinct ids of each row with weights; see the module docstring.

    Args:
        logits_TV: the teacher's, any float dtype.
        k: less than V.
        temperature: of the softmax.
        uniform_T: float64 in [0, 1), one a row: all the randomness.
    """
    log_p_TV = (logits_TV.float() / temperature).log_softmax(dim=-1)
    p_TV = log_p_TV.exp()
    entropy_T = -(p_TV * log_p_TV).sum(dim=-1)
    mass_TV = (p_TV.double() * ONE).long()
    total_T1 = mass_TV.sum(dim=-1, keepdim=True)
    top_mass_TK, top_ids_TK = mass_TV.topk(k, dim=-1)
    rank_K = torch.arange(k, device=mass_TV.device)
    tail_TK = total_T1 - top_mass_TK.cumsum(dim=-1) + top_mass_TK
    head_T1 = ((k - rank_K) * top_mass_TK <= tail_TK).int().argmax(dim=-1, keepdim=True)
    is_head_TK = rank_K < head_T1
    tail_T1 = tail_TK.gather(1, head_T1)
    edges_TV = mass_TV.scatter_(1, top_ids_TK, top_mass_TK.masked_fill(is_head_TK, 0)).cumsum(dim=-1)
    start_T1 = (uniform_T[:, None] * tail_T1).long()
    points_TK = ((rank_K - head_T1).clamp(min=0) * tail_T1 + start_T1) // (k - head_T1)
    drawn_TK = torch.searchsorted(edges_TV, points_TK, right=True).clamp(max=mass_TV.shape[1] - 1)
    weights_TK = torch.where(is_head_TK, top_mass_TK.double(), tail_T1.double() / (k - head_T1)) / total_T1
    return Sampled(torch.where(is_head_TK, top_ids_TK, drawn_TK), weights_TK.float(), entropy_T, temperature)


def top_k_of(hidden_BTC: Tensor, head_VC: Tensor, k: int, temperature: float) -> TopK:
    """`top_k` of the logits of every position."""
    tiles = [top_k(logits_TV, k, temperature) for _, logits_TV in logits_tiles(hidden_BTC, head_VC)]
    ids, log_probs = torch.cat([tile.ids for tile in tiles]), torch.cat([tile.log_probs for tile in tiles])
    return TopK(ids, log_probs, temperature).at(*hidden_BTC.shape[:-1])


def sample_of(hidden_BTC: Tensor, head_VC: Tensor, k: int, temperature: float, uniform_BT: Tensor) -> Sampled:
    """`sample` of the logits of every position."""
    uniform_N = uniform_BT.flatten()
    tiles = [sample(logits_TV, k, temperature, uniform_N[rows]) for rows, logits_TV in logits_tiles(hidden_BTC, head_VC)]
    ids, weights = torch.cat([tile.ids for tile in tiles]), torch.cat([tile.weights for tile in tiles])
    entropy = torch.cat([tile.entropy for tile in tiles])
    return Sampled(ids, weights, entropy, temperature).at(*hidden_BTC.shape[:-1])


def logits_tiles(hidden_BTC: Tensor, head_VC: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The logits of a few positions at a time, in order."""
    hidden_NC = hidden_BTC.flatten(0, -2)
    num_rows = max(1, TILE_BYTES // (4 * len(head_VC)))
    for start in range(0, len(hidden_NC), num_rows):
        rows = slice(start, start + num_rows)
        yield rows, hidden_NC[rows] @ head_VC.t()


def uniforms(input_ids_BT: np.ndarray, seed: int) -> Tensor:
    """A number in [0, 1) for every position, float64, from the seed and the row's own tokens: it does not matter how rows are batched."""
    rows = []
    for ids_T in input_ids_BT:
        digest = hashlib.sha256(np.ascontiguousarray(ids_T, dtype=np.int32).tobytes()).digest()
        rows.append(np.random.default_rng([seed, *np.frombuffer(digest, dtype=np.uint32)]).random(len(ids_T)))
    return torch.from_numpy(np.stack(rows))
