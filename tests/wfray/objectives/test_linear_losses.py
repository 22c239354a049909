"""The chunked losses against logits formed at once, and the memory that they promise not to take."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wfray.objectives.linear_losses import TeacherHead, cross_entropy_chunk, linear_losses

NUM_TOKENS, WIDTH, VOCABULARY = 300, 16, 500
CHUNK = 4 * VOCABULARY * 37
"""37 tokens, so that the last chunk is not whole."""


@pytest.fixture
def case() -> dict[str, Tensor]:
    """Every seventh token has no target."""
    torch.manual_seed(0)
    targets = torch.randint(0, VOCABULARY, (NUM_TOKENS,))
    targets[::7] = -100
    return {
        "hidden": torch.randn(NUM_TOKENS, WIDTH, requires_grad=True),
        "head": torch.randn(VOCABULARY, WIDTH, requires_grad=True),
        "targets": targets,
        "teacher_hidden": torch.randn(NUM_TOKENS, WIDTH),
        "teacher_head": torch.randn(VOCABULARY, WIDTH),
    }


def plain(case: dict[str, Tensor], temperature: float, tau_squared: bool) -> tuple[Tensor, Tensor]:
    keep = case["targets"] != -100
    logits, teacher = case["hidden"] @ case["head"].t(), case["teacher_hidden"] @ case["teacher_head"].t()
    ce = F.cross_entropy(logits[keep], case["targets"][keep])
    p, q = (teacher[keep] / temperature).softmax(-1), (logits[keep] / temperature).softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean()
    return ce, kl * (temperature**2 if tau_squared else 1.0)


@pytest.mark.parametrize(("ce_weight", "kl_weight"), [(1.0, 0.0), (0.0, 1.0), (0.7, 1.3)])
@pytest.mark.parametrize(("temperature", "tau_squared"), [(1.0, True), (5.0, True), (5.0, False)])
def test_values_and_gradients_equal_the_plain_ones(
    case: dict[str, Tensor], ce_weight: float, kl_weight: float, temperature: float, tau_squared: bool
) -> None:
    teacher = TeacherHead(case["teacher_hidden"], case["teacher_head"], temperature, tau_squared)
    num_targets = int((case["targets"] != -100).sum())
    losses = linear_losses(
        case["hidden"],
        case["head"],
        case["targets"],
        num_targets,
        ce_weight=ce_weight,
        kl_weight=kl_weight,
        teacher=teacher,
        chunk_bytes=CHUNK,
    )
    ours = torch.autograd.grad(3.0 * losses.total, [case["hidden"], case["head"]])
    ce, kl = plain(case, temperature, tau_squared)
    wanted = torch.autograd.grad(3.0 * (ce_weight * ce + kl_weight * kl), [case["hidden"], case["head"]])
    torch.testing.assert_close(losses.total, ce_weight * ce + kl_weight * kl)
    if ce_weight:
        assert losses.cross_entropy == pytest.approx(ce.item(), rel=1e-5)
    if kl_weight:
        assert losses.logits_kl == pytest.approx(kl.item(), rel=1e-4)
    for gradient, reference in zip(ours, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)


def test_a_batch_cut_in_two_gives_the_same_sum(case: dict[str, Tensor]) -> None:
    num_targets = int((case["targets"] != -100).sum())
    whole = linear_losses(case["hidden"], case["head"], case["targets"], num_targets, ce_weight=1.0, chunk_bytes=CHUNK).total
    halves = [
        linear_losses(case["hidden"][part], case["head"], case["targets"][part], num_targets, ce_weight=1.0, chunk_bytes=CHUNK).total
        for part in (slice(0, 100), slice(100, None))
    ]
    torch.testing.assert_close(sum(halves), whole)


def test_no_tensor_of_tokens_by_vocabulary_is_ever_made(case: dict[str, Tensor]) -> None:
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    teacher = TeacherHead(case["teacher_hidden"], case["teacher_head"])
    with Watch():
        losses = linear_losses(
            case["hidden"], case["head"], case["targets"], 250, ce_weight=1.0, kl_weight=1.0, teacher=teacher, chunk_bytes=CHUNK
        )
        losses.total.backward()
    assert 0 < largest <= 37 * VOCABULARY < NUM_TOKENS * VOCABULARY / 8


def test_chunk_of_cross_entropy_keeps_certain_predictions_exact() -> None:
    logits = torch.full((2, 5), -100.0)
    logits[0, 1] = logits[1, 4] = 100.0
    total, slope = cross_entropy_chunk(logits, torch.tensor([1, 4]))
    assert total.item() == 0.0
    assert slope.abs().max() == 0.0
