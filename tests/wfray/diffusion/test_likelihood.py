"""Monte Carlo likelihood: exact where everything can be enumerated, unbiased with an honest standard error where it is sampled."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.wfray.diffusion.conftest import BLOCK, MASK_ID, diffusion_model
from wfray.diffusion import likelihood
from wfray.diffusion.attention import TILE, flex_block_mask
from wfray.diffusion.forward import Row, run_row, whole_tiles
from wfray.diffusion.likelihood import Likelihood, Scorer, draw_masks, estimate

CONTEXT, CONTINUATION = [5, 9, 2, 8, 3], [7, 1, 4, 44, 6, 13]


@pytest.fixture(scope="module")
def joint() -> np.ndarray:
    """A distribution over four tokens of a vocabulary of three: 81 texts."""
    weights = np.random.default_rng(0).gamma(0.5, size=(3,) * 4)
    return weights / weights.sum()


def conditional(joint: np.ndarray, text: tuple[int, ...], masked: tuple[bool, ...]) -> list[float]:
    """log p(x_i | the tokens that are not masked), of every masked token."""
    known = joint[tuple(slice(None) if hidden else value for value, hidden in zip(text, masked, strict=True))]
    places = [place for place, hidden in enumerate(masked) if hidden]
    marginals = [known.sum(axis=tuple(axis for axis in range(len(places)) if axis != index)) for index in range(len(places))]
    return [math.log(marginal[text[place]] / known.sum()) for place, marginal in zip(places, marginals, strict=True)]


def log_probabilities(joint: np.ndarray, text: tuple[int, ...], sets: np.ndarray) -> np.ndarray:
    found = np.zeros(sets.shape)
    for row, masked in enumerate(sets):
        found[row, masked] = conditional(joint, text, tuple(map(bool, masked)))
    return found


def test_with_all_masks_it_is_the_likelihood_of_a_model_that_can_be_enumerated(joint: np.ndarray) -> None:
    masks = draw_masks(4, 15, np.random.default_rng(0))
    assert masks.is_exact and len(masks.weights_N) == 15
    total = 0.0
    for text in itertools.product(range(3), repeat=4):
        nats, error = estimate(masks, log_probabilities(joint, text, masks.sets_NM))
        assert error == 0.0 and nats == pytest.approx(math.log(joint[text]), abs=1e-9)
        total += math.exp(nats)
    assert total == pytest.approx(1.0)


def test_samples_are_unbiased_and_their_standard_error_is_honest(joint: np.ndarray) -> None:
    text, true = (2, 0, 1, 1), math.log(joint[2, 0, 1, 1])
    deviations, errors = [], []
    for seed in range(300):
        masks = draw_masks(4, 12, np.random.default_rng(seed))
        assert not masks.is_exact
        nats, error = estimate(masks, log_probabilities(joint, text, masks.sets_NM))
        deviations.append(nats - true)
        errors.append(error)
    spread = float(np.std(deviations))
    assert abs(np.mean(deviations)) < 4 * spread / len(deviations) ** 0.5
    # Sizes are spread evenly over the samples, which the error, as if they were independent, does not count on.
    assert 0.6 * float(np.mean(errors)) < spread < 1.2 * float(np.mean(errors))


def slow_bound(model: PreTrainedModel, context: list[int], continuation: list[int]) -> float:
    """The bound by its definition, every order of every block, running transformers' own attention under a dense mask."""
    tokens, total = context + continuation, 0.0

    @torch.no_grad()
    def log_p(sequence: list[int], place: int) -> float:
        blocks = torch.arange(len(sequence)) // BLOCK
        bias = torch.zeros(len(sequence), len(sequence), dtype=torch.float64)
        bias.masked_fill_(blocks[None] > blocks[:, None], torch.finfo(torch.float64).min)
        logits = model(input_ids=torch.tensor([sequence]), attention_mask=bias[None, None], use_cache=False).logits[0, place - 1]
        logits[MASK_ID] = -torch.inf
        return float(logits.log_softmax(dim=-1)[tokens[place]])

    for start in range(0, len(tokens), BLOCK):
        scored = [place for place in range(start, min(start + BLOCK, len(tokens))) if place >= len(context)]
        if scored and scored[0] == start:
            total += log_p(tokens[:start], start)
            scored = scored[1:]
        orders = list(itertools.permutations(scored))
        for order in orders:
            for step, place in enumerate(order):
                hidden = set(order[step:])
                block = [tokens[p] if p < len(tokens) and p not in hidden else MASK_ID for p in range(start, start + BLOCK)]
                total += log_p(tokens[:start] + block, place) / len(orders)
    return total


def test_the_model_is_scored_as_the_definition_says() -> None:
    model, plain = diffusion_model(ternary=False).double(), diffusion_model(ternary=False, attention="sdpa").double()
    scorer = Scorer(model, MASK_ID, BLOCK, num_samples=7, precision=torch.float64)
    for length in range(3, 6):
        found = scorer.score(CONTEXT[:length], CONTINUATION)
        assert found.standard_error == 0.0
        assert found.nats == pytest.approx(slow_bound(plain, CONTEXT[:length], CONTINUATION), abs=1e-4)


def test_sampled_scores_agree_with_the_enumerated_one_within_their_error_and_repeat() -> None:
    model = diffusion_model()
    exact = Scorer(model, MASK_ID, 8, num_samples=2**7).score(CONTEXT, CONTINUATION)
    assert exact.standard_error == 0.0
    sampled = [Scorer(model, MASK_ID, 8, num_samples=6, seed=seed).score(CONTEXT, CONTINUATION) for seed in range(40)]
    errors = [found.standard_error for found in sampled]
    assert min(errors) > 0.0
    mean = float(np.mean([found.nats for found in sampled]))
    assert abs(mean - exact.nats) < 4 * float(np.mean(errors)) / 40**0.5
    assert Scorer(model, MASK_ID, 8, num_samples=6, seed=3).score(CONTEXT, CONTINUATION) == sampled[3]


def test_a_greedy_continuation_is_recognised() -> None:
    model = diffusion_model()
    best = max(range(MASK_ID), key=lambda token: Scorer(model, MASK_ID, BLOCK).score(CONTEXT, [token]).nats)
    assert Scorer(model, MASK_ID, BLOCK).score(CONTEXT, [best]).is_greedy
    assert not Scorer(model, MASK_ID, BLOCK).score(CONTEXT, [(best + 1) % MASK_ID]).is_greedy


def test_many_samples_are_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = diffusion_model(ternary=False).double()
    wanted = Scorer(model, MASK_ID, BLOCK, num_samples=7, precision=torch.float64).score(CONTEXT, CONTINUATION)
    monkeypatch.setattr("wfray.diffusion.likelihood.ROW_TOKENS", 16)
    monkeypatch.setattr("wfray.diffusion.likelihood.LOGITS_ROWS", 2)
    found = Scorer(model, MASK_ID, BLOCK, num_samples=7, precision=torch.float64).score(CONTEXT, CONTINUATION)
    assert found.nats == pytest.approx(wanted.nats, abs=1e-4)


def test_what_a_gpu_runs_is_whole_tiles_and_scores_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, ran = Scorer(diffusion_model(), MASK_ID, BLOCK, num_samples=5), []
    context, continuation = list(range(10, 10 + 2 * BLOCK)), list(range(40, 40 + BLOCK + 3))
    wanted = scorer.score(context, continuation)

    def tiled(model: PreTrainedModel, row: Row) -> torch.Tensor:
        whole = whole_tiles(row)
        ran.append((len(row.blocks), flex_block_mask(whole.blocks).seq_lengths[0]))
        return run_row(model, whole)[: len(row.input_ids)]

    monkeypatch.setattr(likelihood, "run_row", tiled)
    found = scorer.score(context, continuation)
    assert found.nats == pytest.approx(wanted.nats, abs=1e-4) and found.standard_error == pytest.approx(wanted.standard_error, abs=1e-4)
    assert {num_blocks * BLOCK % TILE for num_blocks, _ in ran} != {0} and all(length % TILE == 0 for _, length in ran)


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(ValueError, match="the context is empty"):
        Scorer(diffusion_model(), MASK_ID, BLOCK).score([], [3])


@pytest.mark.parametrize("context", [CONTEXT, CONTEXT[:BLOCK]])
def test_nothing_is_certain(context: list[int]) -> None:
    """In the middle of a block, and at its end."""
    scorer = Scorer(diffusion_model(), MASK_ID, BLOCK)
    assert scorer.score(context, []) == Likelihood(0.0, 0.0, is_greedy=True)


def test_one_sample_is_refused_since_it_has_no_error() -> None:
    with pytest.raises(ValueError, match="samples 1 must be at least 2"):
        Scorer(diffusion_model(), MASK_ID, BLOCK, num_samples=1)
