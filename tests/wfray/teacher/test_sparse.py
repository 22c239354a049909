"""Cut-down teacher distributions: the k largest against a sort, the sample's expectation against the whole, and both on the wire."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wfray.teacher.signals import decode_signals, encode_sparse
from wfray.teacher.sparse import TILE_BYTES, Sampled, sample, sample_of, top_k, top_k_of, uniforms

VOCABULARY, K = 60, 8


def logits(num_tokens: int, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(num_tokens, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draw(row: Tensor, num_draws: int, temperature: float = 1.0, k: int = K) -> Sampled:
    """The same row, drawn many times."""
    uniform = torch.rand(num_draws, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return sample(row.expand(num_draws, -1), k, temperature, uniform)


def dense(drawn: Sampled) -> Tensor:
    """The weights at their places in the vocabulary, one row a draw."""
    return torch.zeros(len(drawn.ids), VOCABULARY, dtype=torch.float64).scatter_add_(1, drawn.ids, drawn.weights.double())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_k_largest_and_the_rest_are_those_of_a_sort(temperature: float) -> None:
    signal = top_k(logits(20), K, temperature)
    p, ids = (logits(20) / temperature).softmax(-1).sort(dim=-1, descending=True)
    assert torch.equal(signal.ids, ids[:, :K])
    torch.testing.assert_close(signal.log_probs[:, :K].double().exp(), p[:, :K], rtol=1e-5, atol=0)
    torch.testing.assert_close(signal.log_probs[:, K].double().exp(), p[:, K:].sum(-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("spread", [0.1, 2.0, 6.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_sample_has_the_teacher_as_its_expectation(spread: float, temperature: float) -> None:
    """An id of probability p outside the exact head weighs w with probability p / w, so its mean over n draws has variance
    p (w - p) / n: every id must lie within 5 standard deviations (a chance of 1 in 29,000 over 60 ids and 6 cases)."""
    num_draws = 20000
    row = logits(1, spread)
    drawn, p = draw(row, num_draws, temperature), (row / temperature).softmax(-1)[0]
    spacing = drawn.weights[0].double().min()
    deviation = (p * (spacing - p).clamp(min=0) / num_draws).sqrt()
    assert ((dense(drawn).mean(0) - p).abs() <= 5 * deviation + 2e-7).all()
    assert (deviation > 0).sum() >= VOCABULARY - K


def test_the_gradient_of_the_sample_has_the_exact_one_as_its_expectation() -> None:
    """d KL / ds = q - w: unbiased with w; the norm of the mean error must be within 3 times its expected root mean square."""
    num_draws = 20000
    row = logits(1)
    drawn, p = draw(row, num_draws), row.softmax(-1)[0]
    q = logits(2)[1].softmax(-1)
    gradients = q * drawn.weights.double().sum(-1, keepdim=True) - dense(drawn)
    expected = (gradients.var(dim=0).sum() / num_draws).sqrt()
    assert 0 < (gradients.mean(0) - (q - p)).norm() <= 3 * expected


def test_the_sample_is_closer_to_the_teacher_than_draws_with_replacement() -> None:
    """As many ids on the wire as Random Sampling KD draws; the squared error of the distribution is far smaller."""
    p = logits(1).softmax(-1)[0]
    plain = torch.multinomial(p, 4000 * K, replacement=True, generator=torch.Generator().manual_seed(3)).view(4000, K)
    counts = torch.zeros(4000, VOCABULARY, dtype=torch.float64).scatter_add_(1, plain, torch.full(plain.shape, 1 / K, dtype=torch.float64))
    ours, theirs = ((weights - p).square().sum(-1).mean() for weights in (dense(draw(logits(1), 4000)), counts))
    assert ours < 0.5 * theirs


@pytest.mark.parametrize("spread", [0.1, 2.0, 6.0])
def test_ids_are_distinct_and_weights_add_up_to_one(spread: float) -> None:
    drawn = draw(logits(1, spread), 500)
    assert all(len(set(ids)) == K for ids in drawn.ids.tolist())
    torch.testing.assert_close(drawn.weights.sum(-1), torch.ones(500))


def test_probabilities_too_large_to_be_drawn_are_exact() -> None:
    row = torch.tensor([[0.6, 0.2] + [0.2 / 58] * 58], dtype=torch.float64).log()
    drawn = draw(row, 50)
    torch.testing.assert_close(drawn.weights[:, :2], torch.tensor([0.6, 0.2]).expand(50, 2))
    assert torch.equal(drawn.ids[:, :2], torch.tensor([0, 1]).expand(50, 2))
    torch.testing.assert_close(drawn.weights[:, 2:], torch.full((50, 6), 0.2 / 6))


def test_a_certain_teacher_sends_its_one_id() -> None:
    drawn = draw(torch.nn.functional.one_hot(torch.tensor([7]), VOCABULARY) * 1000.0, 3)
    assert torch.equal(dense(drawn), torch.nn.functional.one_hot(torch.tensor([7] * 3), VOCABULARY).double())
    assert not drawn.entropy.any()


def test_entropy_is_that_of_the_whole_distribution() -> None:
    signal = sample(logits(9), K, 2.0, torch.zeros(9, dtype=torch.float64))
    torch.testing.assert_close(signal.entropy, torch.distributions.Categorical(logits=logits(9) / 2.0).entropy().float())


def test_tiles_make_the_same_signals_as_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = torch.randn(2, 11, 16, dtype=torch.float64), torch.randn(VOCABULARY, 16, dtype=torch.float64)
    uniform = torch.rand(2, 11, dtype=torch.float64)
    once = [top_k_of(hidden, head, K, 1.0).ids, sample_of(hidden, head, K, 1.0, uniform).ids]
    assert [ids.shape for ids in once] == [(2, 11, K)] * 2
    monkeypatch.setattr("wfray.teacher.sparse.TILE_BYTES", 4 * VOCABULARY * 5)
    assert TILE_BYTES > 4 * VOCABULARY * 22
    tiled = [top_k_of(hidden, head, K, 1.0).ids, sample_of(hidden, head, K, 1.0, uniform).ids]
    assert all(torch.equal(a, b) for a, b in zip(once, tiled, strict=True))


def test_uniform_numbers_depend_on_seed_and_tokens_alone() -> None:
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    numbers = uniforms(ids, 0)
    assert torch.equal(uniforms(ids[[2, 0]], 0), numbers[[2, 0]])
    assert len(numbers.unique()) == 12
    assert not torch.equal(uniforms(ids, 1), numbers)
    assert ((0 <= numbers) & (numbers < 1)).all()


@pytest.mark.parametrize(("vocabulary", "dtype", "topk_bytes", "sampled_bytes"), [(65536, np.uint16, 34, 34), (65537, np.int32, 50, 50)])
def test_the_wire_takes_the_bytes_that_it_says(vocabulary: int, dtype: type, topk_bytes: int, sampled_bytes: int) -> None:
    rows = logits(6)
    largest = encode_sparse(top_k(rows, K, 1.0).at(2, 3), vocabulary)
    drawn = encode_sparse(sample(rows, K, 1.0, torch.rand(6, dtype=torch.float64)).at(2, 3), vocabulary)
    assert largest["topk_ids"].dtype == drawn["sampled_ids"].dtype == dtype
    assert sum(array.nbytes for array in largest.values() if array.ndim) == 6 * topk_bytes
    assert sum(array.nbytes for array in drawn.values() if array.ndim) == 6 * sampled_bytes


def test_signals_survive_the_wire() -> None:
    rows = logits(6)
    largest = top_k(rows, K, 2.0).at(2, 3)
    drawn = sample(rows, K, 2.0, torch.rand(6, dtype=torch.float64)).at(2, 3)
    decoded = decode_signals({**encode_sparse(largest, VOCABULARY), **encode_sparse(drawn, VOCABULARY)})
    assert torch.equal(decoded["topk"].ids, largest.ids) and torch.equal(decoded["sampled"].ids, drawn.ids)
    torch.testing.assert_close(decoded["topk"].log_probs.exp(), largest.log_probs.exp(), rtol=2e-3, atol=0)
    torch.testing.assert_close(decoded["topk"].log_probs.exp().sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(decoded["sampled"].weights, drawn.weights, rtol=5e-4, atol=3e-8)
    torch.testing.assert_close(decoded["sampled"].entropy, drawn.entropy, rtol=5e-4, atol=0)
    assert decoded["topk"].temperature == decoded["sampled"].temperature == 2.0


def test_a_rest_of_nothing_survives_the_wire() -> None:
    certain = top_k(torch.nn.functional.one_hot(torch.tensor([7]), VOCABULARY) * 1e6, K, 1.0)
    log_probs = decode_signals(encode_sparse(certain, VOCABULARY))["topk"].log_probs
    assert log_probs.exp().tolist() == [[1.0] + [0.0] * K]
    assert math.isfinite(log_probs.sum())


def test_probabilities_that_are_not_finite_are_refused() -> None:
    arrays = encode_sparse(top_k(logits(1).fill_(torch.nan), K, 1.0), VOCABULARY)
    with pytest.raises(ValueError, match="teacher's topk_log_probs holds values that are not finite"):
        decode_signals(arrays)
