"""On a GPU: training, scores and served answers are those of the CPU."""

import pytest
import torch
from torch import Tensor

from tests.wfray.diffusion.conftest import BLOCK, MASK_ID, diffusion_model, packed_batch
from tests.wfray.diffusion.test_decode import PROMPTS, decoder
from wfray.diffusion.forward import DiffusionForward
from wfray.diffusion.likelihood import Scorer
from wfray.diffusion.student import prepare_for_inference
from wfray.quant import hold_codes, set_lambda

pytestmark = pytest.mark.gpu
LONGER = [[(3, 7), (1, 2), (9, 30)], [(2, 6), (0, 11)]]


BATCHES = [packed_batch(), packed_batch(LONGER, length=60)]


def trained(batch: dict[str, Tensor], device: str, precision: torch.dtype, strength: float) -> tuple[Tensor, list[Tensor]]:
    """The states that predict, and the gradients of all weights for the mean of their products with fixed numbers."""
    model = diffusion_model(ternary=True)
    torch.nn.Module.to(model, device)
    set_lambda(model, strength)
    forward = DiffusionForward(seed=0, block_size=BLOCK, mask_id=MASK_ID)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        hidden_BSC = forward(model, batch).hidden_BTC
    weights_BSC = torch.randn(hidden_BSC.shape, generator=torch.Generator().manual_seed(0)).to(device)
    (hidden_BSC.float() * weights_BSC).mean().backward()
    return hidden_BSC.detach().float().cpu(), [weight.grad.cpu() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 6e-2)])
def test_training_computes_what_it_does_on_a_cpu(
    batch: dict[str, Tensor], strength: float, precision: torch.dtype, tolerance: float
) -> None:
    wanted, wanted_gradients = trained(batch, "cpu", torch.float32, strength)
    found, gradients = trained(batch, "cuda", precision, strength)
    assert (found - wanted).norm() < tolerance * wanted.norm()
    assert len(gradients) == len(wanted_gradients)
    whole, whole_wanted = (torch.cat([gradient.flatten() for gradient in each]) for each in (gradients, wanted_gradients))
    assert (whole - whole_wanted).norm() < 2 * tolerance * whole_wanted.norm()


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("dual_cache", [False, True])
def test_answers_are_those_of_a_cpu(ternary: bool, dual_cache: bool) -> None:
    answers = []
    for device in ("cpu", "cuda"):
        model = diffusion_model(ternary=ternary)
        prepare_for_inference(model, torch.float32, device)
        answers.append(decoder(model, threshold=0.1, sub_block_size=2, dual_cache=dual_cache).generate(PROMPTS))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("ternary", [False, True])
def test_scores_are_those_of_a_cpu(ternary: bool) -> None:
    scores = []
    for device in ("cpu", "cuda"):
        model = diffusion_model(ternary=ternary)
        torch.nn.Module.to(model, device)
        hold_codes(model)
        scores.append(Scorer(model, MASK_ID, BLOCK, num_samples=8).score([5, 9, 2, 8, 3], [7, 1, 4, 44, 6, 13]))
    assert scores[1].nats == pytest.approx(scores[0].nats, rel=1e-3)
    assert scores[1].standard_error == pytest.approx(scores[0].standard_error, rel=1e-2)
