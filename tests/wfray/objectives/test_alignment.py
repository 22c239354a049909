"""Layer-wise alignment against the formula of OneBit, token by token."""

import math

import pytest
import torch
from torch import Tensor

from wfray.config.objectives import Alignment, Ramp
from wfray.objectives import alignment_loss
from wfray.objectives.alignment import layer_weights
from wfray.objectives.ramp import ramp_at

WEIGHTS = {
    "progressive": [0.1, 0.2, 0.3, 0.4],
    "uniform": [0.25] * 4,
    "exponential": [math.exp(index / 2) / sum(math.exp(other / 2) for other in range(4)) for index in range(4)],
    "list": [0.5, 0.0, 0.0, 0.5],
}


def distance(s: Tensor, t: Tensor, kind: str) -> float:
    if kind == "mse":
        return ((s - t).square().sum() / len(s)).item()
    if kind == "cosine":
        return (1 - s @ t / (s.norm() * t.norm())).item()
    return (s / s.norm() - t / t.norm()).square().sum().item()


@pytest.mark.parametrize("kind", ["normalized_mse", "mse", "cosine"])
@pytest.mark.parametrize("layers", list(WEIGHTS))
def test_the_loss_equals_the_formula(layers: str, kind: str) -> None:
    torch.manual_seed(0)
    student, teacher = ([torch.randn(2, 3, 5) for _ in range(4)] for _ in range(2))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    wanted = 0.0
    for a, ours, theirs in zip(WEIGHTS[layers], student, teacher, strict=True):
        wanted += sum(a * distance(ours[row, column], theirs[row, column], kind) for row, column in mask.nonzero().tolist())
    given = [2.0, 0.0, 0.0, 2.0] if layers == "list" else layers
    assert alignment_loss(student, teacher, mask, 3, given, kind).item() == pytest.approx(wanted / 3, rel=1e-5)
    assert layer_weights(given, 4) == pytest.approx(WEIGHTS[layers])


def test_a_list_of_another_length_or_of_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match="alignment.layers lists 3 weights, the models have 4 layers"):
        layer_weights([1.0, 2.0, 3.0], 4)
    with pytest.raises(ValueError, match="at least one weight above 0"):
        Alignment(kind="alignment", layers=[0.0, 0.0])


def test_a_teacher_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a teacher of the student's shape: 2 layers"):
        alignment_loss([torch.zeros(1, 1, 4)], [torch.zeros(1, 1, 4)] * 2, torch.ones(1, 1), 1, "uniform")


def test_ramps_start_and_end_where_they_say() -> None:
    assert [ramp_at(Ramp(start=0.5, end=0.0, shape="cosine"), p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 0.25, 0.0])
    assert ramp_at(Ramp(start=0.0, end=2.0, shape="linear"), 0.25) == 0.5
    assert ramp_at(3.0, 0.7) == 3.0
