"""Choosing tokens, against the definitions computed plainly."""

import numpy as np
import pytest
import torch

from wfray.serving.engine import Sampling
from wfray.serving.sampling import choose, likeliest, log_normalizer, nucleus

VOCABULARY = 1000


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, VOCABULARY).astype(np.float32)


def plain_nucleus(probabilities: np.ndarray, top_p: float) -> set[int]:
    kept, mass = set(), 0.0
    for token in np.argsort(-probabilities, kind="stable"):
        kept.add(int(token))
        mass += probabilities[token]
        if mass >= top_p:
            return kept
    return kept


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_the_nucleus_is_the_fewest_likeliest_tokens(logits: np.ndarray, temperature: float, top_p: float) -> None:
    probabilities = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0).numpy()
    kept = np.flatnonzero(nucleus(probabilities.astype(np.float32), top_p))
    assert set(kept.tolist()) == plain_nucleus(probabilities, top_p)


def test_draws_follow_the_distribution(logits: np.ndarray) -> None:
    sampling, generator = Sampling(temperature=0.7, top_p=0.8), np.random.default_rng(1)
    draws = np.array([choose(logits, sampling, generator) for _ in range(4000)])
    probabilities = torch.softmax(torch.tensor(logits, dtype=torch.float64) / 0.7, 0).numpy()
    kept = sorted(plain_nucleus(probabilities, 0.8))
    expected = probabilities[kept] / probabilities[kept].sum()
    seen = np.array([(draws == token).mean() for token in kept])
    assert set(draws.tolist()) <= set(kept)
    assert np.abs(seen - expected).max() < 4 * np.sqrt(0.25 / len(draws))


def test_temperature_0_is_the_likeliest_and_a_seed_repeats(logits: np.ndarray) -> None:
    assert choose(logits, Sampling(temperature=0), np.random.default_rng(0)) == int(logits.argmax())
    twice = [[choose(logits, Sampling(), generator) for _ in range(20)] for generator in map(np.random.default_rng, (5, 5))]
    assert twice[0] == twice[1] and len(set(twice[0])) > 1


def test_log_probabilities_are_those_of_a_softmax(logits: np.ndarray) -> None:
    wanted = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 0).numpy()
    assert np.allclose(logits - log_normalizer(logits), wanted, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 5, VOCABULARY])
def test_the_likeliest_come_best_first(logits: np.ndarray, count: int) -> None:
    assert likeliest(logits, count).tolist() == np.argsort(-logits, kind="stable")[:count].tolist()
