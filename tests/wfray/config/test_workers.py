"""Numbers of workers: fixed or elastic, what they must divide, and that they are no part of what a stage is."""

from typing import Any

import pytest

from wfray.config.train import TeacherUse, TrainConfig


def config(**train: Any) -> TrainConfig:
    tree = {
        "run": "unused",
        "stage": "pretrain",
        "student": "unused",
        "objectives": [{"kind": "cross_entropy"}],
        "train": {"tokens": 9600, "batch_tokens": 960, "micro_rows": 2, "checkpoint_every_tokens": 960, **train},
    }
    tree["train"].setdefault("optimizer", {"learning_rate": 1e-3})
    return TrainConfig.parse(tree, "test")


def test_a_range_of_workers_is_read_and_counted() -> None:
    assert list(config(num_workers=[1, 4]).train.possible_workers) == [1, 2, 3, 4]
    assert list(config().train.possible_workers) == [1]


def test_a_stage_goes_on_with_another_number_of_workers() -> None:
    assert config(num_workers=4).digest() == config(num_workers=[1, 2]).digest() == config(max_failures=9).digest()


def test_a_stage_that_ran_out_of_memory_or_patience_goes_on_with_what_its_message_says() -> None:
    """Micro-batches and recomputation change the last bits at most, waiting for the teacher not even these."""
    assert config(micro_rows=1).digest() == config(gradient_checkpointing=True).digest() == config().digest()
    teachers = [TeacherUse(), TeacherUse(timeout_seconds=600), TeacherUse(in_flight=8)]
    assert len({teacher.digest() for teacher in teachers}) == 1 and TeacherUse(application="other").digest() != teachers[0].digest()
    assert config(batch_tokens=480).digest() != config().digest()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_workers": [6, 7]}, r"960 tokens .* micro-batches of 2 rows on 7 workers: .* x 42, for train.num_workers of 6 to 7"),
        ({"num_workers": 9}, r"960 tokens .* on 9 workers: .* x 9, for train.num_workers of 9"),
        ({"num_workers": [4, 1]}, r"num_workers \(4, 1\) must be a number or \[least, most\]"),
        ({"num_workers": 0}, "greater than 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**wrong)
