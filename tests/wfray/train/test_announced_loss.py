"""A machine is about to be taken away: a checkpoint at once, and not a step lost."""

from itertools import chain, repeat
from pathlib import Path

import pytest

from tests.wfray.train.conftest import Attempt, Killed, config
from wfray.data.corpus import PackedCorpus


def test_a_checkpoint_is_written_at_the_step_of_the_notice_once(corpus: PackedCorpus, tmp_path: Path) -> None:
    whole = Attempt(corpus, tmp_path / "whole", config()).run()
    warned = Attempt(corpus, tmp_path / "warned", config(checkpoint_every_tokens=10**9), die_at=8)
    warned.trainer.announced_losses = chain([0, 0, 0, 0], repeat(1)).__next__
    with pytest.raises(Killed):
        warned.run()
    assert [path.name for path in (tmp_path / "warned" / "checkpoints").iterdir()] == ["step-00000005"]

    resumed = Attempt(corpus, tmp_path / "warned", config(checkpoint_every_tokens=10**9))
    losses = resumed.run()
    assert resumed.first_step == 5 and losses == {step: loss for step, loss in whole.items() if step > 5}


def test_a_second_machine_makes_a_second_checkpoint(corpus: PackedCorpus, tmp_path: Path) -> None:
    attempt = Attempt(corpus, tmp_path, config(checkpoint_every_tokens=10**9), die_at=9)
    attempt.trainer.announced_losses = chain([0, 0, 1, 1, 1, 2], repeat(2)).__next__
    with pytest.raises(Killed):
        attempt.run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]
