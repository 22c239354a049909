"""ZClip against a slow reference that recomputes its statistics from the whole history, and what reaches the gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from wfray.config.optimizer import FixedClipping, ZClip
from wfray.train.clipping import Clipper, ClippingState, global_norm


def parameters_with_norm(norm: float) -> list[nn.Parameter]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
    gradients = torch.randn(17)
    gradients *= norm / gradients.norm()
    parameters[0].grad, parameters[1].grad = gradients[:12].view(3, 4).clone(), gradients[12:].clone()
    return parameters


def norms_with_spikes() -> list[float]:
    generator = np.random.default_rng(0)
    norms = generator.lognormal(0.0, 0.2, size=120)
    norms[[3, 40, 41, 80]] *= [3.0, 5.0, 30.0, 2.5]
    return norms.tolist()


def slow_zclip(norms: list[float], config: ZClip) -> list[float]:
    """What is left of each norm; mean and variance are written out as weighted sums over everything so far."""
    left: list[float] = []
    first = norms[: config.warmup_steps]
    mean_0, variance_0 = float(np.mean(first)), float(np.var(first))
    means: list[float] = []
    for step, norm in enumerate(norms):
        if step < config.warmup_steps:
            left.append(norm)
            continue
        seen = left[config.warmup_steps :]
        ages = np.arange(len(seen))[::-1]
        faded = config.decay ** len(seen)
        mean = faded * mean_0 + (1 - config.decay) * sum(config.decay**ages * seen) if seen else mean_0
        squares = [(value - later) ** 2 for value, later in zip(seen, means, strict=True)]
        variance = faded * variance_0 + (1 - config.decay) * sum(config.decay**ages * squares) if seen else variance_0
        z = (norm - mean) / (variance**0.5 + 1e-6)
        kept = norm if z <= config.threshold else mean + config.threshold / (z / config.threshold) * variance**0.5
        left.append(kept)
        means.append(config.decay * mean + (1 - config.decay) * kept)
    return left if config.max_norm is None else [min(norm, config.max_norm) for norm in left]


@pytest.mark.parametrize("settings", [{}, {"threshold": 2.0, "decay": 0.9, "warmup_steps": 10}, {"max_norm": 1.1}])
def test_zclip_agrees_with_the_slow_reference(settings: dict[str, float]) -> None:
    config, norms = ZClip(**settings), norms_with_spikes()  # type: ignore[arg-type]
    clipper = Clipper(config, ClippingState())
    left = [clipper.clip(parameters_with_norm(norm), norm) for norm in norms]
    assert left == pytest.approx(slow_zclip(norms, config), rel=1e-9)
    assert left[40] < 0.5 * norms[40] and left[41] < 0.1 * norms[41]
    assert (left[3] == norms[3]) == (config.max_norm is None), "nothing is an outlier in the warm-up"


def test_the_state_goes_on_after_a_round_trip_through_json() -> None:
    norms, config = norms_with_spikes(), ZClip()
    for cut in (10, 25, 60):
        whole, state = Clipper(config, ClippingState()), ClippingState()
        wanted = [whole.clip(parameters_with_norm(norm), norm) for norm in norms]
        first = Clipper(config, state)
        found = [first.clip(parameters_with_norm(norm), norm) for norm in norms[:cut]]
        second = Clipper(config, ClippingState.model_validate_json(state.model_dump_json()))
        assert found + [second.clip(parameters_with_norm(norm), norm) for norm in norms[cut:]] == wanted


@pytest.mark.parametrize(("norm", "left"), [(0.5, 0.5), (2.0, 2.0), (8.0, 2.0)])
def test_the_gradients_have_the_norm_that_is_returned(norm: float, left: float) -> None:
    parameters = parameters_with_norm(norm)
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    assert global_norm(parameters) == pytest.approx(norm)
    assert Clipper(FixedClipping(max_norm=2.0), ClippingState()).clip(parameters, norm) == left
    assert global_norm(parameters) == pytest.approx(left)
    for parameter, gradient in zip(parameters, before, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient * (left / norm))
