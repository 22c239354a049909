"""Layer-wise alignment against the formula of OneBit, token by token."""

import pytest
import torch

from wfray.config.train import Ramp
from wfray.objectives import alignment_loss
from wfray.objectives.alignment import layer_weights
from wfray.objectives.ramp import ramp_at


@pytest.mark.parametrize("kind", ["progressive", "uniform"])
def test_the_loss_equals_the_formula(kind: str) -> None:
    torch.manual_seed(0)
    student, teacher = ([torch.randn(2, 3, 5) for _ in range(4)] for _ in range(2))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    wanted = 0.0
    for index in range(4):
        a = (index + 1) / 10 if kind == "progressive" else 1 / 4
        for row, column in mask.nonzero().tolist():
            s, t = student[index][row, column], teacher[index][row, column]
            wanted += a * (s / s.norm() - t / t.norm()).square().sum().item()
    assert alignment_loss(student, teacher, mask, 3, kind).item() == pytest.approx(wanted / 3, rel=1e-5)
    assert sum(layer_weights(kind, 4)) == pytest.approx(1.0)


def test_a_teacher_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a teacher of the student's shape: 2 layers"):
        alignment_loss([torch.zeros(1, 1, 4)], [torch.zeros(1, 1, 4)] * 2, torch.ones(1, 1), 1, "uniform")


def test_ramps_start_and_end_where_they_say() -> None:
    assert [ramp_at(Ramp(start=0.5, end=0.0, shape="cosine"), p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 0.25, 0.0])
    assert ramp_at(Ramp(start=0.0, end=2.0, shape="linear"), 0.25) == 0.5
    assert ramp_at(3.0, 0.7) == 3.0
