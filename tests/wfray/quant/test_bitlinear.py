"""BitLinear against a slow reference written from the formulas of BitDistill (equations 1 to 3)."""

import pytest
import torch
from torch import Tensor, nn

from wfray.config.train import Quantization
from wfray.quant import BitLinear, fake_quantize_activations, hold_codes, int8, lambda_at, quantize_weight, release_codes, set_lambda


def reference_weight(weight: Tensor) -> Tensor:
    scale = weight.abs().sum() / weight.numel()
    return scale * torch.clamp(torch.round(weight / (scale + 1e-5)), -1, 1)


def reference_activations(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for index in range(x.shape[0]):
        largest = max(abs(value) for value in x[index].tolist())
        out[index] = largest / 127 * torch.clamp(torch.round(127 / (largest + 1e-5) * x[index]), -128, 127)
    return out


def straight_through(x: Tensor, quantized: Tensor, strength: float) -> Tensor:
    return x + strength * (quantized - x).detach()


@pytest.fixture
def layer() -> BitLinear:
    torch.manual_seed(0)
    return BitLinear(nn.Parameter(torch.randn(24, 40) * 0.1), nn.Parameter(torch.randn(24)), nn.RMSNorm(40, eps=1e-5))


def test_quantized_weights_are_ternary_and_follow_the_formula() -> None:
    weight = torch.randn(24, 40)
    codes, scale = quantize_weight(weight)
    assert set(codes.unique().tolist()) == {-1, 0, 1}
    torch.testing.assert_close(codes * scale, reference_weight(weight))


def test_quantized_activations_follow_the_formula_also_for_a_zero_token() -> None:
    x = torch.randn(7, 40) * torch.logspace(-3, 3, 7)[:, None]
    x[3] = 0
    torch.testing.assert_close(fake_quantize_activations(x), reference_activations(x))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_forward_and_gradients_equal_the_straight_through_reference(layer: BitLinear, strength: float) -> None:
    set_lambda(layer, strength)
    x = torch.randn(7, 40, requires_grad=True)
    grad_y = torch.randn(7, 24)
    y = layer(x)
    grads = torch.autograd.grad(y, [x, layer.weight, layer.bias, layer.norm.weight], grad_y, materialize_grads=True)

    normed = (1 - strength) * x + strength * torch.nn.functional.rms_norm(x, (40,), layer.norm.weight, 1e-5)
    wanted_y = (
        straight_through(normed, reference_activations(normed.detach()), strength)
        @ straight_through(layer.weight, reference_weight(layer.weight.detach()), strength).t()
        + layer.bias
    )
    wanted = torch.autograd.grad(wanted_y, [x, layer.weight, layer.bias, layer.norm.weight], grad_y)
    torch.testing.assert_close(y, wanted_y, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_gets_no_gradient_and_changes_no_other(layer: BitLinear) -> None:
    x = torch.randn(7, 40, requires_grad=True)
    layer(x).square().sum().backward()
    wanted = x.grad, layer.norm.weight.grad
    x.grad, layer.norm.weight.grad, layer.weight.grad = None, None, None
    layer.weight.requires_grad_(False)
    layer(x).square().sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(x.grad, wanted[0]) and torch.equal(layer.norm.weight.grad, wanted[1])


def test_without_lambda_it_is_the_linear_layer_that_it_was_made_of(layer: BitLinear) -> None:
    set_lambda(layer, 0.0)
    x = torch.randn(7, 40)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_codes_follow_every_optimizer_step(layer: BitLinear) -> None:
    optimizer = torch.optim.AdamW([layer.weight], lr=0.05, fused=True)
    for _ in range(3):
        before = layer.ternary_weight()[0].clone()
        layer(torch.randn(7, 40)).square().sum().backward()
        optimizer.step()
        torch.testing.assert_close(layer.ternary_weight()[0], quantize_weight(layer.weight)[0])
        assert not torch.equal(before, layer.ternary_weight()[0])


def test_held_codes_give_the_same_bits_until_they_are_released(layer: BitLinear) -> None:
    x = torch.randn(7, 40)
    fresh = layer(x)
    hold_codes(layer)
    assert torch.equal(layer(x), fresh)
    layer.weight.data.neg_()
    assert torch.equal(layer(x), fresh)
    release_codes(layer)
    assert not torch.equal(layer(x), fresh)


def test_no_codes_are_computed_where_lambda_is_0(layer: BitLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    set_lambda(layer, 0.0)
    x = torch.randn(7, 40)
    fresh = layer(x)
    monkeypatch.setattr("wfray.quant.bitlinear.quantize_weight", lambda weight: pytest.fail("quantized"))
    hold_codes(layer)
    assert torch.equal(layer(x), fresh)
    release_codes(layer)


def test_backward_keeps_int8_activations_only() -> None:
    layer = BitLinear(nn.Parameter(torch.randn(24, 40)))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(7, 40, requires_grad=True))
    per_token = [tensor for tensor in saved if tensor.ndim and tensor.shape[0] == 7]
    assert sum(tensor.numel() * tensor.element_size() for tensor in per_token) == 7 * 40 + 7 * 4


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "sigmoid"])
def test_lambda_rises_from_near_zero_to_exactly_one(schedule: str) -> None:
    quantization = Quantization(schedule=schedule, warmup_tokens=1000)  # type: ignore[arg-type]
    values = [lambda_at(quantization, tokens) for tokens in range(0, 1001, 50)]
    assert values == sorted(values)
    assert values[0] < 0.01 and values[-1] == 1.0
    assert lambda_at(Quantization(), 0) == 1.0


def test_lambda_outside_its_range_is_refused(layer: BitLinear) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        set_lambda(layer, 1.5)


@pytest.mark.parametrize("fast", [True, False])
def test_both_integer_products_are_exact(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "CPU_MULTIPLIES_INT8", fast)
    codes_TC = torch.randint(-127, 128, (40, 12_288), dtype=torch.int8)
    codes_DC = torch.randint(-1, 2, (24, 12_288), dtype=torch.int8)
    codes_TC[0], codes_DC[0] = 127, 1
    exact = codes_TC.long() @ codes_DC.long().t()
    found = int8.int8_matmul(codes_TC, codes_DC)
    assert found.dtype == torch.int32 and torch.equal(found.long(), exact)
