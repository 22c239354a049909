"""Compensated rounding against slow versions of its steps."""

import pytest
import torch
from torch import Tensor

from wfray.quant import fake_quantize_activations, quantize_weight
from wfray.quant.compensated import Compensation, Moments, settle

NUM_FEATURES, NUM_OUTPUTS, NUM_TOKENS = 70, 12, 400


@pytest.fixture
def inputs() -> Tensor:
    """Correlated features of unequal energy, [T, C]; more of them than one block of columns."""
    torch.manual_seed(0)
    mixing = torch.randn(NUM_FEATURES, NUM_FEATURES) * torch.logspace(0, -1, NUM_FEATURES)
    return torch.randn(NUM_TOKENS, NUM_FEATURES) @ mixing


@pytest.fixture
def weight() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(NUM_OUTPUTS, NUM_FEATURES) * 0.1


def moments_of(x: Tensor, y: Tensor, importance: Tensor | None = None) -> Moments:
    moments = Moments(x.shape[1], y.shape[1])
    moments.add(x, y, torch.ones(len(x), 1) if importance is None else importance)
    return moments


def slowly_rounded(weight: Tensor, inputs_CC: Tensor, scale: float, damping: float) -> Tensor:
    """GPTQ as the paper derives it: after each column the optimal change of all left, with the inverse of what is left of H."""
    left = weight.double().clone()
    hessian = inputs_CC.double() + damping * inputs_CC.diagonal().mean().double() * torch.eye(len(inputs_CC)).double()
    remaining = inputs_CC.diagonal().argsort(descending=True).tolist()
    codes = torch.zeros_like(left)
    while remaining:
        column, rest = remaining[0], remaining[1:]
        inverse = torch.linalg.inv(hessian[remaining][:, remaining])
        codes[:, column] = (left[:, column] / scale).round().clamp(-1, 1)
        error = left[:, column] - codes[:, column] * scale
        left[:, rest] -= error[:, None] * inverse[0, 1:] / inverse[0, 0]
        remaining = rest
    return codes


def test_rounding_is_that_of_the_paper(inputs: Tensor, weight: Tensor) -> None:
    moments = moments_of(inputs, inputs @ weight.T)
    codes, _ = Compensation(moments.inputs_CC, ridge=0.0, damping=0.02).round(weight, torch.full((NUM_OUTPUTS,), 0.08))
    wanted = slowly_rounded(weight, moments.inputs_CC, 0.08, damping=0.02)
    assert (codes != wanted).float().mean() < 0.01, "float32 may round a tie the other way"


def test_moments_of_half_precision_inputs_are_exact() -> None:
    """One feature a hundred times as strong as the rest, and a common part, as the inputs of an o_proj have them."""
    torch.manual_seed(0)
    x = (torch.randn(NUM_TOKENS, NUM_FEATURES) + 3 * torch.randn(NUM_TOKENS, 1)) * torch.tensor([100.0] + [1.0] * (NUM_FEATURES - 1))
    x, y = x.bfloat16(), torch.randn(NUM_TOKENS, NUM_OUTPUTS).bfloat16()
    moments = moments_of(x, y)
    exact = fake_quantize_activations(x.float()).double()
    norms_C = exact.norm(dim=0)
    assert ((moments.inputs_CC - exact.T @ exact) / norms_C.outer(norms_C)).abs().max() < 1e-6
    assert ((moments.cross_DC - y.double().T @ exact) / y.double().norm(dim=0).outer(norms_C)).abs().max() < 1e-6


def test_refit_is_ridge_regression(inputs: Tensor, weight: Tensor) -> None:
    y = inputs @ weight.T + torch.randn(NUM_TOKENS, NUM_OUTPUTS)
    moments = moments_of(inputs, y)
    strength = (0.1 * moments.inputs_CC.diagonal().mean()).sqrt()
    stacked_inputs = torch.cat([fake_quantize_activations(inputs), strength * torch.eye(NUM_FEATURES)])
    wanted = torch.linalg.lstsq(stacked_inputs.double(), torch.cat([y, strength * weight.T]).double()).solution.T
    fitted = Compensation(moments.inputs_CC, ridge=0.1, damping=0.01).refit(weight, moments.cross_DC)
    torch.testing.assert_close(fitted, wanted.float(), rtol=1e-3, atol=1e-4)


def test_important_tokens_weigh_as_if_they_came_more_often(inputs: Tensor, weight: Tensor) -> None:
    y = inputs @ weight.T
    importance = torch.ones(NUM_TOKENS, 1)
    importance[:10] = 2.0
    often = moments_of(torch.cat([inputs, *[inputs[:10]] * 3]), torch.cat([y, *[y[:10]] * 3]))
    once = moments_of(inputs, y, importance)
    torch.testing.assert_close(once.inputs_CC, often.inputs_CC, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(once.cross_DC, often.cross_DC, rtol=1e-4, atol=1e-2)


def test_outputs_are_nearer_than_those_of_plain_rounding(inputs: Tensor, weight: Tensor) -> None:
    """On inputs that were not calibrated on."""
    known, fresh = inputs[:300], inputs[300:]
    moments = moments_of(known, known @ weight.T)
    (latent,) = Compensation(moments.inputs_CC, ridge=0.01, damping=0.01).latents([weight], [moments.cross_DC])

    def error(latent: Tensor) -> float:
        codes, scale = quantize_weight(latent)
        y = fresh @ weight.T
        return ((fake_quantize_activations(fresh) @ (codes * scale).T - y).square().sum() / y.square().sum()).item()

    assert error(latent) < 0.5 * error(weight)


@pytest.mark.parametrize("shift", [0.0, 3.0, -0.9])
def test_plain_rounding_of_settled_weights_gives_the_codes_and_the_scale(shift: float) -> None:
    torch.manual_seed(2)
    scale = torch.tensor(0.07)
    weight = torch.randn(50, 60) * 0.07 * (1 + shift)
    codes = torch.randint(-1, 2, (50, 60)).float() if shift < 0 else (weight / scale).round().clamp(-1, 1)
    found_codes, found_scale = quantize_weight(settle(codes, weight, scale))
    assert torch.equal(found_codes.float(), codes)
    torch.testing.assert_close(found_scale, scale, rtol=1e-5, atol=0.0)


def test_settling_leaves_weights_whose_mean_is_the_scale_where_they_are() -> None:
    weight = torch.tensor([[0.1, -0.2, 1.7, -2.0]])
    torch.testing.assert_close(settle(weight.round().clamp(-1, 1), weight, torch.tensor(1.0)), weight)


def test_the_result_is_the_same_to_the_bit(inputs: Tensor, weight: Tensor) -> None:
    moments = [moments_of(inputs, inputs @ weight.T) for _ in range(2)]
    first, second = (Compensation(each.inputs_CC, 0.05, 0.05).latents([weight], [each.cross_DC])[0] for each in moments)
    assert torch.equal(first, second)


def test_matrices_of_the_same_inputs_are_rounded_each_with_its_own_scale(inputs: Tensor, weight: Tensor) -> None:
    moments = moments_of(inputs, inputs @ weight.T)
    compensation = Compensation(moments.inputs_CC, 0.05, 0.05)
    small, large = [weight[:5], moments.cross_DC[:5]], [30 * weight[5:], 30 * moments.cross_DC[5:]]
    together = compensation.latents([small[0], large[0]], [small[1], large[1]])
    apart = [compensation.latents([matrix], [cross])[0] for matrix, cross in (small, large)]
    for ours, theirs in zip(together, apart, strict=True):
        assert torch.equal(quantize_weight(ours)[0], quantize_weight(theirs)[0])
        torch.testing.assert_close(quantize_weight(ours)[1], quantize_weight(theirs)[1])


def test_inputs_of_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match="all zero; calibrate with more or other text"):
        Compensation(torch.zeros(4, 4), ridge=0.05, damping=0.05)


def test_wanted_outputs_that_no_codes_answer_to_are_refused(inputs: Tensor, weight: Tensor) -> None:
    moments = moments_of(inputs, inputs @ weight.T)
    with pytest.raises(ValueError, match="no scale for a matrix"):
        Compensation(moments.inputs_CC, ridge=1e9, damping=0.05).latents([weight], [-moments.cross_DC])
