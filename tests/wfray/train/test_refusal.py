"""Steps whose loss or gradient is not finite are refused: nothing moves, the stream goes on, three in a row end the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.wfray.train.conftest import STEP, Attempt, Killed, config
from wfray.data.corpus import PackedCorpus
from wfray.objectives import StageLoss

SETTINGS: dict[str, Any] = {
    "optimizer": {"kind": "muon_clip", "learning_rate": 1e-2, "tau": 2.0},
    "clipping": {"kind": "zclip", "warmup_steps": 2},
    "average": {"decay": 0.9},
}


class SpoiledLoss(StageLoss):
    """A loss that is not finite, or whose gradient is not, at some steps."""

    def __init__(self, loss: StageLoss, num_steps: int, steps: set[int], what: str) -> None:
        super().__init__(list(loss.objectives.values()), None, loss.dtype)
        self.num_steps, self.steps, self.what = num_steps, steps, what

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, float]]:
        loss, parts = super().forward(*args, **kwargs)
        progress = args[5]
        if round(progress * self.num_steps) + 1 not in self.steps:
            return loss, parts
        return (loss * torch.nan if self.what == "loss" else loss + 0.0 * (loss - loss.detach()).sqrt()), parts


def spoil(attempt: Attempt, steps: set[int], what: str = "loss") -> Attempt:
    attempt.trainer.loss = SpoiledLoss(attempt.trainer.loss, attempt.trainer.config.num_steps, steps, what)
    return attempt


def snapshot(attempt: Attempt) -> tuple[list[Tensor], str]:
    """Weights, moments and average; the rest of the state without the count of refused steps."""
    states = [value.clone() for state in attempt.trainer.optimizer.state.values() for value in state.values()]
    rest = attempt.trainer.state.model_copy(update={"num_refused": 0}).model_dump_json()
    return [parameter.detach().clone() for parameter in attempt.model.parameters()] + states, rest


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_refused_step_moves_nothing_and_the_stream_goes_on(corpus: PackedCorpus, tmp_path: Path, what: str) -> None:
    attempt = spoil(Attempt(corpus, tmp_path, config(**SETTINGS, checkpoint_every_tokens=10**9)), {5, 6, 8}, what)
    after: dict[int, tuple[list[Tensor], str]] = {}
    log = attempt.trainer.log

    def remember(**row: Any) -> None:
        after[row["step"]] = snapshot(attempt)
        log(**row)

    attempt.trainer.log = remember
    attempt.run()
    for step in (5, 6, 8):
        assert all(torch.equal(a, b) for a, b in zip(after[step][0], after[step - 1][0], strict=True))
        assert after[step][1] == after[step - 1][1]
    assert any(not torch.equal(a, b) for a, b in zip(after[7][0], after[6][0], strict=True))
    refused = {row["step"]: row["refused"] for row in attempt.rows if "refused" in row}
    assert refused.keys() == {5, 6, 8} and ("loss nan" in refused[5]) == (what == "loss") and "must be finite" in refused[5]
    assert len(attempt.rows) == 10 and attempt.trainer.state.num_refused == 0
    assert "loss" not in attempt.rows[4] and attempt.rows[4]["tokens"] == 5 * attempt.rows[0]["tokens"]


def test_the_third_in_a_row_ends_the_run_with_the_last_good_checkpoint(corpus: PackedCorpus, tmp_path: Path) -> None:
    attempt = spoil(Attempt(corpus, tmp_path, config()), {5, 6, 7})
    with pytest.raises(FloatingPointError, match=r"step 7: loss nan .* as in the 2 steps before; .*Last good checkpoint: .*step-00000006"):
        attempt.run()


def test_the_count_survives_a_restart(corpus: PackedCorpus, tmp_path: Path) -> None:
    killed = spoil(Attempt(corpus, tmp_path, config(), die_at=7), {5, 6})
    with pytest.raises(Killed):
        killed.run()
    resumed = spoil(Attempt(corpus, tmp_path, config()), {7, 8, 9})
    assert resumed.first_step == 6 and resumed.trainer.state.num_refused == 2
    with pytest.raises(FloatingPointError, match="step 7"):
        resumed.run()


def test_a_refused_step_is_repeated_to_the_bit(corpus: PackedCorpus, tmp_path: Path) -> None:
    whole = spoil(Attempt(corpus, tmp_path / "whole", config(**SETTINGS)), {4, 8})
    whole.run()
    killed = spoil(Attempt(corpus, tmp_path / "killed", config(**SETTINGS), die_at=5), {4, 8})
    with pytest.raises(Killed):
        killed.run()
    resumed = spoil(Attempt(corpus, tmp_path / "killed", config(**SETTINGS)), {4, 8})
    resumed.run()
    assert {**killed.figures(), **resumed.figures()} == whole.figures()


def test_a_stage_of_refused_steps_alone_is_no_success(corpus: PackedCorpus, tmp_path: Path) -> None:
    attempt = spoil(Attempt(corpus, tmp_path, config({"quantization": {}}, tokens=STEP, checkpoint_every_tokens=STEP)), {1})
    with pytest.raises(FloatingPointError, match="step 1: .*none, the stage starts from its parent"):
        attempt.run()
