"""What the manifest says of a training stage."""

from typing import Any

from jobs.training import summary


def row(step: int, **figures: Any) -> dict[str, Any]:
    pace = {"tokens_per_second": 100.0 + step, "data_wait_fraction": 0.01 * step, "teacher_wait_fraction": 0.5}
    return {"step": step, "tokens": 128 * step, **pace, **figures}


def test_the_figures_of_a_stage() -> None:
    found = summary([row(1, loss=3.0), row(2, loss=2.5), row(3, loss=2.0)])
    assert found == {
        "tokens": 384,
        "steps": 3,
        "first_loss": 3.0,
        "last_loss": 2.0,
        "refused_steps": 0,
        "tokens_per_second": 102.0,
        "data_wait_fraction": 0.03,
        "teacher_wait_fraction": 0.5,
    }


def test_refused_steps_are_counted_and_have_no_loss() -> None:
    found = summary([row(1, refused="step 1: loss nan"), row(2, loss=2.5), row(3, refused="step 3: loss inf")])
    assert (found["refused_steps"], found["first_loss"], found["last_loss"]) == (2, 2.5, 2.5)


def test_a_stage_that_ended_early_says_why() -> None:
    assert summary([row(1, loss=3.0), row(2, loss=2.5, stopped="no improvement")])["stopped"] == "no improvement"
