"""From the logits [V] of one position to a token: temperature, nucleus (top-p) and one uniform draw; and log-probabilities.

The draw inverts the cumulative distribution in token order, so a seed gives the same tokens as long as the logits are the same. Of top-p
only the 256 likeliest tokens are sorted first, and all of them where these do not hold enough: sorting 49k numbers costs more than
computing them. Logits are float32, sums float64.
"""

import numpy as np
from numpy.typing import NDArray

from wfray.serving.engine import Sampling

Logits = NDArray[np.float32]
FEW = 256
COLDEST = 1e-6
"""A lower temperature is 0: float32 could not tell them apart."""


def choose(logits_V: Logits, sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token."""
    if sampling.temperature < COLDEST:
        return int(logits_V.argmax())
    weights_V = np.exp((logits_V - logits_V.max()) / np.float32(sampling.temperature))
    if sampling.top_p < 1:
        weights_V = nucleus(weights_V, sampling.top_p)
    cumulative_V = weights_V.cumsum(dtype=np.float64)
    draw = generator.random() * cumulative_V[-1]
    return min(int(np.searchsorted(cumulative_V, draw, side="right")), int(np.flatnonzero(weights_V)[-1]))


def nucleus(weights_V: NDArray[np.float32], top_p: float) -> NDArray[np.float32]:
    """The weights of the fewest likeliest tokens that together hold `top_p` of the mass; 0 elsewhere."""
    wanted = top_p * weights_V.sum(dtype=np.float64)
    for count in (FEW, len(weights_V)):
        best = likeliest(weights_V, count)
        mass = weights_V[best].cumsum(dtype=np.float64)
        if mass[-1] >= wanted:
            break
    kept = best[: int(np.searchsorted(mass, wanted)) + 1]
    cut_V = np.zeros_like(weights_V)
    cut_V[kept] = weights_V[kept]
    return cut_V


def likeliest(values_V: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest values, largest first, equal ones in token order."""
    if count < 2:
        return np.array([values_V.argmax()])[:count]
    if count < len(values_V):
        best = np.sort(np.argpartition(values_V, -count)[-count:])
        return best[np.argsort(-values_V[best], kind="stable")]
    return np.argsort(-values_V, kind="stable")


def log_normalizer(logits_V: Logits) -> float:
    """What to subtract from logits to have natural log-probabilities."""
    largest = logits_V.max()
    return float(largest) + float(np.log(np.exp(logits_V - largest).sum(dtype=np.float64)))
