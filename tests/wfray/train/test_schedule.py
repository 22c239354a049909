"""Learning rates against the closed formulas of their schedules, and at points worked out by hand."""

import math

import pytest

from tests.wfray.train.conftest import config
from wfray.train.schedule import learning_rate_factor


def factors(num_steps: int, **schedule: float | str) -> list[float]:
    settings = config(schedule=schedule).train.schedule
    return [learning_rate_factor(settings, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.55]),
        ("cosine", [0.5, 1.0, 1.0, 0.9657, 0.8682, 0.7222, 0.55, 0.3778, 0.2318, 0.1343]),
    ],
)
def test_ten_steps_by_hand(shape: str, wanted: list[float]) -> None:
    found = factors(10, shape=shape, warmup_fraction=0.2, decay_fraction=0.2, final_fraction=0.1)
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("num_steps", "warmup", "floor"), [(1000, 0.02, 0.1), (777, 0.0, 0.0), (100, 0.5, 1.0)])
def test_the_cosine_is_half_a_period_between_peak_and_floor(num_steps: int, warmup: float, floor: float) -> None:
    found = factors(num_steps, shape="cosine", warmup_fraction=warmup, final_fraction=floor)
    first = math.ceil(warmup * num_steps)
    for step, factor in enumerate(found):
        angle = math.pi * (step - first) / (num_steps - first)
        wanted = (step + 1) / first if step < first else floor + 0.5 * (1 - floor) * (1 + math.cos(angle))
        assert factor == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("num_steps", "warmup", "decay", "floor"), [(1000, 0.01, 0.2, 0.1), (500, 0.0, 1.0, 0.0), (10, 0.3, 0.5, 0.0)])
def test_wsd_is_a_trapezium(num_steps: int, warmup: float, decay: float, floor: float) -> None:
    found = factors(num_steps, shape="wsd", warmup_fraction=warmup, decay_fraction=decay, final_fraction=floor)
    rising, falling = math.ceil(warmup * num_steps), math.ceil(decay * num_steps)
    assert found[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert set(found[rising : num_steps - falling + 1]) == {1.0}
    slopes = [later - earlier for earlier, later in zip(found[-falling:-1], found[-falling + 1 :], strict=True)]
    assert slopes == pytest.approx([-(1 - floor) / falling] * len(slopes))
    assert found[-1] == pytest.approx(floor + (1 - floor) / falling)
