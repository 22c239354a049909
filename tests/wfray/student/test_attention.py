"""Segment attention against attention of each document alone under a dense mask in float64, forward and gradients."""

import pytest
import torch
from torch import Tensor

from wfray.student.attention import attend_fused, segments_attention
from wfray.student.chunked_attention import CHUNK
from wfray.student.segments import Segments

BATCH, HEADS, KV_HEADS, LENGTH, HEAD_DIM = 2, 6, 2, 420, 16
SPANS = ((0, 0, 300), (0, 300, 301), (0, 301, 420), (1, 0, CHUNK), (1, CHUNK, 420))
SEGMENTS = Segments(SPANS, SPANS)
SCALING = 0.3
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def random_states(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Q, K and V as attention modules hand them over: [B, heads, T, D] seen through a transpose."""
    torch.manual_seed(0)
    shapes = [(BATCH, LENGTH, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [torch.randn(shape).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def dense(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Each document alone with its [L, L] scores."""
    mixed = torch.zeros(BATCH, LENGTH, HEADS, HEAD_DIM, dtype=query.dtype)
    for row, start, end in SPANS:
        q, k, v = (state[row, :, start:end] for state in (query, key, value))
        k, v = (state.repeat_interleave(HEADS // KV_HEADS, dim=0) for state in (k, v))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = (distance < 0) | (distance >= (window or LENGTH))
        probabilities = (q @ k.transpose(1, 2) * SCALING).masked_fill(hidden, float("-inf")).softmax(-1)
        mixed[row, start:end] = (probabilities @ v).transpose(0, 1)
    return mixed


def attend(states: list[Tensor], window: int | None = None) -> Tensor:
    module = torch.nn.Module()
    return segments_attention(module, *states, None, scaling=SCALING, segments=SEGMENTS, sliding_window=window)[0]


def relative_errors(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 7, CHUNK, CHUNK + 9, 299, 300, 1000])
def test_each_document_gets_what_it_gets_alone(dtype: torch.dtype, window: int | None) -> None:
    states = random_states(dtype)
    exact = [state.detach().double().requires_grad_() for state in states]
    found, wanted = attend(states, window), dense(*exact, window)
    weights = torch.randn_like(wanted)
    gradients = torch.autograd.grad(found, states, weights.to(dtype))
    wanted_gradients = torch.autograd.grad(wanted, exact, weights.to(dtype).double())
    errors = relative_errors((found, *gradients), (wanted, *wanted_gradients))
    if window == 1:
        # The mix of one key is its value whatever the scores, so Q and K have no gradient in either.
        assert not gradients[0].any() and not gradients[1].any()
        errors = [errors[0], errors[3]]
    assert max(errors) < TOLERANCES[dtype]


def test_a_document_is_the_same_to_the_bit_whatever_stands_beside_it() -> None:
    states = random_states()
    alone = [state[1:, :, CHUNK:].detach() for state in states]
    ours = segments_attention(torch.nn.Module(), *alone, None, scaling=SCALING, segments=Segments.whole_rows(1, LENGTH - CHUNK))[0]
    assert torch.equal(attend(states)[1:, CHUNK:], ours)


def test_forward_and_gradients_repeat_to_the_bit() -> None:
    first, second = (
        (mixed := attend(states, 50), *torch.autograd.grad(mixed.square().sum(), states)) for states in (random_states(), random_states())
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_under_autocast_products_are_those_of_bfloat16() -> None:
    states = random_states()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(states)
        gradients = torch.autograd.grad(mixed.float().square().sum(), states)
    low = [state.detach().bfloat16().requires_grad_() for state in states]
    wanted = attend(low)
    wanted_gradients = torch.autograd.grad(wanted.float().square().sum(), low)
    assert mixed.dtype == torch.bfloat16 and torch.equal(mixed, wanted)
    assert all(a.dtype == torch.float32 and torch.equal(a, b.float()) for a, b in zip(gradients, wanted_gradients, strict=True))


def test_the_fused_path_of_gpus_gives_the_same() -> None:
    states = random_states()
    wanted = attend(states)
    found = attend_fused(*states, SEGMENTS, SCALING)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(wanted)
    for ours, theirs in zip(torch.autograd.grad(found, states, weights), torch.autograd.grad(wanted, states, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_and_several_tokens_on_a_cache_are_refused() -> None:
    query, key, value = random_states()
    with pytest.raises(ValueError, match="set attention_dropout to 0"):
        segments_attention(torch.nn.Module(), query, key, value, None, dropout=0.1)
    with pytest.raises(ValueError, match="one token at a time"):
        segments_attention(torch.nn.Module(), query[:, :, :2], key, value, None)
