"""Random generators in a checkpoint: captured, written as JSON, and set back to the number."""

import random

import numpy as np
import pytest
import torch

from wfray.train.state import RandomState, TrainingState


def draw() -> list[float]:
    numbers = [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]
    numbers += torch.rand(3).tolist() + torch.randperm(5).tolist()
    return numbers + (torch.rand(3, device="cuda").tolist() if torch.cuda.is_available() else [])


def test_the_same_numbers_follow_after_a_round_trip_through_json() -> None:
    draw()
    state = TrainingState(random=[RandomState.capture()])
    wanted = [draw() for _ in range(3)]
    written = state.model_dump_json(indent=2)
    read = TrainingState.model_validate_json(written)
    assert read == state
    for number in range(3):
        read.random[0].restore()
        assert [draw() for _ in range(3)] == wanted, number
    assert len(written) < 60_000


def test_a_gaussian_that_was_drawn_ahead_is_kept() -> None:
    random.gauss(0, 1), np.random.randn()
    state = RandomState.capture()
    wanted = random.gauss(0, 1), np.random.randn()
    draw()
    state.restore()
    assert (random.gauss(0, 1), np.random.randn()) == wanted


@pytest.mark.gpu
def test_the_state_of_the_gpu_is_part_of_it() -> None:
    assert RandomState.capture().torch_cuda is not None
