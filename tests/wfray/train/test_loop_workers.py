"""The whole loop on two workers with everything on: what one worker computes, and restarts to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.wfray.train.conftest import STEP, Attempt, Killed, config
from tests.wfray.train.workers import run_workers
from wfray.data.corpus import PackedCorpus

EVERYTHING: dict[str, Any] = {
    "optimizer": {"kind": "muon_clip", "learning_rate": 1e-3, "tau": 2.0, "scope": "head"},
    "clipping": {"kind": "zclip", "warmup_steps": 2, "threshold": 0.01},
    "average": {"decay": 0.9},
    "early_stopping": {"kind": "heldout", "every_tokens": STEP, "rows_per_source": 2, "patience": 3},
    "precision": "float32",
    "tokens": 6 * STEP,
    "checkpoint_every_tokens": 2 * STEP,
}


Figures = dict[int, dict[str, Any]]


def train(corpus: Path, directory: Path, micro_rows: int, num_steps: int = 6) -> tuple[Figures, list[Tensor]]:
    """Train until `num_steps` steps were taken; every step's figures and, at the stage's end, the student's weights."""
    settings = config({"quantization": {}}, micro_rows=micro_rows, **EVERYTHING)
    attempt = Attempt(PackedCorpus(corpus), directory, settings)

    def die(*unused: Any) -> None:
        if len(taken) == num_steps:
            raise Killed
        taken.append(None)

    taken: list[None] = []
    attempt.trainer.optimizer.register_step_pre_hook(die)
    try:
        attempt.run()
    except Killed:
        return attempt.figures(), []
    attempt.trainer.replica.gather()
    return attempt.figures(), [parameter.detach() for parameter in attempt.model.parameters()]


def test_two_workers_take_the_steps_of_one(corpus: PackedCorpus, tmp_path: Path) -> None:
    alone, _ = train(corpus.directory, tmp_path / "alone", micro_rows=8)
    [(both, weights), (_, other)] = run_workers(2, train, tmp_path / "answers", corpus.directory, tmp_path / "both", 4)
    assert all(torch.equal(a, b) for a, b in zip(weights, other, strict=True))
    for name in ("loss", "gradient_norm", "clipped_norm", "attention_logit", "heldout_loss"):
        assert both[1][name] == pytest.approx(alone[1][name], rel=1e-4), name
        assert [row[name] for row in both.values()] == pytest.approx([row[name] for row in alone.values()], rel=0.05), name
    assert alone[1]["attention_logit"] > 2.0, "QK-clip had something to do"
    assert any(row["clipped_norm"] < row["gradient_norm"] for row in alone.values()), "and so had ZClip"


def test_two_workers_go_on_to_the_bit_after_a_crash(corpus: PackedCorpus, tmp_path: Path) -> None:
    whole = run_workers(2, train, tmp_path / "1", corpus.directory, tmp_path / "whole", 4)
    killed = run_workers(2, train, tmp_path / "2", corpus.directory, tmp_path / "killed", 4, 3)
    resumed = run_workers(2, train, tmp_path / "3", corpus.directory, tmp_path / "killed", 4)
    assert list(killed[0][0]) == [1, 2, 3] and list(resumed[0][0]) == [3, 4, 5, 6]
    assert {**killed[0][0], **resumed[0][0]} == whole[0][0]
    assert all(torch.equal(a, b) for a, b in zip(whole[1][1], resumed[1][1], strict=True))
