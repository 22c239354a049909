"""The weights' moving average: its closed form, and that the student gets it while checkpoints keep the weights themselves."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.wfray.train.conftest import Attempt, Killed, config
from wfray.data.corpus import PackedCorpus


def weights_of(attempt: Attempt) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in attempt.model.parameters()]


def test_the_student_is_the_average_of_the_weights_of_all_steps(corpus: PackedCorpus, tmp_path: Path) -> None:
    plain = Attempt(corpus, tmp_path / "plain", config())
    history = [weights_of(plain)]
    plain.trainer.log = lambda **row: history.append(weights_of(plain))
    plain.run()
    decay, num_steps = 0.8, len(history) - 1
    averaged = Attempt(corpus, tmp_path / "averaged", config(average={"decay": decay}))
    losses = averaged.run()
    assert losses.keys() == set(range(1, num_steps + 1)), "training itself goes on with the weights"
    shares = [decay**num_steps] + [(1 - decay) * decay ** (num_steps - step) for step in range(1, num_steps + 1)]
    for number, found in enumerate(averaged.model.parameters()):
        wanted = sum(share * weights[number].double() for share, weights in zip(shares, history, strict=True))
        torch.testing.assert_close(found.detach().double(), wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(averaged.trainer.optimizer.state[found]["average"], history[-1][number])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_checkpoint_holds_the_weights_and_the_average(corpus: PackedCorpus, tmp_path: Path, kind: str) -> None:
    settings = config(average={"decay": 0.8}, optimizer={"kind": kind, "learning_rate": 1e-2})
    killed = Attempt(corpus, tmp_path, settings, die_at=4)
    seen: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    log = killed.trainer.log

    def remember(**row: int) -> None:
        seen[row["step"]] = (weights_of(killed), [killed.trainer.optimizer.state[p]["average"].clone() for p in killed.model.parameters()])
        log(**row)

    killed.trainer.log = remember
    with pytest.raises(Killed):
        killed.run()
    resumed = Attempt(corpus, tmp_path, settings)
    weights, averages = seen[3]
    for parameter, weight, average in zip(resumed.model.parameters(), weights, averages, strict=True):
        assert torch.equal(parameter, weight) and torch.equal(resumed.trainer.optimizer.state[parameter]["average"], average)
        assert not torch.equal(weight, average)
